"""Label files taken apart into records, one for each question, by what a dataset format says of them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery_r1.data.formats import json_records, validation
from surgery_r1.data.formats.declarative import CORNERS, DatasetFormat, several
from surgery_r1.data.formats.fields import numbers_of
from surgery_r1.data.formats.lines import MAX_BYTES, MAX_TEXT, LineError, decoded, read_lines, read_text
from surgery_r1.data.formats.path_patterns import PathPattern
from surgery_r1.data.formats.validation import ValidationIssue, shown


@dataclass(frozen=True, slots=True)
class LabelRecord:
    """One question as a label file has it.

    Attributes:
        path, line: where it is written; lines count from 1.
        fields: ``question``, ``answer``, ``box`` (a list of texts) and others that names are made of.
        text: what messages show of it: the whole line, of a table the question.
        error: why it cannot be taken apart; ``fields`` are then those that could be told.
    """

    path: Path
    line: int
    fields: dict[str, Any]
    text: str = ""
    error: ValidationIssue | None = None

    def issue(self, what: str, value: str, fix: str) -> ValidationIssue:
        """An error or a warning about this record."""
        return ValidationIssue(str(self.path), self.line, what, value, fix)


class RecordReader:
    """Takes label files apart by a dataset format."""

    def __init__(self, dataset_format: DatasetFormat) -> None:
        self._format = dataset_format
        self._line = re.compile(dataset_format.line) if dataset_format.line else None
        self._parts = {name: PathPattern(text) for name, text in dataset_format.parts.items()}
        self._path = [key for key in dataset_format.records.split(".") if key]

    def lines(self, path: Path, parts: dict[str, str]) -> list[LabelRecord]:
        """The non-blank lines of a file in order, faulty ones included; ``parts`` are named by its path."""
        lines, errors = read_lines(path, skip=self._format.skip_lines)
        records = [LabelRecord(path, error.line or 1, {}, error=error) for error in errors]
        records += [self._record(path, number, parts, text, *self._split(text)) for number, text in lines]
        return sorted(records, key=lambda record: record.line)

    def table(self, path: Path, parts: dict[str, str]) -> Iterator[LabelRecord]:
        """The rows of a CSV, JSONL or JSON file, those that cannot be decoded first."""
        if self._format.format == "json":
            yield from self._document(path, parts)
            return
        longest = {"longest": MAX_BYTES} if self._format.format == "jsonl" else {}
        lines, errors = read_lines(path, skip=self._format.skip_lines, **longest)
        yield from (LabelRecord(path, error.line or 1, parts, error=error) for error in errors)
        rows = self._jsonl(lines) if self._format.format == "jsonl" else _csv(lines)
        for number, scopes, error in rows:
            yield self._row(path, number, parts, scopes, error)

    def _document(self, path: Path, parts: dict[str, str]) -> Iterator[LabelRecord]:
        data, issue = read_text(path)
        if issue is not None:
            yield LabelRecord(path, issue.line or 1, parts, error=issue)
            return
        text, broken = decoded(data)
        document, broken, line = (None, broken, 1) if broken else json_records.parse(text)
        if broken is not None:
            yield LabelRecord(path, line, parts, error=broken.issue(path, line))
            return
        begins = json_records.lines_of(text)
        for scopes, error in json_records.records_of(document, self._path):
            line = json_records.line_of(scopes[0], begins) if scopes else 1
            yield self._row(path, line, parts, scopes, error)

    def _jsonl(self, lines: list[tuple[int, str]]) -> Iterator[tuple[int, json_records.Scopes, LineError | None]]:
        for number, text in lines:
            try:
                document = json.loads(text)
            except (ValueError, RecursionError):
                yield number, (), LineError(validation.FIELD_COUNT, "not valid JSON", "write one object a line")
                continue
            for scopes, error in json_records.records_of(document, self._path):
                yield number, scopes, error

    def _row(
        self, path: Path, line: int, parts: dict[str, str], scopes: json_records.Scopes, error: LineError | None
    ) -> LabelRecord:
        fields, wrong = ({}, error) if error is not None else self._columns(scopes)
        return self._record(path, line, parts, str(fields.get("question", "")), fields, wrong)

    def _record(
        self, path: Path, line: int, parts: dict[str, str], text: str, fields: dict[str, Any], error: LineError | None
    ) -> LabelRecord:
        """A record of fields, those with patterns of their own taken apart; ``error`` is what is wrong already."""
        fields = {**parts, **fields}
        long = next((name for name, value in fields.items() if isinstance(value, str) and len(value) > MAX_TEXT), None)
        if long is not None:
            value = f"{len(fields[long]):,} characters as {long}: {shown(fields[long])}"
            error = LineError(validation.TOO_LONG, value, f"at most {MAX_TEXT:,} are read; is a separator missing?")
            fields = {}
        for name, pattern in self._parts.items():
            found = pattern.match(str(fields[name])) if name in fields else None
            if found is not None:
                fields |= found
            elif error is None:
                value = f"{name} {shown(str(fields.get(name)))}"
                error = LineError(validation.FIELD_COUNT, value, f"parts.{name} = {pattern.text!r} does not match it")
        return LabelRecord(path, line, fields, text[:MAX_TEXT], error.issue(path, line) if error else None)

    def _split(self, text: str) -> tuple[dict[str, Any], LineError | None]:
        """Fields of a line, by the format's ``fields`` or by its regular expression ``line``, and what is wrong."""
        if self._line is not None:
            match = self._line.fullmatch(text)
            if match is None:
                return {}, LineError(validation.FIELD_COUNT, shown(text), "the adapter's line does not match it")
            groups: dict[str, Any] = match.groupdict()
            if self._format.has_boxes:
                groups["box"] = [groups.pop(name).strip() for name in CORNERS]
            return groups, None
        names, separator = self._format.fields, self._format.separator
        values = [value.strip() for value in text.split(separator)]
        fields: dict[str, Any] = dict(zip(names, values, strict=False))
        if "box" in fields:
            several_boxes = self._format.several_boxes
            fields["box"] = numbers_of(fields["box"]) if several_boxes else _stripped(fields["box"].split(","))
        if len(values) == len(names):
            return fields, None
        expected = separator.join(self._format.box.written if name == "box" else name for name in names)
        value = f"{len(values)} fields in {shown(text)}"
        return fields, LineError(validation.FIELD_COUNT, value, f"write {expected}")

    def _columns(self, scopes: json_records.Scopes) -> tuple[dict[str, Any], LineError | None]:
        """Fields of a row, by the format's ``columns``, and what is wrong."""
        fields: dict[str, Any] = {}
        optional = self._format.box.optional
        for name, column in self._format.columns.items():
            try:
                values = [json_records.value_of(part, scopes) for part in several(column)]
                if None in values and not (name == "box" and optional):
                    raise KeyError(column)
            except KeyError as missing:
                if name == "box" and optional:
                    fields[name] = []
                    continue
                value = f"no field {missing} in {str(scopes[0])[:60]}"
                return {}, LineError(validation.FIELD_COUNT, value, "columns says which fields a row has")
            if name == "box":
                fields[name] = numbers_of(values[0]) if isinstance(column, str) else _stripped(values)
            else:
                fields[name] = " ".join(map(str, values)).strip()
        return fields, None


def _stripped(values: list[Any]) -> list[str]:
    """Numbers as texts; none where every one is empty."""
    texts = ["" if value is None else str(value).strip() for value in values]
    return texts if any(texts) else []


def _csv(lines: list[tuple[int, str]]) -> Iterator[tuple[int, json_records.Scopes, LineError | None]]:
    """Rows by their heading; comma, semicolon or tab, whichever the heading has."""
    if not lines:
        return
    heading = lines[0][1]
    delimiter = max(",;\t", key=heading.count)
    reader = csv.DictReader(io.StringIO("\n".join(text for _, text in lines)), delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            value = f"not valid CSV: {error}"
            fix = "repair it: nothing behind this line was read"
            yield (
                lines[min(reader.reader.line_num, len(lines)) - 1][0],
                (),
                LineError(validation.FIELD_COUNT, value, fix),
            )
            return
        if row is None:
            return
        yield lines[min(reader.line_num, len(lines)) - 1][0], (row,), None
