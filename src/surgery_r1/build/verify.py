"""Checks that a dataset must pass: reasoning says its answer and no other, no sequence lies in two splits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.schema import Frame, Sample
from surgery_r1.sources.lines import ANSWERS_OF_KIND

_TAG_OR_COORDINATE = re.compile(r"[<>\[\]{}]|[0-9]")


def check_reasoning(sample: Sample, reasoning: str) -> dict[str, Any]:
    """What holds of a reasoning: ``answer`` it names the gold answer, ``others`` answers of the same class that it
    names too, ``plain`` it has no tags and no coordinates.

    Case counts: ``Suction`` is an action, ``suction`` a tool.
    """
    named = [answer for answer in ANSWERS_OF_KIND[sample.kind] if _names(reasoning, answer)]
    return {
        "answer": sample.answer in named,
        "others": [answer for answer in named if answer != sample.answer],
        "plain": _TAG_OR_COORDINATE.search(reasoning) is None,
    }


def passes(checks: Mapping[str, Any]) -> bool:
    """Whether a CoT row with these checks may be trained on."""
    return bool(checks["answer"] and not checks["others"] and checks["plain"])


def _names(text: str, answer: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(answer)}(?![\w-])", text) is not None


def check_splits(samples: Iterable[Sample]) -> None:
    """Check that every sequence of a source lies in one split.

    Raises:
        SurgeryR1Error: naming the sequence and its splits.
    """
    splits: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample in samples:
        splits[sample.source, sample.sequence].add(sample.split)
    for (source, sequence), found in sorted(splits.items()):
        if len(found) > 1:
            raise SurgeryR1Error(
                f"{source}/{sequence} is in several splits: {', '.join(sorted(found))}",
                fix="neighbouring frames are alike: keep a sequence in one split",
            )


def images_in_two_splits(samples: Iterable[Sample], frames: Mapping[str, Frame]) -> int:
    """Number of images whose very bytes occur in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        splits[frames[sample.frame_id].sha256].add(sample.split)
    return sum(len(found) > 1 for found in splits.values())
