"""Declarative adapters: TOML that says where frames and labels of a VQLA-like set lie, and how they are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from surgery_r1 import vocab
from surgery_r1._util import toml
from surgery_r1._util.checked import Count

#: Adapters that come with the package, usable by their bare name.
SHIPPED = Path(__file__).with_name("shipped")
#: Names of the four numbers of a box in a line's regular expression.
CORNERS = ("x1", "y1", "x2", "y2")


_ORDERS = {
    "xyxy": "x1, y1, x2, y2",
    "xywh": "x, y, width, height",
    "cxcywh": "centre x, centre y, width, height",
}


@dataclass(frozen=True)
class BoxFormat:
    """``[box]``: how boxes are written.

    Attributes:
        order: two corners, a corner with width and height, or a centre with width and height.
        origin: number of the first pixel, 0 or 1.
        units: pixels, shares of the frame (0 to 1), or thousandths of it.
        size: width and height of the frame that pixels count in, where images were resized since; empty: the image's.
        optional: whether the field may be empty; that question then has no box.
    """

    order: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"
    origin: Literal[0, 1] = 0
    units: Literal["pixels", "relative", "permille"] = "pixels"
    size: tuple[int, ...] = ()
    optional: bool = False

    @property
    def written(self) -> str:
        """The four numbers by name, for messages.

        >>> BoxFormat().written
        'x1, y1, x2, y2'
        """
        return _ORDERS[self.order]

    @property
    def is_scaled(self) -> bool:
        """Whether the numbers are others than pixels of the image."""
        return self.units != "pixels" or bool(self.size)


@dataclass(frozen=True)
class DatasetFormat:
    """A whole adapter file. Paths are patterns below the folder, see
    :class:`surgery_r1.data.formats.path_patterns.PathPattern`.

    Attributes:
        name: of the source, first part of every id.
        images: of frames; their named parts say which frame it is.
        labels: one file a frame, or files that name the frame in their columns.
        exclude: what is not looked at.
        sequence, frame: names made of the parts of a path and of columns.
        format: ``lines`` of text, ``csv`` with a heading, ``jsonl``, or ``json``: one document a file.
        skip_lines: lines at the top of each text file that are not read.
        fields: for lines, what stands between the separators, in order: question, answer, box (four numbers with commas
            between them), and others for names. A set without boxes has no ``box``, here or in ``columns``.
        separator: of fields.
        line: for lines that ``fields`` cannot tell, a regular expression with groups question, answer, x1, y1, x2, y2
            (and others for names).
        records: for json and jsonl, where the records of questions lie, such as ``data.items``: keys on the way,
            through lists. A column is looked for in the record, then in what it lies in.
        columns: for csv, jsonl and json, what is called how; ``box`` is one column with four numbers, or four columns.
            Where records are nested, ``image.name`` is the key ``name`` of the key ``image``.
        parts: field -> path pattern that takes it apart, such as ``{sequence}/{frame}.jpg``, into fields.
        several_boxes: whether a box field can hold several boxes, each of them right for the same answer.
        answers: question kind -> classes; ``tool`` are also the names of tools that are asked about. Beside the four
            kinds of EndoVis (organ, state, location, tool) any word is a kind of its own.
        rename: answer as written -> class.
        questions: question kind -> regular expressions, with a group ``subject`` for what is asked about; kinds of
            their own can do without it.
        optional: kinds that may have no question in a folder.
        splits: split -> sequences, with ``*``.
    """

    name: str
    images: str | tuple[str, ...]
    labels: str | tuple[str, ...]
    answers: dict[str, tuple[str, ...]]
    questions: dict[str, str | tuple[str, ...]]
    splits: dict[str, tuple[str, ...]]
    format: Literal["lines", "csv", "jsonl", "json"] = "lines"
    skip_lines: Count = 0
    fields: tuple[str, ...] = ()
    separator: str = "|"
    line: str = ""
    records: str = ""
    columns: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    several_boxes: bool = False
    optional: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sequence: str = "{sequence}"
    frame: str = "{frame}"
    box: BoxFormat = field(default_factory=BoxFormat)
    rename: dict[str, str] = field(default_factory=dict)

    @property
    def has_boxes(self) -> bool:
        """Whether labels say where things are."""
        if self.format != "lines":
            return "box" in self.columns
        return "box" in self.fields if self.fields else f"(?P<{CORNERS[0]}>" in self.line

    @property
    def subjects(self) -> tuple[str, ...]:
        """Names that a question can be about."""
        return tuple(dict.fromkeys((*self.answers.get("tool", ()), *vocab.TOOLS)))

    def splits_of(self, sequence: str) -> list[str]:
        """The splits that a sequence belongs to: one, where nothing is wrong."""
        return [name for name in vocab.SPLITS if any(fnmatchcase(sequence, p) for p in self.splits.get(name, ()))]


def shipped_formats() -> list[str]:
    """Names of the adapters that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load_format(name: str | Path) -> DatasetFormat:
    """Read a shipped adapter by its name (``endovis18``) or a TOML file by its path.

    Raises:
        SurgeryR1Error: no such file, bad TOML, or every unknown key and wrong value at once.
    """
    path = toml.find(name, SHIPPED, shipped_formats())
    data, text = toml.load_toml(path)
    # Here, because what is wrong is told in terms of what is defined above.
    from surgery_r1.data.formats.declarative_checks import wrong

    return toml.build(DatasetFormat, data, path, text, wrong)


def several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """One or more of something, as a tuple."""
    return (value,) if isinstance(value, str) else value
