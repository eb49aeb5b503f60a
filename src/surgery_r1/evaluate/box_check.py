"""Whether the boxes of a prediction file are written in other units than they are read in.

A file in thousandths, shares or another order of numbers scores near 0 and looks like a bad model. Other readings of
its boxes are tried against the truth. Nothing is converted: a file that another reading fits far better is refused,
with the flag that reads it so. A bad model must never be refused. Hence a reading convinces only where it is good (not
just better), over several distinct boxes, and where each box fits its own truth better than those of other questions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from surgery_r1.codec import View
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.box_units import FORMATS, BoxUnits, WrittenBox
from surgery_r1.geometry import iou, is_box

#: Fewer distinct boxes say nothing; from ``_MANY`` on, a middling model can be told from another reading too.
_FEW, _MANY = 5, 20
#: Distinct boxes looked at, evenly spread over the file.
_LOOKED_AT = 400

_SPACE_WORDS: dict[str, str] = {
    "source": "pixels of the frame",
    "pixels": "pixels of the resized image",
    "norm1000": "thousandths of the frame (0 to 1000)",
    "norm100": "hundredths of the frame (0 to 100)",
    "norm1": "shares of the frame (0 to 1)",
}
_FORMAT_WORDS: dict[str, str] = {"xywh": "corner and size (xywh)", "cxcywh": "centre and size (cxcywh)"}
#: Orders of the four corners that no flag reads.
_ORDERS: dict[tuple[int, ...], str] = {
    (1, 0, 3, 2): "corners with x and y swapped (y1, x1, y2, x2)",
    (2, 3, 0, 1): "corners in the wrong order (x2, y2, x1, y1)",
}
_AS_IS = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A way to read the four numbers of all boxes, and how well each box then fits its truth."""

    units: BoxUnits
    order: tuple[int, ...]
    fits: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.fits)


def refuse_other_units(path: Path, boxes: Iterable[WrittenBox]) -> None:
    """Refuse boxes that are written in other units than they are read in.

    Args:
        boxes: those of the file whose units are not wholly stated.

    Raises:
        SurgeryR1Error: with what they look like, and the flags that read them.
    """
    groups: dict[tuple[BoxUnits, bool], dict[tuple[float, ...], WrittenBox]] = {}
    for box in boxes:
        if box.truths:
            # A constant box, or one for each question text, is one observation, however often it stands there.
            groups.setdefault((box.units, box.view.input_width > 0), {}).setdefault(box.numbers, box)
    for (stated, resized), distinct in groups.items():
        if len(distinct) >= _FEW:
            every = [*distinct.values()]
            _check_group(path, every[:: math.ceil(len(every) / _LOOKED_AT)], stated, resized)


def _check_group(path: Path, boxes: Sequence[WrittenBox], stated: BoxUnits, resized: bool) -> None:
    now = _read(boxes, stated.in_force, _AS_IS)
    others = _others(boxes, stated, resized)
    best = max(others, key=lambda reading: reading.mean, default=now)
    if stated.space is None and _all_shares(boxes):
        shares = [reading for reading in others if reading.units.space == "norm1" and reading.order == _AS_IS]
        best = max(shares, key=lambda reading: reading.mean)
        if best.mean < shares[0].mean + 0.1:
            best = shares[0]
        raise _refusal(path, boxes, stated, best, f"all of {len(boxes)} distinct ones lie within 0 and 1")
    if best is not now and _convinces(boxes, now, best):
        raise _refusal(path, boxes, stated, best, _compared(boxes, best.mean, now.mean))
    if stated.origin is None and _counted_from_one(boxes, now.units):
        evidence = f"of {len(boxes)} distinct ones, most equal the truth exactly once 1 is taken off"
        raise _refusal(path, boxes, stated, now, evidence)
    if stated.space is None:
        _refuse_resized(path, boxes, stated, now)


