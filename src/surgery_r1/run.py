"""Run folders: what was run, with what, on what. And the switches that keep frames at home."""

from __future__ import annotations

import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import surgery_r1
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.files import dump_json, write_json

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
        "command": ["surgery-r1", *sys.argv[1:]],
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


def start_run(folder: Path, config: dict[str, Any], facts: dict[str, Any], *, resume: bool = False) -> None:
    """Create a run folder with ``config.json`` (resolved) and ``run.json`` (provenance and ``facts``).

    Raises:
        SurgeryR1Error: when the folder already holds a run and ``resume`` is not asked for, or holds none to resume.
    """
    begun = (folder / "run.json").is_file()
    if begun and not resume:
        raise SurgeryR1Error("already holds a run", where=str(folder), fix="give --resume, or another --out")
    if resume and not begun:
        raise SurgeryR1Error("holds no run to resume", where=str(folder), fix="start it without --resume")
    if not begun and folder.exists() and any(folder.iterdir()):
        raise SurgeryR1Error("is not empty and holds no run", where=str(folder), fix="give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_json(folder / "run.json", {**facts, **provenance()})


def metrics_writer(folder: Path) -> Callable[[dict[str, Any]], None]:
    """A function that appends one JSON line to ``metrics.jsonl`` and flushes it, so that a kill loses nothing."""
    path = folder / "metrics.jsonl"

    def write(record: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(dump_json(record) + "\n")

    return write


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def stay_offline(allow_hub: bool) -> None:
    """Turn hub access and telemetry off for this process, before any library reads the environment.

    The environment is the only switch that transformers, datasets and huggingface_hub share.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["DISABLE_TELEMETRY"] = "1"
    if not allow_hub:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"
