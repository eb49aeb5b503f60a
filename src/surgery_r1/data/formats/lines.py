"""Lines of label files: their text, and what a sound one says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from surgery_r1._util.files import open_regular
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.validation import ValidationIssue, shown
from surgery_r1.geometry import Box

#: Bytes of the largest label file that is read.
MAX_BYTES = 256 * 2**20
#: Characters of the longest line of text, or of CSV. (Python's ``csv`` takes 131,072 a field.)
MAX_LINE = 100_000
#: Characters of the longest question, answer or name.
MAX_TEXT = 2_000


@dataclass(frozen=True, slots=True)
class LabelLine:
    """One question of a label file, checked.

    Attributes:
        path, line: where it is written; lines count from 1.
        index: its number among the questions of the frame, from 0; the last part of its id.
        question, kind, subject, answer: what is asked, about what, and the class of the answer.
        boxes: 0-based xyxy in pixels of the image; none where the set has none, several where each is right.
    """

    path: Path
    line: int
    index: int
    question: str
    kind: str
    subject: str
    answer: str
    boxes: tuple[Box, ...]

    @property
    def accepted(self) -> tuple[tuple[str, Box | None], ...]:
        """The answer with each of its boxes, or with None where it has none."""
        return tuple((self.answer, box) for box in self.boxes) or ((self.answer, None),)

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


def read_text(path: Path) -> tuple[bytes, ValidationIssue | None]:
    """The bytes of a label file, with plain line ends, and why it cannot be read as text; then there are none."""
    try:
        with open_regular(path) as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        value, fix = error.strerror or str(error), "restore the file, or take it out of the folder"
        return b"", ValidationIssue(str(path), None, validation.UNREADABLE, value, fix)
    if len(data) > MAX_BYTES:
        value, fix = f"more than {MAX_BYTES:,} bytes", "is it a label file? If so, split it"
        return b"", ValidationIssue(str(path), None, validation.TOO_LONG, value, fix)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        value = f"starts with bytes {data[:4].hex(' ')}"
        return b"", ValidationIssue(str(path), 1, validation.ENCODING, value, "save the file as UTF-8")
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), None


def read_lines(
    path: Path, *, skip: int = 0, longest: int = MAX_LINE
) -> tuple[list[tuple[int, str]], list[ValidationIssue]]:
    """Non-blank lines of a label file as ``(line number, text)``, and what is wrong with the file or with lines.

    CRLF, a UTF-8 byte order mark and blank lines are fine. A line that is not UTF-8 or too long is an error and is left
    out, as is a file that cannot be read.

    Args:
        skip: lines of a heading that is not read.
        longest: characters that a line may have.
    """
    data, issue = read_text(path)
    if issue is not None:
        return [], [issue]
    lines, errors = [], []
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if number <= skip:
            continue
        text, error = decoded(raw)
        if error is None and len(text) > longest:
            value = f"a line of {len(text):,} characters, {shown(text)}"
            error = LineError(validation.TOO_LONG, value, f"at most {longest:,} are read")
        if error is not None:
            errors.append(error.issue(path, number))
        elif text:
            lines.append((number, text))
    return lines, errors


def decoded(raw: bytes) -> tuple[str, LineError | None]:
    """Text without a byte order mark and blanks around it, and what is wrong with its encoding."""
    try:
        return raw.decode("utf-8").replace("\ufeff", "").strip(), None
    except UnicodeDecodeError as error:
        value = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
        return "", LineError(validation.ENCODING, value, "save the file as UTF-8")
