"""Paired comparison of two scored systems on the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery_r1._util.files import read_jsonl
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.intervals import Difference, block_ids, paired
from surgery_r1.evaluate.metrics import METRICS, tally
from surgery_r1.evaluate.score_record import ScoreRecord


def load_scores(path: Path) -> list[ScoreRecord]:
    """The records of a ``scores.jsonl``, or of the one in a folder.

    Raises:
        SurgeryR1Error: when it is missing, or a line lacks what the metrics need.
    """
    if path.is_dir():
        path = path / "scores.jsonl"
    return [ScoreRecord.from_json(line, where) for where, line in read_jsonl(path)]


def compare_scores(a: Path, b: Path, metric: str = "joint", *, kind: str | None = None) -> dict[str, Any]:
    """``a`` minus ``b`` on the same questions, for example RFT minus SFT.

    Args:
        a, b: ``scores.jsonl`` files, or folders that hold one.
        metric: one of :data:`surgery_r1.evaluate.metrics.METRICS`.
        kind: only questions of that kind.

    Returns:
        The :class:`surgery_r1.evaluate.intervals.Difference` as JSON: ``{"difference", "ci95", "n", "blocks"}``.

    Raises:
        SurgeryR1Error: when the metric is unknown or the files do not hold the same questions.
    """
    if metric not in METRICS:
        raise SurgeryR1Error(f"unknown metric {metric!r}", fix=f"use one of {list(METRICS)}")
    names = (str(a), str(b))
    return compare_lines(load_scores(a), load_scores(b), metric, kind, names).to_json()


def compare_lines(
    a: list[ScoreRecord],
    b: list[ScoreRecord],
    metric: str,
    kind: str | None = None,
    names: tuple[str, str] = ("a", "b"),
) -> Difference:
    """:func:`compare_scores` on records that are already read."""
    if kind is not None:
        a, b = [line for line in a if line.kind == kind], [line for line in b if line.kind == kind]
    ids = {line.id for line in a} ^ {line.id for line in b}
    if ids or len(a) != len(b) or not a:
        example = f", for example {min(ids)!r}" if ids else ""
        raise SurgeryR1Error(
            f"{names[0]} and {names[1]} do not hold the same questions: {len(a)} and {len(b)}, "
            f"{len(ids)} in only one of them{example}",
            fix="score both on the same dataset and split",
        )
    place = {line.id: i for i, line in enumerate(a)}
    b = sorted(b, key=lambda line: place[line.id])
    blocks = block_ids(a)
    return paired(tally(a, blocks), tally(b, blocks), metric)
