"""Run folders: what was run, with what, on what."""

from __future__ import annotations

import json
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from importlib import metadata
from pathlib import Path
from typing import Any

import surgery_r1
from surgery_r1._util.files import dump_json, read_json, write_json, write_jsonl
from surgery_r1.errors import SurgeryR1Error

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "pillow")

#: Trackers that write to this machine only. Others upload and need --allow-upload.
LOCAL_TRACKERS = ("none", "tensorboard")


def provenance() -> dict[str, Any]:
    """Versions, platform, git state of the code and the command, for ``run.json``."""
    versions = {"surgery_r1": surgery_r1.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None  # type: ignore[assignment]
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions,
        "platform": platform.platform(),
        "git": git_state(),
    }


def git_state() -> dict[str, Any] | None:
    """Commit and whether the tree had changes; None outside a checkout."""
    here = Path(__file__).resolve().parent
    if shutil.which("git") is None:
        return None

    def git(*args: str) -> str | None:
        result = subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else None

    # A package installed into somebody else's repository must not report that repository's commit.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def start_run(
    folder: Path,
    config: dict[str, Any],
    facts: dict[str, Any],
    notes: dict[str, Any],
    *,
    resume: bool = False,
    free: Collection[str] = (),
) -> None:
    """Create a run folder with ``config.json`` (resolved) and ``run.json`` (``facts``, ``notes`` and provenance).

    Args:
        facts: what the run is made of; a resumed run must have the same.
        notes: what may differ, such as paths.
        free: dotted names of config values, or prefixes that end in a dot, that may differ when a run is resumed.

    Raises:
        SurgeryR1Error: when the folder already holds a run and ``resume`` is not asked for, holds none to resume, or
            was begun with other facts or another config.
    """
    begun = (folder / "run.json").is_file()
    if begun and not resume:
        raise SurgeryR1Error("already holds a run", where=str(folder), fix="give --resume, or another --out")
    if resume and not begun:
        raise SurgeryR1Error("holds no run to resume", where=str(folder), fix="start it without --resume")
    if not begun and folder.exists() and any(folder.iterdir()):
        raise SurgeryR1Error("is not empty and holds no run", where=str(folder), fix="give another --out")
    record = {**facts, **notes, **provenance()}
    if begun:
        before = read_json(folder / "run.json")
        _refuse_changes(folder, before, facts, config, free)
        record = {**before, "resumed": [*before.get("resumed", []), provenance()]}
    # run.json goes first: a folder that holds it can be resumed, whatever else a kill kept from being written.
    write_json(folder / "run.json", record)
    write_json(folder / "config.json", config)


def _refuse_changes(
    folder: Path, before: dict[str, Any], facts: dict[str, Any], config: dict[str, Any], free: Collection[str]
) -> None:
    """A resumed run that mixes two configs, models or datasets would be neither."""
    path = folder / "config.json"
    old, new = flat(read_json(path) if path.is_file() else config), flat(config)
    changed = [
        f"{name} was {before.get(name)!r}, now {value!r}" for name, value in facts.items() if before.get(name) != value
    ]
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name) and not any(
            name == f or (f.endswith(".") and name.startswith(f)) for f in free
        ):
            changed.append(f"{name} was {old.get(name)!r}, now {new.get(name)!r}")
    if changed:
        raise SurgeryR1Error(
            f"was started with other settings: {'; '.join(changed)}",
            where=str(folder),
            fix="resume with the settings that it was started with, or give another --out",
        )


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted names; tuples become lists, as JSON has them."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def metrics_writer(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that appends one JSON line to ``metrics.jsonl`` and flushes it, so that a kill loses nothing."""
    path = folder / "metrics.jsonl"

    def write(record: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(dump_json(record) + "\n")

    return write


def prune_metrics(folder: Path, step: int) -> list[dict[str, Any]]:
    """Cut ``metrics.jsonl`` back to what was written up to ``step``, where a resumed run goes on; what is kept.

    Lines of later steps belong to work that is done again, and a last line torn by a kill is dropped. So is the
    trainer's summary of the whole: it is written again at the end.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    # A whole file ends with a line feed, so that what follows the last one is empty or torn.
    records = [json.loads(line) for line in lines[:-1] if line]
    kept = [record for record in records if record["step"] <= step and "train_loss" not in record]
    write_jsonl(path, kept)
    return kept


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
