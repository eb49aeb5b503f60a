"""What answers: a model in this process, or one behind a chat server. Both take questions and give replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from surgery_r1.inference import AskOptions, Model, Reply, load, read
from surgery_r1.models.info import ModelInfo
from surgery_r1.serve.limits import Limits

if TYPE_CHECKING:
    from PIL.Image import Image

    from surgery_r1.evaluate.endpoint import ServerOptions

Asked = tuple["Image", str]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a served model, as ``/v1/models`` lists it.

    Attributes:
        rationale, direct: forms of reply that it was trained to give; a base model is asked for either.
    """

    id: str
    stage: str
    rationale: bool
    direct: bool
    engine: str
    weights_sha256: str | None
    box_space: str


class Engine(Protocol):
    """One model that answers. Used by one thread."""

    facts: ModelFacts
    #: Tokens that no question may hold.
    reserved: frozenset[str]

    def replies(
        self, asked: Sequence[Asked], *, reasoning: bool, sampled: bool, stop: Callable[[], bool]
    ) -> list[Reply]:
        """A reply to each question; ``stop`` says that nobody waits for them any more."""
        ...


class OwnEngine:
    """A model in this process.

    Args:
        model: a model or run folder, or ``tiny``.
        name: what it is called.

    Raises:
        SurgeryR1Error: as :func:`surgery_r1.inference.load`.
    """

    def __init__(self, model: str | Path, name: str, limits: Limits, dtype: str = "auto") -> None:
        from surgery_r1.models.load import weights_sha256

        self._model: Model = load(model, dtype=dtype)
        self._limits = limits
        bundle = self._model.bundle
        self.facts = _facts(name, bundle.info, "transformers", weights_sha256(bundle.folder))
        self.reserved = _reserved(bundle.tokenizer)

    def replies(
        self, asked: Sequence[Asked], *, reasoning: bool, sampled: bool, stop: Callable[[], bool]
    ) -> list[Reply]:
        """As :class:`Engine` says. Questions on one frame share its prefill; nothing of a frame is kept."""
        options = AskOptions(reasoning, self._limits.new_tokens, self._limits.batch)
        try:
            return self._model.reply(asked, options, sampled=sampled, stop=stop)
        finally:
            self._model.forget()


class ServerEngine:
    """A model behind a chat server, such as ``vllm serve``.

    Args:
        server: where it is, and how it is asked.
        model: the folder that is served, which says how it is asked and read.

    Raises:
        SurgeryR1Error: when the server cannot be used, or has another model.
    """

    def __init__(self, server: ServerOptions, model: str | Path, name: str, limits: Limits) -> None:
        from surgery_r1.evaluate.endpoint import find_served, open_client
        from surgery_r1.models.load import from_pretrained
        from surgery_r1.models.reply_tokens import banned_for

        self._server, self._limits = server, limits
        client, local = open_client(server, limits.new_tokens)
        with closing(client):
            served = find_served(client, model, server.served_model, local)
        self._served = served.name
        self._bundle = from_pretrained(served.folder, with_model=False)
        self._banned: Sequence[int] = banned_for(self._bundle)
        self.facts = _facts(name, self._bundle.info, "endpoint", served.weights_sha256)
        self.reserved = _reserved(self._bundle.tokenizer)

    def replies(
        self, asked: Sequence[Asked], *, reasoning: bool, sampled: bool, stop: Callable[[], bool]
    ) -> list[Reply]:
        """As :class:`Engine` says; the server does not tell how probable an answer was."""
        from surgery_r1 import prompts
        from surgery_r1.evaluate.endpoint import EndpointEngine, open_client
        from surgery_r1.evaluate.generation import GenerationOptions
        from surgery_r1.models.encode import MemoryImage, Prompt

        options = GenerationOptions(self._limits.batch, self._limits.new_tokens, reasoning)
        frames = {id(frame): MemoryImage(frame) for frame, _ in asked}
        wanted = [Prompt((frames[id(f)],), prompts.user_text(question, "cot", reasoning)) for f, question in asked]
        # One that has failed sends nothing more.
        client, _ = open_client(self._server, self._limits.new_tokens, temperature=1.0 if sampled else 0.0)
        with closing(client):
            bundle, space = self._bundle, self._bundle.info.box_space
            asking = (client, self._served, bundle.processor, space, options, self._server.concurrency)
            engine = EndpointEngine(*asking, banned=self._banned)
            texts = dict(pair for some in engine.replies(wanted) for pair in some)
            # A server that has refused to ban them is not asked again.
            self._banned = engine.banned
        return [
            read(texts[number], question, frame, bundle, reasoning=reasoning)
            for number, (frame, question) in enumerate(asked)
        ]


def _facts(name: str, info: ModelInfo, engine: str, weights: str | None) -> ModelFacts:
    # Nobody knows what a base model was shown.
    base = info.stage == "base"
    return ModelFacts(
        name,
        info.stage,
        base or info.rationales,
        base or info.direct_answers,
        engine,
        weights,
        info.box_space,
    )


def _reserved(tokenizer: Any) -> frozenset[str]:
    """Special tokens, and tags that are tokens of their own; added words and numbers are no machinery."""
    added = (token for token in tokenizer.get_added_vocab() if not token.strip().isalnum())
    return frozenset(token for token in (*tokenizer.all_special_tokens, *added) if token.strip())


def names_of(models: Sequence[str]) -> list[str]:
    """A short name for each model: its folder's, that of the run for a run's best, numbered where two are the same.

    >>> names_of(["demo/sft", "demo/rft/best", "tiny", "other/sft"])
    ['sft', 'rft', 'tiny', 'sft-2']
    >>> names_of(["runs/rft-2", "runs/rft", "old/rft"])
    ['rft-2', 'rft', 'rft-3']
    """
    names: list[str] = []
    for model in models:
        path = Path(model)
        short = path.resolve().name if path.name in ("", ".", "..") else path.name
        if short == "best":
            short = path.resolve().parent.name
        wanted = chain([short], (f"{short}-{number}" for number in count(2)))
        names.append(next(name for name in wanted if name not in names))
    return names
