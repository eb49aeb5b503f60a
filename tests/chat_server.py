"""A server that has a model, as ``vllm serve`` would; run as a process. Faults as in ``teacher_server``, and its own.

    python chat_server.py LOG --replies FILE [--models JSON] [--plan FAULT,...] [--port N]

FILE is a JSON object: the text of a prompt -> the reply and the number of tokens in the prompt.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import teacher_server
from PIL import Image
from teacher_server import completion


class Handler(teacher_server.Handler):
    def do_GET(self):
        models = self.server.models
        if isinstance(models, int):
            self._status(models)
        else:
            self._send({"object": "list", "data": models})

    def noted(self, body):
        system, user = (message["content"] for message in body["messages"])
        image = Image.open(io.BytesIO(base64.b64decode(user[0]["image_url"]["url"].partition(",")[2])))
        kinds = [part["type"] for part in user]
        settings = {key: value for key, value in body.items() if key != "messages"}
        return {
            "system": system,
            "text": user[-1]["text"],
            "kinds": kinds,
            "settings": settings,
            "sent": f"{image.mode} {image.size} {hashlib.sha256(image.tobytes()).hexdigest()}",
        }

    def good(self, body):
        self.settings = {*body}
        reply, self.tokens = self.server.replies[body["messages"][1]["content"][-1]["text"]]
        return reply

    def _none(self, good):
        self._send(completion(good, prompt_tokens=self.tokens))

    def _moved(self, good, name="reasoning_content"):
        thought, _, rest = good.removeprefix("<think>").partition("</think>")
        data = completion(rest, prompt_tokens=self.tokens)
        data["choices"][0]["message"][name] = thought
        self._send(data)

    def _renamed(self, good):
        self._moved(good, "reasoning")

    def _thinking(self, good):
        """Cut off in the middle of a thought."""
        data = completion(None, "length", self.tokens)
        data["choices"][0]["message"]["reasoning_content"] = "the kidney is"
        data["usage"]["completion_tokens"] = 24
        self._send(data)

    def _more(self, good):
        self._send(completion(good, prompt_tokens=self.tokens + 29))

    def _uncounted(self, good):
        data = completion(good)
        del data["usage"]
        self._send(data)

    def _abort(self, good):
        self._send(completion(good, "abort", self.tokens))

    def _short(self, good):
        self._send(completion(good, "length", self.tokens))

    def _unbiased(self, good):
        """It does not know the field, and does not take what it does not know."""
        if "logit_bias" in self.settings:
            self._status(422)
        else:
            self._none(good)


if __name__ == "__main__":
    parser = teacher_server.parser()
    parser.add_argument("--replies", type=Path, required=True)
    parser.add_argument("--models", type=json.loads, default=404)
    args = parser.parse_args()
    teacher_server.serve(Handler, args, replies=json.loads(args.replies.read_text()), models=args.models)
