"""What ``metrics.json`` holds of a scored set, apart from where its lines came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from surgery_r1 import vocab
from surgery_r1.evaluate.agreement import agreement
from surgery_r1.evaluate.intervals import FRAMES_PER_BLOCK, METHOD, Estimate, block_ids, difference, estimates
from surgery_r1.evaluate.metrics import grouped, summarise, tally, totals
from surgery_r1.evaluate.referents import wrong_referent
from surgery_r1.evaluate.score_record import ScoreRecord

#: Metrics whose difference to the no-image floor is reported with an interval.
_ABOVE_FLOOR = ("acc", "f_score", "miou", "joint", "joint_at_iou50")

#: What is counted the way the family counts, see :func:`counted_by_line`.
_BY_LINE = ("n", "acc", "f_score", "miou", "miou_published")

#: What a floor says nothing about: it writes no rationale, and its guesses can be read.
_NOT_OF_FLOORS = ("parse_failure_rate", "rationale_")


def metrics_of(
    lines: Sequence[ScoreRecord],
    floor_lines: Sequence[ScoreRecord] | None = None,
    *,
    classes: Sequence[str] = (),
    without_dev: Sequence[ScoreRecord] | None = None,
) -> dict[str, Any]:
    """The metrics of score lines as ``metrics.json`` holds them, without anything about where the lines came from.

    Args:
        floor_lines: the same questions as answered by :class:`surgery_r1.evaluate.floor.NoImageFloor`.
        classes: the set's own classes, in the order in which they are listed.
        without_dev: the same by the floor that has not seen the dev split.
    """
    blocks = block_ids(lines)
    sums = tally(lines, blocks)
    found, metrics = estimates(sums), totals(sums)
    by_kind = grouped(lines, lambda line: line.kind, vocab.KINDS)
    failed = [line for line in lines if line.failed]
    one_source = len({line.source for line in lines}) == 1
    return {
        **metrics,
        "f_score_18_classes": len({line.answer_true for line in lines}),
        "wrong_referent": wrong_referent(lines),
        "agreement": agreement(lines, metrics, by_kind),
        "parse_failures": {
            "missing": sum(line.missing for line in lines),
            "no_answer": sum(line.answer is None and not line.missing for line in failed),
            "no_box": sum(line.box_px is None and line.iou is not None and not line.missing for line in failed),
            "problems": dict(Counter(problem for line in failed for problem in line.problems).most_common()),
        },
        "answers_outside_classes": sum(line.outside_classes for line in lines),
        "by_kind": by_kind,
        "by_sequence": grouped(lines, lambda line: line.sequence if one_source else f"{line.source}/{line.sequence}"),
        "by_answer": by_answer(lines, classes),
        "confusions": confusions(lines),
        "ci95": {name: [estimate.low, estimate.high] for name, estimate in found.items()},
        "intervals": {"method": METHOD, "blocks": max(blocks, default=-1) + 1, "frames_per_block": FRAMES_PER_BLOCK},
        "no_image_floor": _floor(floor_lines, blocks, found),
        "no_image_floor_without_dev": _floor(without_dev, blocks, found),
    }


def _floor(lines: Sequence[ScoreRecord] | None, blocks: Sequence[int], system: dict[str, Estimate]) -> dict[str, Any]:
    """A floor's metrics, and how far the system is above it."""
    if lines is None:
        return {"n": 0, "note": "the dataset has no questions to compute this floor from"}
    sums = tally(lines, blocks)
    floor = estimates(sums)
    metrics = {name: value for name, value in totals(sums).items() if not name.startswith(_NOT_OF_FLOORS)}
    return {
        **metrics,
        "ci95": {name: [floor[name].low, floor[name].high] for name in metrics if name in floor},
        "by_kind": grouped(lines, lambda line: line.kind, vocab.KINDS),
        "above": {
            name: difference(system.get(name), floor.get(name), len(lines)).to_json()
            for name in _ABOVE_FLOOR
            if name in system
        },
    }


def by_answer(lines: Sequence[ScoreRecord], classes: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """For each true answer in class order: n, acc (its recall), how often it was predicted, its F1, and the boxes."""
    groups = grouped(lines, lambda line: line.answer_true, classes)
    predicted = Counter(line.answer for line in lines if line.answer is not None)
    rare = {line.answer_true for line in lines if line.rare}
    for name, group in groups.items():
        group["predicted"] = predicted[name]
        group["f1"] = 2 * group["acc"] * group["n"] / (group["n"] + predicted[name])
        group["rare"] = name in rare
    return groups


def counted_by_line(lines: Sequence[ScoreRecord]) -> dict[str, Any]:
    """Some metrics as the family counts them: every label line is a question of its own, with one right answer.

    A question with two right answers is then asked twice, and a single answer can be right only once.

    Args:
        lines: a record for each label line.
    """
    metrics = summarise(lines)
    return {name: metrics[name] for name in _BY_LINE}


def confusions(lines: Sequence[ScoreRecord], most: int = 20) -> list[dict[str, Any]]:
    """The most frequent wrong answers: ``{"true", "predicted", "n"}``; predicted is None where none was readable."""
    wrong = Counter((line.answer_true, line.answer) for line in lines if not line.answer_right)
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0][0], item[0][1] or ""))
    return [{"true": true, "predicted": answer, "n": n} for (true, answer), n in ordered[:most]]
