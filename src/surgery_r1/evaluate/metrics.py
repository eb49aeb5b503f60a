"""Metrics over score records: what is counted of each question, and sums of it by block.

Every metric is the mean of one or more parts that lie in [0, 1]: a plain mean has one part, an F score one for each
class. :mod:`.intervals` puts intervals around them.
The records are made by :class:`surgery_r1.evaluate.score.Scorer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.geometry import Box, iou_published, is_box
from surgery_r1.matching import IOU_RIGHT, Referent

if TYPE_CHECKING:
    import numpy as np


def _of(value: bool | float | None) -> float | None:
    return None if value is None else float(value)


def _referent(*kinds: Referent) -> Callable[[ScoreRecord], float | None]:
    return lambda line: None if line.referent is None else float(line.referent in kinds)


def _rationale(value: Callable[[ScoreRecord], bool]) -> Callable[[ScoreRecord], float | None]:
    return lambda line: None if line.reasoning is None else float(value(line))


#: Metrics that are means over questions: name -> value of a score record in [0, 1], None where the question does not
#: count. Whether it counts depends on the truth alone, but for the rationale's: those are of the rationales there are.
MEANS: dict[str, Callable[[ScoreRecord], float | None]] = {
    "acc": lambda line: float(line.answer_right),
    "acc_rare": lambda line: float(line.answer_right) if line.rare else None,
    "miou": lambda line: line.iou,
    "miou_published": lambda line: line.iou_published,
    "acc_at_iou50": lambda line: _of(None if line.iou is None else line.iou >= IOU_RIGHT),
    "joint": lambda line: line.joint,
    "joint_at_iou50": lambda line: _of(line.joint_at_iou50),
    "parse_failure_rate": lambda line: float(line.failed),
    "wrong_referent_strict": _referent(Referent.OTHER_CLEARLY),
    "wrong_referent_broad": _referent(Referent.OTHER_CLEARLY, Referent.OTHER),
    "no_referent": _referent(Referent.NOTHING),
    "rationale_answer": _rationale(lambda line: line.conclusion is not None and line.conclusion == line.answer),
    "rationale_contradicts": _rationale(lambda line: line.contradicts),
    "rationale_right": _rationale(lambda line: line.conclusion_right),
    "rationale_unsupported": _rationale(lambda line: bool(line.unsupported)),
    "rationale_box": lambda line: _of(line.conclusion_fits_box),
    "answer_box": lambda line: _of(line.answer_fits_box),
}

#: Macro F1 over classes: those in truth or prediction (as published), those in truth, and those in truth where each
#: class weighs the same whatever its number of questions.
F_SCORES: tuple[str, ...] = ("f_score", "f_score_18", "f_balanced")

#: Every metric, in the order tables list them.
METRICS: tuple[str, ...] = ("acc", *F_SCORES, *(name for name in MEANS if name != "acc"))


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
    """Sums over the questions of each of B blocks (M means, C classes in truth or prediction).

    Attributes:
        questions: shape (B,).
        sums, squares: of the values of :data:`MEANS`, each of shape (B, M).
        counts: how many questions they come from, shape (B, M).
        confusion: questions by true class and by answer, shape (B, C, C + 1). The last answer stands for none, or for
            one outside the set's classes: a miss, never a class.
    """

    questions: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    counts: np.ndarray
    confusion: np.ndarray


def tally(lines: Sequence[ScoreRecord], blocks: Sequence[int] | None = None) -> Tally:
    """Sums by block; without ``blocks`` all lines are one block.

    Args:
        blocks: index of the block of each line, from 0 without gaps.
    """
    import numpy as np

    index = np.zeros(len(lines), dtype=np.intp) if blocks is None else np.asarray(blocks, dtype=np.intp)
    count = int(index.max()) + 1 if len(lines) else 1
    answers = [None if line.outside_classes else line.answer for line in lines]
    classes = sorted({line.answer_true for line in lines} | {answer for answer in answers if answer is not None})
    code = {name: i for i, name in enumerate(classes)}

    values = np.array([[value(line) for value in MEANS.values()] for line in lines], dtype=float)
    sums, squares, counts = (np.zeros((count, len(MEANS))) for _ in range(3))
    confusion = np.zeros((count, len(classes), len(classes) + 1))
    if lines:
        np.add.at(sums, index, np.nan_to_num(values))
        np.add.at(squares, index, np.nan_to_num(values) ** 2)
        np.add.at(counts, index, ~np.isnan(values))
        true = np.array([code[line.answer_true] for line in lines])
        given = np.array([len(classes) if answer is None else code[answer] for answer in answers])
        np.add.at(confusion, (index, true, given), 1)
    return Tally(np.bincount(index, minlength=count).astype(float), sums, squares, counts, confusion)


def parts(sums: Tally) -> dict[str, np.ndarray]:
    """The parts that every metric of :data:`METRICS` is the mean of, for each row of a tally.

    Returns:
        Arrays of shape (B, K): K = 1 for means, one part for each class for F scores; NaN where a part does not count
        (no question, or a class that is not there).
    """
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums.sums / sums.counts
        support = sums.confusion.sum(axis=2)
        f1, predicted = _f1(sums.confusion)
        balanced, _ = _f1(np.nan_to_num(sums.confusion / support[:, :, None]))
    result = {name: means[:, i : i + 1] for i, name in enumerate(MEANS)}
    result["f_score"] = np.where(support + predicted > 0, f1, np.nan)
    result["f_score_18"] = np.where(support > 0, f1, np.nan)
    result["f_balanced"] = np.where(support > 0, balanced, np.nan)
    return {name: result[name] for name in METRICS}


def _f1(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F1 and number of predictions of each class. As sklearn has it: 2 TP / (2 TP + FP + FN).

    Only classes in truth or prediction count, where the denominator is positive: zero_division never comes into play.
    """
    import numpy as np

    right = np.diagonal(confusion, axis1=1, axis2=2)
    predicted = confusion[:, :, :-1].sum(axis=1)
    return 2 * right / (confusion.sum(axis=2) + predicted), predicted


