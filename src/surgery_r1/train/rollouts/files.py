"""The rollouts that a run keeps: ``rollouts/step-00007.jsonl.gz``, a line a group; what to write is in :mod:`.record`.

A file a step, replaced as a whole: a kill tears none, and a step that a resumed run does again stands there once.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery_r1._util.files import atomic_write, dump_json, readable
from surgery_r1.errors import SurgeryR1Error

_FOLDER = "rollouts"
_NAME = re.compile(r"step-(\d{5,})\.jsonl\.gz")


def rollout_files(run: Path) -> dict[int, Path]:
    """Optimiser step -> file, in order; empty where a run kept none."""
    found = ((_NAME.fullmatch(path.name), path) for path in (run / _FOLDER).glob("step-*"))
    return dict(sorted((int(name[1]), path) for name, path in found if name))


def write_rollouts(run: Path, step: int, groups: Sequence[dict[str, Any]]) -> None:
    """Write the groups of a step, in place of what was there.

    Raises:
        SurgeryR1Error: when the disk is full or the folder cannot be written.
    """
    with (
        atomic_write(run / _FOLDER / f"step-{step:05d}.jsonl.gz", "wb") as handle,
        # No time and no name inside: the same run writes the same bytes.
        gzip.GzipFile(filename="", mode="wb", fileobj=handle, mtime=0) as packed,
    ):
        for group in groups:
            packed.write((dump_json(group) + "\n").encode("utf-8", "replace"))


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """The groups of a step.

    Raises:
        SurgeryR1Error: when the file cannot be read, or does not hold what :func:`write_rollouts` writes.
    """
    with readable(path) as handle:
        try:
            # Not by splitlines: replies hold other ends of lines (U+2028, U+0085), which JSON leaves as they are.
            lines = gzip.decompress(handle.read()).decode("utf-8").split("\n")
            groups = [json.loads(line) for line in lines if line]
        except (OSError, EOFError, ValueError, zlib.error, RecursionError) as error:
            fix = "remove the file: the report leaves this step out"
            raise SurgeryR1Error(f"no rollouts can be read: {error}", where=path, fix=fix) from None
    if not all(isinstance(group, dict) and isinstance(group.get("replies"), list) for group in groups):
        raise SurgeryR1Error("a line without replies", where=path, fix="remove the file, and record the step anew")
    return groups


def prune_rollouts(run: Path, step: int) -> None:
    """Remove what was recorded after ``step``, from where a resumed run goes on."""
    for later, path in rollout_files(run).items():
        if later > step:
            path.unlink()
