"""What a report is made of: score folders, run folders, and the groups of scores that may be compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1 import vocab
from surgery_r1._util.files import read_json, read_jsonl
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.compare import load_scores
from surgery_r1.evaluate.metrics import METRICS

if TYPE_CHECKING:
    from surgery_r1.evaluate.score_record import ScoreRecord

#: Folder names that say nothing about which system was scored.
_GENERIC = {"scores", "score", "eval", "evaluation", "out", "results", "predictions", ""}


@dataclass(slots=True)
class Scored:
    """One system on one split: its score folder, read."""

    path: Path
    name: str
    metrics: dict[str, Any]
    lines: list[ScoreRecord]


@dataclass(slots=True)
class Run:
    """The training log of one stage: the records of ``metrics.jsonl`` that name a step."""

    path: Path
    name: str
    stage: str | None
    records: list[dict[str, Any]]


@dataclass(slots=True)
class Group:
    """Systems scored on the same questions, in the order they were given."""

    split: str
    dataset_hash: str | None
    scored: list[Scored] = field(default_factory=list)

    @property
    def title(self) -> str:
        metrics = self.scored[0].metrics
        sources = " + ".join(metrics.get("sources", []))
        return f"{self.split}{f' · {sources}' if sources else ''}"


def read_inputs(sources: Sequence[Path]) -> tuple[list[Group], list[Run]]:
    """Read every score folder and run folder among ``sources``, or beneath those that are neither.

    Raises:
        SurgeryR1Error: when a source is missing or holds nothing to report, or a file in it cannot be read.
    """
    folders = _all_folders(sources)
    scored = {folder: _read_scores(folder) for folder in folders if (folder / "scores.jsonl").is_file()}
    groups: dict[tuple[str, str | None], Group] = {}
    for item in scored.values():
        split, dataset_hash = str(item.metrics.get("split")), item.metrics.get("dataset_hash")
        groups.setdefault((split, dataset_hash), Group(split, dataset_hash)).scored.append(item)
    for group in groups.values():
        _tell_apart(group.scored)
    return list(groups.values()), _runs_in(folders)


def read_runs(sources: Sequence[Path]) -> list[Run]:
    """The run folders of :func:`read_inputs`, without reading scores."""
    return _runs_in(_all_folders(sources))


def _runs_in(folders: Sequence[Path]) -> list[Run]:
    return [run for folder in folders if (folder / "metrics.jsonl").is_file() for run in _read_run(folder)]


def _all_folders(sources: Sequence[Path]) -> list[Path]:
    """Of all sources, each once, in the order given."""
    found: dict[Path, None] = {}
    for source in sources:
        folders = _folders(source)
        if not folders:
            raise SurgeryR1Error(
                "neither scores.jsonl nor metrics.jsonl here or below",
                where=str(source),
                fix="name run folders of surgery-r1 train, or score folders of surgery-r1 score",
            )
        found |= dict.fromkeys(folders)
    return list(found)


def _folders(source: Path) -> list[Path]:
    if source.is_file() and source.name in ("scores.jsonl", "metrics.jsonl", "metrics.json"):
        source = source.parent
    if not source.is_dir():
        raise SurgeryR1Error("no such folder", where=str(source), fix="check the path")
    found = {path.parent for name in ("scores.jsonl", "metrics.jsonl") for path in source.rglob(name)}
    return sorted(found, key=lambda path: (_stage_rank(path), path))


def _stage_rank(path: Path) -> int:
    """Base before SFT before RFT, where folders were found and not named one by one."""
    words = re.split(r"[^a-z0-9]+", str(path).lower())
    return max((rank for rank, word in enumerate(("base", "sft", "rft"), start=1) if word in words), default=0)


def _read_scores(folder: Path) -> Scored:
    metrics = read_json(folder / "metrics.json")
    absent = [key for key in ("n", *METRICS, "ci95", "by_kind", "by_sequence", "by_answer") if key not in metrics]
    if absent:
        raise SurgeryR1Error(f"no {', '.join(absent)}", where=str(folder / "metrics.json"), fix="score again")
    return Scored(folder, _name(folder, str(metrics.get("split"))), metrics, load_scores(folder))


def _name(folder: Path, split: str) -> str:
    """The first part of the path, from the end, that says more than the split: ``runs/sft/scores-val`` is ``sft``."""
    affix = "|".join(map(re.escape, {split, *vocab.SPLITS}))
    for part in reversed(folder.absolute().parts):
        name = re.sub(rf"^(?:{affix})[-_.]|[-_.](?:{affix})$|^(?:{affix})$", "", part)
        if name.lower() not in _GENERIC:
            return name
    return folder.name


def _tell_apart(scored: list[Scored]) -> None:
    names = [item.name for item in scored]
    for item in scored:
        if names.count(item.name) > 1:
            item.name = "/".join(item.path.absolute().parts[-2:])


def _read_run(folder: Path) -> list[Run]:
    stages: dict[str | None, list[dict[str, Any]]] = {}
    for _, record in read_jsonl(folder / "metrics.jsonl"):
        step, stage = record.get("step"), record.get("stage")
        if isinstance(step, int | float) and not isinstance(step, bool):
            stages.setdefault(stage if isinstance(stage, str) else None, []).append(record)
    return [Run(folder, folder.name, stage, records) for stage, records in stages.items()]
