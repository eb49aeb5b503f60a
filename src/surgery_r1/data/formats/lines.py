"""The line grammar of label files: ``question|answer|x1, y1, x2, y2`` with 1-based pixel corners (FACTS 2)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from surgery_r1 import vocab
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.geometry import Box

#: Answers that a question of each kind may have.
ANSWERS_OF_KIND: dict[str, tuple[str, ...]] = {
    "organ": (vocab.ORGAN,),
    "state": vocab.STATES,
    "location": vocab.LOCATIONS,
    "tool": vocab.TOOLS,
}

#: ASCII digits only: ``float`` would also take ``1_0`` and digits of other scripts.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.I)


@dataclass(frozen=True, slots=True)
class LabelLine:
    """One question line of a label file, checked. ``box_px`` is 0-based xyxy in source pixels."""

    path: Path
    line: int
    index: int
    question: str
    kind: str
    subject: str
    answer: str
    box_px: Box

    @property
    def key(self) -> str:
        """The question for comparisons: spelling of case and spaces set aside."""
        return " ".join(self.question.lower().split())


class LineError(Exception):
    """A line that breaks the grammar."""

    def __init__(self, what: str, value: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.value, self.fix = what, value, fix


def read_lines(path: Path) -> tuple[list[tuple[int, str]], list[ValidationIssue]]:
    """Non-blank lines of a label file as ``(line number, text)``, and errors of its encoding.

    CRLF, a UTF-8 byte order mark and blank lines are fine. A line that is not UTF-8 is an error and is left out.
    """
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        value = f"starts with bytes {data[:4].hex(' ')}"
        return [], [ValidationIssue(str(path), 1, validation.ENCODING, value, "save the file as UTF-8")]
    lines, errors = [], []
    for number, raw in enumerate(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"), start=1):
        try:
            text = raw.decode("utf-8").replace("\ufeff", "").strip()
        except UnicodeDecodeError as error:
            value = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
            errors.append(ValidationIssue(str(path), number, validation.ENCODING, value, "save the file as UTF-8"))
            continue
        if text:
            lines.append((number, text))
    return lines, errors


def split_fields(text: str) -> tuple[str, str, str]:
    """Question, answer and corners of a line.

    Raises:
        LineError: when there are not exactly three fields.
    """
    fields = [part.strip() for part in text.split("|")]
    if len(fields) != 3:
        raise LineError(
            validation.FIELD_COUNT, f"{len(fields)} fields in {_short(text)}", "write question|answer|x1, y1, x2, y2"
        )
    return fields[0], fields[1], fields[2]


def check_answer(kind: str, answer: str) -> None:
    """Check that ``answer`` is one that a question of this kind can have.

    Raises:
        LineError: naming a near answer where only the case differs.
    """
    allowed = ANSWERS_OF_KIND[kind]
    if answer in allowed:
        return
    near = next((name for name in allowed if name.lower() == answer.lower().replace(" ", "_")), None)
    fix = f"did you mean {near!r}?" if near else f"a {kind} answer is one of {', '.join(allowed)}"
    raise LineError(validation.UNKNOWN_ANSWER, repr(answer[:60]), fix)


def parse_box(text: str, size: tuple[int, int] | None) -> Box:
    """The 0-based box of ``x1, y1, x2, y2``, checked against the frame size ``(width, height)`` where known.

    >>> parse_box("1, 1, 1280, 1024", (1280, 1024))
    (0, 0, 1279, 1023)

    Raises:
        LineError: for a wrong number of corners, a corner that is no finite number, an empty, inverted or outside box.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4:
        raise LineError(validation.CORNER_COUNT, f"{len(parts)} numbers in {_short(text)}", "write x1, y1, x2, y2")
    for part in parts:
        if _NOT_FINITE.fullmatch(part):
            raise LineError(validation.NAN_CORNER, repr(part), "write the corner in pixels of the frame")
        if not _NUMBER.fullmatch(part):
            raise LineError(validation.NON_NUMERIC, repr(part[:40]), "write the corner in pixels of the frame")
    corners = [float(part) for part in parts]
    if not all(math.isfinite(corner) for corner in corners):
        raise LineError(validation.NAN_CORNER, _short(text), "write the corner in pixels of the frame")
    x1, y1, x2, y2 = (int(c) - 1 if c == int(c) else c - 1.0 for c in corners)
    if x2 <= x1 or y2 <= y1:
        raise LineError(validation.EMPTY_BOX, _short(text), "the second corner must lie right of and below the first")
    if size is not None and (x1 < 0 or y1 < 0 or x2 > size[0] - 1 or y2 > size[1] - 1):
        raise LineError(
            validation.OUTSIDE,
            f"{_short(text)} in a frame of {size[0]}x{size[1]}",
            "corners count from 1 in pixels of the original frame; has the image been resized?",
        )
    return x1, y1, x2, y2


def _short(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
