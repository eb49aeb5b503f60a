"""The lines of a prediction file as JSON objects; every file that is none is told apart."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from surgery_r1._util.files import atomic_write
from surgery_r1._util.locks import refuse_held
from surgery_r1.errors import SurgeryR1Error

logger = logging.getLogger(__name__)

#: First bytes of files that hold something else than UTF-8 text, what they are, and what to do.
_OTHER_FILES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed with gzip", "decompress it first: gunzip -k FILE"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"\xef\xbb\xbf", "text with a byte-order mark", "write the file as UTF-8 without one"),
    (b"\xff\xfe", "UTF-16 text", "write the file as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "write the file as UTF-8"),
)


def shown(value: Any) -> str:
    """A value of a line as an error shows it: on one line, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``("path:line", object)`` for each non-blank line of a prediction file.

    Raises:
        SurgeryR1Error: for anything but a regular file of UTF-8 text with a JSON object a line, or while ``predict``
            still writes it.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            what = "is a folder" if path.is_dir() else "is not a regular file"
            raise SurgeryR1Error(f"{what}, not a prediction file", where=str(path), fix="give a predictions.jsonl")
        if path.suffix == ".partial":
            refuse_held(path.with_suffix(""), "predicting", fix="wait until it has ended and score the finished file")
            logger.warning("%s: an unfinished prediction file: predict stopped before its end", path)
        with path.open("rb") as handle:
            start = handle.read(4)
            for magic, what, fix in _OTHER_FILES:
                if start.startswith(magic):
                    raise SurgeryR1Error(f"is {what}", where=f"{path}:1", fix=fix)
            handle.seek(0)
            for number, raw in enumerate(handle, start=1):
                if raw.strip():
                    yield f"{path}:{number}", _object(raw, f"{path}:{number}")
    except FileNotFoundError:
        raise SurgeryR1Error("no such file", where=str(path), fix="check the path") from None
    except (OSError, ValueError) as error:
        # A path can hold what no file system takes, such as a zero byte: that is a ValueError.
        reason = getattr(error, "strerror", None) or str(error)
        raise SurgeryR1Error(f"cannot read: {reason}", where=str(path), fix="check the path") from None


def _object(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object of a line."""
    try:
        text = raw.decode("utf-8")
        record = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_pairs)
    except UnicodeDecodeError as error:
        raise SurgeryR1Error(f"not UTF-8: {error.reason}", where=where, fix="write the file as UTF-8") from None
    except RecursionError:
        raise SurgeryR1Error("JSON nested too deeply", where=where, fix="write the file again") from None
    except json.JSONDecodeError as error:
        if not raw.endswith(b"\n"):
            what, fix = "the file ends in the middle of a line", "it is torn: predict or copy it again"
        elif text.strip() in ("[", "{"):
            what, fix = "JSON over several lines", "write one object a line (JSON Lines)"
        else:
            what, fix = "", "write the file again"
        raise SurgeryR1Error(f"not valid JSON: {what or error}", where=where, fix=fix) from None
    except ValueError as error:
        raise SurgeryR1Error(f"not valid JSON: {error}", where=where, fix="write the line again") from None
    if not isinstance(record, dict):
        raise SurgeryR1Error(
            f"expected a JSON object, found {shown(record)}", where=where, fix='one a line: {"id": "...", ...}'
        )
    return record


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return record


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write predictions that were given as dicts, one object a line.

    Raises:
        SurgeryR1Error: naming ``predictions:line`` for what JSON cannot hold, such as NaN or an array.
    """
    with atomic_write(path) as handle:
        for number, line in enumerate(lines, start=1):
            where = f"predictions:{number}"
            if not isinstance(line, Mapping):
                raise SurgeryR1Error(f"expected a dict, found {shown(line)}", where=where, fix='{"id": "...", ...}')
            try:
                # Escaped, because a text can hold lone surrogates, which UTF-8 cannot.
                handle.write(json.dumps(dict(line), allow_nan=False) + "\n")
            except (TypeError, ValueError, RecursionError) as error:
                raise SurgeryR1Error(
                    f"cannot be written as JSON: {error}", where=where, fix="give plain strings, numbers and lists"
                ) from None
