"""What can be wrong with a dataset format whose values have the right types: every error, each with its key."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from string import Formatter

from surgery_r1 import vocab
from surgery_r1.data.formats.declarative import CORNERS, DatasetFormat, several
from surgery_r1.data.formats.path_patterns import PathPattern

_KIND = re.compile(r"[a-z][a-z0-9_]*")
#: Kinds whose questions are about a thing that they must name.
_ABOUT = ("state", "location", "tool")


def wrong(adapter: DatasetFormat) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", adapter.name):
        yield f"name = {adapter.name!r}, expected letters, digits, _ and -"
    known: dict[str, set[str]] = {"images": set(), "labels": set(), "exclude": set()}
    for key, named in known.items():
        if key != "exclude" and not getattr(adapter, key):
            yield f"{key} = [], expected a pattern"
        for text in several(getattr(adapter, key)):
            try:
                named.update(PathPattern(text).names)
            except ValueError as error:
                yield f"{key} = {error}"
    yield from _wrong_names(adapter, known)
    for name in adapter.splits:
        if name not in vocab.SPLITS:
            yield f"splits.{name}: expected some of {', '.join(vocab.SPLITS)}"
    for kind in dict.fromkeys((*adapter.answers, *adapter.questions)):
        if not _KIND.fullmatch(kind):
            table = "answers" if kind in adapter.answers else "questions"
            yield f"{table}: the kind {kind!r}, expected a word of small letters, digits and _"
    for kind, names in adapter.answers.items():
        if not names:
            yield f"answers.{kind} is empty"
    for kind, texts in adapter.questions.items():
        if kind not in adapter.answers:
            yield f"questions.{kind} without answers.{kind}"
        for text in several(texts):
            yield from _wrong_regex(f"questions.{kind}", text, ("subject",) if kind in _ABOUT else ())
    for kind in adapter.optional:
        if kind not in adapter.questions:
            yield f"optional = {list(adapter.optional)}: {kind!r} is none of [questions]"
    classes = {name for names in adapter.answers.values() for name in names}
    for raw, name in adapter.rename.items():
        if name not in classes:
            yield f"rename: {raw!r} becomes {name!r}, which is no class of [answers]"
    if adapter.box.optional and not adapter.has_boxes:
        yield "box.optional is set, but no field is called box"
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
            yield from _wrong_line(adapter)
            if not list(_wrong_regex("line", adapter.line)):
                fields = set(re.compile(adapter.line).groupindex)
        if adapter.columns:
            yield "columns are for csv, jsonl and json; lines are read by fields or line"
    else:
        fields = set(adapter.columns)
        yield from _wrong_columns(adapter)
    for name, text in adapter.parts.items():
        if name not in fields:
            yield f"parts.{name}: there is no field of this name; known: {', '.join(sorted(fields))}"
        try:
            fields |= set(PathPattern(text).names)
        except ValueError as error:
            yield f"parts.{name} = {error}"
    for key in ("sequence", "frame"):
        text = getattr(adapter, key)
        try:
            pieces = [piece for piece in Formatter().parse(text) if piece[1] is not None]
        except ValueError as error:
            yield f"{key} = {text!r}: write names in braces, {{video}}, and nothing else ({error})"
            continue
        needed = {str(name) for _, name, *_ in pieces}
        odd = next((name for _, name, spec, how in pieces if spec or how or not str(name).isidentifier()), None)
        if odd is not None:
            yield f"{key} = {text!r}: write names in braces, {{video}}, and nothing else"
            continue
        for where, there in (("images", known["images"]), ("labels", known["labels"] | fields)):
            if needed - there:
                lacking = ", ".join(sorted(needed - there))
                yield f"{key} = {text!r} needs {lacking}, which {where} does not name"


def _wrong_columns(adapter: DatasetFormat) -> Iterator[str]:
    yield from _missing("columns", adapter.columns)
    if adapter.fields:
        yield "fields are for lines; csv, jsonl and json are read by columns"
    if adapter.records and adapter.format == "csv":
        yield f"records = {adapter.records!r} is for json and jsonl"
    if adapter.records and not all(adapter.records.split(".")):
        yield f"records = {adapter.records!r}, expected keys with dots between them, such as data.items"
    if adapter.skip_lines and adapter.format == "json":
        yield f"skip_lines = {adapter.skip_lines} is for lines, csv and jsonl"
    box = adapter.columns.get("box", "")
    if not isinstance(box, str) and len(box) != 4:
        yield f"columns.box = {list(box)}, expected one column or four"
    if not isinstance(box, str) and adapter.several_boxes:
        yield f"columns.box = {list(box)}, expected one column where several_boxes is set"


def _wrong_line(adapter: DatasetFormat) -> Iterator[str]:
    """``line``: a regular expression with groups; all four corners, or none in a set without boxes."""
    broken = list(_wrong_regex("line", adapter.line, ("question", "answer")))
    yield from broken
    if not broken and set(re.compile(adapter.line).groupindex) & set(CORNERS):
        yield from _wrong_regex("line", adapter.line, CORNERS)
    if adapter.records:
        yield f"records = {adapter.records!r} is for json and jsonl"
    if adapter.several_boxes:
        yield "several_boxes is for a box field; line has four groups for one box"


def _wrong_fields(adapter: DatasetFormat) -> Iterator[str]:
    yield from _missing("fields", adapter.fields)
    if len(set(adapter.fields)) != len(adapter.fields):
        yield f"fields = {list(adapter.fields)}: a name stands twice"
    if adapter.records:
        yield f"records = {adapter.records!r} is for json and jsonl"
    if adapter.line:
        yield "fields and line: lines are read by one of them"
    if not adapter.separator.strip() or "," in adapter.separator:
        yield f"separator = {adapter.separator!r}, expected a character other than a comma, such as |"


def _missing(key: str, names: Collection[str]) -> Iterator[str]:
    missing = [name for name in ("question", "answer") if name not in names]
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
