"""A server that gives sampled tokens, as ``vllm serve`` would, with faults on request; run as a process.

    python rollout_server.py LOG --prompt IDS [--plan FAULT,...]

IDS are the tokens, comma-separated, that it finds in every prompt.
"""

from __future__ import annotations

import teacher_server
from teacher_server import completion

MODEL = {"id": "served", "object": "model", "root": "/elsewhere", "parent": None}


class Handler(teacher_server.Handler):
    def do_GET(self):
        self._send({"object": "list", "data": [MODEL]}) if self.path == "/v1/models" else self._status(404)

    def noted(self, body):
        url = body["messages"][1]["content"][0]["image_url"]["url"]
        return {"settings": {key: value for key, value in body.items() if key != "messages"}, "url": url}

    def good(self, body):
        """Two tokens for each reply; the first says which it is."""
        ids = [int(text) for text in self.server.prompt.split(",")]
        logged = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": []}] * 2}
        choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "a"}, "logprobs": logged}
        choices = [{"index": i, **choice, "token_ids": [i, 921]} for i in range(body["n"])]
        # As they are done, in any order.
        return {**completion(""), "choices": choices[::-1], "prompt_token_ids": ids}

    def _none(self, good):
        self._send(good)

    def _text(self, good):
        self._send(completion("a"))

    def _expanded(self, good):
        self._send({**good, "prompt_token_ids": [*good["prompt_token_ids"], *[7] * 29]})

    def _other(self, good):
        self._send({**good, "prompt_token_ids": [5, *good["prompt_token_ids"][1:]]})

    def _fewer(self, good):
        self._send({**good, "choices": good["choices"][1:]})

    def _short(self, good):
        self._send({**good, "choices": [{**choice, "finish_reason": "length"} for choice in good["choices"]]})

    def _unlike(self, good):
        self._send({**good, "choices": [{**choice, "token_ids": [1]} for choice in good["choices"]]})


if __name__ == "__main__":
    parser = teacher_server.parser()
    parser.add_argument("--prompt", required=True)
    args = parser.parse_args()
    teacher_server.serve(Handler, args, prompt=args.prompt)
