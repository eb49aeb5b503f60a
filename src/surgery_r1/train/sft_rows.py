"""Which rows SFT shows in which mirrors, before any of them is a prompt."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from surgery_r1.data.mirrored_rationales import MirroredRationales
from surgery_r1.data.oversampling import times_shown
from surgery_r1.data.paraphrases import DETECTION
from surgery_r1.records import TrainingRow

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset
    from surgery_r1.records import Sample
    from surgery_r1.train.config import Oversample

logger = logging.getLogger(__name__)


def drawn_mirrors(
    dataset: Dataset, samples: Sequence[Sample], flips: Sequence[str], oversample: Oversample, seed: int
) -> dict[str, list[str]]:
    """The mirrors in which the rows of each sample are shown, by its id: those of a frame are drawn together."""
    if not flips:
        return {}
    times = times_shown(dataset, samples, **asdict(oversample))
    mirrors = {}
    for sample in samples:
        rng = random.Random(f"{seed}:{sample.image}")
        first = rng.choice(flips)
        others = [flip for flip in flips if flip != first]
        rng.shuffle(others)
        mirrors[sample.id] = [first, *others][: times[sample.id]]
    return mirrors


def in_mirrors(
    dataset: Dataset, rows: Sequence[TrainingRow], mirrors: Mapping[str, Sequence[str]], flip_rationales: bool
) -> Iterator[tuple[str, TrainingRow]]:
    """Each row as it is, and in the mirrors of its sample; flips, and rows with the rationale that goes with them."""
    told_anew = flip_rationales and any(row.reasoning for row in rows)
    rationales = MirroredRationales(dataset) if told_anew else None
    for row in rows:
        yield "none", row
        for flip in mirrors.get(row.sample_id, ()):
            if row.reasoning is None:
                yield flip, row
            elif rationales is not None and (told := rationales(row, flip)) is not None:
                yield flip, replace(row, reasoning=told)
    if rationales is not None and (left := rationales.left):
        logger.warning("%d rationales are not shown in a mirror: %s", left, "another writer's, or refused by a check")


def detections(dataset: Dataset, samples: Sequence[Sample], count: int, seed: int) -> list[TrainingRow]:
    """Rows that ask for the box of an object by its name, for up to ``count`` objects of each frame, drawn by ``seed``.

    Objects whose name two of the frame have are left out: the box would be a guess. A row belongs to the first question
    of its frame.
    """
    first = {sample.frame_id: sample for sample in reversed(samples)} if count else {}
    rows = []
    for frame_id, sample in first.items():
        rng = random.Random(f"{seed}:detect:{frame_id}")
        names = Counter(item.name for item in dataset.frames[frame_id].objects)
        own = [item for item in dataset.frames[frame_id].objects if names[item.name] == 1]
        for item in rng.sample(own, min(count, len(own))):
            question = rng.choice(DETECTION).format(item.name)
            name = f"{frame_id}/detect/{item.name}"
            rows.append(TrainingRow(name, sample.id, "grounding_qa", question, None, None, item.box_px, None, {}))
    return rows
