"""Which top/bottom rule the location labels follow, measured: the public generators of labels disagree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.geometry import LOCATION_RULES, Box, quadrant
from surgery_r1.records import Frame, Sample

#: Below this agreement no rule is used to compare a quadrant with a box.
TRUSTED_AGREEMENT = 0.95

_ENOUGH_LABELS = 20


class RuleTally:
    """Agreement of location labels with each rule, label by label.

    What counts are the labels of train and dev where there are any, so that no convention is chosen by looking at val
    labels. An organ rule counts only where the frame has an organ box, and is chosen only when it covers half of the
    labels.
    """

    def __init__(self) -> None:
        self._labels: Counter[str] = Counter()
        # By split and name of the rule.
        self._seen: Counter[tuple[str, str]] = Counter()
        self._right: Counter[tuple[str, str]] = Counter()

    def add(self, sample: Sample, organ: Box | None) -> None:
        """Count a sample, if it asks for a location; ``organ`` is the box of the frame's organ."""
        if sample.kind != "location":
            return
        self._labels[sample.split] += 1
        for rule in LOCATION_RULES:
            for answer, box in sample.accepted:
                name = box and quadrant(box, rule, sample.width, sample.height, organ)
                if name is not None:
                    self._seen[sample.split, rule.name] += 1
                    self._right[sample.split, rule.name] += name == answer

    @property
    def splits(self) -> list[str]:
        """Splits that have location labels."""
        return sorted(self._labels)

    def result(self, split: str | None = None) -> dict[str, Any]:
        """``{"rule", "agreement", "n", "all": {rule: agreement}, "splits": [...]}``.

        Agreement in [0, 1], None where nothing can be measured.

        Args:
            split: the only one that counts.
        """
        training = [name for name in self.splits if name in ("train", "dev")]
        splits = [split] if split else training or self.splits
        labels = sum(self._labels[name] for name in splits)
        seen = {rule.name: sum(self._seen[name, rule.name] for name in splits) for rule in LOCATION_RULES}
        share = {rule: sum(self._right[name, rule] for name in splits) / n for rule, n in seen.items() if n}
        # In the order of LOCATION_RULES, so that the first of equally good ones is taken.
        best = max((rule for rule in share if 2 * seen[rule] >= labels), key=share.__getitem__, default=None)
        agreement = {rule: round(share[rule], 6) if rule in share else None for rule in seen}
        return {
            "rule": best,
            "agreement": agreement[best] if best else None,
            "n": seen[best] if best else 0,
            "all": agreement,
            "splits": splits,
        }


class SourceTally:
    """:class:`RuleTally` over everything and for each source."""

    def __init__(self) -> None:
        self.whole, self.sources = RuleTally(), defaultdict[str, RuleTally](RuleTally)

    def add(self, sample: Sample, organ: Box | None) -> None:
        """Count a sample of any kind."""
        self.whole.add(sample, organ)
        self.sources[sample.source].add(sample, organ)

    def result(self) -> dict[str, Any]:
        """:meth:`RuleTally.result` over everything, with the same for each source under ``by_source``."""
        by_source = {source: tally.result() for source, tally in sorted(self.sources.items())}
        return self.whole.result() | {"by_source": by_source}


def _tally(samples: Iterable[Sample], frames: Mapping[str, Frame]) -> SourceTally:
    """Samples at hand, counted."""
    tally = SourceTally()
    for sample in samples:
        tally.add(sample, frames[sample.frame_id].organ_box)
    return tally


def measure_by_source(samples: Iterable[Sample], frames: Mapping[str, Frame]) -> dict[str, Any]:
    """:class:`SourceTally` of samples at hand."""
    return _tally(samples, frames).result()


def split_disagreements(samples: Iterable[Sample], frames: Mapping[str, Frame]) -> Iterator[ValidationIssue]:
    """A warning for each split of a source whose labels follow another rule than the source as a whole."""
    for source, tally in sorted(_tally(samples, frames).sources.items()):
        whole = tally.result()
        for split in tally.splits:
            part = tally.result(split)
            # A handful of labels can fit several rules equally well.
            if split not in whole["splits"] and part["n"] >= _ENOUGH_LABELS and part["rule"] != whole["rule"]:
                value = f"{part['rule']} ({part['agreement']:.3f}) in {split}, {whole['rule']} in training"
                fix = "expect location answers that training cannot teach"
                yield ValidationIssue(source, None, "splits follow different location rules", value, fix)
