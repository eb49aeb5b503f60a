"""What training reads from its config: see :func:`load_config` for how files and ``--set`` come together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from surgery_r1._util import toml
from surgery_r1._util.checked import Count, NotNegative, Positive
from surgery_r1._util.toml_sources import read_sources
from surgery_r1.geometry import FLIPS
from surgery_r1.records import TASKS

#: Values that may differ when a run is resumed: they change speed or length, and no result before the end.
FREE = (
    *("threads", "tracker", "eval.batch_size", "sft.patience", "rft.gap_bound", "rft.rollouts_every"),
    *("model.vision_cache", "model.vision_cache_gib", "model.vision_memory_mib", "model.offload_vision"),
)

#: Ways to spread a model over processes; which model of a run is kept.
Shard = Literal["none", "fsdp2", "zero2", "zero3"]
Kept = Literal["best", "last"]


@dataclass(frozen=True)
class ModelConfig:
    """``[model]``: what is trained.

    Attributes:
        base: ``tiny``, a folder, or a hub name (with --allow-hub).
        box_space: empty takes the family's own, see ``surgery_r1.codec.BOX_SPACES``.
        min_pixels, max_pixels: limits of the resized image; 0 keeps the folder's own.
        freeze_vision: leave the vision tower as it is; its features are then computed once for an image.
        vision_cache: folder that keeps these features for later runs, up to ``vision_cache_gib``; empty keeps them in
            memory alone, as long as they fit ``vision_memory_mib``.
        offload_vision: keep the frozen tower in main memory, but for frames whose features are not known yet.
        load_in_4bit: hold the language model's linear layers in 4 bit while a LoRA adapter is trained (QLoRA). They
            compute in ``dtype``.
    """

    base: str = "tiny"
    box_space: str = ""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: str = "sdpa"
    min_pixels: Count = 0
    max_pixels: Count = 0
    freeze_vision: bool = True
    vision_cache: str = ""
    vision_cache_gib: Positive = 64
    vision_memory_mib: Positive = 256
    offload_vision: bool = False
    load_in_4bit: bool = False


@dataclass(frozen=True)
class LoraConfig:
    """``[lora]``: as in the paper, whose rank and alpha are unknown; ``enabled = false`` trains all weights.

    Attributes:
        targets: linear layers that get an adapter, by the last part of their names, such as ``q_proj``; empty takes
            the projections of attention and MLP. While the tower is frozen, its layers get none.
    """

    enabled: bool = True
    rank: Positive = 16
    alpha: Positive = 32
    dropout: NotNegative = 0.0
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Oversample:
    """``[sft.oversample]`` and ``[rft.oversample]``: kinds of questions that are shown more often than others.

    Attributes:
        tangled: those about an object whose box overlaps another object's (:mod:`surgery_r1.data.oversampling`).
        rare: those whose answer the training set hardly has.
    """

    tangled: Positive = 1
    rare: Positive = 1


#: Every question as often as any other.
ALIKE = Oversample()


@dataclass(frozen=True)
class SftConfig:
    """``[sft]``: the first stage, TRL's SFTTrainer.

    Attributes:
        tasks: row kinds to train on; leave out ``cot`` for SFT without chain of thought, which needs
            ``direct_answers`` and ``eval.reasoning = false``: a model is asked only for what it was shown.
        direct_answers: also train each question without reasoning ("Reply with answer and box."), so that reasoning
            can be switched off in prediction.
        batch_size: rows (or packs of rows) of a step, over all processes.
        micro_batch: rows (or packs) per forward and backward pass; 0 means all that a process has of a step.
        flips: also show each frame mirrored, in one of these ways, to its rows without reasoning: ``horizontal``,
            ``vertical``, ``both``. Answer and box follow; a reasoning stays with the frame that it was written about.
        flip_rationales: show mirrored frames to rows with a reasoning too, which the template writer writes anew. A
            dataset without any reasoning of its is refused; what another writer wrote stays with its frame.
        colour: change light and colours of mirrored frames, 0 (not at all) to 1, see
            :func:`surgery_r1.data.colours.change_colours`.
        oversample: in how many mirrors rows of such questions are shown; at most as many as ``flips`` has.
        detection_rows: objects of each frame, as it is and mirrored, whose box is asked for by name alone, as base
            models were pretrained to (rehearsal).
        rows_per_frame: pack up to that many rows of a frame behind one copy of it; 0 gives each row its own copy.
        pack_tokens: fill packs with rows of several frames up to that many tokens; 0 keeps one frame a pack.
        max_steps: upper bound; training stops earlier when dev does not improve ``patience`` times in a row.
        eval_every: steps between evaluations on dev.
        trl: passed through to TRL's SFTConfig.
    """

    tasks: tuple[str, ...] = ("visual_qa", "grounding_qa", "cot")
    direct_answers: bool = False
    flips: tuple[str, ...] = ()
    flip_rationales: bool = False
    colour: NotNegative = 0.0
    oversample: Oversample = field(default_factory=Oversample)
    detection_rows: Count = 0
    rows_per_frame: Count = 0
    pack_tokens: Count = 0
    batch_size: Positive = 8
    micro_batch: Count = 0
    learning_rate: NotNegative = 1e-4
    warmup_steps: Count = 10
    max_steps: Positive = 1000
    eval_every: Positive = 100
    patience: Count = 3
    trl: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RftConfig:
    """``[rft]``: the second stage, TRL's GRPOTrainer.

    Attributes:
        rewards: reward name -> weight, see ``surgery_r1.rewards``; ``path.py:function`` for one of your own.
        prompts: questions of an optimiser step, over all processes.
        generations: completions per question (the group, G).
        micro_batch: completions per forward and backward pass; 0 means all that a process has of a step.
        reasoning: ask for reasoning in training; what dev is asked for is ``eval.reasoning``.
        share_frames: compute frame and question once for all completions of a micro-batch (equal to rounding); false
            is stock TRL.
        questions_per_frame: take up to that many questions of a frame one after the other, so that they share it. The
            order is drawn once and is the same in every epoch: this changes which questions meet in a step, and so
            what is learned.
        rollouts: who samples completions: the ``trainer`` itself, a vLLM ``server`` (train rft --endpoint), or vLLM
            as a child of the trainer on the same GPU (``colocate``).
        vllm: with ``colocate``, further arguments of ``vllm serve``.
        gap_bound: the run stops where log-probabilities of server and trainer differ by more than that many nats a
            token on average; 0 takes .01 in float32, .1 in formats of 16 bit.
        rollouts_every: keep the groups of steps 1, 1 + that many, ... in the run folder, for ``report --rollouts``
            (docs/rollouts.md); 0 keeps none.
        flips: also ask each question about its frame mirrored in each of these ways: ``horizontal``, ``vertical``,
            ``both``. A frame that SFT has learned by heart has little left to teach; in a mirror it is new, and the
            right answer and box follow from the labels.
        oversample: how often such questions are asked where others are asked once.
        trl: passed through to TRL's GRPOConfig.
    """

    rewards: dict[str, float] = field(
        default_factory=lambda: {"format": 1.0, "answer": 1.0, "box": 1.0, "coherence": 1.0}
    )
    prompts: Positive = 16
    generations: Annotated[int, Ge(2), "2 or more: a group needs at least 2 completions to compare"] = 8
    micro_batch: Count = 0
    learning_rate: NotNegative = 1e-6
    warmup_steps: Count = 3
    max_steps: Positive = 110
    eval_every: Positive = 50
    temperature: Annotated[float, Ge(0.01)] = 1.0
    max_completion: Positive = 256
    reasoning: bool = True
    share_frames: bool = True
    questions_per_frame: Positive = 1
    rollouts: Literal["trainer", "server", "colocate"] = "trainer"
    vllm: tuple[str, ...] = ()
    gap_bound: NotNegative = 0.0
    rollouts_every: Count = 5
    flips: tuple[str, ...] = ()
    oversample: Oversample = field(default_factory=Oversample)
    trl: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalConfig:
    """``[eval]``: prediction on dev while training.

    Attributes:
        dev_samples: questions of dev to use, evenly spread; 0 means all.
        batch_size: prompts per generation batch.
        reasoning: ask for reasoning on dev, in SFT and in RFT. A config that leaves it out and says ``rft.reasoning =
            false`` has false here too. Turn it off alone for SFT without chain of thought. Refused where the model is
            not trained to reply so.
        choose: keep the ``best`` model on dev, or the ``last`` one, for controls that must show where training leads.
    """

    dev_samples: Count = 0
    batch_size: Positive = 16
    max_new_tokens: Positive = 256
    reasoning: bool = True
    choose: Kept = "best"


@dataclass(frozen=True)
class RanksConfig:
    """``[ranks]``: several processes, each on a GPU of its own (docs/several_gpus.md).

    Attributes:
        shard: what is spread over them: ``none`` (each holds all), ``zero2`` (gradients and optimiser states),
            ``fsdp2`` or ``zero3`` (weights too). The last three of these four need less memory and more network.
    """

    shard: Shard = "none"


@dataclass(frozen=True)
class TrainConfig:
    """A whole config file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    rft: RftConfig = field(default_factory=RftConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    ranks: RanksConfig = field(default_factory=RanksConfig)
    seed: Count = 0
    threads: Count = 0
    tracker: str = "none"

    def to_json(self) -> dict[str, Any]:
        """The resolved config, as written into run folders."""
        return asdict(self)


def shipped_configs() -> list[str]:
    """Names of the training configs that come with the package."""
    return toml.shipped_with("model")


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a shipped config by its name (``tiny``) or a TOML file by its path.

    A file may say ``extends = "tiny"`` at its top: another config, or a path from where it lies. It then needs only
    what differs. Tables merge key by key, ``sft.trl`` and ``rft.trl`` too; lists and ``rft.rewards`` are replaced
    whole, because a mixture of rewards is one value.

    Args:
        overrides: ``key=value`` each, on top of the file, as ``--set`` gives them. Naming one key of a table keeps the
            others: ``rft.rewards.box=2`` changes a weight, ``rft.rewards={box=2}`` replaces the mixture.

    Raises:
        SurgeryR1Error: no such file, bad TOML, or every unknown key and wrong value at once.

    >>> load_config("tiny", overrides=("rft.max_steps=20", "model.base=my_model")).rft.max_steps
    20
    """
    return _build(read_sources(TrainConfig, name, shipped_configs(), overrides, {"rft.rewards": RftConfig().rewards}))


def parse_config(data: Mapping[str, Any], path: Path | str = "config", text: str = "") -> TrainConfig:
    """Build a :class:`TrainConfig` from parsed TOML and check what belongs together."""
    return _build(toml.Sources(data, [toml.Layer(str(path), data, text)]))


def _build(sources: toml.Sources) -> TrainConfig:
    data = _dev_asked_as_in_rft(sources.data)
    return toml.build_from(TrainConfig, replace(sources, data=data), _inconsistent)


def _dev_asked_as_in_rft(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values, with ``eval.reasoning`` off where only ``rft.reasoning`` says so."""
    rft, dev = data.get("rft"), data.get("eval", {})
    if isinstance(rft, Mapping) and rft.get("reasoning") is False and isinstance(dev, Mapping):
        return {**data, "eval": {"reasoning": False, **dev}}
    return data


def _inconsistent(config: TrainConfig) -> Iterator[str]:
    """Names that nobody knows, and values that are fine alone and wrong together."""
    model, sft, rft = config.model, config.sft, config.rft
    completions = rft.prompts * rft.generations
    if rft.micro_batch and (completions % rft.micro_batch or rft.micro_batch % rft.generations):
        yield (
            f"rft.micro_batch = {rft.micro_batch} cannot hold whole groups: it must be a multiple of "
            f"rft.generations = {rft.generations} that divides prompts x generations = {completions}"
        )
    if sft.micro_batch and sft.batch_size % sft.micro_batch:
        yield f"sft.micro_batch = {sft.micro_batch} does not divide sft.batch_size = {sft.batch_size}"
    if config.eval.reasoning and not rft.reasoning:
        yield (
            "eval.reasoning = true, but rft.reasoning = false: dev would choose a model by prompts that RFT does not "
            "train; set both alike, or leave eval.reasoning out"
        )
    if (model.vision_cache or model.offload_vision) and not model.freeze_vision:
        yield "model.vision_cache and model.offload_vision need model.freeze_vision: they must not change"
    if model.load_in_4bit and not config.lora.enabled:
        yield "model.load_in_4bit needs lora.enabled = true: weights in 4 bit cannot be trained, an adapter on them can"
    if model.load_in_4bit and rft.rollouts != "trainer":
        why = "vLLM has the base in more bits, and would sample from another model than the one that is trained"
        yield f"rft.rollouts = {rft.rollouts!r} does not go with model.load_in_4bit: {why}"
    if sft.pack_tokens and not sft.rows_per_frame:
        yield "sft.pack_tokens needs sft.rows_per_frame: what is packed are the rows of frames"
    if sft.rows_per_frame:
        # Packed rows are never cut, and their labels are already shifted.
        fixed: dict[str, Any] = {"max_length": None, "label_smoothing_factor": 0, "completion_only_loss": True}
        for name, value in fixed.items():
            if sft.trl.get(name, value) != value:
                yield f"sft.trl.{name} = {sft.trl[name]!r} does not go with sft.rows_per_frame: leave one of them out"
    yield from (*_wrong_flips("sft.flips", sft.flips), *_wrong_flips("rft.flips", rft.flips))
    if (most := max(asdict(sft.oversample).values())) > max(1, len(sft.flips)):
        yield f"sft.oversample wants {most} mirrors, sft.flips = {list(sft.flips)} has {len(sft.flips)}"
    mirrored = {"flip_rationales": sft.flip_rationales, "colour": sft.colour}
    yield from (f"sft.{name} needs sft.flips" for name, value in mirrored.items() if value and not sft.flips)
    if not sft.tasks:
        yield f"sft.tasks is empty: give some of {list(TASKS)}"
    yield from (f"sft.tasks holds {task!r}, not one of {list(TASKS)}" for task in sft.tasks if task not in TASKS)


def _wrong_flips(name: str, flips: tuple[str, ...]) -> list[str]:
    ways = [flip for flip in FLIPS if flip != "none"]
    if len(set(flips)) < len(flips):
        return [f"{name} = {list(flips)} names one way twice"]
    return [f"{name} holds {flip!r}, not one of {ways}" for flip in flips if flip not in ways]