def _others(boxes: Sequence[WrittenBox], stated: BoxUnits, resized: bool) -> list[_Reading]:
    """Every other reading that what is stated allows."""
    force = stated.in_force
    spaces = [stated.space] if stated.space else ["source", "norm1000", "norm100", "norm1"] + ["pixels"] * resized
    formats = [stated.format] if stated.format else FORMATS
    ways: list[tuple[str, str, tuple[int, ...]]] = [(space, form, _AS_IS) for space in spaces for form in formats]
    ways += [(space, "xyxy", order) for space in spaces for order in _ORDERS if "xyxy" in formats]
    origins = {space: 0 if space == "norm1" else force.origin for space in spaces}
    readings = [_read(boxes, BoxUnits(space, form, origins[space]), order) for space, form, order in ways]
    return [reading for reading in readings if (reading.units, reading.order) != (force, _AS_IS)]


def _read(boxes: Sequence[WrittenBox], units: BoxUnits, order: tuple[int, ...]) -> _Reading:
    return _Reading(units, order, tuple(_fit(box, box, units, order) for box in boxes))


def _fit(box: WrittenBox, asked: WrittenBox, units: BoxUnits, order: tuple[int, ...] = _AS_IS) -> float:
    """IoU of a box, read in ``units``, with the truth of the question ``asked``."""
    read = units.to_px([box.numbers[i] for i in order], box.view)
    return max(iou(read, truth) for truth in asked.truths)


def _all_shares(boxes: Sequence[WrittenBox]) -> bool:
    """Whether all numbers lie within 0 and 1 or so, and are not just zeros and ones, on frames far larger."""
    numbers = [value for box in boxes for value in box.numbers]
    return all(-0.05 <= v <= 1.05 for v in numbers) and any(v != int(v) for v in numbers)


def _convinces(boxes: Sequence[WrittenBox], now: _Reading, other: _Reading) -> bool:
    """Whether the other reading is right, and not just luckier with a bad model's boxes."""
    count, mean, gain = len(boxes), other.mean, other.mean - now.mean
    better = sum(b > a for a, b in zip(now.fits, other.fits, strict=True)) / count
    reshaped = other.units.format != now.units.format
    inverted = sum(not is_box(now.units.to_px(box.numbers, box.view)) for box in boxes) / count
    # A tiny box around the right centre is a large one there if its second corner is read as a size.
    plausible = not reshaped or inverted >= 0.2 or mean >= 0.9
    if count < _MANY:
        return plausible and mean >= 0.8 and gain >= 0.3 and _is_specific(boxes, other, least=3)
    if plausible and ((mean >= 0.5 and gain >= 0.3) or (mean >= 0.8 and gain >= 0.1 and better >= 0.8)):
        return _is_specific(boxes, other, least=5)
    # A middling model: only its units explain that every number stays within them and so many more boxes fit.
    limit = {"norm1000": 1000.0, "norm100": 100.0}.get(str(other.units.space))
    if limit is None or reshaped or other.order != _AS_IS or gain < 0.15:
        return False
    within = all(-0.02 * limit <= value <= 1.02 * limit for box in boxes for value in box.numbers)
    gains = [b - a for a, b in zip(now.fits, other.fits, strict=True)]
    far_better = mean >= 0.25 and now.mean <= mean / 2
    surely_better = mean >= 0.4 and count >= 3 * _MANY and _beyond_chance(gains, 8)
    return within and (far_better or surely_better) and _is_specific(boxes, other, least=6)


def _is_specific(boxes: Sequence[WrittenBox], reading: _Reading, least: float) -> bool:
    """Whether boxes fit their own truth better than that of other questions, by ``least`` standard errors.

    Boxes that know nothing of their frame fit any truth equally well, however good the fit. Where it can be done,
    questions of the same words are compared: a box for each question text knows nothing of the frame either.
    """
    excess = _excess(boxes, reading, same_words=True)
    if len(excess) < len(boxes) / 2:
        excess = _excess(boxes, reading, same_words=False)
    if len(excess) < max(_FEW, len(boxes) / 2):
        return False
    return _beyond_chance(excess, least) and (len(boxes) >= _MANY or statistics.fmean(excess) >= 0.1)


