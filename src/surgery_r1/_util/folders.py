"""Writing a folder whole or not at all."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from surgery_r1._util.files import writing
from surgery_r1._util.locks import held
from surgery_r1.errors import SurgeryR1Error


@contextlib.contextmanager
def replacing_folder(out: Path, overwrite: bool | None = None) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place only when the block ends without an error.

    Args:
        overwrite: whether a dataset that is there may be replaced; None where nothing ever is.

    Raises:
        SurgeryR1Error: when another process is writing ``out``, it holds anything but a dataset, holds a dataset and
            ``overwrite`` is not True, or cannot be written.
    """
    with held(out, "writing"), writing(out):
        _clear_up(out)
        _check_replaceable(out, overwrite)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        try:
            temporary.chmod(0o755)
            yield temporary
            _take_place(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _clear_up(out: Path) -> None:
    """Remove what killed builds have left, and put back a dataset that one had already set aside."""
    for left in sorted(path for path in out.parent.iterdir() if _left_by_build(path.name, out.name)):
        if left.suffix == ".old" and not out.exists():
            left.rename(out)
        else:
            # Whoever made it is dead: the lock is ours.
            shutil.rmtree(left, ignore_errors=True)


def _left_by_build(name: str, out: str) -> bool:
    """Whether a hidden folder is one that a build of ``out`` made, and not of ``out.something``."""
    return re.fullmatch(rf"\.{re.escape(out)}\.[a-z0-9_]+\.(?:old|partial)", name) is not None


def _check_replaceable(out: Path, overwrite: bool | None) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise SurgeryR1Error("is a file", where=out, fix="name a new folder")
    if not any(out.iterdir()):
        return
    if overwrite is None:
        raise SurgeryR1Error("folder is not empty", where=out, fix="name a new folder")
    if not ((out / "manifest.json").is_file() and (out / "samples.jsonl").is_file()):
        raise SurgeryR1Error("folder is not empty and not a dataset", where=out, fix="name a new folder")
    if not overwrite:
        raise SurgeryR1Error("a dataset is already there", where=out, fix="add --overwrite to replace it")


def _take_place(temporary: Path, out: Path) -> None:
    if not out.exists():
        temporary.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    out.rename(old)
    try:
        temporary.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
