"""Which top/bottom rule the location labels follow, measured (FACTS 2: the public generators disagree)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surgery_r1.geometry import LOCATION_RULES, Box, LocationRule, quadrant
from surgery_r1.schema import Frame, Sample
from surgery_r1.sources.findings import Finding

#: Below this agreement no rule is used to compare a quadrant with a box.
TRUSTED_AGREEMENT = 0.95

_ENOUGH_LABELS = 20


def measure_location_rule(samples: Sequence[Sample], frames: Mapping[str, Frame]) -> dict[str, Any]:
    """Agreement of the location labels with each rule, and the rule that fits best.

    Measured on train and dev where there are any, so that no convention is chosen by looking at val labels.
    An organ rule counts only where the frame has an organ box, and is chosen only when it covers half of the labels.

    Returns:
        ``{"rule", "agreement", "n", "all": {rule: agreement}, "splits": [...]}``; agreement in [0, 1], None where
        nothing can be measured.
    """
    located = [sample for sample in samples if sample.kind == "location"]
    fitting = [sample for sample in located if sample.split in ("train", "dev")] or located
    organs = {sample.frame_id: frames[sample.frame_id].organ_box for sample in fitting}
    agreement: dict[str, float | None] = {}
    best: tuple[float, LocationRule, int] | None = None
    for rule in LOCATION_RULES:
        right, count = _agreement(fitting, rule, organs)
        agreement[rule.name] = round(right / count, 6) if count else None
        if count and 2 * count >= len(fitting) and (best is None or right / count > best[0]):
            best = (right / count, rule, count)
    return {
        "rule": best[1].name if best else None,
        "agreement": round(best[0], 6) if best else None,
        "n": best[2] if best else 0,
        "all": agreement,
        "splits": sorted({sample.split for sample in fitting}),
    }


def measure_by_source(samples: Sequence[Sample], frames: Mapping[str, Frame]) -> dict[str, Any]:
    """:func:`measure_location_rule` over everything, with the same for each source under ``by_source``."""
    sources = sorted({sample.source for sample in samples})
    return measure_location_rule(samples, frames) | {
        "by_source": {
            source: measure_location_rule([s for s in samples if s.source == source], frames) for source in sources
        }
    }


def _agreement(samples: Iterable[Sample], rule: LocationRule, organs: Mapping[str, Box | None]) -> tuple[int, int]:
    right = count = 0
    for sample in samples:
        for answer, box in sample.accepted:
            name = quadrant(box, rule, sample.width, sample.height, organs[sample.frame_id])
            if name is not None:
                count += 1
                right += name == answer
    return right, count


def split_disagreements(samples: Sequence[Sample], frames: Mapping[str, Frame]) -> Iterable[Finding]:
    """A notice for each split of a source whose labels follow another rule than the source as a whole."""
    for source in sorted({sample.source for sample in samples}):
        own = [sample for sample in samples if sample.source == source]
        whole = measure_location_rule(own, frames)
        for split in sorted({sample.split for sample in own} - set(whole["splits"])):
            part = measure_location_rule([sample for sample in own if sample.split == split], frames)
            # A handful of labels can fit several rules equally well.
            if part["n"] >= _ENOUGH_LABELS and part["rule"] != whole["rule"]:
                value = f"{part['rule']} ({part['agreement']:.3f}) in {split}, {whole['rule']} in training"
                fix = "expect location answers that training cannot teach"
                yield Finding(source, None, "splits follow different location rules", value, fix)
