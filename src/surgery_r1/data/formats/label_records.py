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

from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import CORNERS, DatasetFormat, several
from surgery_r1.data.formats.fields import numbers_of
from surgery_r1.data.formats.lines import LineError, read_lines
from surgery_r1.data.formats.validation import ValidationIssue, shown
from surgery_r1.errors import SurgeryR1Error


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

    def lines(self, path: Path, parts: dict[str, str]) -> list[LabelRecord]:
        """The non-blank lines of a file in order, faulty ones included; ``parts`` are named by its path."""
        lines, errors = read_lines(path)
        records = [LabelRecord(path, error.line or 1, {}, error=error) for error in errors]
        for number, text in lines:
            fields, error = self._split(text)
            records.append(
                LabelRecord(path, number, {**parts, **fields}, text, error.issue(path, number) if error else None)
            )
        return sorted(records, key=lambda record: record.line)

    def _split(self, text: str) -> tuple[dict[str, Any], LineError | None]:
        """Fields of a line, by the format's ``fields`` or by its regular expression ``line``, and what is wrong."""
        if self._line is not None:
            match = self._line.fullmatch(text)
            if match is None:
                return {}, LineError(validation.FIELD_COUNT, shown(text), "the adapter's line does not match it")
            groups: dict[str, Any] = match.groupdict()
            return {**groups, "box": [groups.pop(name).strip() for name in CORNERS]}, None
        names, separator = self._format.fields, self._format.separator
        values = [value.strip() for value in text.split(separator)]
        fields: dict[str, Any] = dict(zip(names, values, strict=False))
        if "box" in fields:
            fields["box"] = [value.strip() for value in fields["box"].split(",")]
        if len(values) == len(names):
            return fields, None
        expected = separator.join(self._format.box.written if name == "box" else name for name in names)
        value = f"{len(values)} fields in {shown(text)}"
        return fields, LineError(validation.FIELD_COUNT, value, f"write {expected}")

    def table(self, path: Path, parts: dict[str, str]) -> Iterator[LabelRecord]:
        """The rows of a CSV or JSONL file, those that cannot be decoded first.

        Raises:
            SurgeryR1Error: for a file that is no CSV.
        """
        lines, errors = read_lines(path)
        yield from (LabelRecord(path, error.line or 1, parts, error=error) for error in errors)
        rows = _jsonl(lines) if self._format.format == "jsonl" else _csv(path, lines)
        for number, row in rows:
            fields, error = self._columns(row)
            text = fields.get("question", "")
            yield LabelRecord(path, number, {**parts, **fields}, text, error.issue(path, number) if error else None)

    def _columns(self, row: Any) -> tuple[dict[str, Any], LineError | None]:
        """Fields of a row, by the format's ``columns``, and what is wrong."""
        if row is None:
            return {}, LineError(validation.FIELD_COUNT, "not valid JSON", "write one object a line")
        fields: dict[str, Any] = {}
        for name, column in self._format.columns.items():
            try:
                values = [row[part] for part in several(column)]
                if None in values:
                    raise KeyError(column)
            except (KeyError, TypeError) as missing:
                value = f"no field {missing} in {str(row)[:60]}"
                return {}, LineError(validation.FIELD_COUNT, value, "columns says which fields a row has")
            if name == "box":
                fields[name] = numbers_of(values[0]) if isinstance(column, str) else [str(v).strip() for v in values]
            else:
                fields[name] = " ".join(map(str, values)).strip()
        return fields, None


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
