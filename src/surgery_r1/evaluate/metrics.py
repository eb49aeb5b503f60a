"""Metrics over score records: accuracy, macro F1, IoU (true and as published) and both together.

Point values and resamples go through the same few matrix products. The records are made by
:func:`surgery_r1.evaluate.score.score_line`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from surgery_r1 import vocab
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.geometry import Box, iou_published, is_box
from surgery_r1.matching import IOU_RIGHT

if TYPE_CHECKING:
    import numpy as np

#: Metrics that are means over questions: name -> value of a score record, in [0, 1].
MEANS: dict[str, Callable[[ScoreRecord], float]] = {
    "acc": lambda line: float(line.answer_right),
    "miou": lambda line: line.iou,
    "miou_published": lambda line: line.iou_published,
    "acc_at_iou50": lambda line: float(line.iou >= IOU_RIGHT),
    "joint": lambda line: line.joint,
    "joint_at_iou50": lambda line: float(line.joint_at_iou50),
    "parse_failure_rate": lambda line: float(line.failed),
}

#: Every metric that :func:`rates` returns, in the order tables list them.
METRICS: tuple[str, ...] = ("acc", "f_score", "f_score_18", *(name for name in MEANS if name != "acc"))


def published(box_px: Box | None, truth_px: Box, width: int, height: int) -> float:
    """:func:`surgery_r1.geometry.iou_published` kept in [0, 1]: a box that does not touch the frame scores 0.

    The published systems write boxes through a sigmoid, so theirs touch the frame always and the formula stays in
    [0, 1]; free text can name a box anywhere, and far outside the formula exceeds 1 (ours to decide).
    """
    import numpy as np

    if box_px is None or not is_box(box_px):
        return 0.0
    if box_px[0] >= width or box_px[1] >= height or box_px[2] <= 0 or box_px[3] <= 0:
        return 0.0
    with np.errstate(all="ignore"):
        value = iou_published(box_px, truth_px, width, height)
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


class Tally(NamedTuple):
    """Sums over the questions of each block (B blocks, M means, C classes).

    Attributes:
        n: questions, shape (B,).
        sums: sums of the metrics of :data:`MEANS`, shape (B, M).
        right, support, predicted: right answers, true answers and given answers by class, each of shape (B, C).
            A question without an answer adds to ``support`` only: a miss, never a class.
        in_vocabulary: whether the class is one of the vocabulary's, shape (C,).
    """

    n: np.ndarray
    sums: np.ndarray
    right: np.ndarray
    support: np.ndarray
    predicted: np.ndarray
    in_vocabulary: np.ndarray


def tally(lines: Sequence[ScoreRecord], blocks: Sequence[int] | None = None) -> Tally:
    """Sums by block; without ``blocks`` all lines are one block.

    Args:
        blocks: index of the block of each line, from 0 without gaps.
    """
    import numpy as np

    index = np.zeros(len(lines), dtype=np.intp) if blocks is None else np.asarray(blocks, dtype=np.intp)
    count = int(index.max()) + 1 if len(lines) else 1
    names = {line.answer_true for line in lines} | {line.answer for line in lines}
    classes = sorted(name for name in names if name is not None)
    code = {name: i for i, name in enumerate(classes)}

    sums = np.zeros((count, len(MEANS)))
    right, support, predicted = (np.zeros((count, len(classes))) for _ in range(3))
    if lines:
        np.add.at(sums, index, np.array([[value(line) for value in MEANS.values()] for line in lines]))
    for block, line in zip(index, lines, strict=True):
        support[block, code[line.answer_true]] += 1
        if line.answer is not None:
            predicted[block, code[line.answer]] += 1
        if line.answer_right:
            right[block, code[line.answer_true]] += 1
    return Tally(
        np.bincount(index, minlength=count).astype(float),
        sums,
        right,
        support,
        predicted,
        np.array([name in vocab.ANSWERS_EXTENDED for name in classes], dtype=bool),
    )


def rates(sums: Tally, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric of :data:`METRICS` under R weightings of the blocks.

    Args:
        sums: tally over B blocks.
        weights: how often each block counts, shape (R, B).

    Returns:
        Arrays of shape (R,), each value in [0, 1].
    """
    import numpy as np

    n = np.maximum(weights @ sums.n, 1.0)
    means = (weights @ sums.sums) / n[:, None]
    result = {name: means[:, i] for i, name in enumerate(MEANS)}
    right, support, predicted = weights @ sums.right, weights @ sums.support, weights @ sums.predicted
    # Macro F1 as sklearn computes it: 2 TP / (2 TP + FP + FN). Only classes in truth or prediction are averaged, for
    # which the denominator is positive, so that zero_division=1 can never come into play.
    either = support + predicted
    f1 = np.divide(2 * right, either, out=np.zeros_like(either), where=either > 0)
    result["f_score"] = _masked_mean(f1, either > 0)
    result["f_score_18"] = _masked_mean(f1, (support > 0) & sums.in_vocabulary)
    return {name: result[name] for name in METRICS}


