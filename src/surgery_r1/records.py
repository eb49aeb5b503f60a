"""The records that stages exchange through files: samples, frames, rows, predictions.

Each record is a frozen dataclass with ``from_json`` (strict: unknown and missing keys are errors) and ``to_json``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from surgery_r1 import vocab
from surgery_r1._util.checked import Positive, WrongData, checked
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
            SurgeryR1Error: naming ``where`` and every key and value that does not fit.
        """
        try:
            return checked(cls, data)
        except WrongData as error:
            fix = "rebuild the dataset with this version of surgery-r1"
            raise SurgeryR1Error(f"bad {cls.__name__}: {error}", where=where, fix=fix) from None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict with the fields as keys, in order; optional fields at their default are left out."""
        own = [f for f in fields(self) if f.name not in self._optional or getattr(self, f.name) != f.default]  # type: ignore[arg-type]
        return {f.name: _thawed(getattr(self, f.name)) for f in own}


def _thawed(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_thawed(item) for item in value]
    return value.to_json() if isinstance(value, Record) else value


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Refuse a value that is not one of those known, with a ValueError."""
    if value not in known:
        raise ValueError(f"{name}={value!r}, expected one of {known}")


def _check_box(name: str, box: Box) -> None:
    if not is_box(box):
        raise ValueError(f"{name}={list(box)} is not a box with x2 > x1 and y2 > y1")


@dataclass(frozen=True, slots=True)
class Sample(Record):
    """One question on one frame: a line of ``samples.jsonl``.

    ``box_px`` is 0-based xyxy in source pixels. ``answers_accepted`` and ``boxes_accepted`` (same length) are set
    where several answers are right; ``answer`` and ``box_px`` are then the first of them.
    ``kind`` is one of :data:`surgery_r1.vocab.KINDS`, or any other word in sets of their own. ``box_px`` is None in
    sets without boxes, and so are ``boxes_accepted``.
    """

    id: str
    source: str
    split: str
    sequence: str
    frame: str
    image: str
    width: Positive
    height: Positive
    question: str
    kind: str
    subject: str
    answer: str
    box_px: Box | None
    answers_accepted: tuple[str, ...] = ()
    boxes_accepted: tuple[Box | None, ...] = ()

    _optional: ClassVar[frozenset[str]] = frozenset({"answers_accepted", "boxes_accepted"})

    def __post_init__(self) -> None:
        check_choice("split", self.split, vocab.SPLITS)
        if not self.kind.strip():
            raise ValueError("kind is empty, expected a word")
        for name, box in (("box_px", self.box_px), *(("boxes_accepted", box) for box in self.boxes_accepted)):
            if box is not None:
                _check_box(name, box)
        if any((box is None) != (self.box_px is None) for box in self.boxes_accepted):
            raise ValueError("boxes_accepted with and without boxes, expected all or none")
        if len(self.answers_accepted) != len(self.boxes_accepted):
            raise ValueError(
                f"{len(self.answers_accepted)} answers_accepted, {len(self.boxes_accepted)} boxes_accepted"
            )

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
    width: Positive
    height: Positive
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
    checks: dict[str, Any]

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASKS)
