"""Which top/bottom rule the location labels follow, measured: the public generators of labels disagree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.geometry import LOCATION_RULES, Box, quadrant
from surgery_r1.records import Frame, Sample

#: Below this agreement no rule is used to compare a quadrant with a box.
TRUSTED_AGREEMENT = 0.95

_ENOUGH_LABELS = 20


class _Counts:
    """Labels counted against every rule."""

    def __init__(self) -> None:
        self.labels = 0
        self.splits: set[str] = set()
        self.right: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def add(self, sample: Sample, organ: Box | None) -> None:
        self.labels += 1
        self.splits.add(sample.split)
        for rule in LOCATION_RULES:
            for answer, box in sample.accepted:
                name = box and quadrant(box, rule, sample.width, sample.height, organ)
                if name is not None:
                    self.seen[rule.name] += 1
                    self.right[rule.name] += name == answer

    def result(self) -> dict[str, Any]:
        agreement = {
            rule.name: round(self.right[rule.name] / self.seen[rule.name], 6) if self.seen[rule.name] else None
            for rule in LOCATION_RULES
        }
        # In the order of LOCATION_RULES, so that the first of equally good ones is taken.
        fits = [name for name in agreement if self.seen[name] and 2 * self.seen[name] >= self.labels]
        best = max(fits, key=lambda name: self.right[name] / self.seen[name], default=None)
        return {
            "rule": best,
            "agreement": agreement[best] if best else None,
            "n": self.seen[best] if best else 0,
            "all": agreement,
            "splits": sorted(self.splits),
        }


class RuleTally:
    """Agreement of location labels with each rule, label by label.

    What counts are the labels of train and dev where there are any, so that no convention is chosen by looking at val
    labels. An organ rule counts only where the frame has an organ box, and is chosen only when it covers half of the
    labels.
    """

    def __init__(self) -> None:
        self._training, self._all = _Counts(), _Counts()

    def add(self, sample: Sample, organ: Box | None) -> None:
        """Count a sample, if it asks for a location; ``organ`` is the box of the frame's organ."""
        if sample.kind == "location":
            self._all.add(sample, organ)
            if sample.split in ("train", "dev"):
                self._training.add(sample, organ)

    def result(self) -> dict[str, Any]:
        """``{"rule", "agreement", "n", "all": {rule: agreement}, "splits": [...]}``.

        Agreement in [0, 1], None where nothing can be measured.
        """
        return (self._training if self._training.labels else self._all).result()


class SourceTally:
    """:class:`RuleTally` over everything and for each source."""

    def __init__(self) -> None:
        self._whole, self._sources = RuleTally(), defaultdict[str, RuleTally](RuleTally)

    def add(self, sample: Sample, organ: Box | None) -> None:
        """Count a sample of any kind."""
        self._whole.add(sample, organ)
        self._sources[sample.source].add(sample, organ)

    def result(self) -> dict[str, Any]:
        """:meth:`RuleTally.result` over everything, with the same for each source under ``by_source``."""
        by_source = {source: tally.result() for source, tally in sorted(self._sources.items())}
        return self._whole.result() | {"by_source": by_source}


def measure_location_rule(samples: Iterable[Sample], frames: Mapping[str, Frame]) -> dict[str, Any]:
    """:class:`RuleTally` of samples at hand."""
    tally = RuleTally()
    for sample in samples:
        tally.add(sample, frames[sample.frame_id].organ_box)
    return tally.result()


def measure_by_source(samples: Iterable[Sample], frames: Mapping[str, Frame]) -> dict[str, Any]:
    """:class:`SourceTally` of samples at hand."""
    tally = SourceTally()
    for sample in samples:
        tally.add(sample, frames[sample.frame_id].organ_box)
    return tally.result()


def split_disagreements(samples: Sequence[Sample], frames: Mapping[str, Frame]) -> Iterable[ValidationIssue]:
    """A warning for each split of a source whose labels follow another rule than the source as a whole."""
    for source in sorted({sample.source for sample in samples}):
        own = [sample for sample in samples if sample.source == source]
        whole = measure_location_rule(own, frames)
        for split in sorted({sample.split for sample in own} - set(whole["splits"])):
            part = measure_location_rule([sample for sample in own if sample.split == split], frames)
            # A handful of labels can fit several rules equally well.
            if part["n"] >= _ENOUGH_LABELS and part["rule"] != whole["rule"]:
                value = f"{part['rule']} ({part['agreement']:.3f}) in {split}, {whole['rule']} in training"
                fix = "expect location answers that training cannot teach"
                yield ValidationIssue(source, None, "splits follow different location rules", value, fix)
