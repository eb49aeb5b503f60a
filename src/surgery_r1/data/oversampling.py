"""Questions that training sets hold too few of: which they are, and how often to show them (ours).

Two kinds. *Tangled* ones ask about an object whose box overlaps that of another object: there a model points at the
wrong one. *Rare* ones have an answer that the training set hardly has: there it says a common one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from surgery_r1.data.dataset import Dataset
from surgery_r1.geometry import iou
from surgery_r1.matching import other_objects
from surgery_r1.records import Frame, Sample

#: Overlap (IoU) with another object from which a question is called tangled.
TANGLED_OVERLAP = 0.3

#: A rare answer has less than this share of what it would have were all answers of its kind equally frequent.
RARE_SHARE = 0.5


def is_tangled(sample: Sample, frame: Frame) -> bool:
    """Whether another object's box overlaps a true box of the question by :data:`TANGLED_OVERLAP` or more."""
    boxes = [box for _, box in sample.accepted if box is not None]
    others = other_objects(sample, frame.objects)
    return any(iou(box, other.box_px) >= TANGLED_OVERLAP for box in boxes for other in others)


def rare_answers(samples: Iterable[Sample]) -> set[tuple[str, str, str]]:
    """Source, kind and answer of those that ``samples`` hardly have, by :data:`RARE_SHARE`."""
    counts = Counter((sample.source, sample.kind, sample.answer) for sample in samples)
    totals, classes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for (source, kind, _), count in counts.items():
        totals[source, kind] += count
        classes[source, kind] += 1
    return {key for key, count in counts.items() if count < RARE_SHARE * totals[key[:2]] / classes[key[:2]]}


def times_shown(dataset: Dataset, samples: Sequence[Sample], *, tangled: int = 1, rare: int = 1) -> dict[str, int]:
    """How often to show each sample, by its id: once, or as often as its kinds are, the larger of two.

    Args:
        samples: the training set, of which rare answers are counted.
        tangled, rare: how often, 1 or more.
    """
    rarely = rare_answers(samples) if rare > 1 else set()
    shown = dict.fromkeys((sample.id for sample in samples), 1)
    for sample in samples:
        if (sample.source, sample.kind, sample.answer) in rarely:
            shown[sample.id] = rare
        if tangled > shown[sample.id] and is_tangled(sample, dataset.frame_of(sample)):
            shown[sample.id] = tangled
    return shown
