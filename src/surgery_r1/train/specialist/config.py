"""What training a specialist reads from its config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from surgery_r1._util import toml
from surgery_r1._util.checked import Count, NotNegative, Positive
from surgery_r1._util.toml_sources import read_sources
from surgery_r1.geometry import FLIPS

#: Tokens of a frame in the ``fusion`` design, and so of a question: its gate mixes them one by one.
FUSED_TOKENS = 25


@dataclass(frozen=True)
class SpecialistTable:
    """``[specialist]``.

    Attributes:
        design: ``features`` (the frozen vision tower of a Qwen-VL model) or ``fusion`` (a frozen ResNet, gated fusion,
            and a vision transformer).
        encoder: ``features``: ``tiny`` or the folder of a model; ``fusion``: the folder of a pretrained ResNet.
        trunk: ``fusion``: the folder of a pretrained ViT or DeiT.
        width, layers, heads, dropout: of what is trained; with ``fusion`` the width is the trunk's, and the layers are
            those before the gate.
        max_words: of a question.
        flips: frames are also shown mirrored, one way as often as another and as they are.
        frames_per_step: frames of an optimiser step, each with all of its questions.
        learning_rate, weight_decay, warmup_steps: of AdamW; the rate falls along a cosine to 0 at ``max_steps``.
        eval_every: steps between evaluations on dev, which chooses.
        patience: evaluations without improvement after which training stops; 0 never stops early.
        dev_samples: questions of dev, evenly spread; 0 means all.
    """

    design: Literal["features", "fusion"] = "features"
    encoder: str = "tiny"
    trunk: str = ""
    width: Positive = 128
    layers: Positive = 2
    heads: Positive = 4
    dropout: NotNegative = 0.1
    max_words: Positive = FUSED_TOKENS
    flips: tuple[str, ...] = ()
    frames_per_step: Positive = 16
    learning_rate: NotNegative = 1e-3
    weight_decay: NotNegative = 0.01
    warmup_steps: Count = 100
    max_steps: Positive = 2000
    eval_every: Positive = 200
    patience: Count = 0
    dev_samples: Count = 0


@dataclass(frozen=True)
class SpecialistConfig:
    """A whole config file."""

    specialist: SpecialistTable = field(default_factory=SpecialistTable)
    seed: Count = 0
    threads: Count = 0

    def to_json(self) -> dict[str, Any]:
        """The resolved config, as written into run folders."""
        return asdict(self)


def shipped_specialists() -> list[str]:
    """Names of the configs of specialists that come with the package."""
    return toml.shipped_with("specialist")


def load_specialist_config(name: str | Path, overrides: Sequence[str] = ()) -> SpecialistConfig:
    """Read a shipped config by its name (``specialist``) or a TOML file by its path; ``extends`` as in others.

    Raises:
        SurgeryR1Error: no such file, bad TOML, or every unknown key and wrong value at once.

    >>> load_specialist_config("specialist", ("specialist.max_steps=20",)).specialist.max_steps
    20
    """
    sources = read_sources(SpecialistConfig, name, shipped_specialists(), overrides)
    return toml.build_from(SpecialistConfig, sources, _wrong)


def _wrong(config: SpecialistConfig) -> Iterator[str]:
    own = config.specialist
    if own.width % own.heads:
        yield f"specialist.heads = {own.heads} does not divide specialist.width = {own.width}"
    if own.dropout >= 1:
        yield f"specialist.dropout = {own.dropout}, expected less than 1"
    if own.design == "fusion":
        if not own.trunk:
            yield "specialist.trunk is empty: name the folder of a pretrained ViT or DeiT (fusion has no random ones)"
        if own.encoder == "tiny":
            yield "specialist.encoder = 'tiny': name the folder of a pretrained ResNet (fusion has no random ones)"
        if own.max_words != FUSED_TOKENS:
            yield f"specialist.max_words = {own.max_words}: the gate of fusion mixes {FUSED_TOKENS} tokens with as many"
    elif own.trunk:
        yield "specialist.trunk goes with specialist.design = 'fusion' alone"
    ways = [flip for flip in FLIPS if flip != "none"]
    yield from (f"specialist.flips holds {flip!r}, not one of {ways}" for flip in own.flips if flip not in ways)
