"""What is examined: a config, a dataset and a model, loaded once and cut to what a check can afford."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.endpoint import ServerOptions
from surgery_r1.evaluate.predict import evenly_spaced
from surgery_r1.models.load import Bundle, base_of, from_pretrained, merged, resolve
from surgery_r1.records import Sample
from surgery_r1.train.config import LoraConfig, TrainConfig
from surgery_r1.train.options import Permissions
from surgery_r1.train.planning.plan import Machine, Plan, Planner
from surgery_r1.train.planning.rows import image_tokens
from surgery_r1.train.planning.stage import planner

if TYPE_CHECKING:
    from surgery_r1.doctor.rollouts import Rollouts

#: Frames with most text, of which a plan is made: the largest pass is among them.
_HEAVY_FRAMES = 60
#: A file of weights up to this size is trained by the check of resuming; beyond it the tiny base stands in.
SMALL_MODEL = 200 * 2**20


@dataclass
class Patient:
    """A run that somebody is about to start.

    Attributes:
        base: the model that it starts from.
        scratch: an empty folder for what checks write.
        out: the folder below which runs will be written.
        machine: that it will run on, asked before anything was loaded.
        server: a chat server that has the model; None without.
        bundle: the model, once the check of it has loaded it.
    """

    config: TrainConfig
    dataset: Dataset
    base: str | Path
    scratch: Path
    out: Path
    machine: Machine
    server: ServerOptions | None = None
    allowed: Permissions = field(default_factory=Permissions)
    bundle: Bundle | None = None

    def load(self) -> Bundle:
        """The model as training loads it, an adapter merged into its base."""
        own = self.config.model
        settings: dict[str, Any] = {
            name: getattr(own, name) or None for name in ("min_pixels", "max_pixels", "box_space")
        }
        bundle = from_pretrained(
            self.base, dtype=own.dtype, attention=own.attention, allow_hub=self.allowed.hub, **settings
        )
        self.bundle = replace_model(bundle, merged(bundle.model).eval())
        return self.bundle

    @property
    def loaded(self) -> Bundle:
        """The model.

        Raises:
            SurgeryR1Error: where it has not been loaded.
        """
        if self.bundle is None:
            raise SurgeryR1Error("the model has not been loaded", fix="examine it with the check 'model' too")
        return self.bundle

    @cached_property
    def base_folder(self) -> Path:
        """The folder with the weights that an adapter stands on, or of the model itself."""
        return base_of(resolve(self.base, allow_hub=self.allowed.hub), self.allowed.hub)

    @property
    def weights_bytes(self) -> int:
        """Size of the base's weight files."""
        return sum(path.stat().st_size for path in self.base_folder.glob("*.safetensors"))

    def samples(self, count: int, kinds: bool = False) -> list[Sample]:
        """Training questions on distinct frames, evenly spread; with ``kinds`` one for each kind of question."""
        train = self.dataset.split("train")
        if not train:
            raise SurgeryR1Error(
                "no training questions", where=self.dataset.root, fix="build it from training sequences"
            )
        by = {sample.kind if kinds else sample.image: sample for sample in reversed(train)}
        return evenly_spaced(list(by.values()), count)

    def few(self, **frames: int) -> Dataset:
        """The dataset with so many frames of each split that is named, evenly spread."""
        kept: set[str] = set()
        for split, count in frames.items():
            names = dict.fromkeys(sample.frame_id for sample in self.dataset.split(split))
            kept.update(evenly_spaced(list(names), count))
        return cut(self.dataset, kept)

    @cached_property
    def planners(self) -> dict[str, Planner]:
        """What plans both stages, from the frames with most text."""
        text: dict[str, int] = {}
        for row in self.dataset.train_rows():
            frame = self.dataset.samples[row.sample_id].frame_id
            text[frame] = text.get(frame, 0) + len(row.question) + len(row.reasoning or "") + len(row.answer or "")
        heavy = cut(self.dataset, sorted(text, key=text.__getitem__, reverse=True)[:_HEAVY_FRAMES])
        made = {}
        for stage in ("sft", "rft"):
            one = planner(stage, self.config, heavy, self.machine, base=self.base, allowed=self.allowed)  # type: ignore[arg-type]
            tokens = image_tokens(self.dataset, self.loaded.processor)
            made[stage] = replace(one, rows=replace(one.rows, image_tokens=tokens))
        return made

    @cached_property
    def rollouts(self) -> Rollouts:
        """Groups that the trainer has sampled."""
        from surgery_r1.doctor.rollouts import roll_out

        return roll_out(self)

    def plan(self, stage: str, seconds: float | None = None) -> Plan:
        """The plan of a stage, on this machine."""
        made = self.planners[stage]
        return made.plan(made.settings.micro_batch // made.each, seconds)


def replace_model(bundle: Bundle, model: Any) -> Bundle:
    """The same with another model."""
    return Bundle(model, bundle.processor, bundle.info, bundle.folder)


def cut(dataset: Dataset, frames: Collection[str]) -> Dataset:
    """The dataset with these frames alone."""
    kept = set(frames)
    samples = {name: sample for name, sample in dataset.samples.items() if sample.frame_id in kept}
    small = Dataset(
        dataset.root,
        dataset.image_root,
        dataset.manifest,
        samples,
        {name: frame for name, frame in dataset.frames.items() if name in kept},
    )
    small.rows = [row for row in dataset.rows if row.sample_id in samples]
    return small


def without_lora(config: TrainConfig) -> TrainConfig:
    """The config of a run that trains all weights."""
    return replace(config, lora=LoraConfig(enabled=False))