def _excess(boxes: Sequence[WrittenBox], reading: _Reading, *, same_words: bool) -> list[float]:
    """By how much boxes fit their own truth better than other truths, on average; those without any are left out."""
    words: dict[str, list[WrittenBox]] = {}
    for box in boxes:
        words.setdefault(box.question if same_words else "", []).append(box)
    fits = dict(zip(map(id, boxes), reading.fits, strict=True))
    excess = []
    for alike in words.values():
        count = len(alike)
        steps = sorted({max(1, count * k // 8) for k in range(1, 8)})
        for i, box in enumerate(alike):
            others = [other for step in steps if (other := alike[(i + step) % count]).truths != box.truths]
            if others:
                control = statistics.fmean(_fit(box, other, reading.units, reading.order) for other in others)
                excess.append(fits[id(box)] - control)
    return excess


def _beyond_chance(values: Sequence[float], least: float) -> bool:
    """Whether the mean of values is above 0 by ``least`` standard errors."""
    return statistics.fmean(values) > least * statistics.stdev(values) / math.sqrt(len(values))


def _counted_from_one(boxes: Sequence[WrittenBox], units: BoxUnits) -> bool:
    """Whether most boxes equal the truth exactly once 1 is taken off."""
    if units.space != "source":
        return False
    from_one = replace(units, origin=1)

    def equal(box: WrittenBox) -> bool:
        read = from_one.to_px(box.numbers, box.view)
        return any(max(abs(a - b) for a, b in zip(read, truth, strict=True)) < 1e-6 for truth in box.truths)

    return sum(equal(box) for box in boxes) > len(boxes) / 2


def _refuse_resized(path: Path, boxes: Sequence[WrittenBox], stated: BoxUnits, now: _Reading) -> None:
    """Refuse pixels of an image of another size that nothing states: what scales them onto the truth is that size."""
    sizes = {(box.view.width, box.view.height) for box in boxes}
    corners = [(box.numbers[i], box.truths[0][i]) for box in boxes for i in (2, 3)]
    if len(sizes) > 1 or now.units.format != "xyxy" or min(map(min, corners)) <= 0:
        return
    width, height = sizes.pop()
    x, y = (statistics.median(written / true for written, true in corners[i::2]) for i in (0, 1))
    input_width, input_height = max(1, round(width * x)), max(1, round(height * y))
    view = View(width, height, input_width, input_height)
    scaled = [replace(box, view=view) for box in boxes]
    fitted = _read(scaled, BoxUnits("pixels", "xyxy", 0), _AS_IS)
    better = sum(b > a for a, b in zip(now.fits, fitted.fits, strict=True)) / len(boxes)
    enough = 0.8 if len(boxes) >= _MANY else 0.95
    if fitted.mean >= enough and fitted.mean - now.mean >= 0.2 and better >= 0.9 and _is_specific(scaled, fitted, 5):
        raise SurgeryR1Error(
            f"boxes look like pixels of an image of about {input_width} x {input_height}: "
            + _compared(boxes, fitted.mean, now.mean),
            where=str(path),
            fix="write input_width and input_height, the size of that image, into the lines and give --box-space "
            f"pixels; if the boxes are right as they stand, give {stated.in_force.flags()}",
        )


def _compared(boxes: Sequence[WrittenBox], mean: float, now: float) -> str:
    return f"read so, {len(boxes)} distinct ones fit the truth with a mean IoU of {mean:.2f}, as they stand {now:.2f}"


def _refusal(
    path: Path, boxes: Sequence[WrittenBox], stated: BoxUnits, reading: _Reading, evidence: str
) -> SurgeryR1Error:
    """The error for boxes that look like ``reading``; flags that were given already are not repeated."""
    units, force = reading.units, stated.in_force
    words = [] if units.space == force.space else [_SPACE_WORDS[str(units.space)]]
    words += [_ORDERS[reading.order]] if reading.order in _ORDERS else []
    words += [_FORMAT_WORDS.get(str(units.format), "two corners")] if units.format != force.format else []
    if stated.origin is None and reading.order == _AS_IS and _counted_from_one(boxes, units):
        units = replace(units, origin=1)
        words.append("counted from 1" if words else "corners counted from 1")
    differ = BoxUnits(
        units.space if units.space != force.space else None,
        units.format if units.format != force.format else None,
        units.origin if units.origin != force.origin else None,
    )
    how = f"give {differ.flags()}" if differ != BoxUnits() else "give"
    if reading.order in _ORDERS:
        how = "write every box as x1, y1, x2, y2" + ("" if differ == BoxUnits() else f" and {how}")
    return SurgeryR1Error(
        f"boxes look like {', '.join(words)}: {evidence}",
        where=str(path),
        fix=f"{how}; if the boxes are right as they stand, give {force.flags()}",
    )
