"""The writer of reasoning that asks a teacher (:class:`surgery_r1.data.rationales.writer.RationaleWriter`)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from surgery_r1._util.files import dump_json, open_regular
from surgery_r1.chat.client import Client
from surgery_r1.chat.endpoint import check_endpoint
from surgery_r1.chat.frames import data_url
from surgery_r1.chat.reply import WHOLE
from surgery_r1.chat.settings import Limits, Names
from surgery_r1.data.rationales.teacher import prompt
from surgery_r1.data.rationales.teacher.response_cache import ResponseCache, TeacherResponse
from surgery_r1.data.rationales.writer import Draft, RationaleRequest
from surgery_r1.data.recipe import ReasoningConfig, Recipe, TeacherConfig
from surgery_r1.errors import SurgeryR1Error

_FAULTS = {"content_filter": "refused", "refused": "refused"}
#: Requests that a server may refuse one after the other; then the fault is in the settings.
_REFUSALS = 10
_NAMES = Names(
    who="a teacher",
    endpoint="teacher.endpoint",
    model="teacher.model",
    timeout="teacher.timeout",
    key="SURGERY_R1_TEACHER_KEY",
    settings="check the [teacher] table of the recipe",
    again="see to the server and run again: what it has answered is kept and not asked for again. vLLM on a CPU ends "
    "at a request with a seed: start it with --no-enable-chunked-prefill, or set teacher.seeds = false",
)


@contextmanager
def open_teacher(
    recipe: Recipe, replies: Path, *, key: str = "", allow_remote: bool = False
) -> Iterator[TeacherWriter]:
    """The teacher that a recipe names.

    Args:
        replies: file that keeps what it answers.
        key: API key of the endpoint.
        allow_remote: frames may go to another machine.

    Raises:
        SurgeryR1Error: for an endpoint elsewhere that was not allowed, a missing client, or replies in use.
    """
    config = recipe.teacher
    endpoint = check_endpoint(config.endpoint, allow_remote, setting=_NAMES.endpoint, key_variable=_NAMES.key)
    limits = Limits(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        timeout=config.timeout,
        retries=config.retries,
        requests_per_minute=config.requests_per_minute,
        refusals=_REFUSALS,
    )
    client = Client(endpoint, config.endpoint, limits, _NAMES, key)
    with closing(client), closing(ResponseCache(replies)) as kept:
        yield TeacherWriter(config, recipe.reasoning, client, kept, endpoint.local)


class TeacherWriter:
    """Reasoning by a multimodal model, from the frame, the gold answer and what is annotated.

    Args:
        config: the model and how to ask it.
        limits: length of a reasoning.
        client: asks the endpoint.
        replies: what it has answered before.
        local: the endpoint is on this machine.

    Attributes:
        asked: requests sent by this process.
        tokens: tokens that they cost.
        reused: replies that were there already.
    """

    def __init__(
        self, config: TeacherConfig, limits: ReasoningConfig, client: Client, replies: ResponseCache, local: bool
    ) -> None:
        self.name = f"teacher:{config.model}"
        self.workers = config.concurrency
        self.asked = self.tokens = self.reused = 0
        self._config, self._limits, self._client, self._cache = config, limits, client, replies
        where = "this machine" if local else "another machine"
        what = "frames and annotations" if config.send_frames else "annotations"
        self._sent_to = f"{what} to {config.endpoint} ({where})"
        self._lock = threading.Lock()
        self._used = {"replies": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._went: set[str] = set()

    def write(self, task: RationaleRequest) -> Draft:
        reply = self._respond(task)
        text, answer = prompt.parse_response(reply.text)
        fault = _FAULTS.get(reply.finish, "cut_off") if reply.finish not in WHOLE else None
        return Draft(text, answer, fault)

    def stop(self) -> None:
        self._client.stop()

    def facts(self) -> dict[str, Any]:
        """The model, where frames and annotations went (also for replies kept from earlier builds), and the cost."""
        return {
            "sent": sorted(self._went),
            "model": self._config.model,
            "prompt_version": prompt.VERSION,
            **self._used,
        }

    def _respond(self, task: RationaleRequest) -> TeacherResponse:
        text = prompt.request_text(task, self._limits.min_words, self._limits.max_words)
        seed = int.from_bytes(hashlib.sha256(f"{task.seed}:{task.number}:{task.attempt}".encode()).digest()[:4]) // 2
        key = self._key(task, text, seed)
        reply = self._cache.get(key)
        new = reply is None
        if reply is None:
            sent = seed if self._config.seeds else None
            answered = self._client.ask(self._config.model, self._messages(task, text), sent)
            kept = ("text", "finish", "prompt_tokens", "completion_tokens")
            reply = TeacherResponse(**{name: getattr(answered, name) for name in kept}, sent_to=self._sent_to)
            # A refusal costs nothing, and may not stand when the server has been seen to.
            if reply.finish != "refused":
                self._cache.put(key, reply)
        with self._lock:
            self.asked += new
            self.reused += not new
            self.tokens += (reply.prompt_tokens + reply.completion_tokens) * new
            self._went.add(reply.sent_to)
            self._used["replies"] += 1
            self._used["prompt_tokens"] += reply.prompt_tokens
            self._used["completion_tokens"] += reply.completion_tokens
        return reply

    def _key(self, task: RationaleRequest, text: str, seed: int) -> str:
        """Everything that a reply depends on, and not where the server stands or the frame lies."""
        config = self._config
        what = {
            "version": prompt.VERSION,
            "model": config.model,
            "system": prompt.SYSTEM,
            "text": text,
            "frame": task.frame.sha256 if config.send_frames else None,
            # Two frames can be alike in all that is annotated.
            "question": task.sample.id,
            "seed": seed,
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
        }
        return hashlib.sha256(dump_json(what).encode()).hexdigest()

    def _messages(self, task: RationaleRequest, text: str) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if self._config.send_frames:
            assert task.image is not None
            with open_regular(task.image) as handle:
                data = handle.read()
            if hashlib.sha256(data).hexdigest() != task.frame.sha256:
                raise SurgeryR1Error("image changed during the build", where=str(task.image), fix="run again")
            content.insert(0, {"type": "image_url", "image_url": {"url": data_url(data)}})
        return [{"role": "system", "content": prompt.SYSTEM}, {"role": "user", "content": content}]
