"""What one record of an adapter's labels says: kind, subject, answer and box in pixels of the image."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from surgery_r1 import vocab
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import BoxFormat, DatasetFormat, several
from surgery_r1.data.formats.lines import LineError
from surgery_r1.geometry import Box

_SPREAD = re.compile(r"[\s,;]+")
_UNITS = {"relative": 1.0, "permille": 1000.0}


class FieldParser:
    """Reads records by an adapter."""

    def __init__(self, adapter: DatasetFormat) -> None:
        self._format = adapter
        self._questions = [
            (kind, re.compile(text, re.I)) for kind, texts in adapter.questions.items() for text in several(texts)
        ]
        self._subjects = {vocab.spoken(name): name for name in adapter.subjects}
        self._places = {vocab.spoken(name): name for name in adapter.answers.get("location", ())}
        self._classes = {kind: {vocab.spoken(name): name for name in names} for kind, names in adapter.answers.items()}

    def question(self, text: str) -> tuple[str, str] | None:
        """Kind and subject of a question, None for a form that the adapter does not know."""
        for kind, pattern in self._questions:
            match = pattern.fullmatch(text.strip())
            if match:
                if kind == "organ":
                    return kind, self._format.answers["organ"][0]
                # A group that took no part has nothing to say about.
                subject = (match["subject"] or "").strip()
                known = self._places if kind == "tool" else self._subjects
                return kind, known.get(vocab.spoken(subject), re.sub(r"\s+", "_", subject.lower()))
        return None

    def answer(self, kind: str, text: str) -> str:
        """The class of an answer.

        Raises:
            LineError: when it is none of the kind's, naming a near one where only the spelling differs.
        """
        answer = self._format.rename.get(text.strip(), text.strip())
        names = self._format.answers[kind]
        if answer in names:
            return answer
        near = self._classes[kind].get(vocab.spoken(answer))
        fix = f'did you mean {near!r}? [rename] "{answer}" = "{near}"' if near else f"one of {', '.join(names)}"
        raise LineError(validation.UNKNOWN_ANSWER, repr(answer[:60]), fix)

    def box(self, values: list[str], size: tuple[int, int] | None) -> Box:
        """The box in 0-based pixels of an image of ``size`` (width, height).

        Raises:
            LineError: for something that is no box inside the frame.
        """
        return read_box(values, self._format.box, size)


def numbers_of(value: Any) -> list[str]:
    """The numbers of a field that holds a whole box: a list, or text such as ``[1, 2, 3, 4]``.

    >>> numbers_of("[1, 2, 3.5, 4]"), numbers_of([1, 2, 3, 4]), numbers_of("1 2 3 4")
    (['1', '2', '3.5', '4'], ['1', '2', '3', '4'], ['1', '2', '3', '4'])
    """
    if isinstance(value, list):
        return [json.dumps(item) for item in value]
    return [part for part in _SPREAD.split(str(value).strip(" []()")) if part]


def read_box(values: list[str], rule: BoxFormat, size: tuple[int, int] | None) -> Box:
    """A box as labels write it, in 0-based pixels of an image of ``size``; unchecked where that is not known.

    >>> read_box(["10", "20", "30", "40"], BoxFormat(order="xywh"), (100, 100))
    (10, 20, 40, 60)
    >>> read_box(["0.5", "0.5", "1", "0.5"], BoxFormat(order="cxcywh", units="relative"), (200, 100))
    (0, 25, 200, 75)

    Raises:
        LineError: for a wrong number of values, one that is no finite number, an empty, inverted or outside box.
    """
    shown = repr(", ".join(values)[:60])
    if len(values) != 4:
        raise LineError(validation.CORNER_COUNT, f"{len(values)} numbers in {shown}", "a box has four")
    try:
        a, b, c, d = map(float, values)
    except ValueError:
        raise LineError(validation.NON_NUMERIC, shown, "write numbers") from None
    if not all(map(math.isfinite, (a, b, c, d))):
        raise LineError(validation.NAN_CORNER, shown, "write numbers")
    if rule.order == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif rule.order == "xywh":
        c, d = a + c, b + d
    corners = [value - rule.origin for value in (a, b, c, d)]
    if size is not None:
        given = rule.size or size
        units = (_UNITS[rule.units],) * 2 if rule.units != "pixels" else given
        corners = [value * size[i % 2] / units[i % 2] for i, value in enumerate(corners)]
    x1, y1, x2, y2 = (int(value) if value == int(value) else round(value, 6) for value in corners)
    if x2 <= x1 or y2 <= y1:
        fix = "the second corner must lie right of and below the first; is box.order right?"
        raise LineError(validation.EMPTY_BOX, shown, fix)
    # Counted from 1, the last pixel is the last corner there is; counted from 0, its far edge may be meant.
    if size is not None and (x1 < 0 or y1 < 0 or x2 > size[0] - rule.origin or y2 > size[1] - rule.origin):
        fix = "check box.order, box.origin, box.units and box.size"
        raise LineError(validation.OUTSIDE, f"{shown} in a frame of {size[0]}x{size[1]}", fix)
    return x1, y1, x2, y2
