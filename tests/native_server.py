"""A server with a vision-language model of its own ways: replies in JSON, held to a schema where it is told to obey.

    python native_server.py LOG --answers FILE [--obeys structured_outputs|response_format|none] [--refuses]

FILE is a JSON object: the text of a question (its first line) -> label and box as the model writes them.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import teacher_server
from PIL import Image
from teacher_server import completion


class Handler(teacher_server.Handler):
    def do_GET(self):
        self._status(404)

    def noted(self, body):
        parts = [part for message in body["messages"] for part in message["content"]]
        images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        decoded = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in images]
        return {
            "roles": [message["role"] for message in body["messages"]],
            "texts": [part["text"] for part in parts if part["type"] == "text"],
            "sizes": [image.size for image in decoded],
            "settings": {key: value for key, value in body.items() if key != "messages"},
        }

    def do_POST(self):
        if self.server.refuses:
            self.rfile.read(int(self.headers["content-length"]))
            self._status(422)
        else:
            super().do_POST()

    def good(self, body):
        schema = None
        if self.server.obeys == "structured_outputs" and "structured_outputs" in body:
            schema = body["structured_outputs"]["json"]
        if self.server.obeys == "response_format" and "response_format" in body:
            schema = body["response_format"]["json_schema"]["schema"]
        text = body["messages"][-1]["content"][-1]["text"]
        if text == "Say hello.":
            word = (schema or {}).get("properties", {}).get("probe", {}).get("enum", [None])[0]
            return json.dumps({"probe": word}) if word else "Hello!"
        label, box = self.server.answers[text.splitlines()[0]]
        reply = {"bbox_2d": box, "label": label}
        if schema is None:
            return f"Here it is:\n```json\n{json.dumps([reply])}\n```"
        return json.dumps({"reasoning": f"it is {label}", **reply})

    def _other(self, good):
        """Another model answers."""
        self._send({**completion(good), "model": "another"})

    def _state(self, good):
        self._send({**completion(good), "system_fingerprint": "fp_2"})

    def _blanks(self, good):
        self._send(completion("{ \n\n" + 200 * " \n", "length"))

    def _filter(self, good):
        self._send(completion("", "content_filter"))

    def _small(self, good):
        self._send(completion(good, prompt_tokens=3))


if __name__ == "__main__":
    parser = teacher_server.parser()
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--obeys", default="structured_outputs")
    parser.add_argument("--refuses", action="store_true")
    args = parser.parse_args()
    answers = json.loads(args.answers.read_text())
    teacher_server.serve(Handler, args, answers=answers, obeys=args.obeys, refuses=args.refuses)
