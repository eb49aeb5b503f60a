"""Seeded block bootstrap: neighbouring frames look alike, so blocks of them, not questions, are resampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surgery_r1._util.sorting import natural_key
from surgery_r1.evaluate.metrics import Tally, rates
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.records import Record

if TYPE_CHECKING:
    import numpy as np

#: Neighbouring frames of a sequence that are drawn together.
FRAMES_PER_BLOCK = 10


@dataclass(frozen=True, slots=True)
class Difference(Record):
    """How much one system is better than another at a metric, on the same questions.

    Attributes:
        difference: in [-1, 1].
        ci95: low and high end of its 95 % interval; (-1, 1) where fewer than two blocks say nothing.
        n: questions.
        blocks: blocks of neighbouring frames they are in.
    """

    difference: float
    ci95: tuple[float, float]
    n: int
    blocks: int


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


def draws(blocks: int, resamples: int, seed: int) -> np.ndarray:
    """How often each block is drawn, shape (resamples, blocks); every row sums to ``blocks``. Same seed, same draws."""
    import numpy as np

    chosen = np.random.default_rng(seed).integers(0, blocks, size=(resamples, blocks))
    offset = np.arange(resamples)[:, None] * blocks
    return np.bincount((chosen + offset).ravel(), minlength=resamples * blocks).reshape(resamples, blocks).astype(float)


def interval(values: np.ndarray) -> list[float]:
    """The 95 % percentile interval ``[low, high]`` of resampled values."""
    import numpy as np

    low, high = np.quantile(values, [0.025, 0.975])
    return [float(low), float(high)]


def intervals(sums: Tally, resamples: int, seed: int) -> dict[str, list[float]]:
    """95 % intervals of every metric from blocks drawn with replacement out of all sequences together.

    Drawing within each sequence would leave no variation at all where a sequence is a single block, as in
    EndoVis-17. With fewer than two blocks nothing can be said, and every interval is [0, 1].
    """
    blocks = len(sums.n)
    if blocks < 2 or resamples < 1:
        import numpy as np

        return {name: [0.0, 1.0] for name in rates(sums, np.ones((1, blocks)))}
    return {name: interval(values) for name, values in rates(sums, draws(blocks, resamples, seed)).items()}


def paired(a: Tally, b: Tally, metric: str, resamples: int, seed: int) -> Difference:
    """Difference ``a - b`` of a metric on the same questions, with a 95 % interval from drawing the same blocks.

    Args:
        a, b: tallies over the same blocks.
    """
    import numpy as np

    blocks = len(a.n)
    ones = np.ones((1, blocks))
    difference = float(rates(a, ones)[metric][0] - rates(b, ones)[metric][0])
    low, high = -1.0, 1.0
    if blocks >= 2 and resamples >= 1:
        weights = draws(blocks, resamples, seed)
        low, high = interval(rates(a, weights)[metric] - rates(b, weights)[metric])
    return Difference(difference, (low, high), int(a.n.sum()), blocks)
