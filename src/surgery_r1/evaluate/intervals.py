"""95 % intervals of every metric, by one method: jackknife over blocks, Wilson's form, parts combined (ours).

Neighbouring frames look alike, so blocks of them, not questions, are what is independent. Leaving one block out after
the other gives the standard error of each part of a metric, never less than that of independent questions. Wilson's
interval on the effective number of questions that this error stands for, with a t quantile for the blocks in which the
part occurs, keeps it sound near 0 and 1 and for rare classes. The parts of a mean, and the two systems of a difference,
are combined with their correlation, which keeps the result asymmetric where the parts are (Zou and Donner 2008,
"MOVER"; Newcombe 1998 for paired differences). There is no resampling and no seed. A percentile bootstrap of macro F1
misses its own point, because resamples lose rare classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from surgery_r1._util.sorting import natural_key
from surgery_r1.evaluate.metrics import F_SCORES, MEANS, Tally, parts
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.records import Record

if TYPE_CHECKING:
    import numpy as np

#: Neighbouring frames of a sequence that count as one block.
FRAMES_PER_BLOCK = 10

METHOD = "jackknife over blocks, Wilson's form, parts combined (MOVER)"

#: Weight of a block that is left out. Not 0, so that a class known from that block alone keeps its meaning.
_LEFT_OUT = 1e-9

#: Correlation of questions inside a block that is assumed where none can be measured.
_ALIKE = 0.1

#: The .975 quantile of Student's t for 1 to 10 degrees of freedom.
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True, slots=True)
class Difference(Record):
    """How much one system is better than another at a metric, on the same questions.

    Attributes:
        difference: in [-1, 1]; None where no question counts for both.
        ci95: low and high end of its 95 % interval; (-1, 1) where fewer than two blocks say nothing.
        n: questions.
        blocks: blocks of neighbouring frames they are in.
    """

    difference: float | None
    ci95: tuple[float, float]
    n: int
    blocks: int


class Estimate(NamedTuple):
    """A metric with its interval.

    Attributes:
        value: in [0, 1].
        low, high: ends of the 95 % interval, in [0, 1], around ``value``.
        left_out: the metric without each block, shape (B,).
    """

    value: float
    low: float
    high: float
    left_out: np.ndarray


def block_ids(lines: Sequence[ScoreRecord]) -> list[int]:
    """The block of each line, numbered from 0.

    The frames of a sequence are put in order and cut into runs of :data:`FRAMES_PER_BLOCK`; the last run may be
    shorter. All questions of a frame are in one block, and no block spans two sequences.

    >>> from types import SimpleNamespace
    >>> lines = [SimpleNamespace(source="s", sequence="seq_1", frame=f"frame{i}") for i in range(12)]
    >>> block_ids(lines)
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    """
    frames: dict[tuple[str, str], set[str]] = {}
    for line in lines:
        frames.setdefault((line.source, line.sequence), set()).add(line.frame)
    block: dict[tuple[str, str, str], int] = {}
    count = 0
    for key, names in frames.items():
        # Sorted twice: names that count as equal, such as frame9 and frame09, must not keep the chance order of a set.
        for rank, name in enumerate(sorted(sorted(names), key=natural_key)):
            block[*key, name] = count + rank // FRAMES_PER_BLOCK
        count += -(-len(names) // FRAMES_PER_BLOCK)
    return [block[line.source, line.sequence, line.frame] for line in lines]


def estimates(sums: Tally) -> dict[str, Estimate]:
    """Every metric with its interval; metrics for which no question counts are left out.

    With fewer than two blocks nothing can be said, and every interval is [0, 1].

    Args:
        sums: tally over B blocks.
    """
    import numpy as np

    total = Tally(*(part.sum(axis=0) for part in sums))
    # (total - part) first: with a class of one block the rest is exactly 0, not what rounding leaves.
    without = Tally(*((whole - part) + _LEFT_OUT * part for whole, part in zip(total, sums, strict=True)))
    left_out, whole = parts(without), parts(Tally(*(part[None] for part in total)))
    support = _support(sums, total, whole)
    result = {}
    for name, values in whole.items():
        there = ~np.isnan(values[0])
        if there.any():
            of_parts = _Support(*(array[there] for array in support[name]))
            result[name] = _estimate(values[0, there], left_out[name][:, there], of_parts)
    return result


def share(flags: Sequence[bool], blocks: Sequence[int]) -> Estimate:
    """How many of some questions a thing is true of, as a share with its interval.

    Args:
        flags: whether it is, for each question; at least one.
        blocks: their blocks, see :func:`block_ids`.

    >>> found = share([True, False] * 20, [i // 4 for i in range(40)])
    >>> found.value, 0 < found.low < 0.5 < found.high < 1
    (0.5, True)
    """
    import numpy as np

    values = np.asarray(flags, dtype=float)
    count = max(blocks) + 1
    sums = np.bincount(blocks, weights=values, minlength=count)
    sizes = np.bincount(blocks, minlength=count).astype(float)
    mean = values.mean(keepdims=True)
    rest = (sizes.sum() - sizes) + _LEFT_OUT * sizes
    left_out = ((sums.sum() - sums) + _LEFT_OUT * sums) / rest
    there, size = np.array([(sizes > 0).sum()]), np.array([float(len(values))])
    return _estimate(mean, left_out[:, None], _Support(there, size, mean * (1 - mean) / size))


class _Support(NamedTuple):
    """What each of K parts rests on, arrays of shape (K,).

    Attributes:
        blocks: in how many blocks it occurs.
        questions: how many it counts; of an F1, half of those that are truly or allegedly of the class.
        variance: of the part, if its questions were independent.
    """

    blocks: np.ndarray
    questions: np.ndarray
    variance: np.ndarray


def _support(sums: Tally, total: Tally, whole: Mapping[str, np.ndarray]) -> dict[str, _Support]:
    """The support of the parts of every metric."""
    import numpy as np

    asked, answered = sums.confusion.sum(axis=2), sums.confusion[:, :, :-1].sum(axis=1)
    blocks, questions = ((asked + answered) > 0).sum(axis=0), (asked + answered).sum(axis=0) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        classes = {
            name: _Support(blocks, questions, whole[name][0] * (1 - whole[name][0]) / questions) for name in F_SCORES
        }
        variance = (total.squares / total.counts - (total.sums / total.counts) ** 2) / total.counts
    blocks = (sums.counts > 0).sum(axis=0)
    means = {
        name: _Support(blocks[i : i + 1], total.counts[i : i + 1], variance[i : i + 1]) for i, name in enumerate(MEANS)
    }
    return means | classes


def _estimate(values: np.ndarray, left_out: np.ndarray, support: _Support) -> Estimate:
    """The mean of K parts with its interval.

    Args:
        values: the parts, shape (K,), each in [0, 1].
        left_out: the parts without each block, shape (B, K).
    """
    import numpy as np

    count = len(left_out)
    point = float(values.mean())
    means = left_out.mean(axis=1)
    if count < 2:
        return Estimate(point, 0.0, 1.0, means)
    # Around the value itself, not around their mean: what a part is off on average counts as error too.
    deviations = (left_out - values) * np.sqrt((count - 1) / count)
    seen = np.sqrt((deviations**2).sum(axis=0))
    low, high = _wilson(values, np.maximum(seen, np.sqrt(np.maximum(support.variance, 0.0))), support)
    standard = np.divide(deviations, seen, out=np.zeros_like(deviations), where=seen > 0)
    correlation = standard.T @ standard
    np.fill_diagonal(correlation, 1.0)
    below, above = (_length(end, correlation) / len(values) for end in (values - low, high - values))
    return Estimate(point, max(0.0, point - below), min(1.0, point + above), means)


def _wilson(values: np.ndarray, errors: np.ndarray, support: _Support) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of each part on its effective number of questions, v (1 - v) / error^2.

    Where nothing varies (all right, or none), how alike the questions of a block are cannot be seen; then a correlation
    of :data:`_ALIKE` is taken for it.
    """
    import numpy as np

    spread = values * (1 - values)
    varies = (errors > 0) & (spread > 0)
    size = np.maximum(support.questions / support.blocks, 1)
    effective = np.divide(spread, errors**2, out=support.questions / (1 + (size - 1) * _ALIKE), where=varies)
    t2 = _t_quantiles(np.maximum(support.blocks - 1, 1)) ** 2
    middle = (values + t2 / (2 * effective)) / (1 + t2 / effective)
    half = np.sqrt(t2 * (spread / effective + t2 / (4 * effective**2))) / (1 + t2 / effective)
    # Rounding must not put the point outside.
    return np.minimum(np.clip(middle - half, 0, 1), values), np.maximum(np.clip(middle + half, 0, 1), values)


def _t_quantiles(freedom: np.ndarray) -> np.ndarray:
    """The .975 quantile of Student's t for each number of degrees of freedom, from 1 (within .001)."""
    import numpy as np

    z = 1.959963984540054
    # Cornish-Fisher's expansion, which is good enough from 11 on (Abramowitz and Stegun 1964, 26.7.5).
    large = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    large = large + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return np.where(freedom <= len(_T), np.take(_T, np.minimum(freedom, len(_T)) - 1), large)


def _length(ends: np.ndarray, correlation: np.ndarray) -> float:
    return float(max(0.0, ends @ correlation @ ends)) ** 0.5


def intervals(sums: Tally) -> dict[str, list[float]]:
    """``[low, high]`` of every metric for which a question counts, see :func:`estimates`."""
    return {name: [estimate.low, estimate.high] for name, estimate in estimates(sums).items()}


def paired(a: Tally, b: Tally, metric: str) -> Difference:
    """Difference ``a - b`` of a metric on the same questions, with its 95 % interval.

    Args:
        a, b: tallies over the same blocks.
    """
    import numpy as np

    found = difference(estimates(a).get(metric), estimates(b).get(metric), int(a.questions.sum()))
    same = found.blocks >= 2 and all(np.array_equal(one, other) for one, other in zip(a, b, strict=True))
    # No question differs: there is nothing to be unsure of.
    return replace(found, ci95=(0.0, 0.0)) if same else found


def difference(a: Estimate | None, b: Estimate | None, n: int) -> Difference:
    """``a - b`` of two estimates over the same blocks of ``n`` questions."""
    import numpy as np

    if a is None or b is None:
        return Difference(None, (-1.0, 1.0), n, 0)
    count, value = len(a.left_out), a.value - b.value
    if count < 2:
        return Difference(value, (-1.0, 1.0), n, count)
    one, other = a.left_out - a.left_out.mean(), b.left_out - b.left_out.mean()
    length = float(np.sqrt((one @ one) * (other @ other)))
    together = float(one @ other) / length if length > 0 else 0.0
    correlation = np.array([[1.0, -together], [-together, 1.0]])
    below = _length(np.array([a.value - a.low, b.high - b.value]), correlation)
    above = _length(np.array([a.high - a.value, b.value - b.low]), correlation)
    return Difference(value, (max(-1.0, value - below), min(1.0, value + above)), n, count)
