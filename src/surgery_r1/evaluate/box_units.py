"""In which units the boxes of a prediction file are written, as a command or a line states it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from surgery_r1.codec import BOX_SPACES, View
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import Box

#: Spaces that predictions can be written in: those of models, and ``norm1``: shares of the frame, 0 to 1.
SPACES: tuple[str, ...] = (*BOX_SPACES, "norm1")

#: What the four numbers of a box are: two corners; corner and size; centre and size.
FORMATS: tuple[str, ...] = ("xyxy", "xywh", "cxcywh")

#: What the first pixel is called.
ORIGINS: tuple[int, ...] = (0, 1)

#: Key of a prediction line -> field of :class:`BoxUnits`, the values it may have, and what is assumed without it.
_KEYS: dict[str, tuple[str, tuple[Any, ...], Any]] = {
    "box_space": ("space", SPACES, "source"),
    "box_format": ("format", FORMATS, "xyxy"),
    "box_origin": ("origin", ORIGINS, 0),
}


@dataclass(frozen=True, slots=True)
class BoxUnits:
    """What is stated of the four numbers of a box; None where nothing is.

    Attributes:
        space: one of :data:`SPACES`; ``source`` unless stated.
        format: one of :data:`FORMATS`; ``xyxy`` unless stated.
        origin: one of :data:`ORIGINS`: 1 where corners (or the centre) are counted from 1; 0 unless stated.

    Raises:
        SurgeryR1Error: for a value that is not one of these.

    >>> BoxUnits("norm1", "cxcywh").to_px((0.5, 0.5, 0.5, 1.0), View(100, 80, 0, 0))
    (25.0, 0.0, 75.0, 80.0)
    >>> BoxUnits(origin=1).to_px((1, 1, 11, 21), View(100, 80, 0, 0))
    (0.0, 0.0, 10.0, 20.0)
    """

    space: str | None = None
    format: str | None = None
    origin: int | None = None

    def __post_init__(self) -> None:
        for key, (name, values, _) in _KEYS.items():
            _check(key, getattr(self, name), values, key.replace("_", " "))
        if self.space == "norm1" and self.origin == 1:
            raise SurgeryR1Error(
                "shares of the frame (norm1) are not counted from 1", fix="leave --box-origin out, or give 0"
            )

    def of_line(self, record: Mapping[str, Any], where: str) -> BoxUnits:
        """These units with what a line states of its own box.

        Raises:
            SurgeryR1Error: naming ``where`` for an unknown value, or one that contradicts what was asked for.
        """
        if not _KEYS.keys() & record.keys():
            return self
        stated: dict[str, Any] = {}
        for key, (name, values, _) in _KEYS.items():
            own, given = record.get(key), getattr(self, name)
            _check(key, own, values, key, where)
            if own is not None and given is not None and own != given:
                flag = "--" + key.replace("_", "-")
                raise SurgeryR1Error(
                    f"{key} {own!r}, but {given!r} was asked for", where=where, fix=f"drop {flag}, or correct the line"
                )
            stated[name] = given if own is None else own
        try:
            return BoxUnits(**stated)
        except SurgeryR1Error as error:
            raise SurgeryR1Error(error.what, where=where, fix=error.fix) from None

    @property
    def in_force(self) -> BoxUnits:
        """These units with what is assumed where nothing is stated."""
        return _in_force(self)

    @property
    def whole(self) -> bool:
        """Whether nothing is left to assume."""
        return None not in (self.space, self.format, self.origin)

    def to_px(self, numbers: Sequence[float], view: View) -> Box:
        """Four numbers in these units as corners in 0-based source pixels, which may be inverted."""
        a, b, c, d = numbers
        shift = self.origin or 0
        a, b = a - shift, b - shift
        if self.format == "xywh":
            c, d = a + c, b + d
        elif self.format == "cxcywh":
            a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
        else:
            c, d = c - shift, d - shift
        ux, uy = (1, 1) if self.space == "norm1" else view.units(self.space or "source")
        sx, sy = view.width / ux, view.height / uy
        return a * sx, b * sy, c * sx, d * sy

    def flags(self) -> str:
        """The flags of ``surgery-r1 score`` that state these units.

        >>> BoxUnits("norm1000", origin=0).flags()
        '--box-space norm1000 --box-origin 0'
        """
        named = ((key, getattr(self, name)) for key, (name, *_) in _KEYS.items())
        return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in named if value is not None)


@cache
def _in_force(units: BoxUnits) -> BoxUnits:
    """Made once for all lines of a file, which mostly state the same."""
    space, form, origin = (
        assumed if (value := getattr(units, name)) is None else value for name, _, assumed in _KEYS.values()
    )
    return BoxUnits(space, form, origin)


def _check(key: str, value: Any, values: tuple[Any, ...], words: str, where: str | None = None) -> None:
    # True == 1 and 1.0 == 1, and a list is not hashable: the type counts too.
    if value is not None and not any(type(value) is type(one) and value == one for one in values):
        raise SurgeryR1Error(f"unknown {words} {value!r:.80}", where=where, fix=f"use one of {sorted(values)}")


@dataclass(frozen=True, slots=True)
class WrittenBox:
    """The four numbers of a box as a line has them, with what is needed to read them otherwise.

    Attributes:
        view: size of the frame and of the resized image, the latter 0 where it is unknown.
        units: what is stated of the box, in the line or for the file.
        truths: accepted boxes in source pixels.
        question: its words.
    """

    numbers: Box
    view: View
    units: BoxUnits
    truths: tuple[Box, ...]
    question: str


def view_of_line(record: Mapping[str, Any], width: int, height: int, space: str | None, where: str) -> View:
    """How the model saw a frame of ``width`` x ``height`` pixels, as its line says; size 0 where it does not.

    Raises:
        SurgeryR1Error: when the boxes are in pixels of the resized image and its size is not there.
    """
    sizes = []
    for name in ("input_width", "input_height"):
        size = record.get(name)
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 10**6:
            if space == "pixels":
                raise SurgeryR1Error(
                    f"box_space 'pixels' with {name}={size!r:.80}",
                    where=where,
                    fix="write the size in pixels of the resized image that the model saw",
                )
            size = 0
        sizes.append(size)
    return View(width, height, *sizes)
