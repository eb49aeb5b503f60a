"""The one comparison of a prediction with the truth, and the one meaning of what a box refers to.

Rewards and evaluation both use these, so that what training pays for is what evaluation counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
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
        iou: true IoU in source pixels in [0, 1]; 0 without a usable box, None where the truth has no box.
        truth: index of the accepted pair that it was compared with.
    """

    answer_right: bool
    iou: float | None
    truth: int

    @property
    def joint(self) -> float | None:
        """IoU if the answer is right, else 0 (ours: our reading of the paper's coherence)."""
        return self.iou if self.answer_right or self.iou is None else 0.0

    @property
    def joint_at_iou50(self) -> bool | None:
        """Right answer and a box with IoU >= 0.5."""
        return None if self.iou is None else self.answer_right and self.iou >= IOU_RIGHT


def match(reading: Prediction, accepted: tuple[tuple[str, Box | None], ...]) -> Match:
    """Compare with every accepted (answer, box) pair and keep the best: right answers first, then IoU.

    Args:
        reading: the prediction.
        accepted: pairs of answer and box in source pixels, see :attr:`surgery_r1.records.Sample.accepted`.

    >>> reading = Prediction(None, "suction", (0, 0, 2, 2))
    >>> match(reading, (("stapler", (9, 9, 10, 10)), ("suction", (0, 0, 2, 2))))
    Match(answer_right=True, iou=1.0, truth=1)
    >>> match(reading, (("suction", None),))
    Match(answer_right=True, iou=None, truth=0)
    """
    candidates = [
        Match(reading.answer == answer, None if box is None else iou(reading.box_px, box), index)
        for index, (answer, box) in enumerate(accepted)
    ]
    return max(candidates, key=lambda candidate: (candidate.answer_right, candidate.iou or 0.0, -candidate.truth))


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
    def accepted(self) -> tuple[tuple[str, Box | None], ...]:
        """Every right (answer, box) pair, boxes in source pixels, None in sets without boxes."""
        ...


class Referent(StrEnum):
    """What a predicted box refers to, on a frame that holds another object than the one asked about (ours).

    >>> Referent.OTHER.wrong, Referent.OTHER_CLEARLY.wrong, Referent.NOTHING.wrong
    (True, True, False)
    """

    #: The object asked about: no other one fits the box better.
    OWN = "own"
    #: Another object fits the box better than the one asked about.
    OTHER = "other"
    #: The same, beyond doubt: another object has an IoU of at least :data:`IOU_RIGHT`, the one asked about less.
    OTHER_CLEARLY = "other_clearly"
    #: No box, or a box that touches no annotated object: it fails to refer at all.
    NOTHING = "nothing"

    @property
    def wrong(self) -> bool:
        """Whether it is another object than the one asked about, clearly or not."""
        return self in (Referent.OTHER, Referent.OTHER_CLEARLY)


def other_objects(asked: Asked, objects: Sequence[AnnotatedObject]) -> tuple[AnnotatedObject, ...]:
    """The annotated objects of a frame that are not what the question is about, in the order given (ours).

    Every accepted (answer, box) pair points at one object: the one of the right name (the subject, or the answer where
    the question asks which tool it is) whose box overlaps the box of the pair most, if any does. All objects that no
    pair points at are "other" ones, so a second instrument of the same name is one of them. An object whose box equals
    an accepted box never is, whatever its name. Without accepted boxes nothing can be told, and there are none.

    Args:
        objects: every annotated object of the frame, boxes in source pixels.
    """
    pairs = [(answer, box) for answer, box in asked.accepted if box is not None]
    if not pairs:
        return ()
    boxes = {tuple(box) for _, box in pairs}
    meant = {_pointed_at(answer if asked.kind == "tool" else asked.subject, box, objects) for answer, box in pairs}
    return tuple(item for i, item in enumerate(objects) if i not in meant and tuple(item.box_px) not in boxes)


def _pointed_at(name: str, box: Box, objects: Sequence[AnnotatedObject]) -> int | None:
    """Index of the object of that name which overlaps the box most (the first of equals), None if none does."""
    overlaps = [(iou(item.box_px, box), -i) for i, item in enumerate(objects) if item.name == name]
    best, index = max(overlaps, default=(0.0, 0))
    return -index if best > 0.0 else None


def referent(box_px: Box | None, asked: Asked, objects: Sequence[AnnotatedObject]) -> Referent | None:
    """Which object a predicted box refers to: the one asked about, another one, or nothing (ours).

    It refers to another object if one of :func:`other_objects` has a strictly larger IoU with it than every accepted
    box has; a box that fits both equally well is no error. Whether there is an answer at all depends on the truth
    alone, so that no reply can leave a denominator.

    Args:
        box_px: the predicted box in source pixels, or None.
        objects: every annotated object of the frame; empty where they are unknown.

    Returns:
        None where the frame has no other object, or the truth no box.

    >>> from surgery_r1.records import AnnotatedObject, Sample
    >>> pair = [AnnotatedObject("suction", "Idle", None, (0, 0, 9, 9)),
    ...         AnnotatedObject("stapler", "Idle", None, (20, 0, 29, 9))]
    >>> asked = Sample("a", "s", "val", "q", "f", "f.png", 99, 99, "?", "state", "suction", "Idle", (0, 0, 9, 9))
    >>> [str(referent(box, asked, pair)) for box in ((0, 0, 9, 8), (20, 0, 29, 8), (20, 0, 99, 99), None)]
    ['own', 'other_clearly', 'other', 'nothing']
    """
    others = other_objects(asked, objects)
    if not others:
        return None
    best_other = max([iou(box_px, other.box_px) for other in others])
    own = max([iou(box_px, box) for _, box in asked.accepted])
    if best_other > own:
        return Referent.OTHER_CLEARLY if best_other >= IOU_RIGHT > own else Referent.OTHER
    return Referent.OWN if own > 0.0 else Referent.NOTHING
