"""Reading and writing files: JSONL, atomic replacement, sha256."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from surgery_r1.errors import SurgeryR1Error

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading, without ever waiting for a writer: a pipe, a socket or a device is refused.

    Raises:
        OSError: when it cannot be opened (missing, a link in a circle, no permission) or is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever. To regular files it makes no difference.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"not a regular file but {_KINDS.get(kind, 'something else')}", str(path))
    return os.fdopen(descriptor, "rb")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that replaces it only when the block ends without an error.

    Raises:
        SurgeryR1Error: when the disk is full or the folder cannot be written; ``path`` is left as it was.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        try:
            text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
            with os.fdopen(fd, mode, **text) as handle:  # type: ignore[call-overload]
                yield handle
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What hinders the writing of ``path`` inside the block is told; so is another file that was in the way.

    Raises:
        SurgeryR1Error: in place of every OSError.
    """
    try:
        yield
    except OSError as error:
        what, fix = f"cannot write: {error.strerror or error}", "check path and permissions"
        if error.errno == errno.ENOSPC:
            what, fix = "no space left on the disk", "free some space and run again"
        elif error.filename is not None and not _is_part(Path(os.fsdecode(error.filename)), path):
            what += f": {os.fsdecode(error.filename)}"
        raise SurgeryR1Error(what, where=path, fix=fix) from error


def _is_part(name: Path, path: Path) -> bool:
    """Whether a file is ``path`` itself or one of the temporary ones that become it."""
    return name == path or any(part.startswith(f".{path.name}.") for part in name.parts)


def dump_json(data: Any, *, indent: int | None = None) -> str:
    """JSON text with non-ASCII kept and NaN refused."""
    return json.dumps(data, ensure_ascii=False, indent=indent, allow_nan=False)


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON, atomically."""
    with atomic_write(path) as handle:
        handle.write(dump_json(data, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds an object.

    Raises:
        SurgeryR1Error: when it is missing, no regular file, not JSON, or another value.
    """
    with readable(path) as handle:
        return _object(handle.read(), path, 1)


def write_jsonl(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, atomically; the number of lines."""
    count = 0
    with atomic_write(path) as handle:
        for record in records:
            handle.write(dump_json(record) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``("path:line", object)`` for each non-blank line.

    Raises:
        SurgeryR1Error: when the file is missing, no regular file, or a line is not a JSON object.
    """
    with readable(path) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            yield f"{path}:{number}", _object(line.rstrip(), path, number)


def readable(path: Path) -> io.BufferedReader:
    """:func:`open_regular` for files of ours, whose errors name the file.

    Raises:
        SurgeryR1Error: in place of every OSError.
    """
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise SurgeryR1Error("no such file", where=path, fix="check the path") from None
    except OSError as error:
        what = f"the file cannot be read: {error.strerror or error}"
        raise SurgeryR1Error(what, where=path, fix="restore it, or check permissions") from None


def _object(text: bytes, path: Path, line: int) -> dict[str, Any]:
    """The JSON object that stands in a file from a line on."""
    fix = "write the file again"
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        # Not only JSON's own error: numbers of thousands of digits are a plain ValueError.
        what = f"not valid JSON: {error}"
        if isinstance(error, UnicodeDecodeError):
            what = f"not UTF-8: {error.reason}"
        elif isinstance(error, RecursionError):
            what = "JSON nested too deeply"
        place = f"{path}:{line + getattr(error, 'lineno', 1) - 1}"
        raise SurgeryR1Error(what, where=place, fix=fix) from None
    if not isinstance(value, dict):
        raise SurgeryR1Error(f"expected a JSON object, found {value!r:.40}", where=f"{path}:{line}", fix=fix)
    return value