def _masked_mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    import numpy as np

    count = mask.sum(axis=1)
    return np.where(mask, values, 0.0).sum(axis=1) / np.maximum(count, 1)


def summarise(lines: Sequence[ScoreRecord]) -> dict[str, float]:
    """``n`` and every metric of :data:`METRICS`, as plain numbers; rates in [0, 1], 0 where there are no lines.

    >>> import dataclasses
    >>> right = ScoreRecord(
    ...     id="1", source="s", sequence="seq_1", frame="f", answer_true="kidney", answer="kidney", answer_right=True,
    ...     iou=0.75, iou_published=0.9, joint=0.75, joint_at_iou50=True, box_px=(0, 0, 1, 1),
    ... )
    >>> miss = dataclasses.replace(right, answer=None, answer_right=False, joint=0.0, joint_at_iou50=False)
    >>> summary = summarise([right, miss])
    >>> summary["acc"], summary["miou"], summary["joint"], round(summary["f_score"], 4)
    (0.5, 0.75, 0.375, 0.6667)
    """
    import numpy as np

    values = rates(tally(lines), np.ones((1, 1)))
    return {"n": len(lines), **{name: float(value[0]) for name, value in values.items()}}


def grouped(
    lines: Sequence[ScoreRecord], key: Callable[[ScoreRecord], str], order: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
    """:func:`summarise` for each group of lines, in ``order`` first and then as met."""
    groups: dict[str, list[ScoreRecord]] = {name: [] for name in order}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return {name: _group(members) for name, members in groups.items() if members}


def _group(lines: Sequence[ScoreRecord]) -> dict[str, Any]:
    # The F scores of a part average over few classes and invite misreading; parts are listed by answer instead.
    return {k: v for k, v in summarise(lines).items() if k not in ("f_score", "f_score_18")} | wrong_referents(lines)


def by_answer(lines: Sequence[ScoreRecord]) -> dict[str, dict[str, Any]]:
    """For each true answer in class order: n, acc (its recall), how often it was predicted, its F1, and the boxes."""
    groups = grouped(lines, lambda line: line.answer_true, vocab.ANSWERS_EXTENDED)
    predicted = Counter(line.answer for line in lines if line.answer is not None)
    for name, group in groups.items():
        group["predicted"] = predicted[name]
        group["f1"] = 2 * group["acc"] * group["n"] / (group["n"] + predicted[name])
    return groups


def wrong_referents(lines: Sequence[ScoreRecord]) -> dict[str, float | None]:
    """Share of boxes that fit another annotated object better than the one asked about, where that can be told."""
    known = [line.referent_illusion for line in lines if line.referent_illusion is not None]
    return {"illusion_rate": sum(known) / len(known) if known else None, "illusion_n": len(known)}


def confusions(lines: Sequence[ScoreRecord], most: int = 20) -> list[dict[str, Any]]:
    """The most frequent wrong answers: ``{"true", "predicted", "n"}``; predicted is None where none was readable."""
    wrong = Counter((line.answer_true, line.answer) for line in lines if not line.answer_right)
    ordered = sorted(wrong.items(), key=lambda item: (-item[1], item[0][0], item[0][1] or ""))
    return [{"true": true, "predicted": answer, "n": n} for (true, answer), n in ordered[:most]]
