"""The one comparison of a prediction with the truth, shared by rewards and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from surgery_r1.codec import Prediction
from surgery_r1.geometry import Box, iou

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
