"""Lines of label files: their text, and what a sound one says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from surgery_r1.data.formats import validation
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.geometry import Box


@dataclass(frozen=True, slots=True)
class LabelLine:
    """One question of a label file, checked.

    Attributes:
        path, line: where it is written; lines count from 1.
        index: its number among the questions of the frame, from 0; the last part of its id.
        question, kind, subject, answer: what is asked, about what, and the class of the answer.
        box_px: 0-based xyxy in pixels of the image.
    """

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
        """The question for comparisons, see :func:`question_key`."""
        return question_key(self.question)


def question_key(question: str) -> str:
    """A question for comparisons: spelling of case and spaces set aside.

    >>> question_key("Where is  Suction located?")
    'where is suction located?'
    """
    return " ".join(question.lower().split())


class LineError(Exception):
    """What is wrong with a line: ``what`` it is, the ``value`` found, and how to ``fix`` it."""

    def __init__(self, what: str, value: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.value, self.fix = what, value, fix

    def issue(self, path: Path, line: int) -> ValidationIssue:
        """The same with the place of the line."""
        return ValidationIssue(str(path), line, self.what, self.value, self.fix)


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
