"""What the fields of one record say: kind and subject of the question, class of the answer, box in pixels."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from surgery_r1 import vocab
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import BoxFormat, DatasetFormat, several
from surgery_r1.data.formats.lines import LineError
from surgery_r1.data.formats.validation import shown
from surgery_r1.geometry import Box

#: What may stand between the numbers of boxes, and around them.
_SPREAD = re.compile(r"[\s,;\[\]()]+")
#: ASCII digits only: ``float`` would also take ``1_0`` and digits of other scripts.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.I)
_UNITS = {"relative": 1.0, "permille": 1000.0}
_IN = {
    "pixels": "pixels of the frame",
    "relative": "shares of the frame (0 to 1)",
    "permille": "thousandths of the frame",
}


class FieldParser:
    """Reads the fields of records by a dataset format."""

    def __init__(self, dataset_format: DatasetFormat) -> None:
        self._format = dataset_format
        self._questions = [
            (kind, re.compile(text, re.I))
            for kind, texts in dataset_format.questions.items()
            for text in several(texts)
        ]
        self._subjects = {vocab.spoken(name): name for name in dataset_format.subjects}
        self._places = dataset_format.answers.get("location", ())
        self._classes = {
            kind: {vocab.spoken(name): name for name in names} for kind, names in dataset_format.answers.items()
        }

    def question(self, text: str) -> tuple[str, str] | None:
        """Kind and subject of a question, None for a form that the format does not know."""
        for kind, pattern in self._questions:
            match = pattern.fullmatch(text.strip())
            if match:
                return kind, self._subject(kind, match)
        return None

    def _subject(self, kind: str, match: re.Match[str]) -> str:
        if kind == "organ":
            return self._format.answers["organ"][0]
        # A group that took no part, or a kind that names none, has nothing to say about.
        subject = (match.groupdict().get("subject") or "").strip()
        plain = re.sub(r"\s+", "_", subject.lower())
        if kind == "tool":
            return vocab.place_of(subject, self._places) or plain
        return self._subjects.get(vocab.spoken(subject), plain)

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
        if near:
            fix = f'did you mean {near!r}? Correct the label, or write in an adapter: [rename] "{answer}" = "{near}"'
        else:
            fix = f"the answer to a question of kind {kind} is one of {', '.join(names)}"
        raise LineError(validation.UNKNOWN_ANSWER, repr(answer[:60]), fix)

    def boxes(self, values: list[str], size: tuple[int, int] | None) -> tuple[Box, ...]:
        """The boxes in 0-based pixels of an image of ``size`` (width, height); none where the format has none.

        Raises:
            LineError: for something that is no box inside the frame.
        """
        rule = self._format.box
        if not self._format.has_boxes or (rule.optional and not any(values)):
            return ()
        if not self._format.several_boxes:
            return (read_box(values, rule, size),)
        if not values or len(values) % 4:
            fix = f"write four for each box: {rule.written}"
            raise LineError(validation.CORNER_COUNT, f"{len(values)} numbers in {shown(', '.join(values))}", fix)
        each = (read_box(values[at : at + 4], rule, size) for at in range(0, len(values), 4))
        return tuple(dict.fromkeys(each))


def numbers_of(value: Any, depth: int = 2) -> list[str]:
    """The numbers of a field that holds a whole box or several: a list, lists in it, or text such as ``[1, 2, 3, 4]``.

    >>> numbers_of("[1, 2, 3.5, 4]"), numbers_of([1, 2, 3, 4]), numbers_of("1 2 3 4")
    (['1', '2', '3.5', '4'], ['1', '2', '3', '4'], ['1', '2', '3', '4'])
    >>> numbers_of([[1, 2, 3, 4], [5, 6, 7, 8]]) == numbers_of("1,2,3,4; 5,6,7,8") == list("12345678")
    True
    """
    if isinstance(value, list):
        # Deeper lists are no boxes: what comes of them is no number.
        return [number for item in value for number in numbers_of(item, depth - 1)] if depth else ["..."]
    text = value if isinstance(value, str) else json.dumps(value)
    return [part for part in _SPREAD.split(text) if part]


def read_box(values: list[str], rule: BoxFormat, size: tuple[int, int] | None) -> Box:
    """A box as labels write it, in 0-based pixels of an image of ``size``; unchecked where that is not known.

    >>> read_box(["10", "20", "30", "40"], BoxFormat(order="xywh"), (100, 100))
    (10, 20, 40, 60)
    >>> read_box(["0.5", "0.5", "1", "0.5"], BoxFormat(order="cxcywh", units="relative"), (200, 100))
    (0, 25, 200, 75)

    Raises:
        LineError: for a wrong number of values, one that is no finite number, an empty, inverted or outside box.
    """
    written = shown(", ".join(values))
    if len(values) != 4:
        raise LineError(validation.CORNER_COUNT, f"{len(values)} numbers in {written}", f"write {rule.written}")
    a, b, c, d = (_number(value, rule) for value in values)
    if rule.order == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    elif rule.order == "xywh":
        c, d = a + c, b + d
    corners = [value - rule.origin for value in (a, b, c, d)]
    if size is not None and rule.is_scaled:
        units = rule.size if rule.units == "pixels" else (_UNITS[rule.units],) * 2
        corners = [value * size[i % 2] / units[i % 2] for i, value in enumerate(corners)]
    if not all(map(math.isfinite, corners)):
        raise LineError(validation.NAN_CORNER, written, _write_number(rule))
    # Adding and scaling leave noise behind the sixth decimal; corners that are written as such are taken as written.
    digits = 6 if rule.is_scaled or rule.order != "xyxy" else None
    x1, y1, x2, y2 = (_whole(value if digits is None else round(value, digits)) for value in corners)
    if x2 <= x1 or y2 <= y1:
        fix = "the second corner must lie right of and below the first; is box.order right?"
        raise LineError(validation.EMPTY_BOX, written, fix)
    # Counted from 1, the last pixel is the last corner there is; counted from 0, its far edge may be meant.
    if size is not None and (x1 < 0 or y1 < 0 or x2 > size[0] - rule.origin or y2 > size[1] - rule.origin):
        fix = f"boxes are read as {rule.written}, counted from {rule.origin} in {_IN[rule.units]}; "
        fix += "has the image been resized, or is an adapter's [box] wrong?"
        raise LineError(validation.OUTSIDE, f"{written} in a frame of {size[0]}x{size[1]}", fix)
    return x1, y1, x2, y2


def _number(text: str, rule: BoxFormat) -> float:
    text = text.strip()
    if _NOT_FINITE.fullmatch(text) or (_NUMBER.fullmatch(text) and not math.isfinite(float(text))):
        raise LineError(validation.NAN_CORNER, shown(text), _write_number(rule))
    if not _NUMBER.fullmatch(text):
        raise LineError(validation.NON_NUMERIC, shown(text), _write_number(rule))
    return float(text)


def _write_number(rule: BoxFormat) -> str:
    return f"write a number in {_IN[rule.units]}, with the digits 0 to 9"


def _whole(value: float) -> float:
    """Whole numbers as int, so that records have no needless ``.0``."""
    return int(value) if value == int(value) else value
