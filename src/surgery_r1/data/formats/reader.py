"""A folder read by an adapter (:class:`surgery_r1.data.formats.source.Source`)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from surgery_r1 import vocab
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import DatasetFormat, several
from surgery_r1.data.formats.fields import FieldParser, numbers_of
from surgery_r1.data.formats.image_files import TornImageError, image_size
from surgery_r1.data.formats.lines import LabelLine, LineError, read_lines
from surgery_r1.data.formats.path_patterns import PathPattern, files_below, natural_key
from surgery_r1.data.formats.questions import merge_answers
from surgery_r1.data.formats.source import FrameContent, check_folders, labelled_frame
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.errors import SurgeryR1Error

_Key = tuple[str, str]
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class _Record:
    """One question as a label file has it; ``error`` where it cannot be taken apart."""

    path: Path
    line: int
    fields: dict[str, Any]
    error: ValidationIssue | None = None


class FormatReader:
    """Frames and labels of a folder, as an adapter says.

    Args:
        adapter: from :func:`surgery_r1.data.formats.declarative.load_format`.
        folder: with the labels.
        images: with the images, where they lie apart.

    Raises:
        SurgeryR1Error: when a folder does not exist, or a pattern matches nothing.
    """

    def __init__(self, adapter: DatasetFormat, folder: Path, images: Path | None = None) -> None:
        check_folders(folder, images)
        self._format = adapter
        self._reader = FieldParser(adapter)
        self._line = re.compile(adapter.line)
        self._asked: Counter[str] = Counter()
        self.label_root, self.image_root = folder, (images or folder).resolve()
        self.classes: Mapping[str, Mapping[str, tuple[str, ...]]] = {adapter.name: adapter.answers}
        self.warnings: list[ValidationIssue] = []
        self._images = self._find_images()
        self._labels = [
            (folder / path, parts) for path, parts in self._matching("labels", adapter.labels, self.label_root)
        ]

    def _matching(self, key: str, patterns: str | tuple[str, ...], root: Path) -> list[tuple[str, dict[str, str]]]:
        """Files below ``root`` that match, with the named parts of their paths."""
        left_out = [PathPattern(text) for text in self._format.exclude]
        files = [path for path in files_below(root) if all(pattern.match(path) is None for pattern in left_out)]
        found: dict[str, dict[str, str]] = {}
        for text in several(patterns):
            pattern = PathPattern(text)
            for path in files:
                parts = pattern.match(path)
                if parts is not None:
                    # The first pattern that matches a file says what it is.
                    found.setdefault(path, parts)
        if not found:
            few = ", ".join(files[:_EXAMPLES]) or "none"
            raise SurgeryR1Error(
                f"adapter {self._format.name}: {key} = {patterns!r} matches none of {len(files)} files",
                where=str(root),
                fix=f"correct the pattern; the first files are: {few}",
            )
        return list(found.items())

    def _find_images(self) -> dict[_Key, str]:
        images: dict[_Key, str] = {}
        for path, parts in self._matching("images", self._format.images, self.image_root):
            key = self._key(parts)
            first = images.setdefault(key, path)
            if first != path:
                value, fix = f"{path} and {first}", "the first is taken; leave the other out with exclude"
                self.warnings.append(
                    ValidationIssue(str(self.image_root), None, "two images for one frame", value, fix)
                )
        return images

    def _key(self, parts: dict[str, Any]) -> _Key:
        return self._format.sequence.format(**parts), self._format.frame.format(**parts)

    def frames(self) -> Iterator[FrameContent]:
        """Every labelled frame; faulty questions are left out, listed and counted."""
        labelled: set[_Key] = set()
        self._asked.clear()
        if self._format.format == "lines":
            # One file a frame, or several: nothing but their paths is held.
            files: dict[_Key, list[tuple[Path, dict[str, str]]]] = defaultdict(list)
            for path, parts in self._labels:
                files[self._key(parts)].append((path, parts))
            for key in sorted(files, key=_order):
                labelled.add(key)
                yield self._frame(key, (record for file in files[key] for record in self._lines(*file)))
        else:
            frames: dict[_Key, list[_Record]] = defaultdict(list)
            for path, parts in self._labels:
                for record in self._table(path, parts):
                    if record.error is not None:
                        yield FrameContent(errors=[record.error], skipped=Counter([record.error.what]), labels=[path])
                    else:
                        frames[self._key(record.fields)].append(record)
            for key in sorted(frames, key=_order):
                labelled.add(key)
                yield self._frame(key, frames.pop(key))
        yield from self._unused({sequence for sequence, _ in labelled})
        bare = len(self._images.keys() - labelled)
        if bare:
            value, fix = f"{bare} of {len(self._images)} images", "nothing to do, if they were left out on purpose"
            yield FrameContent(
                warnings=[ValidationIssue(str(self.image_root), None, "images without labels", value, fix)]
            )

    def _unused(self, sequences: set[str]) -> Iterator[FrameContent]:
        """Patterns of the adapter that nothing matched."""
        name = f"adapter {self._format.name}"
        for kind in self._format.questions:
            if not self._asked[kind]:
                value, fix = f"questions.{kind} matches no question", "correct the pattern, or leave the kind out"
                found = ValidationIssue(name, None, validation.NO_QUESTION, value, fix)
                # A kind may be missing here. Where other questions are not understood, it is the pattern that is wrong.
                broken = self._asked[validation.UNKNOWN_FORM] > 0
                yield FrameContent(errors=[found]) if broken else FrameContent(warnings=[found])
        for split, patterns in self._format.splits.items():
            for pattern in patterns:
                if not any(fnmatchcase(sequence, pattern) for sequence in sequences):
                    value, fix = f"splits.{split}: {pattern!r} matches no sequence", "nothing to do, if it is not here"
                    yield FrameContent(warnings=[ValidationIssue(name, None, validation.NO_QUESTION, value, fix)])

    def _lines(self, path: Path, parts: dict[str, str]) -> Iterator[_Record]:
        lines, errors = read_lines(path)
        yield from (_Record(path, error.line or 1, parts, error) for error in errors)
        for number, text in lines:
            match = self._line.fullmatch(text)
            if match is None:
                fix = "the adapter's line does not match it"
                yield _Record(
                    path,
                    number,
                    parts,
                    ValidationIssue(str(path), number, validation.FIELD_COUNT, repr(text[:60]), fix),
                )
                continue
            groups = match.groupdict()
            box = [groups.pop(name) for name in ("x1", "y1", "x2", "y2")]
            yield _Record(path, number, {**parts, **groups, "box": [value.strip() for value in box]})

    def _table(self, path: Path, parts: dict[str, str]) -> Iterator[_Record]:
        lines, errors = read_lines(path)
        yield from (_Record(path, error.line or 1, parts, error) for error in errors)
        rows = _jsonl(lines) if self._format.format == "jsonl" else _csv(path, lines)
        for number, row in rows:
            if row is None:
                error = ValidationIssue(
                    str(path), number, validation.FIELD_COUNT, "not valid JSON", "write one object a line"
                )
                yield _Record(path, number, parts, error)
                continue
            try:
                yield _Record(path, number, {**parts, **self._columns(row)})
            except (KeyError, TypeError) as missing:
                fix = "columns says which fields a row has"
                error = ValidationIssue(
                    str(path), number, validation.FIELD_COUNT, f"no field {missing} in {str(row)[:60]}", fix
                )
                yield _Record(path, number, parts, error)

    def _columns(self, row: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, column in self._format.columns.items():
            values = [row[part] for part in several(column)]
            if None in values:
                raise KeyError(column)
            if name == "box":
                fields[name] = numbers_of(values[0]) if isinstance(column, str) else [str(v).strip() for v in values]
            else:
                fields[name] = " ".join(map(str, values)).strip()
        return fields

    def _frame(self, key: _Key, records: Iterable[_Record]) -> FrameContent:
        sequence, frame = key
        content = FrameContent()
        image, size, splits = self._images.get(key), None, self._splits(sequence)
        split = splits[0] if len(splits) == 1 else None
        records = list(records)
        content.labels = list(dict.fromkeys(record.path for record in records))
        path, line = (str(records[0].path), records[0].line) if records else ("", 1)
        if split is None:
            value = f"{sequence!r} is in {' and '.join(splits) or 'no split'}"
            what = validation.SEVERAL_SPLITS if splits else validation.NO_SEQUENCE
            content.errors.append(ValidationIssue(path, line, what, value, "name it in [splits], once"))
        elif image is None:
            value, fix = f"{sequence}/{frame}", "restore it, correct images, or name --images ROOT"
            content.errors.append(ValidationIssue(path, line, validation.MISSING_IMAGE, value, fix))
        else:
            try:
                size = image_size(self.image_root / image)
            except (TornImageError, OSError) as error:
                content.errors.append(
                    ValidationIssue(path, line, validation.TORN_IMAGE, f"{image}: {error}", "copy it again")
                )
        lines = self._questions(records, size, content)
        if content.errors and (split is None or image is None or size is None):
            content.skipped[content.errors[0].what] += len(merge_answers(lines)[0])
        elif lines and split and image and size:
            labelled_frame(self._format.name, split, sequence, frame, image, size, lines, content)
        return content

    def _questions(
        self, records: list[_Record], size: tuple[int, int] | None, content: FrameContent
    ) -> list[LabelLine]:
        lines: list[LabelLine] = []
        for index, record in enumerate(records):
            path, number = str(record.path), record.line
            if record.error is not None:
                content.errors.append(record.error)
                content.skipped[record.error.what] += 1
                continue
            text = record.fields["question"].strip()
            found = self._reader.question(text)
            if found is None:
                fix = "the line is left out; see [questions]"
                content.warnings.append(ValidationIssue(path, number, validation.UNKNOWN_FORM, repr(text[:60]), fix))
                content.skipped[validation.UNKNOWN_FORM] += 1
                self._asked[validation.UNKNOWN_FORM] += 1
                continue
            self._asked[found[0]] += 1
            try:
                answer = self._reader.answer(found[0], record.fields["answer"])
                box = self._reader.box(record.fields["box"], size)
            except LineError as error:
                content.errors.append(ValidationIssue(path, number, error.what, error.value, error.fix))
                content.skipped[error.what] += 1
                continue
            line = LabelLine(record.path, record.line, index, text, *found, answer, box)
            if any((line.key, line.answer, line.box_px) == (old.key, old.answer, old.box_px) for old in lines):
                content.errors.append(
                    ValidationIssue(path, number, validation.DUPLICATE, repr(text[:60]), "delete the line")
                )
                content.skipped[validation.DUPLICATE] += 1
                continue
            lines.append(line)
        return lines

    def _splits(self, sequence: str) -> list[str]:
        splits = self._format.splits
        return [name for name in vocab.SPLITS if any(fnmatchcase(sequence, p) for p in splits.get(name, ()))]


def _order(key: _Key) -> tuple[Any, Any]:
    return natural_key(key[0]), natural_key(key[1])


def _jsonl(lines: list[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    for number, text in lines:
        try:
            yield number, json.loads(text)
        except ValueError:
            yield number, None


def _csv(path: Path, lines: list[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """Rows by their heading; comma, semicolon or tab, whichever the heading has."""
    if not lines:
        return
    heading = lines[0][1]
    delimiter = max(",;\t", key=heading.count)
    reader = csv.DictReader(io.StringIO("\n".join(text for _, text in lines)), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            yield lines[min(reader.line_num, len(lines)) - 1][0], row
    except csv.Error as error:
        raise SurgeryR1Error(
            f"not valid CSV: {error}", where=f"{path}:{lines[min(reader.line_num, len(lines)) - 1][0]}", fix="repair it"
        ) from None
