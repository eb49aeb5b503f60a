"""A vLLM server that samples the rollouts of RFT: how it is asked, and what its replies must be."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from surgery_r1._util.parallel import finished_map
from surgery_r1.chat.client import Client
from surgery_r1.chat.endpoint import check_endpoint
from surgery_r1.chat.frames import image_url
from surgery_r1.chat.settings import Limits, Names
from surgery_r1.chat.tokens import TokenGroup, TokenReply
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.endpoint import KEY_VARIABLE, ServerOptions

#: How a server is started that this can work with; ``docs/engines.md`` has it whole.
START = "VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve FOLDER (docs/engines.md)"
_NAMES = Names(
    who="train rft --endpoint",
    endpoint="--endpoint",
    model="--served-model",
    timeout="--timeout",
    key=KEY_VARIABLE,
    settings="check --served-model, rft.max_completion, and how many images and tokens the server takes",
    again="see to the server and run again, with --resume where the run has begun",
)
_NAMES_OF_A_CHILD = replace(
    _NAMES, who="rft.rollouts = 'colocate'", endpoint="vLLM", model="the run's own", settings="see its log"
)
#: Requests at a time; vLLM batches them itself.
_CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as a chat server takes it, and the tokens that it must find in it.

    Attributes:
        messages: of the conversation, with images in memory: ``{"type": "image", "image": Image}``.
        ids: its tokens as the trainer has them, every image expanded.
        image_token: that images consist of.
        banned: tokens that no reply may hold: the model would look for an image behind them.
    """

    messages: Sequence[dict[str, Any]]
    ids: Sequence[int]
    image_token: int
    banned: tuple[int, ...] = ()

    def count(self, ids: Sequence[int]) -> str:
        """The size of a prompt in words."""
        return f"{len(ids)} tokens ({sum(token == self.image_token for token in ids)} of images)"


