"""What lies in a folder, and what it was made of, read from its own files: whoever wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surgery_r1 import __version__
from surgery_r1._util.files import read_json, readable, sha256_file
from surgery_r1.train.config import FREE
from surgery_r1.train.run_folder import flat

#: How the work of a step is divided: learned is the same, to rounding.
_DIVISION = ("ranks.", "sft.micro_batch", "rft.micro_batch")


def settled(config: dict[str, Any]) -> dict[str, Any]:
    """The values of a config that results depend on, by dotted name.

    Args:
        config: as ``config.json`` of a run folder has it, or :meth:`surgery_r1.train.config.TrainConfig.to_json`.
    """
    free = set(FREE) - {"sft.patience"}
    values = json.loads(json.dumps(flat(config)))
    return {name: value for name, value in values.items() if name not in free and not name.startswith(_DIVISION)}


def trained_with(stage: str, config: dict[str, Any]) -> dict[str, Any]:
    """Those of :func:`settled` that a stage's model depends on.

    >>> trained_with("sft", {"seed": 1, "threads": 2, "sft": {"max_steps": 3}, "rft": {"max_steps": 4}})
    {'seed': 1, 'sft.max_steps': 3}
    """
    other = "rft." if stage == "sft" else "sft."
    return {name: value for name, value in settled(config).items() if not name.startswith(other)}


def of_run(run: Path) -> dict[str, Any] | None:
    """What a run folder was trained with; a value is None where a training that was cut does not say it yet.

    None where the folder holds no run.
    """
    if not (run / "run.json").is_file():
        return None
    facts, stated = read_json(run / "run.json"), run / "config.json"
    described = run / "best" / "surgery_r1.json"
    made = read_json(described) if described.is_file() else {}
    stage = facts.get("stage")
    versions = [made.get(name) for name in ("codec_version", "prompt_version")]
    return {
        "stage": stage,
        "config": trained_with(str(stage), read_json(stated)) if stated.is_file() else None,
        "dataset_sha256": facts.get("dataset_sha256"),
        "base_sha256": facts.get("base_sha256"),
        "include_dev": facts.get("include_dev"),
        "reward_files": facts.get("reward_files", {}),
        "versions": versions if all(versions) else None,
    }


def of_scenes(folder: Path) -> dict[str, Any]:
    """What drawn scenes were made of."""
    return read_json(folder / "scenes.json")


def of_predictions(folder: Path) -> dict[str, Any] | None:
    """The first line of the predictions in a score folder, whole or begun; None where there are none."""
    for name in ("predictions.jsonl", "predictions.jsonl.partial"):
        if (folder / name).is_file():
            with readable(folder / name) as handle:
                line = handle.readline()
            # Torn by a kill before it was whole: nothing was paid for.
            return json.loads(line) if line.endswith(b"\n") else None
    return None


def is_scored(folder: Path, predictions: Path) -> bool:
    """Whether a score folder has the scores of a prediction file, by this version: scoring again costs seconds."""
    if not (folder / "metrics.json").is_file() or not (folder / "scores.jsonl").is_file():
        return False
    metrics = read_json(folder / "metrics.json")
    written = (metrics.get("predictions") or {}).get("sha256")
    return metrics["versions"]["surgery_r1"] == __version__ and written == sha256_file(predictions)
