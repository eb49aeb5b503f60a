#!/usr/bin/env python3
"""Stands in for the ``vllm`` command: notes how it was started, and answers on its socket as ``vllm serve`` would.

With ``--fault dies`` it ends as an engine does that finds no memory, with ``--fault silent`` it never answers.
"""

from __future__ import annotations

import argparse
import json
import os
import socketserver
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    def _answer(self):
        with Path(self.server.folder, "requests.txt").open("a") as log:
            log.write(f"{self.command} {self.path}\n")
        body = {
            "/v1/models": {"object": "list", "data": [{"id": "served", "object": "model"}]},
            "/server_info?config_format=json": {"vllm_config": {"device_config": {"device": "cpu"}}},
        }.get(self.path, {})
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = _answer

    def address_string(self):
        return "socket"

    def log_message(self, *_):
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb")
    parser.add_argument("model")
    parser.add_argument("--uds")
    parser.add_argument("--fault", default="")
    args, more = parser.parse_known_args()
    folder = Path(args.model).parent
    # As vLLM starts its engine: a process that must not outlive this one.
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    facts = {"arguments": more, "files": sorted(path.name for path in Path(args.model).iterdir()), "pid": os.getpid()}
    facts |= {"worker": worker.pid, "environment": {k: v for k, v in os.environ.items() if "PROXY" not in k.upper()}}
    Path(folder, "facts.json").write_text(json.dumps(facts))
    if args.fault == "dies":
        sys.stderr.write("(Server pid=1) WARNING limits can cause `OSError: [Errno 24] Too many open files`\nloading\n")
        sys.stderr.write("(Worker pid=2) ERROR ValueError: no memory for the cache\n")
        sys.stderr.write("RuntimeError: Engine core initialization failed. See root cause above.\nleaving\n")
        sys.exit(1)
    if args.fault == "silent":
        time.sleep(600)
    with socketserver.UnixStreamServer(args.uds, Handler) as server:
        server.folder = folder
        server.serve_forever()


if __name__ == "__main__":
    main()
