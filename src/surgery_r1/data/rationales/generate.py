"""Reasoning for the questions of each frame: written, checked, tried again, dropped and counted.

A frame's questions are worked on one after the other, frames at the same time where a writer waits for somebody else.
What comes out does not depend on that: results are in the order of the frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from surgery_r1._util.parallel import ordered_map
from surgery_r1.data.rationales.checks import CHECKS, CheckContext, SourceWords, plain, rejections
from surgery_r1.data.rationales.writer import RationaleRequest, RationaleWriter
from surgery_r1.data.recipe import Recipe
from surgery_r1.geometry import LocationRule
from surgery_r1.records import Frame, Sample

#: A frame, all of its questions, and those that get rows.
Work = tuple[Frame, list[Sample], list[Sample]]


@dataclass(frozen=True, slots=True)
class Rationale:
    """A reasoning that passed its checks."""

    text: str
    writer: str
    attempts: int

    @property
    def checks(self) -> dict[str, Any]:
        """What is kept with a row: the checks that it passed, and how many attempts it took."""
        return {**{name: True for name, _ in CHECKS}, "attempts": self.attempts}


@dataclass
class WriterCounts:
    """What became of one writer's work.

    Attributes:
        asked: rationales wanted.
        accepted: those that passed, by the number of attempts it took.
        rejected: attempts that failed, by reason; one attempt can fail for several.
        dropped: rationales given up after all attempts.
    """

    asked: int = 0
    accepted: Counter[int] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: int = 0

    def add(self, other: WriterCounts) -> None:
        """Count what ``other`` counted too."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {
            "asked": self.asked,
            "accepted": self.accepted.total(),
            "at_first_attempt": self.accepted[1],
            "dropped": self.dropped,
            "rejected": dict(sorted(self.rejected.items())),
        }


class RationaleGenerator:
    """Gets reasoning from writers.

    Args:
        recipe: how many for a question, who writes them, how often they may try.
        writers: by the names that the recipe uses.
        rules: the trusted location rule of each source.
        classes: for each source the answers that a question of each kind can have.
        image_root: where the images are that frames name.

    Attributes:
        counts: for each writer's own name what became of its work, up to the frame that was last given back.
    """

    def __init__(
        self,
        recipe: Recipe,
        writers: Mapping[str, RationaleWriter],
        rules: Mapping[str, LocationRule | None],
        classes: Mapping[str, Mapping[str, Sequence[str]]],
        image_root: Path | None = None,
    ) -> None:
        self._recipe = recipe
        names = recipe.turns
        # Each writer, and how many rationales of a question it has written before this one.
        self._turns = [(writers[name], names[:i].count(name)) for i, name in enumerate(names)]
        self._rules = rules
        self._words = {source: SourceWords(kinds) for source, kinds in classes.items()}
        # Frames at a time, as many as the most patient writer can be asked about.
        self._workers = max((writer.workers for writer, _ in self._turns), default=1)
        self._image_root = image_root
        self.counts: dict[str, WriterCounts] = {writer.name: WriterCounts() for writer, _ in self._turns}

    def facts(self) -> dict[str, dict[str, Any]]:
        """What each writer says of itself, by its own name."""
        return {writer.name: writer.facts() for writer, _ in self._turns}

    def __call__(self, frames: Iterable[Work]) -> Iterator[tuple[Work, list[list[Rationale]]]]:
        """For each frame the rationales of each of its questions, in the order of the frames.

        Raises:
            SurgeryR1Error: what a writer raised; frames before it have been given back.
        """
        if self._workers > 1:
            done = ordered_map(self._frame, frames, self._workers, self._stop)
        else:
            done = ((work, self._frame(work)) for work in frames)
        for work, (found, counts) in done:
            for name, new in counts.items():
                self.counts[name].add(new)
            yield work, found

    def _stop(self) -> None:
        for writer, _ in self._turns:
            writer.stop()

    def _frame(self, work: Work) -> tuple[list[list[Rationale]], dict[str, WriterCounts]]:
        frame, _, samples = work
        counts = {name: WriterCounts() for name in self.counts}
        accepted: set[str] = set()
        found = []
        for sample in samples:
            words, rule = self._words[sample.source], self._rules.get(sample.source)
            context = CheckContext(sample, frame, words, rule, self._recipe.reasoning, accepted)
            own = [self._one(writer, number, context, counts[writer.name]) for writer, number in self._turns]
            found.append([reasoning for reasoning in own if reasoning is not None])
        return found, counts

    def _one(
        self, writer: RationaleWriter, number: int, context: CheckContext, counts: WriterCounts
    ) -> Rationale | None:
        counts.asked += 1
        image = None if self._image_root is None else self._image_root / context.frame.image
        reasons: list[str] = []
        for attempt in range(self._recipe.reasoning.attempts):
            task = RationaleRequest(
                context.sample, context.frame, number, attempt, tuple(reasons), self._recipe.seed, image
            )
            draft = writer.write(task)
            reasons = rejections(draft, context)
            if not reasons:
                counts.accepted[attempt + 1] += 1
                context.neighbours.add(plain(draft.text))
                return Rationale(draft.text, writer.name, attempt + 1)
            counts.rejected.update(reasons)
        counts.dropped += 1
        return None
