"""Boxes as models write them: which numbers, in which units, and between them and source pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery_r1.codec import View
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.box_units import FORMATS, SPACES, BoxUnits
from surgery_r1.geometry import Box

#: What the four numbers can be. ``yxyx``: two corners, y first, as Gemini writes them.
NATIVE_FORMATS: tuple[str, ...] = (*FORMATS, "yxyx")

_FORMAT_WORDS: dict[str, str] = {
    "xyxy": "[left, top, right, bottom]",
    "xywh": "[left, top, width, height]",
    "cxcywh": "[centre x, centre y, width, height]",
    "yxyx": "[top, left, bottom, right]",
}
_UNIT_WORDS: dict[str, str] = {
    "pixels": "pixels of the image, which is {width} wide and {height} high",
    "source": "pixels of the image, which is {width} wide and {height} high",
    "norm1000": "thousandths of the image, from 0 to 1000",
    "norm100": "hundredths of the image, from 0 to 100",
    "norm1": "shares of the image, from 0 to 1",
}


@dataclass(frozen=True, slots=True)
class NativeBoxes:
    """How a model writes boxes.

    Attributes:
        space: one of :data:`surgery_r1.evaluate.box_units.SPACES`; ``pixels`` are those of the resized image.
        format: one of :data:`NATIVE_FORMATS`.

    Raises:
        SurgeryR1Error: for a value that is not one of these.

    >>> boxes, view = NativeBoxes("norm1000", "xywh"), View(200, 100, 0, 0)
    >>> boxes.to_px((100, 100, 500, 200), view), boxes.from_px((20, 10, 120, 30), view)
    ((20.0, 10.0, 120.0, 30.0), [100, 100, 500, 200])
    """

    space: str
    format: str = "xyxy"

    def __post_init__(self) -> None:
        for name, value, values in (("space", self.space, SPACES), ("format", self.format, NATIVE_FORMATS)):
            if value not in values:
                raise SurgeryR1Error(f"--box-{name} {value}", fix=f"use one of {', '.join(values)}")

    def __str__(self) -> str:
        return f"{self.format}, {self.space}"

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return self.space != "norm1"

    def words(self, view: View) -> str:
        """What a prompt says of the box of a frame."""
        width, height = (view.input_width, view.input_height) if self.space == "pixels" else (view.width, view.height)
        return f"{_FORMAT_WORDS[self.format]} in {_UNIT_WORDS[self.space].format(width=width, height=height)}"

    def to_px(self, numbers: Sequence[float], view: View) -> Box:
        """Four numbers as written, as corners in source pixels, which may be inverted."""
        if self.format == "yxyx":
            top, left, bottom, right = numbers
            return BoxUnits(self.space, "xyxy", 0).to_px((left, top, right, bottom), view)
        return BoxUnits(self.space, self.format, 0).to_px(numbers, view)

    def from_px(self, box_px: Box, view: View) -> list[float]:
        """A box in source pixels as the model would write it, rounded to whole numbers or to three digits."""
        ux, uy = (1.0, 1.0) if self.space == "norm1" else view.units(self.space)
        x1, y1, x2, y2 = (value * unit for value, unit in zip(box_px, _scales(view, ux, uy), strict=True))
        numbers = {
            "xyxy": (x1, y1, x2, y2),
            "yxyx": (y1, x1, y2, x2),
            "xywh": (x1, y1, x2 - x1, y2 - y1),
            "cxcywh": ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
        }[self.format]
        return [round(value) if self.whole else round(value, 3) for value in numbers]


def _scales(view: View, ux: float, uy: float) -> tuple[float, float, float, float]:
    x, y = ux / view.width, uy / view.height
    return x, y, x, y
