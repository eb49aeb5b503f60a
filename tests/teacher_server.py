"""A server that speaks the chat-completions protocol over loopback, with faults on request; run as a process.

    python teacher_server.py LOG [--plan FAULT,FAULT,...] [--delay SECONDS]

Prints its port. LOG gets a line for each request: the hash of its body, and what was done. The n-th request meets the
n-th fault of the plan, those after it none. Good replies are written from the facts in the prompt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOCK = threading.Lock()


def reasoning(text: str) -> str:
    """A reasoning that the facts of the prompt support, and its answer."""
    question = re.search(r"Question: (.*)", text)[1]
    answer = re.search(r"Answer: (.*)", text)[1]
    style = re.search(r"Start from (.*)\.", text)[1]
    tools = re.findall(r"^- (\w+): state (\w+), place ([\w-]+)", text, re.M)
    subject = next(((n, s, p) for n, s, p in tools if n in question), tools[0] if tools else None)
    seen = f"the {subject[0]} in the {subject[2]} part is seen, " if subject else ""
    return f"Looking at {style}, {seen}and this is what is asked about: so it is {answer}.\nAnswer: {answer}"


def completion(text: str, finish: str = "stop", prompt_tokens: int = 100) -> dict:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "served",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 20, "total_tokens": prompt_tokens + 20},
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with LOCK:
            fault = self.server.plan.pop(0) if self.server.plan else "none"
            self.server.log.write(
                json.dumps(
                    {
                        "body": hashlib.sha256(body).hexdigest(),
                        "fault": fault,
                        "time": time.monotonic(),
                        "image": b"data:image/" in body,
                        **self.noted(json.loads(body)),
                        "headers": {name.lower(): value for name, value in self.headers.items()},
                        "path": self.path,
                    }
                )
                + "\n"
            )
            self.server.log.flush()
            if fault == "dead":
                # At once: no request that comes later is answered.
                os._exit(1)
        time.sleep(self.server.delay)
        getattr(self, f"_{fault}")(self.good(json.loads(body)))

    def noted(self, body):
        """What the log says of a request beside its hash."""
        return {}

    def good(self, body):
        """The good reply to a request."""
        content = body["messages"][1]["content"]
        return reasoning(next(part["text"] for part in content if part["type"] == "text"))

    def _send(self, data, status=200, **headers):
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def _none(self, good):
        self._send(completion(good))

    def _status(self, status, **headers):
        self._send({"error": {"message": f"planned {status}", "type": "x"}}, status, **headers)

    def _429(self, good):
        self._status(429, retry_after="0.05")

    def _500(self, good):
        self._status(500)

    def _400(self, good):
        self._status(400)

    def _402(self, good):
        self._status(402)

    def _thought(self, good):
        self._send(completion(f"It must be so.</think>{good}"))

    def _moved(self, good):
        """What was thought stands beside the reply, as ``transformers serve`` has it."""
        data = completion(good)
        data["choices"][0]["message"]["reasoning_content"] = "It must be so. Answer: nothing"
        self._send(data)

    def _oneline(self, good):
        self._send(completion(good.replace("\n", " ")))

    def _abort(self, good):
        self._send(completion(good[:40], "abort"))

    def _surrogate(self, good):
        self._send(completion("\ud800" + good))

    def _401(self, good):
        self._status(401)

    def _404(self, good):
        self._status(404)

    def _redirect(self, good):
        self._status(307, location="http://elsewhere.invalid/v1/chat/completions")

    def _timeout(self, good):
        time.sleep(3)
        self._send(completion(good))

    def _cut(self, good):
        """The connection ends in the middle of a reply."""
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "1000")
        self.end_headers()
        self.wfile.write(b'{"id": "x", "cho')
        self.close_connection = True

    def _html(self, good):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", "13")
        self.end_headers()
        self.wfile.write(b"<html></html>")

    def _json(self, good):
        self._send({"greeting": "hello"})

    def _torn(self, good):
        self._send(b'{"id": ')

    def _null(self, good):
        self._send(completion(None))

    def _empty(self, good):
        self._send(completion(""))

    def _length(self, good):
        self._send(completion(good[:30], "length"))

    def _german(self, good):
        self._send(completion("Der Greifer liegt links oben und ruht, deshalb ist die Antwort klar.\nAnswer: Idle"))

    def _wrong(self, good):
        self._send(
            completion(good.replace("so it is", "a stapler is near: so it is").replace("Answer:", "Answer: not"))
        )

    def log_message(self, *_):
        pass


def parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--plan", default="")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    return parser


def serve(handler, args, **facts):
    """Serve until killed; ``facts`` become attributes of the server."""
    server = ThreadingHTTPServer(("127.0.0.1", args.port), handler)
    vars(server).update(facts)
    server.daemon_threads = True
    server.plan = [name for name in args.plan.split(",") if name]
    server.delay = args.delay
    server.log = open(args.log, "a")  # noqa: PTH123, SIM115
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    serve(Handler, parser().parse_args())