class RolloutServer:
    """Asks the server for groups of replies, several prompts at a time.

    Args:
        options: how it is reached.
        max_tokens, temperature: of a reply.
        socket: a file through which a server of this machine is reached, in place of a port.
        log: where such a server writes, for errors.

    Raises:
        SurgeryR1Error: for an endpoint elsewhere that was not allowed, or a missing client.
    """

    def __init__(
        self,
        options: ServerOptions,
        max_tokens: int,
        temperature: float,
        socket: Path | None = None,
        log: Path | None = None,
    ) -> None:
        endpoint = check_endpoint(
            options.endpoint, options.allow_remote, setting=_NAMES.endpoint, key_variable=_NAMES.key
        )
        self.temperature = temperature
        self._max_tokens = max_tokens
        limits = Limits(max_tokens, temperature, timeout=options.timeout, retries=options.retries)
        names = _NAMES if log is None else _NAMES_OF_A_CHILD
        shown = options.endpoint if log is None else f"({log})"
        self.client = Client(endpoint, shown, limits, names, options.key, socket)
        self._wanted = options.served_model
        self._met = False
        #: Whether draws can be repeated: see :meth:`meet`.
        self.seeded = True

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.client.name

    def meet(self) -> bool:
        """Notice what can be noticed before a model is loaded; whether the server can draw from seeds.

        Raises:
            SurgeryR1Error: for a server that cannot be reached, has another model than the one that was named, or tells
                other log-probabilities than those of what it samples.
        """
        self.base()
        info = self.info()
        mode = info.get("model_config", {}).get("logprobs_mode") or ""
        if self.temperature != 1 and mode.startswith("raw"):
            raise SurgeryR1Error(
                f"rft.temperature = {self.temperature:g}, but {self.name} tells log-probabilities at temperature 1",
                fix="start it with --logprobs-mode processed_logprobs",
            )
        # Seen with 0.31.0: a prompt that is read in two parts ends the engine ("CPU Generator does not use offset").
        cpu = info.get("device_config", {}).get("device") == "cpu"
        return not (cpu and info.get("scheduler_config", {}).get("enable_chunked_prefill", True))

    def info(self) -> dict[str, Any]:
        """vLLM's configuration; empty where the server does not tell it (VLLM_SERVER_DEV_MODE=1)."""
        status, text = self.client.control("/server_info?config_format=json")
        try:
            found = json.loads(text) if status == 200 else {}
        except ValueError:
            found = {}
        config = found.get("vllm_config") if isinstance(found, dict) else None
        # Older ones tell it as text; a part that it has not may be null.
        return {name: part for name, part in config.items() if part} if isinstance(config, dict) else {}

    def base(self) -> str:
        """What the server calls the model that it was started with.

        Raises:
            SurgeryR1Error: when there is none, or it has several and none was named.
        """
        listed = [str(entry["id"]) for entry in self.client.models() or () if not entry.get("parent")]
        if self._wanted in listed or len(listed) == 1:
            return self._wanted or listed[0]
        raise SurgeryR1Error(
            f"{self.name} serves {', '.join(listed) or 'no model that it lists'}"
            + (f", not {self._wanted!r}" if self._wanted else ""),
            fix="name the model of this run with --served-model",
        )

    def sample(
        self,
        model: str,
        questions: Sequence[Question],
        count: int,
        seeds: Sequence[int],
        as_read: Callable[[Image.Image], Image.Image],
    ) -> list[list[TokenReply]]:
        """``count`` replies to each question, sampled by the server.

        The first is asked alone: before other frames go out, a server that reads prompts in another way is noticed.

        Args:
            model: its name at the server.
            seeds: of the draws of each question, which servers take that can draw from one.
            as_read: an image at the size that the model reads, see :func:`surgery_r1.models.processor.as_read`.

        Raises:
            SurgeryR1Error: when the server cannot be used, or reads a prompt in another way than the trainer.
        """
        urls: dict[int, str] = {}

        def ask(numbered: tuple[int, Question, list[dict[str, Any]]]) -> list[TokenReply]:
            number, question, messages = numbered
            # vLLM counts the seeds of a group up from this one.
            seed = seeds[number] if self.seeded else None
            return self._checked(question, self.client.sample(model, messages, count, seed, question.banned), count)

        asked = [(i, question, _with_urls(question.messages, urls, as_read)) for i, question in enumerate(questions)]
        alone = 0 if self._met else 1
        groups = dict(enumerate(map(ask, asked[:alone])))
        self._met = True
        for number, group in finished_map(ask, asked[alone:], _CONCURRENCY, self.client.stop):
            groups[number + alone] = group
        return [groups[i] for i in range(len(questions))]

    def _checked(self, question: Question, found: TokenGroup, count: int) -> list[TokenReply]:
        if not found.prompt or not found.replies:
            raise SurgeryR1Error(
                f"{self.name} gives text and not the tokens that it sampled (return_token_ids)",
                fix=f"take rollouts from vLLM 0.31 or newer: {START}",
            )
        if list(found.prompt) != list(question.ids):
            raise SurgeryR1Error(self._otherwise(question, found.prompt), fix=_SAME_PROMPTS)
        if len(found.replies) != count:
            raise SurgeryR1Error(f"{self.name} gives {len(found.replies)} replies of {count}", fix=_NAMES.settings)
        for reply in found.replies:
            short = reply.finish == "length" and len(reply.ids) < self._max_tokens
            if short or reply.finish not in ("stop", "length"):
                raise SurgeryR1Error(
                    f"{self.name} ended a reply with {reply.finish!r} at {len(reply.ids)} tokens, of the "
                    f"{self._max_tokens} that it may have",
                    fix="see to the server (a larger --max-model-len), and go on with --resume",
                )
        return list(found.replies)

    def _otherwise(self, question: Question, found: Sequence[int]) -> str:
        """What is different in a prompt that the server reads in another way."""
        if len(found) != len(question.ids):
            return f"{self.name} reads {question.count(found)} in a prompt that has {question.count(question.ids)} here"
        at = next(i for i, (theirs, ours) in enumerate(zip(found, question.ids, strict=True)) if theirs != ours)
        return f"{self.name} reads token {found[at]} at place {at} of a prompt that has {question.ids[at]} there"

    def close(self) -> None:
        """Close connections."""
        self.client.close()


_SAME_PROMPTS = (
    "another model, chat template or pixel limits: serve the folder that is trained, with its own chat template and "
    "preprocessor_config.json (no --chat-template, no --mm-processor-kwargs but those of its card)"
)


def _with_urls(
    messages: Sequence[dict[str, Any]], urls: dict[int, str], as_read: Callable[[Image.Image], Image.Image]
) -> list[dict[str, Any]]:
    """Messages with their images as data URLs; ``urls`` keeps each image's, which rows and groups share."""

    def shown(part: dict[str, Any]) -> dict[str, Any]:
        image = part.get("image")
        if not isinstance(image, Image.Image):
            return part
        if id(image) not in urls:
            urls[id(image)] = image_url(as_read(image.convert("RGB")))
        return {"type": "image_url", "image_url": {"url": urls[id(image)]}}

    def content(of: Any) -> Any:
        return of if isinstance(of, str) else [shown(part) for part in of]

    return [{"role": message["role"], "content": content(message["content"])} for message in messages]
