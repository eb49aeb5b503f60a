"""The records that stages exchange through files: samples, frames, rows, predictions.

Each record is a frozen dataclass with ``from_json`` (strict: unknown and missing keys are errors) and ``to_json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from surgery_r1 import vocab
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import Box, is_box

TASKS: tuple[str, ...] = ("visual_qa", "grounding_qa", "cot")


class Record:
    """JSON round trip shared by the records. ``_optional`` fields are left out while they hold their default."""

    _optional: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str | None = None) -> Self:
        """Build from a parsed JSON object.

        Raises:
            SurgeryR1Error: naming ``where`` and the key or value that does not fit.
        """
        names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(data) - names)
        missing = sorted(names - cls._optional - set(data))
        if unknown or missing:
            raise SurgeryR1Error(
                f"{cls.__name__} with unknown keys {unknown} and missing keys {missing}",
                where=where,
                fix="rebuild the dataset with this version of surgery-r1",
            )
        try:
            return cls(**{name: _frozen(name, value) for name, value in data.items()})
        except (TypeError, ValueError) as error:
            raise SurgeryR1Error(f"bad {cls.__name__}: {error}", where=where, fix="rebuild the dataset") from None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict with the fields as keys, in order; optional fields at their default are left out."""
        data = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if f.name in self._optional and value == f.default:
                continue
            data[f.name] = _thawed(value)
        return data


def _frozen(name: str, value: Any) -> Any:
    if name == "objects":
        return tuple(AnnotatedObject.from_json(item) for item in value)
    if isinstance(value, list):
        return tuple(_frozen("", item) for item in value)
    return value


def _thawed(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_thawed(item) for item in value]
    return value.to_json() if isinstance(value, Record) else value


def _check_box(name: str, box: Box) -> None:
    if not is_box(box):
        raise ValueError(f"{name}={list(box)} is not a box with x2 > x1 and y2 > y1")


@dataclass(frozen=True, slots=True)
class Sample(Record):
    """One question on one frame: a line of ``samples.jsonl``.

    ``kind`` is one of :data:`surgery_r1.vocab.KINDS`, or any other word in sets of their own. ``box_px`` is 0-based
    xyxy in source pixels, None in sets without boxes. ``answers_accepted`` and ``boxes_accepted`` (same length) are
    set where several answers are right; ``answer`` and ``box_px`` are then the first of them.
    """

    id: str
    source: str
    split: str
    sequence: str
    frame: str
    image: str
    width: int
    height: int
    question: str
    kind: str
    subject: str
    answer: str
    box_px: Box | None
    answers_accepted: tuple[str, ...] = ()
    boxes_accepted: tuple[Box | None, ...] = ()

    _optional: ClassVar[frozenset[str]] = frozenset({"answers_accepted", "boxes_accepted"})

    def __post_init__(self) -> None:
        if self.split not in vocab.SPLITS:
            raise ValueError(f"split={self.split!r}, expected one of {vocab.SPLITS}")
        if not self.kind.strip():
            raise ValueError("kind is empty, expected a word")
        if len(self.answers_accepted) != len(self.boxes_accepted):
            lengths = f"{len(self.answers_accepted)} and {len(self.boxes_accepted)}"
            raise ValueError(f"answers_accepted and boxes_accepted have {lengths} entries, expected as many")
        for box in (self.box_px, *self.boxes_accepted):
            if box is not None:
                _check_box("box_px", box)
        if any((box is None) != (self.box_px is None) for box in self.boxes_accepted):
            raise ValueError("boxes_accepted with and without boxes, expected all or none")

    @property
    def frame_id(self) -> str:
        """Key of the frame in ``frames.jsonl``."""
        return f"{self.source}/{self.sequence}/{self.frame}"

    @property
    def accepted(self) -> tuple[tuple[str, Box | None], ...]:
        """Every right (answer, box) pair; one pair unless several are right. Boxes are all there or None."""
        if self.answers_accepted:
            return tuple(zip(self.answers_accepted, self.boxes_accepted, strict=True))
        return ((self.answer, self.box_px),)


@dataclass(frozen=True, slots=True)
class AnnotatedObject(Record):
    """An annotated object of a frame. ``state`` and ``location`` are None for the organ or where not annotated."""

    name: str
    state: str | None
    location: str | None
    box_px: Box

    def __post_init__(self) -> None:
        _check_box("box_px", self.box_px)

    @property
    def is_organ(self) -> bool:
        """Whether it is the organ: tools are annotated with a state or a place."""
        return self.state is None and self.location is None


@dataclass(frozen=True, slots=True)
class Frame(Record):
    """One image with every annotated object: a line of ``frames.jsonl``."""

    frame_id: str
    image: str
    width: int
    height: int
    sha256: str
    objects: tuple[AnnotatedObject, ...]

    @property
    def organ_box(self) -> Box | None:
        """Box of the organ, where annotated."""
        return next((o.box_px for o in self.objects if o.is_organ), None)


@dataclass(frozen=True, slots=True)
class TrainingRow(Record):
    """One training row: a line of ``rows.jsonl``. What the task lacks is None."""

    id: str
    sample_id: str
    task: str
    question: str
    reasoning: str | None
    answer: str | None
    box_px: Box | None
    writer: str | None
    checks: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r}, expected one of {TASKS}")
