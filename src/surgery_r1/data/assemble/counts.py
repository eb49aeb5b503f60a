"""What a manifest counts: questions, frames and rows by split, task and source."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from surgery_r1 import vocab
from surgery_r1._util.sorting import natural_key
from surgery_r1.records import TASKS, Sample, TrainingRow


class Counts:
    """Counts frame by frame."""

    def __init__(self) -> None:
        self._samples: Counter[str] = Counter()
        self._frames: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._sources: dict[str, Counter[str]] = defaultdict(Counter)
        self._sequences: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))

    def add(self, samples: list[Sample], rows: Iterable[TrainingRow]) -> None:
        """Count a frame's questions (at least one) and rows."""
        head = samples[0]
        self._frames[head.split] += 1
        self._samples[head.split] += len(samples)
        self._rows.update(row.task for row in rows)
        self._sources[head.source].update({"frames": 1, "questions": len(samples)})
        self._sequences[head.source][head.split][head.sequence] += 1

    def to_json(self) -> dict[str, dict[str, int]]:
        """``samples``, ``frames`` and ``rows`` of a manifest."""
        return {
            "samples": _totalled(self._samples, vocab.SPLITS),
            "frames": _totalled(self._frames, vocab.SPLITS),
            "rows": _totalled(self._rows, TASKS),
        }

    def sources(self, classes: Mapping[str, Mapping[str, Iterable[str]]]) -> dict[str, Any]:
        """``sources`` of a manifest; ``classes`` are the answers that a question of each kind can have."""
        return {
            source: {
                **counts,
                "sequences": {split: list(frames) for split, frames in self._frames_of(source).items()},
                "frames_of_sequence": {
                    name: n for frames in self._frames_of(source).values() for name, n in frames.items()
                },
                "answers": {kind: list(names) for kind, names in classes[source].items()},
            }
            for source, counts in self._sources.items()
        }

    def _frames_of(self, source: str) -> dict[str, dict[str, int]]:
        """Split -> sequence -> frames, in natural order."""
        found = self._sequences[source]
        ordered = {split: sorted(found[split], key=natural_key) for split in vocab.SPLITS if split in found}
        return {split: {name: found[split][name] for name in names} for split, names in ordered.items()}


def _totalled(counts: Counter[str], names: Iterable[str]) -> dict[str, int]:
    return {"total": counts.total()} | {name: counts[name] for name in names}
