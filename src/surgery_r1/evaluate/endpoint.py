"""The endpoint engine: greedy text from a chat server (``vllm serve``, ``transformers serve``) that has the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from surgery_r1 import prompts as wording
from surgery_r1._util.parallel import finished_map
from surgery_r1.chat.client import Client
from surgery_r1.chat.endpoint import check_endpoint
from surgery_r1.chat.frames import image_url
from surgery_r1.chat.reply import WHOLE, ChatReply
from surgery_r1.chat.settings import Limits, Names
from surgery_r1.chat.trouble import Refused
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.generation import GenerationOptions
from surgery_r1.models.encode import MemoryImage, Prompt, PromptEncoder, load_image
from surgery_r1.models.load import resolve, weights_sha256
from surgery_r1.models.processor import as_read

logger = logging.getLogger(__name__)

KEY_VARIABLE = "SURGERY_R1_ENDPOINT_KEY"
NAMES = Names(
    who="predict --endpoint",
    endpoint="--endpoint",
    model="--served-model",
    timeout="--timeout",
    key=KEY_VARIABLE,
    settings="check --served-model, --max-new-tokens, and how many images and tokens the server takes",
)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """A chat server, and how it is asked.

    Attributes:
        endpoint: such as ``http://127.0.0.1:8000/v1``.
        served_model: the model's name there; empty for what the server lists, or the model as it was named here.
        key: API key; empty where the server wants none.
        allow_remote: frames may go to another machine.
        concurrency: requests at a time.
        timeout: seconds that a reply may take.
        retries: how often a request that failed is sent again, with growing pauses.
    """

    endpoint: str
    served_model: str = ""
    key: str = ""
    allow_remote: bool = False
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6

    def __post_init__(self) -> None:
        for name, wrong in (
            ("concurrency", self.concurrency < 1),
            ("timeout", not self.timeout > 0),
            ("retries", self.retries < 0),
        ):
            if wrong:
                raise SurgeryR1Error(f"--{name} {getattr(self, name)}", fix=f"leave --{name} out, or give more")


@dataclass(frozen=True, slots=True)
class Served:
    """A model at a server.

    Attributes:
        name: what the server calls it.
        folder: the folder here that describes it.
        weights_sha256: of ``folder`` where the server, on this machine, says that it serves it; else None.
    """

    name: str
    folder: Path
    weights_sha256: str | None


def open_client(server: ServerOptions, max_new_tokens: int, temperature: float = 0.0) -> tuple[Client, bool]:
    """A client for greedy replies, or sampled ones, and whether its server is on this machine.

    Raises:
        SurgeryR1Error: for an endpoint elsewhere that was not allowed, or a missing client.
    """
    endpoint = check_endpoint(server.endpoint, server.allow_remote, setting=NAMES.endpoint, key_variable=NAMES.key)
    limits = Limits(max_tokens=max_new_tokens, temperature=temperature, timeout=server.timeout, retries=server.retries)
    return Client(endpoint, server.endpoint, limits, NAMES, server.key), endpoint.local


def find_served(client: Client, model: str | Path, wanted: str, local: bool, *, allow_hub: bool = False) -> Served:
    """Match what a server lists with a folder here, which says how the model is asked and read.

    Args:
        model: a model or run folder, or the model's name at the server where that names a folder of this machine.
        wanted: the model's name at the server; empty to find it.
        local: the server is on this machine, so that its paths are ours.

    Raises:
        SurgeryR1Error: when no folder describes the model, or the server says that it serves other weights.
    """
    folder = _folder(model, allow_hub)
    name, sources = served_name(client, model, wanted, folder)
    paths = [Path(text) for text in (sources.get(name, ""), name) if Path(text).is_absolute() and local]
    found = next((path for path in map(_model_folder, paths) if path is not None), None)
    if folder is None and (folder := found) is None:
        raise SurgeryR1Error(
            f"no folder here says how {str(model)!r} is asked: prompt, pixel limits, box space",
            fix="give the exported folder (--model FOLDER; its weights may be missing) and --served-model NAME",
        )
    if found is None or not list(folder.glob("*.safetensors")):
        return Served(name, folder, None)
    ours = weights_sha256(folder)
    if not found.samefile(folder) and weights_sha256(found) != ours:
        raise SurgeryR1Error(
            f"{client.name} serves {found}, whose weights are others than those of {folder}",
            fix="serve the folder that --model names, or name the one that is served",
        )
    return Served(name, folder, ours)


def served_name(client: Client, model: str | Path, wanted: str, folder: Path | None) -> tuple[str, dict[str, str]]:
    """What the server calls a model, and where it says that each of its models comes from.

    Args:
        wanted: the model's name at the server; empty to find it.
        folder: of the model, where it is here.

    Raises:
        SurgeryR1Error: when the server lists several models and none of them is this one.
    """
    listed = {entry["id"]: entry for entry in client.models() or []}
    # A server that lists where its models come from lists what it serves; others list what they might.
    sources = {name: root for name, entry in listed.items() if isinstance(root := entry.get("root"), str)}
    return wanted or _name_of(str(model), folder, listed, sources), sources


def _folder(model: str | Path, allow_hub: bool) -> Path | None:
    try:
        return resolve(model, allow_hub=allow_hub)
    except SurgeryR1Error:
        if Path(model).exists():
            raise
        return None


def _model_folder(path: Path) -> Path | None:
    return path if any((path / name).is_file() for name in ("config.json", "adapter_config.json")) else None


def _name_of(model: str, folder: Path | None, listed: dict[str, Any], sources: dict[str, str]) -> str:
    """What the server calls the model."""
    if model in listed:
        return model
    if folder is not None:
        same = [name for name in listed if any(_same(path, folder) for path in (name, sources.get(name, "")))]
        if same:
            return same[0]
    if len(sources) > 1:
        raise SurgeryR1Error(
            f"the server lists {len(sources)} models, none of them {model!r}: {', '.join(sorted(sources)[:20])}",
            fix="name one with --served-model",
        )
    return next(iter(sources), model)


def _same(path: str, folder: Path) -> bool:
    return bool(path) and Path(path).is_dir() and Path(path).samefile(folder)


class EndpointEngine:
    """Asks a chat server, several requests at a time. Replies come as they are done.

    The first is asked alone: before other frames go out, a server that reads prompts in another way is noticed.

    Args:
        client: from :func:`open_client`.
        served: the model's name at the server.
        processor: of the model, see :func:`surgery_r1.models.load.from_pretrained`.
        box_space: of the model.
        options: length of replies; the batch size is the server's own affair.
        concurrency: requests at a time.
        banned: tokens that no reply may hold; none are any more where a server refuses to be told.
    """

    name = "endpoint"

    def __init__(
        self,
        client: Client,
        served: str,
        processor: Any,
        box_space: str,
        options: GenerationOptions,
        concurrency: int,
        banned: Sequence[int] = (),
    ) -> None:
        self.banned = tuple(banned)
        self.encoder = PromptEncoder(processor, box_space)
        self._client, self._served, self._options, self._concurrency = client, served, options, concurrency
        # The questions of a frame are neighbours.
        self._url = lru_cache(maxsize=2)(self._url_of)

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Greedy replies as they are done, each with the number of its prompt.

        Raises:
            SurgeryR1Error: when the server cannot be used, or reads a prompt in another way than we do; what others
                have been answered by then has come out.
        """
        if not prompts:
            return
        yield [(0, self._ask_first(self._request(prompts[0])))]
        # Prepared in this thread: tokenizers are not made for several.
        requests = (self._request(prompt) for prompt in prompts[1:])
        for number, text in finished_map(self._ask, requests, self._concurrency, self._client.stop):
            yield [(number + 1, text)]

    def _url_of(self, image: Path | MemoryImage) -> str:
        return image_url(as_read(load_image(image), self.encoder.processor))

    def _request(self, prompt: Prompt) -> tuple[Prompt, list[dict[str, Any]], int]:
        """A prompt, its conversation, and the tokens that the server must find in it."""
        messages = wording.messages(prompt.text, self.encoder.box_space, images=0)
        urls = [self._url(image) for image in prompt.images]
        messages[-1]["content"][:0] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return prompt, messages, self.encoder.token_count(prompt)

    def _ask_first(self, request: tuple[Prompt, list[dict[str, Any]], int]) -> str:
        """As :meth:`_ask`. A server that refuses a request with banned tokens is asked without."""
        try:
            return self._ask(request)
        except Refused as refused:
            banned, self.banned = self.banned, ()
            if not banned:
                raise
            try:
                text = self._ask(request)
            except Refused:
                self.banned = banned
                raise refused from None
            logger.warning(
                "%s; without logit_bias it answers. Its replies may hold the %d tokens of frames and padding that are "
                "banned elsewhere",
                refused.what,
                len(banned),
            )
            return text

    def _ask(self, request: tuple[Prompt, list[dict[str, Any]], int]) -> str:
        prompt, messages, tokens = request
        reply = self._client.ask(self._served, messages, banned=self.banned)
        self._check(prompt, reply, tokens)
        return reply.text

    def _check(self, prompt: Prompt, reply: ChatReply, tokens: int) -> None:
        """Refuse a reply to another prompt than ours, and one that the server cut off on its own account."""
        where, asked = str(prompt.images[0]), self._client.name
        if not reply.prompt_tokens:
            raise SurgeryR1Error(
                f"{asked} does not tell usage.prompt_tokens: whether it reads the prompt as trained cannot be checked",
                where=where,
                fix="use a server that does, such as vllm serve or transformers serve",
            )
        if reply.prompt_tokens != tokens:
            raise SurgeryR1Error(
                f"{asked} reads {reply.prompt_tokens} tokens in a prompt that has {tokens} here: another model, chat "
                "template or pixel limits",
                where=where,
                fix="serve the folder that --model names, with its own chat template and preprocessor_config.json (no "
                "--chat-template, no --mm-processor-kwargs but those of its card)",
            )
        cut = reply.finish == "length" and 0 < reply.completion_tokens < self._options.max_new_tokens
        if cut or reply.finish not in (*WHOLE, "length"):
            what = f"cut a reply at {reply.completion_tokens} tokens" if cut else f"ended a reply with {reply.finish!r}"
            raise SurgeryR1Error(
                f"{asked} {what}, of the {self._options.max_new_tokens} that it may have",
                where=where,
                fix="see to the server (vLLM: a larger --max-model-len) and run again: what it has answered is kept",
            )
