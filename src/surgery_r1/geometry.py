"""Boxes: the only place with box arithmetic.

Every box is ``(x1, y1, x2, y2)``. ``box_px`` is 0-based in source pixels, ``box_model`` is in the space that a
model reads and writes (see :mod:`surgery_r1.codec`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

#: Two corners. Whole pixels of a file stay whole numbers.
Box = tuple[int | float, int | float, int | float, int | float]


def is_box(box: Sequence[float] | None) -> bool:
    """Whether ``box`` has four finite corners with a positive width and height.

    >>> is_box((0, 0, 2, 1)), is_box((0, 0, 0, 1)), is_box((0, 0, float("nan"), 1)), is_box(None)
    (True, False, False, False)
    """
    if box is None or len(box) != 4:
        return False
    # Written out: scoring asks this millions of times. A comparison with NaN is false.
    x1, y1, x2, y2 = box
    return -math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf


def area(box: Sequence[float]) -> float:
    """Area in squared units of the box; 0 for an inverted one."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def iou(a: Sequence[float] | None, b: Sequence[float] | None) -> float:
    """Intersection over union of two boxes in the same space, in [0, 1]; 0 when either is None or not a box.

    >>> iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    if a is None or b is None or not (is_box(a) and is_box(b)):
        return 0.0
    # Most pairs that scoring asks about do not touch; for them nothing more is computed.
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    union = area(a) + area(b) - inter
    # Corners near the limits of a float can overflow to inf; such a box overlaps nothing that matters.
    if not math.isfinite(union) or union <= 0.0:
        return 0.0
    return min(1.0, inter / union)  # rounding of the union can put the ratio an ulp above 1


def giou(a: Sequence[float], b: Sequence[float]) -> float:
    """Generalised IoU (Rezatofighi et al. 2019), in [-1, 1]: graded also for boxes that do not overlap.

    >>> giou((0, 0, 1, 1), (0, 0, 1, 1)), giou((0, 0, 1, 1), (3, 0, 4, 1))
    (1.0, -0.5)
    """
    if not (is_box(a) and is_box(b)):
        return -1.0
    hull = (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    hull_area = area(hull)
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = area(a) + area(b) - inter
    # Areas near the limits of a float overflow to inf or underflow to 0; such boxes count as infinitely far apart.
    if not (math.isfinite(hull_area) and math.isfinite(union)) or union <= 0.0 or hull_area <= 0.0:
        return -1.0
    return min(1.0, max(-1.0, inter / union - (hull_area - union) / hull_area))


def closeness(a: Sequence[float], b: Sequence[float], width: float, height: float) -> float:
    """How near the corners of two boxes are, in [0, 1]: 1 minus the mean corner error as a share of the frame.

    Graded everywhere, overlapping or not. Of all constant boxes it is the median box that earns most, never the whole
    frame: with ``(1 + GIoU) / 2`` it is the other way round, since a frame-sized box pays no hull penalty. Ours.

    Args:
        a, b: boxes in the same space as the frame.
        width, height: size of the frame.

    >>> closeness((0, 0, 10, 10), (90, 90, 100, 100), 100, 100), closeness((0, 0, 9, 9), (0, 0, 9, 9), 100, 100)
    (0.09999999999999998, 1.0)
    """
    if not (is_box(a) and is_box(b)):
        return 0.0
    error = (abs(a[0] - b[0]) + abs(a[2] - b[2])) / width + (abs(a[1] - b[1]) + abs(a[3] - b[3])) / height
    return max(0.0, 1.0 - error / 4)


#: Up to this share of the frame a box points at something, whatever it holds; see :func:`pointing`.
POINTING_SHARE = 0.75


def pointing(box: Sequence[float], truth: Sequence[float], width: float, height: float) -> float:
    """How far a box still points at something rather than at everything, in [0, 1].

    1 for a box that covers at most :data:`POINTING_SHARE` of the frame, or no more of it than the truth does; from
    there it falls in a straight line to 0 for the whole frame, so that there is no edge to sit just below of. Ours.

    Args:
        box, truth: predicted and true corners in the same space as the frame; ``box`` is clipped to it.
        width, height: size of the frame.

    >>> pointing((0, 0, 50, 100), (0, 0, 9, 9), 100, 100), pointing((0, 0, 100, 100), (0, 0, 9, 9), 100, 100)
    (1.0, 0.0)
    >>> pointing((0, 0, 100, 100), (0, 0, 100, 100), 100, 100)
    1.0
    """
    frame = width * height
    allowed = max(POINTING_SHARE, area(clip(truth, width, height)) / frame)
    share = area(clip(box, width, height)) / frame
    return 1.0 if share <= allowed else max(0.0, (1.0 - share) / (1.0 - allowed))


def iou_published(box_px: Sequence[float] | None, truth_px: Sequence[float], width: int, height: int) -> float:
    """The number that the Surgical-VQLA family prints as ``IoU``; it is not an IoU.

    The public evaluation code applies the +1 pixel convention to boxes normalised to [0, 1] and never clips an
    empty overlap, so disjoint boxes score well above 0. Reproduced in float32 so that tables compare.
    A missing box scores 0.

    Args:
        box_px: predicted corners in source pixels, or None.
        truth_px: true corners in source pixels (0-based).
        width, height: size of the frame in pixels.

    >>> round(iou_published((0, 0, 128, 102.4), (1152, 921.6, 1280, 1024), 1280, 1024), 2)
    0.02
    """
    import numpy as np

    if not is_box(box_px):
        return 0.0
    scale = np.array([width, height, width, height], dtype=np.float32)
    a = np.asarray(box_px, dtype=np.float32) / scale
    b = np.asarray(truth_px, dtype=np.float32) / scale
    one = np.float32(1.0)
    inter = (min(a[2], b[2]) - max(a[0], b[0]) + one) * (min(a[3], b[3]) - max(a[1], b[1]) + one)
    area_a = (a[2] - a[0] + one) * (a[3] - a[1] + one)
    area_b = (b[2] - b[0] + one) * (b[3] - b[1] + one)
    return float(inter / max(area_a + area_b - inter, one))


def clip(box: Sequence[float], width: float, height: float) -> Box:
    """``box`` clipped to the frame ``[0, width] x [0, height]``."""
    x1, y1, x2, y2 = box
    return min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height)


def scale(box: Sequence[float], sx: float, sy: float) -> Box:
    """``box`` with x multiplied by ``sx`` and y by ``sy``."""
    x1, y1, x2, y2 = box
    return x1 * sx, y1 * sy, x2 * sx, y2 * sy


def center(box: Sequence[float]) -> tuple[float, float]:
    """Centre ``(x, y)`` of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


