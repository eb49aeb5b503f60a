"""JSON label files: records that may lie deep in a document, each with the line on which it begins."""

from __future__ import annotations

import json
import json.decoder
import json.scanner
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from surgery_r1.data.formats import validation
from surgery_r1.data.formats.lines import LineError
from surgery_r1.data.formats.validation import shown

#: A record and the objects that it lies in, the nearest first.
Scopes = tuple[dict[str, Any], ...]


class _Object(dict[str, Any]):
    """A JSON object that knows where in the text it begins."""

    at = 0


class _Decoder(json.JSONDecoder):
    """The decoder of the standard library, whose objects are :class:`_Object`."""

    def __init__(self) -> None:
        super().__init__()
        self.parse_object = self._object
        # The scanner in C builds its own objects.
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]

    @staticmethod
    def _object(text_and_end: tuple[str, int], *args: Any) -> tuple[_Object, int]:
        found, end = json.decoder.JSONObject(text_and_end, *args)  # type: ignore[attr-defined]
        record = _Object(found)
        record.at = text_and_end[1]
        return record, end


def parse(text: str) -> tuple[Any, LineError | None, int]:
    """A JSON document, or what is wrong with it and on which line."""
    line = 1
    try:
        return _Decoder().decode(text), None, line
    except json.JSONDecodeError as error:
        value, line = f"not valid JSON: {error.msg} at column {error.colno}", error.lineno
    except RecursionError:
        value = "not valid JSON: nested too deeply"
    return None, LineError(validation.FIELD_COUNT, value, "repair the file: nothing of it was read"), line


def lines_of(text: str) -> list[int]:
    """Where the lines of a text begin, for :func:`line_of`."""
    return [0, *(at + 1 for at, character in enumerate(text) if character == "\n")]


def line_of(record: Any, begins: Sequence[int]) -> int:
    """The line, from 1, on which an object of :func:`parse` begins."""
    return bisect_right(begins, getattr(record, "at", 0))


def records_of(node: Any, path: Sequence[str], above: Scopes = ()) -> Iterator[tuple[Scopes, LineError | None]]:
    """Every record at the end of a path of keys, through all lists on the way; what does not fit comes as an error."""
    if isinstance(node, list):
        for item in node:
            yield from records_of(item, path, above)
    elif not isinstance(node, dict):
        value = f"{shown(json.dumps(node))} where an object is expected"
        yield above, LineError(validation.FIELD_COUNT, value, "records says where the records lie")
    elif not path:
        yield (node, *above), None
    elif path[0] not in node:
        value = f"no key {path[0]!r} in {shown(json.dumps(node))}"
        yield (node, *above), LineError(validation.FIELD_COUNT, value, "records says where the records lie")
    else:
        yield from records_of(node[path[0]], path[1:], (node, *above))


def value_of(column: str, scopes: Scopes) -> Any:
    """The value of a column: of the record, else of the nearest object around it; keys with dots between them.

    >>> value_of("image.name", ({"q": 1}, {"image": {"name": "f1.jpg"}}))
    'f1.jpg'

    Raises:
        KeyError: when there is none.
    """
    for scope in scopes:
        if column in scope:
            return scope[column]
        found: Any = scope
        for key in column.split("."):
            if not isinstance(found, dict) or key not in found:
                break
            found = found[key]
        else:
            return found
    raise KeyError(column)
