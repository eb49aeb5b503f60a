"""Scores of the rows over seeds: pooled, with intervals over blocks, and how far seeds lie apart.

Questions of all seeds are put together. Drawn scenes of two seeds are different frames and so different blocks. On the
user's data every seed answers the same questions: a frame's block then holds the answers of all seeds, so that the
interval does not shrink as if there were more frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.agreement import facts_per_rationale
from surgery_r1.evaluate.compare import compare_lines, load_scores
from surgery_r1.evaluate.intervals import Difference, Estimate, block_ids, difference, estimates, share
from surgery_r1.evaluate.metrics import tally, totals
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.evaluate.swapped import read_swapped
from surgery_r1.reproduce.contrast import SWAPPED

Lines = list[ScoreRecord]

#: What a rationale names on average: no share, and so without an interval.
FACTS = "facts_per_rationale"

#: Which questions a group holds, as wrong referents are counted; any other name is a question kind.
_GROUPS: dict[str, Callable[[ScoreRecord], bool]] = {
    "all": lambda line: True,
    "tools": lambda line: line.kind != "organ",
    "organs": lambda line: line.kind == "organ",
}


def of_group(lines: Sequence[ScoreRecord], questions: str) -> Lines:
    """The lines of a group of questions, or of a kind."""
    chosen = _GROUPS.get(questions, lambda line: line.kind == questions)
    return [line for line in lines if chosen(line)]


@dataclass
class Pool:
    """The score records of rows.

    Args:
        folders: (row, split, seed) -> its score folder, where it was scored.
        drawn: whether each seed has scenes of its own.
    """

    folders: Mapping[tuple[str, str, int], Path]
    drawn: bool
    _read: dict[Path, Lines] = field(default_factory=dict, init=False)

    def seeds(self, row: str, split: str) -> list[int]:
        """The seeds with which a row was scored on a split."""
        return [seed for name, part, seed in self.folders if (name, part) == (row, split)]

    def lines(self, row: str, split: str, seed: int) -> Lines:
        """The records of one seed, told apart from those of others."""
        folder = self.folders[row, split, seed]
        if folder not in self._read:
            self._read[folder] = load_scores(folder)
        return [
            replace(line, id=f"{seed}/{line.id}", source=f"{line.source} {seed}" if self.drawn else line.source)
            for line in self._read[folder]
        ]

    def _pooled(self, row: str, split: str, seeds: Sequence[int]) -> Lines:
        return [line for seed in seeds for line in self.lines(row, split, seed)]

    def values(self, row: str, split: str, measures: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
        """Measures of a row: ``{"value", "ci95", "n", "by_seed", "sd"}`` each, by ``measure`` or ``measure (group)``.

        Args:
            measures: (metric, group of questions) each.
        """
        seeds = self.seeds(row, split)
        # One and the same prediction file is counted once.
        once = [*{self.folders[row, split, seed]: seed for seed in reversed(seeds)}.values()][::-1]
        found: dict[str, dict[str, Any]] = {}
        for questions in dict.fromkeys(group for _, group in measures):
            lines = of_group(self._pooled(row, split, once), questions)
            whole = estimates(tally(lines, block_ids(lines))) if lines else {}
            parts = {seed: of_group(self.lines(row, split, seed), questions) for seed in seeds}
            sums = {seed: totals(tally(part)) for seed, part in parts.items()}
            for measure in (name for name, group in measures if group == questions):
                estimate, count = whole.get(measure), len(lines)
                if measure in SWAPPED:
                    estimate, count = self._swapped(row, split, lines, measure)
                    alone = {seed: self._swapped(row, split, part, measure)[0] for seed, part in parts.items()}
                    by_seed = {str(seed): _value(one) for seed, one in alone.items()}
                elif measure == FACTS:
                    by_seed = {str(seed): facts_per_rationale(part) for seed, part in parts.items()}
                else:
                    by_seed = {str(seed): part[measure] for seed, part in sums.items()}
                found[named(measure, questions)] = {
                    "value": facts_per_rationale(lines) if measure == FACTS else _value(estimate),
                    "ci95": None if estimate is None else [estimate.low, estimate.high],
                    "n": count,
                    "by_seed": by_seed,
                    "sd": _spread(list(by_seed.values()) if len(once) > 1 else []),
                }
        return found

    def _swapped(self, row: str, split: str, lines: Lines, measure: str) -> tuple[Estimate | None, int]:
        """Of how many of these questions a measure of :data:`SWAPPED` is true, and of how many it can be told.

        None until it was asked with every seed.
        """
        seeds = {int(line.id.partition("/")[0]) for line in lines}
        if not self.is_swapped(row, split, seeds):
            return None, 0
        flags = self._flags(row, split, [*seeds], measure.removeprefix("swapped_"))
        told = [line for line in lines if line.id in flags]
        return (share([flags[line.id] for line in told], block_ids(told)) if told else None), len(told)

    def difference(self, a: str, b: str, measure: str, split: str, questions: str) -> tuple[Difference, dict[str, Any]]:
        """``a`` minus ``b`` over the seeds that both have, and of each seed alone.

        Raises:
            SurgeryR1Error: when there is no rationale that the measure needs.
        """
        seeds = [seed for seed in self.seeds(a, split) if seed in self.seeds(b, split)]
        by_seed = {str(seed): self._difference(a, b, measure, split, questions, [seed]).difference for seed in seeds}
        return self._difference(a, b, measure, split, questions, seeds), by_seed

    def _difference(self, a: str, b: str, measure: str, split: str, questions: str, seeds: Sequence[int]) -> Difference:
        mine, other = (of_group(self._pooled(row, split, seeds), questions) for row in (a, b))
        if measure.startswith("rationale_"):
            for row, lines in ((a, mine), (b, other)):
                if not any(line.reasoning for line in lines):
                    raise SurgeryR1Error(f"no prediction of {row} on {split} holds a rationale")
        if measure not in SWAPPED:
            return compare_lines(mine, other, measure, names=(a, b))
        flags = [self._flags(row, split, seeds, measure.removeprefix("swapped_")) for row in (a, b)]
        both = [line for line in mine if all(line.id in flag for flag in flags)]
        if not both:
            raise SurgeryR1Error(f"{a} and {b} have no question on {split} in which both gave a rationale to swap")
        blocks = block_ids(both)
        one, two = ([flag[line.id] for line in both] for flag in flags)
        found = difference(share(one, blocks), share(two, blocks), len(both))
        # No question differs: there is nothing to be unsure of.
        return replace(found, ci95=(0.0, 0.0)) if one == two and found.blocks >= 2 else found

    def is_swapped(self, row: str, split: str, seeds: Iterable[int]) -> bool:
        """Whether rationales were swapped with each of these seeds."""
        return all(self._swaps(row, split, seed).is_file() for seed in seeds)

    def _swaps(self, row: str, split: str, seed: int) -> Path:
        return self.folders[row, split, seed] / "swapped" / "swapped.jsonl"

    def _flags(self, row: str, split: str, seeds: Sequence[int], name: str) -> dict[str, bool]:
        return {
            f"{seed}/{identity}": flags[name]
            for seed in seeds
            for identity, flags in read_swapped(self._swaps(row, split, seed)).items()
            if name in flags
        }


def named(measure: str, questions: str) -> str:
    """What a measure of a group of questions is called.

    >>> named("acc", "all"), named("wrong_referent_broad", "tools")
    ('acc', 'wrong_referent_broad (tools)')
    """
    return measure if questions == "all" else f"{measure} ({questions})"


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _spread(values: Sequence[float | None]) -> float | None:
    """Standard deviation over seeds; None for fewer than two."""
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) > 1 else None