#: How a frame can be mirrored: whether left and right are swapped, and whether top and bottom are.
FLIPS: dict[str, tuple[bool, bool]] = {
    "none": (False, False),
    "horizontal": (True, False),
    "vertical": (False, True),
    "both": (True, True),
}


def flip_box(box: Box, flip: str, width: float, height: float) -> Box:
    """A box in the mirrored frame.

    Args:
        flip: a key of :data:`FLIPS`.

    >>> flip_box((0, 0, 10, 20), "horizontal", 100, 50)
    (90, 0, 100, 20)
    """
    x1, y1, x2, y2 = box
    across, over = FLIPS[flip]
    if across:
        x1, x2 = width - x2, width - x1
    if over:
        y1, y2 = height - y2, height - y1
    return (x1, y1, x2, y2)


class LocationRule(NamedTuple):
    """How a quadrant name follows from a box: relative to what, and which way is up; public labels disagree.

    Attributes:
        reference: ``image`` or ``organ``, whose centre divides left from right and top from bottom.
        y: ``normal`` (top is up) or ``flipped`` (larger y is called top).
    """

    reference: str
    y: str

    @property
    def name(self) -> str:
        return f"{self.reference}-{self.y}"


LOCATION_RULES: tuple[LocationRule, ...] = tuple(
    LocationRule(reference, y) for reference in ("image", "organ") for y in ("normal", "flipped")
)


def location_rule(name: str) -> LocationRule:
    """The rule of that name, such as ``image-normal``.

    Raises:
        ValueError: when there is no such rule.
    """
    for rule in LOCATION_RULES:
        if rule.name == name:
            return rule
    raise ValueError(f"unknown location rule {name!r}; one of {[rule.name for rule in LOCATION_RULES]}")


def quadrant(box: Sequence[float], rule: LocationRule, width: float, height: float, organ: Box | None) -> str | None:
    """The quadrant name of a box under ``rule``, or None where the rule needs an organ box and there is none.

    >>> quadrant((0, 0, 10, 10), LocationRule("image", "normal"), 100, 100, None)
    'left-top'
    >>> quadrant((0, 0, 10, 10), LocationRule("image", "flipped"), 100, 100, None)
    'left-bottom'
    """
    if rule.reference == "organ":
        if organ is None:
            return None
        cx, cy = center(organ)
    else:
        cx, cy = width / 2, height / 2
    x, y = center(box)
    upper = (y < cy) if rule.y == "normal" else (y >= cy)
    return f"{'left' if x < cx else 'right'}-{'top' if upper else 'bottom'}"
