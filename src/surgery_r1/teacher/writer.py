"""The writer of reasoning that asks a teacher (:class:`surgery_r1.build.cot.Writer`)."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from surgery_r1.build.cot import Draft, Task
from surgery_r1.build.recipe import ReasoningConfig, Recipe, TeacherConfig
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.files import dump_json
from surgery_r1.teacher import prompt
from surgery_r1.teacher.client import Client
from surgery_r1.teacher.replies import Replies, Reply
from surgery_r1.teacher.where import check_endpoint

_FAULTS = {"length": "cut_off", "content_filter": "refused", "refused": "refused"}
_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


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
    local = check_endpoint(recipe.teacher.endpoint, allow_remote)
    client = Client(recipe.teacher, key, local)
    with closing(client), closing(Replies(replies)) as kept:
        yield TeacherWriter(recipe.teacher, recipe.reasoning, client, kept, local)


class Asks(Protocol):
    """What :class:`TeacherWriter` needs of a client."""

    def ask(self, messages: list[dict[str, Any]], seed: int) -> Reply: ...


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
        self, config: TeacherConfig, limits: ReasoningConfig, client: Asks, replies: Replies, local: bool
    ) -> None:
        self.name = f"teacher:{config.model}"
        self.workers = config.concurrency
        self.asked = self.tokens = self.reused = 0
        self._config, self._limits, self._client, self._replies, self._local = config, limits, client, replies, local
        self._lock = threading.Lock()
        self._used = {"replies": 0, "prompt_tokens": 0, "completion_tokens": 0}

    def write(self, task: Task) -> Draft:
        reply = self._reply(task)
        text, answer = prompt.read_reply(reply.text)
        return Draft(text, answer, _FAULTS.get(reply.finish))

    def facts(self) -> dict[str, Any]:
        return {
            "endpoint": self._config.endpoint,
            "on_this_machine": self._local,
            "send_frames": self._config.send_frames,
            "model": self._config.model,
            "prompt_version": prompt.VERSION,
            **self._used,
        }

    def _reply(self, task: Task) -> Reply:
        text = prompt.request_text(task, self._limits.min_words, self._limits.max_words)
        seed = int.from_bytes(hashlib.sha256(f"{task.seed}:{task.number}:{task.attempt}".encode()).digest()[:4]) // 2
        key = self._key(task, text, seed)
        reply = self._replies.get(key)
        new = reply is None
        if reply is None:
            reply = self._client.ask(self._messages(task, text), seed)
            self._replies.put(key, reply)
        with self._lock:
            self.asked += new
            self.reused += not new
            self.tokens += (reply.prompt_tokens + reply.completion_tokens) * new
            self._used["replies"] += 1
            self._used["prompt_tokens"] += reply.prompt_tokens
            self._used["completion_tokens"] += reply.completion_tokens
        return reply

    def _key(self, task: Task, text: str, seed: int) -> str:
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

    def _messages(self, task: Task, text: str) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if self._config.send_frames:
            assert task.image is not None
            data = task.image.read_bytes()
            if hashlib.sha256(data).hexdigest() != task.frame.sha256:
                raise SurgeryR1Error("image changed during the build", where=str(task.image), fix="run again")
            url = f"data:{_MIME[task.image.suffix.lower()]};base64,{base64.b64encode(data).decode()}"
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        return [{"role": "system", "content": prompt.SYSTEM}, {"role": "user", "content": content}]
