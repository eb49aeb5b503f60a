"""The plan of a stage: what is trained, how a step is divided, memory by part, and the micro-batch that fits.

Every part is counted from the model's config and the dataset's rows; nothing is measured but what the libraries take
on a CPU. Not counted: a GPU's context and what its allocator loses to fragments, weights while they are loaded, and
the engine behind ``use_vllm``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models import four_bit
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.planning.passes import Counted, Shape, held_in_4bit
from surgery_r1.train.planning.rows import Rows

GIB = 2**30

#: Bytes of state for each byte of a trained weight: two moments of its type, as ``torch.optim.AdamW`` keeps them.
_STATES = {"adamw_torch": 2.0, "adamw_torch_fused": 2.0, "sgd": 0.0}


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a plan is for.

    Attributes:
        gpu: mixed precision and kernels of a GPU.
        processes: that train together.
        memory: bytes that one process may use; None: not known.
        libraries: bytes of a process before it has loaded a model.
    """

    gpu: bool
    processes: int
    memory: int | None
    libraries: int


@dataclass(frozen=True, slots=True)
class Step:
    """How a step is divided.

    Attributes:
        units: rows, packs or questions of a step, over all processes.
        unit: what is counted.
        micro: units of a pass.
        passes: of each process.
        shape: the largest pass.
    """

    units: int
    unit: str
    micro: int
    passes: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module; sizes in bytes, of one process."""

    stage: str
    parameters: dict[str, int]
    image_tokens: dict[int, int]
    step: Step
    parts: dict[str, int]
    peaks: dict[str, int]
    machine: Machine
    largest_micro_batch: int | None
    largest_peak: int | None
    hours: float | None
    notes: tuple[str, ...]

    @property
    def peak(self) -> int:
        """Most bytes that a process needs."""
        return max(self.peaks.values())

    def to_json(self) -> dict[str, Any]:
        """As ``--plan --json`` prints it."""
        return {**asdict(self), "peak": self.peak}


@dataclass(frozen=True)
class Planner:
    """Makes plans of one stage for any micro-batch.

    Attributes:
        counted: the model.
        rows: of the data.
        prompt: tokens of the longest prompt that RFT asks, and dev about as long ones.
    """

    stage: Literal["sft", "rft"]
    config: TrainConfig
    counted: Counted
    rows: Rows
    prompt: int
    machine: Machine

    @property
    def settings(self) -> Any:
        return getattr(self.config, self.stage)

    @property
    def units(self) -> int:
        """Of a step, over all processes."""
        return self.config.sft.batch_size if self.stage == "sft" else self.config.rft.prompts

    @property
    def unit(self) -> str:
        if self.stage == "rft":
            return "questions"
        return "packs" if self.config.sft.rows_per_frame else "rows"

    @property
    def each(self) -> int:
        """What the config's micro-batch counts for a unit: completions of a question."""
        return self.config.rft.generations if self.stage == "rft" else 1

    @cached_property
    def whole(self) -> Any:
        """The whole model on the meta device."""
        return self.counted.model()

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Numbers of weights: all, trained, and of the tower as far as it is frozen."""
        named = list(self.whole.named_parameters())
        tower = [p for name, p in named if ".visual." in f".{name}"]
        return {
            "all": sum(p.numel() for _, p in named),
            "trained": sum(p.numel() for _, p in named if p.requires_grad),
            "frozen_tower": sum(p.numel() for p in tower if not p.requires_grad),
        }

    def resident(self) -> dict[str, int]:
        """Bytes that stay from step to step, by part."""
        parameters = list(self.whole.named_parameters())
        trained = [p for _, p in parameters if p.requires_grad]
        gradients = sum(p.numel() * p.itemsize for p in trained)
        adapter = [p for name, p in parameters if "lora_" in name]
        base = [p for name, p in parameters if "lora_" not in name and not four_bit.to_be_rounded(p)]
        few_bits = [p for _, p in parameters if four_bit.to_be_rounded(p)]
        optimiser = _STATES.get(str(self.settings.trl.get("optim", "adamw_torch_fused")), 2.0)
        parts = {
            "weights": sum(p.numel() * p.itemsize for p in base),
            **({"weights in 4 bit": sum(map(held_in_4bit, few_bits))} if few_bits else {}),
            "adapter": sum(p.numel() * p.itemsize for p in adapter),
            "gradients": gradients,
            "optimiser": round(optimiser * gradients),
        }
        if self.machine.processes > 1:
            # DDP joins gradients in buckets of its own (``gradient_as_bucket_view`` is off).
            parts["buckets"] = gradients
        if not self.machine.gpu:
            parts["libraries"] = self.machine.libraries
        return parts

    def features(self, frames: int) -> dict[str, int]:
        """Bytes of what is kept of frames: features of a frozen tower, and resized pixels.

        A feature is a value of the tower's type for each image token and channel, for Qwen3-VL once more for each
        layer that its tower feeds. A pixel is a float32 in main memory; the frames of a pass are on the device too.

        Args:
            frames: of a pass.
        """
        tower = self.counted.config.vision_config
        tokens = max(self.rows.image_tokens)
        layers = 1 + len(getattr(tower, "deepstack_visual_indexes", ()) or ())
        width = self.counted.config.get_text_config().hidden_size
        features = tokens * width * layers * self.counted.dtype.itemsize
        merge = tower.spatial_merge_size**2
        pixels = tokens * merge * 3 * tower.temporal_patch_size * tower.patch_size**2 * 4
        all_frames = sum(self.rows.image_tokens.values())
        parts = {"pixels": frames * pixels}
        if self.counted.frozen_tower:
            limit = self.config.model.vision_memory_mib * 2**20
            parts["features"] = max(frames * features, min(limit, all_frames * features))
        if not self.machine.gpu:
            from surgery_r1.models.processor import DeduplicatingImageProcessor

            parts["pixels"] += min(DeduplicatingImageProcessor.keep_bytes, all_frames * pixels)
        return parts

    def cache(self, rows: int, prompt: int, completion: int) -> int:
        """Bytes of keys and values of so many replies, and of their logits as sampling needs them.

        Keys and values: two for each layer, key head and token. A step of sampling has the logits of each reply in the
        model's type, and in float32 as scores, scaled and as probabilities (``GenerationMixin._sample``); a layer's
        cache is copied when a token is added (``DynamicLayer.update``).
        """
        text = self.counted.config.get_text_config()
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        layer = 2 * text.num_key_value_heads * width * (prompt + completion) * rows * self.counted.dtype.itemsize
        logits = rows * text.vocab_size * (self.counted.dtype.itemsize + 3 * 4)
        return layer * (text.num_hidden_layers + 1) + logits

    def replies(self) -> dict[str, int]:
        """Bytes of keys, values and logits while replies are written, in training (RFT) and on dev."""
        config, number = self.config, self.machine.processes
        dev = min(config.eval.batch_size, config.eval.dev_samples or config.eval.batch_size)
        longest = self.prompt
        parts = {"dev replies": self._reply(dev, dev, longest, config.eval.max_new_tokens)}
        if self.stage == "rft" and not config.rft.trl.get("use_vllm"):
            questions = config.rft.prompts // number
            rows = questions * config.rft.generations
            read = questions if self.rows.shared else rows
            parts["rollouts"] = self._reply(rows, read, longest, config.rft.max_completion)
        return parts

    def _reply(self, rows: int, read: int, prompt: int, completion: int) -> int:
        """Bytes of writing ``rows`` replies: reading ``read`` prompts first, or the end of writing."""
        cache = self.cache(rows, prompt, completion)
        return max(self.counted.reading(read, prompt) + self.cache(read, prompt, 0), cache)

    def plan(self, micro: int, seconds: float | None = None, *, failed: bool = False) -> Plan:
        """The plan with ``micro`` units a pass, 0: all that a process has of a step.

        Args:
            seconds: of a step, as measured.
            failed: this was tried and ran out of memory: what fits must be smaller.

        Raises:
            SurgeryR1Error: when processes or passes do not divide a step.
        """
        mine = self._mine()
        micro = micro or mine
        passes = mine // micro
        step = Step(self.units, self.unit, micro, passes, self.rows.largest_pass(micro))
        parts, peaks = self._memory(step)
        best = self._largest(micro, max(peaks.values()), micro - 1 if failed else mine)
        return Plan(
            stage=self.stage,
            parameters=self.parameters,
            image_tokens=self.rows.image_tokens,
            step=step,
            parts=parts,
            peaks=peaks,
            machine=self.machine,
            largest_micro_batch=best[0] * self.each if best else (0 if self.machine.memory else None),
            largest_peak=best[1] if best else None,
            hours=None if seconds is None else self.settings.max_steps * seconds / 3600,
            notes=self._notes(),
        )

    def _mine(self) -> int:
        if self.units % self.machine.processes:
            raise SurgeryR1Error(
                f"{self.units} {self.unit} a step cannot be divided by {self.machine.processes} processes",
                fix="change the number of processes, or make a step a multiple of it",
            )
        return self.units // self.machine.processes

    def _memory(self, step: Step) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes by part, and the peak of each thing that a process does."""
        one = self.counted.memory(step.shape)
        parts = self.resident() | self.features(step.micro) | self.replies()
        parts |= {"activations": one.kept, "layer": one.layer, "logits": one.head}
        passing = ("gradients", "dev replies", "rollouts", "activations", "layer", "logits")
        always = sum(size for name, size in parts.items() if name not in passing)
        # Gradients of earlier passes stay; those of the only one come while activations go.
        before = parts["gradients"] if step.passes > 1 else 0
        update = max(before + one.kept + max(one.head, parts["layer"]), parts["gradients"] + parts["layer"])
        peaks = {"update": always + update, "evaluation": always + parts["dev replies"]}
        if "rollouts" in parts:
            peaks["rollouts"] = always + parts["rollouts"]
        return parts, peaks

    def _largest(self, micro: int, peak: int, most: int) -> tuple[int, int] | None:
        """The largest micro-batch of at most ``most`` units that fits, and its peak; None where memory is not known, or
        none fits."""
        limit = self.machine.memory
        if limit is None:
            return None
        mine = self._mine()
        for size in (n for n in range(most, 0, -1) if mine % n == 0):
            if size > micro and peak > limit:
                # More in a pass never needs less.
                continue
            step = Step(self.units, self.unit, size, mine // size, self.rows.largest_pass(size))
            needs = peak if size == micro else max(self._memory(step)[1].values())
            if needs <= limit:
                return size, needs
        return None

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if not self.counted.frozen_tower:
            notes.append("activations of the vision tower, which is trained here, are not counted")
        optimiser = str(self.settings.trl.get("optim", "adamw_torch_fused"))
        if optimiser not in _STATES:
            notes.append(f"states of {optimiser} are counted as those of AdamW")
        if self.config.rft.trl.get("use_vllm") and self.stage == "rft":
            notes.append("vLLM's memory is its own and is not counted")
        return tuple(notes)


def advice(plan: Plan) -> str:
    """What to change so that training fits: the sentence of an out-of-memory error, and of a plan that does not fit."""
    key = f"{plan.stage}.micro_batch"
    if plan.machine.memory is None:
        return f"a process needs {plan.peak / GIB:.1f} GiB: lower {key}, or turn gradient_checkpointing on"
    room = f"{plan.machine.memory / GIB:.1f} GiB"
    if plan.largest_micro_batch:
        assert plan.largest_peak is not None
        return f"{key} = {plan.largest_micro_batch} fits {room}: it needs {plan.largest_peak / GIB:.1f} GiB"
    biggest: Sequence[str] = sorted(plan.parts, key=plan.parts.__getitem__, reverse=True)[:2]
    return (
        f"not even the smallest {key} fits {room}; the largest parts are {' and '.join(biggest)}: turn on "
        "gradient_checkpointing or LoRA, hold the base in 4 bit (model.load_in_4bit), or lower model.max_pixels"
    )


def visible_memory(gpu: bool) -> int | None:
    """Bytes of the visible GPU, or of this machine's main memory."""
    if gpu:
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    import psutil

    return psutil.virtual_memory().total