def mean_of_parts(values: np.ndarray) -> np.ndarray:
    """Mean over the parts that count, shape (B,); NaN where none does."""
    import numpy as np

    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0.0).sum(axis=1) / there.sum(axis=1)


def summarise(lines: Sequence[ScoreRecord]) -> dict[str, float | None]:
    """``n`` and every metric of :data:`METRICS`, as plain numbers in [0, 1]; None where no question counts.

    >>> import dataclasses
    >>> right = ScoreRecord(
    ...     id="1", source="s", sequence="seq_1", frame="f", answer_true="kidney", answer="kidney", answer_right=True,
    ...     iou=0.75, iou_published=0.9, joint=0.75, joint_at_iou50=True, box_px=(0, 0, 1, 1),
    ... )
    >>> miss = dataclasses.replace(right, answer=None, answer_right=False, joint=0.0, joint_at_iou50=False)
    >>> summary = summarise([right, miss])
    >>> summary["acc"], summary["miou"], summary["joint"], round(summary["f_score"], 4), summary["answer_box"]
    (0.5, 0.75, 0.375, 0.6667, None)
    """
    return totals(tally(lines))


def totals(sums: Tally) -> dict[str, float | None]:
    """:func:`summarise` of the questions that a tally holds, whatever their blocks."""
    whole = parts(Tally(*(part.sum(axis=0, keepdims=True) for part in sums)))
    values = {name: float(mean_of_parts(value)[0]) for name, value in whole.items()}
    known = {name: None if math.isnan(value) else value for name, value in values.items()}
    return {"n": int(sums.questions.sum()), **known}


def grouped(
    lines: Sequence[ScoreRecord], key: Callable[[ScoreRecord], str], order: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
    """:func:`summarise` for each group of lines, in ``order`` first and then as met.

    The F scores of a part average over few classes and invite misreading, so they are left out.
    """
    groups: dict[str, list[ScoreRecord]] = {name: [] for name in order}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return {
        name: {metric: value for metric, value in summarise(members).items() if metric not in F_SCORES}
        for name, members in groups.items()
        if members
    }
