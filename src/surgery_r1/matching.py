"""The one comparison of a prediction with the truth, and the one meaning of a wrong referent.

Rewards and evaluation both use these, so that what training pays for is what evaluation counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from surgery_r1.codec import Prediction
from surgery_r1.geometry import Box, iou
from surgery_r1.records import AnnotatedObject

IOU_RIGHT = 0.5


@dataclass(frozen=True, slots=True)
class Match:
    """One prediction against the truth.

    Attributes:
        answer_right: the answer equals an accepted one, exactly (``Suction`` is not ``suction``).
        iou: true IoU in source pixels in [0, 1]; 0 without a usable box.
        truth: index of the accepted pair that it was compared with.
    """

    answer_right: bool
    iou: float
    truth: int

    @property
    def joint(self) -> float:
        """IoU if the answer is right, else 0 (ours: our reading of the paper's coherence)."""
        return self.iou if self.answer_right else 0.0

    @property
    def joint_at_iou50(self) -> bool:
        """Right answer and a box with IoU >= 0.5."""
        return self.answer_right and self.iou >= IOU_RIGHT


def match(reading: Prediction, accepted: tuple[tuple[str, Box], ...]) -> Match:
    """Compare with every accepted (answer, box) pair and keep the best: right answers first, then IoU.

    Args:
        reading: the prediction.
        accepted: pairs of answer and box in source pixels, see :attr:`surgery_r1.records.Sample.accepted`.

    >>> reading = Prediction(None, "suction", (0, 0, 2, 2))
    >>> match(reading, (("stapler", (9, 9, 10, 10)), ("suction", (0, 0, 2, 2))))
    Match(answer_right=True, iou=1.0, truth=1)
    """
    candidates = [
        Match(reading.answer == answer, 0.0 if reading.box_px is None else iou(reading.box_px, box), index)
        for index, (answer, box) in enumerate(accepted)
    ]
    return max(candidates, key=lambda j: (j.answer_right, j.iou, -j.truth))


class Asked(Protocol):
    """What a question asks about, as both :class:`surgery_r1.records.Sample` and a reward's truth hold it."""

    @property
    def kind(self) -> str:
        """Kind of the question, one of :data:`surgery_r1.vocab.KINDS`."""
        ...

    @property
    def subject(self) -> str:
        """Name of the object the question is about; for kind ``tool`` the place instead."""
        ...

    @property
    def accepted(self) -> tuple[tuple[str, Box], ...]:
        """Every right (answer, box) pair, boxes in source pixels."""
        ...


def other_objects(asked: Asked, objects: Sequence[AnnotatedObject]) -> tuple[AnnotatedObject, ...]:
    """The annotated objects of a frame that are not what the question is about, in the order given (ours).

    Every accepted (answer, box) pair points at one object: the one of the right name (the subject, or the answer where
    the question asks which tool it is) whose box overlaps the box of the pair most, if any does. All objects that no
    pair points at are "other" ones, so a second instrument of the same name is one of them. An object whose box equals
    an accepted box never is, whatever its name.

    Args:
        objects: every annotated object of the frame, boxes in source pixels.
    """
    boxes = {tuple(box) for _, box in asked.accepted}
    meant = {
        _pointed_at(answer if asked.kind == "tool" else asked.subject, box, objects) for answer, box in asked.accepted
    }
    return tuple(item for i, item in enumerate(objects) if i not in meant and tuple(item.box_px) not in boxes)


def _pointed_at(name: str, box: Box, objects: Sequence[AnnotatedObject]) -> int | None:
    """Index of the object of that name which overlaps the box most (the first of equals), None if none does."""
    overlaps = [(iou(item.box_px, box), -i) for i, item in enumerate(objects) if item.name == name]
    best, index = max(overlaps, default=(0.0, 0))
    return -index if best > 0.0 else None


def wrong_referent(box_px: Box | None, asked: Asked, objects: Sequence[AnnotatedObject]) -> bool | None:
    """Whether a predicted box refers to another object than the one asked about (ours).

    It does if some other object (:func:`other_objects`) has a strictly larger IoU with it than every accepted box has.
    A box on empty tissue refers to nothing, hence not wrongly; nor does a box that fits both equally well.

    Args:
        box_px: the predicted box in source pixels, or None.
        objects: every annotated object of the frame; empty where they are unknown.

    Returns:
        None without a predicted box, or where the frame has no other object.
    """
    others = other_objects(asked, objects)
    if box_px is None or not others:
        return None
    return max(iou(box_px, other.box_px) for other in others) > max(iou(box_px, box) for _, box in asked.accepted)
