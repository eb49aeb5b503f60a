"""What a reader has to say about a label folder: errors, which stop a build, and warnings, which do not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MISSING_IMAGE = "missing image of a labelled frame"
TORN_IMAGE = "torn image of a labelled frame"
IMAGE_SIZE = "image of a size that models refuse"
UNREADABLE = "label file that cannot be read"
TOO_LONG = "text that is too long"
FIELD_COUNT = "wrong field count"
CORNER_COUNT = "wrong corner count"
NON_NUMERIC = "non-numeric corner"
NAN_CORNER = "corner is NaN or infinite"
EMPTY_BOX = "empty or inverted box"
OUTSIDE = "box outside the frame"
MIXED_BOXES = "question with and without a box"
UNKNOWN_ANSWER = "unknown answer"
DUPLICATE = "exact duplicate line"
ENCODING = "wrong encoding"
NO_SEQUENCE = "labels in no sequence of a split"
SEVERAL_SPLITS = "sequence in several splits"
NO_QUESTION = "pattern that matches nothing"
NOTHING_READ = "no question was read"
#: A single line that asks what is not looked for: a warning. It is left out and counted.
UNKNOWN_FORM = "unknown question form"
#: The same for more than a stray line: an error.
FORM_LEFT_OUT = "question form that the dataset format does not know"

#: Every error, in the order tables list them. Each is also a key of the manifest's ``skipped``.
ERRORS: tuple[str, ...] = (
    MISSING_IMAGE,
    TORN_IMAGE,
    IMAGE_SIZE,
    UNREADABLE,
    TOO_LONG,
    FIELD_COUNT,
    CORNER_COUNT,
    NON_NUMERIC,
    NAN_CORNER,
    EMPTY_BOX,
    OUTSIDE,
    MIXED_BOXES,
    UNKNOWN_ANSWER,
    DUPLICATE,
    ENCODING,
    NO_SEQUENCE,
    SEVERAL_SPLITS,
    NO_QUESTION,
    NOTHING_READ,
    FORM_LEFT_OUT,
)


@dataclass(frozen=True, slots=True)
class ValidationIssue:
    """An error or a warning.

    Attributes:
        path: the file or folder it is about.
        line: 1-based line of a label file; None for a folder or for a file as a whole.
        what: what it is; for errors one of :data:`ERRORS`.
        value: the value found.
        fix: what to do.
    """

    path: str
    line: int | None
    what: str
    value: str
    fix: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line is not None else self.path
        return f"{where}: {self.what}, {self.value}, {self.fix}"

    def to_json(self) -> dict[str, Any]:
        """The five keys of the contract."""
        return asdict(self)


def shown(text: str, limit: int = 60) -> str:
    """A text in quotes for a message, cut where it is long.

    >>> shown("What organ is being operated?", 12)
    "'What orga...'"
    """
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
