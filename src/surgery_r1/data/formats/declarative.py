"""Declarative adapters: TOML that says where frames and labels of a VQLA-like set lie, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from string import Formatter
from typing import Literal

from surgery_r1 import vocab
from surgery_r1._util import toml
from surgery_r1.data.formats.path_patterns import PathPattern

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
    """

    order: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"
    origin: Literal[0, 1] = 0
    units: Literal["pixels", "relative", "permille"] = "pixels"
    size: tuple[int, ...] = ()

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
        format: ``lines`` of text, ``csv`` with a heading, or ``jsonl``.
        fields: for lines, what stands between the separators, in order: question, answer, box (four numbers with commas
            between them), and others for names.
        separator: of fields.
        line: for lines that ``fields`` cannot tell, a regular expression with groups question, answer, x1, y1, x2, y2
            (and others for names).
        columns: for csv and jsonl, what is called how; ``box`` is one column with four numbers, or four columns.
        answers: question kind -> classes; ``tool`` are also the names of tools that are asked about.
        rename: answer as written -> class.
        questions: question kind -> regular expressions, with a group ``subject`` for what is asked about.
        splits: split -> sequences, with ``*``.
    """

    name: str
    images: str | tuple[str, ...]
    labels: str | tuple[str, ...]
    answers: dict[str, tuple[str, ...]]
    questions: dict[str, str | tuple[str, ...]]
    splits: dict[str, tuple[str, ...]]
    format: Literal["lines", "csv", "jsonl"] = "lines"
    fields: tuple[str, ...] = ()
    separator: str = "|"
    line: str = ""
    columns: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    sequence: str = "{sequence}"
    frame: str = "{frame}"
    box: BoxFormat = field(default_factory=BoxFormat)
    rename: dict[str, str] = field(default_factory=dict)

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
    return toml.build(DatasetFormat, data, path, text, _wrong)


def several(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """One or more of something, as a tuple."""
    return (value,) if isinstance(value, str) else value


def _wrong(adapter: DatasetFormat) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", adapter.name):
        yield f"name = {adapter.name!r}, expected letters, digits, _ and -"
    known: dict[str, set[str]] = {"images": set(), "labels": set(), "exclude": set()}
    for key, named in known.items():
        for text in several(getattr(adapter, key)):
            try:
                named.update(PathPattern(text).names)
            except ValueError as error:
                yield f"{key} = {error}"
    yield from _wrong_names(adapter, known)
    for table, names in (("answers", vocab.KINDS), ("questions", vocab.KINDS), ("splits", vocab.SPLITS)):
        for name in getattr(adapter, table):
            if name not in names:
                yield f"{table}.{name}: expected some of {', '.join(names)}"
    for kind, names in adapter.answers.items():
        if not names:
            yield f"answers.{kind} is empty"
    for kind, texts in adapter.questions.items():
        if kind in vocab.KINDS and kind not in adapter.answers:
            yield f"questions.{kind} without answers.{kind}"
        for text in several(texts):
            yield from _wrong_regex(f"questions.{kind}", text, () if kind == "organ" else ("subject",))
    classes = {name for names in adapter.answers.values() for name in names}
    for raw, name in adapter.rename.items():
        if name not in classes:
            yield f"rename: {raw!r} becomes {name!r}, which is no class of [answers]"
    if adapter.box.size and (len(adapter.box.size) != 2 or min(adapter.box.size) < 1):
        yield f"box.size = {list(adapter.box.size)}, expected width and height in pixels"


def _wrong_names(adapter: DatasetFormat, known: Mapping[str, set[str]]) -> Iterator[str]:
    """Whether a frame can be named from its image and from its labels, and all fields are there."""
    fields: set[str] = set()
    if adapter.format == "lines":
        if adapter.fields:
            fields = set(adapter.fields)
            yield from _wrong_fields(adapter)
        else:
            yield from _wrong_regex("line", adapter.line, ("question", "answer", *CORNERS))
            if not list(_wrong_regex("line", adapter.line)):
                fields = set(re.compile(adapter.line).groupindex)
        if adapter.columns:
            yield "columns are for csv and jsonl; lines are read by fields or line"
    else:
        fields = set(adapter.columns)
        yield from _missing("columns", fields)
        if adapter.fields:
            yield "fields are for lines; csv and jsonl are read by columns"
        box = adapter.columns.get("box", "")
        if not isinstance(box, str) and len(box) != 4:
            yield f"columns.box = {list(box)}, expected one column or four"
    for key in ("sequence", "frame"):
        try:
            needed = {name for _, name, *_ in Formatter().parse(getattr(adapter, key)) if name is not None}
            getattr(adapter, key).format(**dict.fromkeys(needed, ""))
        except (ValueError, IndexError, KeyError) as error:
            yield f"{key} = {getattr(adapter, key)!r}: write names in braces, {{video}}, and nothing else ({error})"
            continue
        for where, there in (("images", known["images"]), ("labels", known["labels"] | fields)):
            if needed - there:
                lacking = ", ".join(sorted(needed - there))
                yield f"{key} = {getattr(adapter, key)!r} needs {lacking}, which {where} does not name"


def _wrong_fields(adapter: DatasetFormat) -> Iterator[str]:
    yield from _missing("fields", adapter.fields)
    if len(set(adapter.fields)) != len(adapter.fields):
        yield f"fields = {list(adapter.fields)}: a name stands twice"
    if adapter.line:
        yield "fields and line: lines are read by one of them"
    if not adapter.separator.strip() or "," in adapter.separator:
        yield f"separator = {adapter.separator!r}, expected a character other than a comma, such as |"


def _missing(key: str, names: Collection[str]) -> Iterator[str]:
    missing = [name for name in ("question", "answer", "box") if name not in names]
    if missing:
        yield f"{key} without {', '.join(missing)}"


def _wrong_regex(key: str, text: str, groups: tuple[str, ...] = ()) -> Iterator[str]:
    try:
        missing = set(groups) - set(re.compile(text).groupindex)
    except re.error as error:
        yield f"{key} = {text!r}: {error}"
        return
    if missing:
        yield f"{key} = {text!r} has no group {', '.join(sorted(missing))}"
    optional = [name for name in groups if re.search(rf"\(\?P<{name}>[^()]*\)(?:\?|\*|\{{0)", text)]
    if optional:
        yield f"{key} = {text!r}: group {optional[0]} must not be optional"
