"""One writer at a time for a file or folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from surgery_r1._util.files import writing
from surgery_r1.errors import SurgeryR1Error


@contextlib.contextmanager
def held(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing ``path``, a file or folder that need not be there yet.

    The lock is an open ``.NAME.lock`` beside it, which says who holds it. The system releases it when its process
    ends, however that ends: what a killed process has left blocks nobody.

    Args:
        what: what the holder does, for the error that others see: ``training``, ``predicting``.
        wait: until whoever holds it has ended, instead of an error.

    Raises:
        SurgeryR1Error: at once when another process (or this one) already holds it, or no lock can be written.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, held(Path(folder) / "run", "training"):
    ...     print([path.name for path in Path(folder).iterdir()])
    ['.run.lock']
    """
    # Two names of one place must meet at one lock.
    place = path.resolve()
    lock = place.with_name(f".{place.name}.lock")
    with writing(path):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(lock, wait)
    if file is None:
        raise SurgeryR1Error(
            f"{_holder(lock)} is already {what} here", where=path, fix="wait until it has ended, or give another --out"
        )
    try:
        yield
    finally:
        # While it is still locked: whoever opened it in the meantime finds that its name has gone, and tries again.
        lock.unlink(missing_ok=True)
        os.close(file)


def _locked(lock: Path, wait: bool) -> int | None:
    """A descriptor of the file ``lock``, locked, with process and machine written into it; None if it is held."""
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, how)
            if _is_open_at(lock, file):
                os.ftruncate(file, 0)
                os.write(file, f"{os.getpid()} {socket.gethostname()}\n".encode())
                return file
        except BlockingIOError:
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        # Its holder removed it between our opening and locking it: this file is nobody's lock any more.
        os.close(file)


def _is_open_at(path: Path, file: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file))
    return False


def _holder(lock: Path) -> str:
    """Who holds a lock, in words."""
    try:
        pid, host = lock.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        # In the moment in which it is taken or given back.
        return "another process"
    return f"process {pid} on {host}"


def refuse_held(path: Path, what: str, *, fix: str) -> None:
    """Raise if somebody holds ``path``; takes no lock and writes nothing.

    Args:
        what: what the holder does, as in :func:`held`.
        fix: what to do instead.

    Raises:
        SurgeryR1Error: when it is held.
    """
    place = path.resolve()
    lock = place.with_name(f".{place.name}.lock")
    try:
        file = os.open(lock, os.O_RDONLY)
    except OSError:
        return
    try:
        # Shared: those who only ask do not stand in each other's way.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SurgeryR1Error(f"{_holder(lock)} is {what} here", where=str(path), fix=fix) from None
    finally:
        os.close(file)
