"""A receipt: what was examined, in figures, by hashes. It shows no frame, no text, no path, no host; nobody has
confirmed it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

import surgery_r1
from surgery_r1._util.files import read_json, write_json
from surgery_r1.doctor.check import Result
from surgery_r1.doctor.machine import installed
from surgery_r1.doctor.patient import Patient
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.load import engine_sha256, weights_sha256
from surgery_r1.train.config import shipped_configs
from surgery_r1.train.run_folder import git_state

_FORMAT = 1
_SAID_BY = (
    "self-reported: written by who ran it, confirmed by nobody; the hash shows only that it was not changed since"
)


def receipt(
    patient: Patient, config_name: str, results: Sequence[Result], smoke: dict[str, Any] | None
) -> dict[str, Any]:
    """The receipt of an examination, with its own hash.

    Args:
        config_name: as it was given; the name of a file of one's own is left out.
        smoke: what :func:`surgery_r1.doctor.smoke.smoke` has measured.
    """
    examined: dict[str, Any] = {
        "config": config_name if config_name in shipped_configs() else "own",
        "config_sha256": _sha256(patient.config.to_json()),
        "dataset_sha256": patient.dataset.hash,
        "frames": len(patient.dataset.frames),
        "questions": len(patient.dataset.samples),
    }
    if patient.bundle is not None:
        examined["model_sha256"] = weights_sha256(patient.bundle.folder)
        examined["engine_sha256"] = engine_sha256(patient.bundle)
    checks = [
        {"name": each.name, "status": each.status, "seconds": round(each.seconds, 2), "figures": each.figures}
        for each in results
    ]
    body: dict[str, Any] = {
        "format": _FORMAT,
        "receipt": _SAID_BY,
        "versions": {"surgery_r1": surgery_r1.__version__, "python": platform.python_version(), **installed()},
        "code": git_state(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            # Of the last minute: times of a busy machine say little.
            "load": round(os.getloadavg()[0], 1),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "examined": examined,
        "checks": checks,
    }
    if smoke is not None:
        body["smoke"] = smoke
    # As it will be read back: tuples are lists, keys are text.
    body = json.loads(json.dumps(body))
    return {**body, "sha256": _sha256(body)}


def _sha256(data: Any) -> str:
    """Of the canonical JSON: sorted keys, no blanks."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_receipt(made: dict[str, Any], path: Path) -> Path:
    """Write a receipt; in a folder it is named by its hash. A path without an ending is a folder, there already or not.

    Returns:
        The file that was written.

    Raises:
        SurgeryR1Error: when there is another file of that name.
    """
    file = path / f"{made['sha256'][:16]}.json" if path.is_dir() or not path.suffix else path
    if file.exists() and read_json(file) != made:
        raise SurgeryR1Error("holds another file", where=file, fix="name a new one, or a folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, made)
    return file


def read_receipt(path: Path) -> dict[str, Any]:
    """A receipt, when it is what its hash says.

    Raises:
        SurgeryR1Error: when it was changed.
    """
    found = read_json(path)
    named = found.pop("sha256", None)
    if named != (real := _sha256(found)):
        raise SurgeryR1Error(
            f"sha256 is {named}, its content has {real}", where=path, fix="ask who wrote it for the file as it was"
        )
    return {**found, "sha256": named}
