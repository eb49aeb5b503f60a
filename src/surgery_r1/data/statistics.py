"""What a researcher wants to know of a set before training on it: classes, sequences, overlaps, by split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surgery_r1 import vocab
from surgery_r1._util.sorting import natural_key
from surgery_r1.data.formats.source import FolderContent
from surgery_r1.geometry import iou
from surgery_r1.matching import other_objects
from surgery_r1.records import Frame, Sample

#: The official training split: dev is carved out of it.
TRAINING: tuple[str, ...] = ("train", "dev")
#: A class with a smaller share of its source's training questions is rare.
RARE_SHARE = 0.01
OVERLAPS: tuple[float, ...] = (0.3, 0.5)


def statistics(content: FolderContent) -> dict[str, Any]:
    """Counts of a folder, as ``data check --json`` adds them: every key is one of the functions below."""
    samples = content.samples
    classes = class_counts(samples, content.classes)
    return {
        "sequences": sequence_counts(samples),
        "classes": classes,
        "rare_classes": rare_classes(classes),
        "unseen_classes": unseen_classes(classes),
        "questions_with_box": sum(sample.box_px is not None for sample in samples),
        "overlaps": overlaps(samples, content.frames),
    }


def sequence_counts(samples: Iterable[Sample]) -> dict[str, dict[str, dict[str, Any]]]:
    """Source -> sequence -> ``{"split", "frames", "questions"}``, sequences in natural order."""
    frames: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    questions: Counter[tuple[str, str, str]] = Counter()
    for sample in samples:
        key = (sample.source, sample.sequence, sample.split)
        frames[key].add(sample.frame)
        questions[key] += 1
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key in sorted(frames, key=lambda key: (key[0], natural_key(key[1]))):
        source, sequence, split = key
        counts = {"split": split, "frames": len(frames[key]), "questions": questions[key]}
        found.setdefault(source, {})[sequence] = counts
    return found


def class_counts(
    samples: Iterable[Sample], classes: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """Source -> kind -> class -> split -> questions, for every class of the set, also for those that nothing has.

    A question with several right answers counts for each of them.
    """
    counted: Counter[tuple[str, str, str, str]] = Counter()
    asked: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        asked[sample.source].add(sample.kind)
        for answer in dict.fromkeys(answer for answer, _ in sample.accepted):
            counted[sample.source, sample.kind, answer, sample.split] += 1
    return {
        source: {
            kind: {name: {s: counted[source, kind, name, s] for s in vocab.SPLITS} for name in kinds[kind]}
            for kind in kinds
            if kind in asked[source]
        }
        for source, kinds in classes.items()
        if source in asked
    }


def rare_classes(classes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Classes that training shows, but in less than :data:`RARE_SHARE` of its answers: the rarest first."""
    found = []
    for source, kind, name, counts in _flat(classes):
        seen = sum(counts[split] for split in TRAINING)
        whole = sum(other[split] for own, *_, other in _flat(classes) if own == source for split in TRAINING)
        if 0 < seen < RARE_SHARE * whole:
            found.append({"source": source, "kind": kind, "class": name, "n": seen, "share": seen / whole})
    return sorted(found, key=lambda item: (item["share"], item["class"]))


def unseen_classes(classes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Classes of val or test that the train split never shows, with what dev has of them."""
    found = []
    trained = {source for source, _, _, counts in _flat(classes) if counts["train"]}
    for source, kind, name, counts in _flat(classes):
        held_out = counts["val"] + counts["test"]
        if source in trained and held_out and not counts["train"]:
            found.append({"source": source, "kind": kind, "class": name, "held_out": held_out, "dev": counts["dev"]})
    return found


def _flat(classes: Mapping[str, Any]) -> list[tuple[str, str, str, dict[str, int]]]:
    return [
        (source, kind, name, counts)
        for source, kinds in classes.items()
        for kind, names in kinds.items()
        for name, counts in names.items()
    ]


def overlaps(samples: Iterable[Sample], frames: Mapping[str, Frame]) -> dict[str, dict[str, float]]:
    """Split -> ``n`` questions with a box, and the share of them whose true box overlaps another object.

    ``iou30`` and ``iou50`` are shares of questions with another annotated object of an IoU of .3 or .5 and more: a
    model that takes one object for the other is hard to tell from one that is right.
    """
    largest: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if sample.box_px is not None:
            others = other_objects(sample, frames[sample.frame_id].objects)
            pairs = (iou(box, other.box_px) for _, box in sample.accepted for other in others)
            largest[sample.split].append(max(pairs, default=0.0))
    return {
        split: {"n": len(largest[split])}
        | {f"iou{100 * least:.0f}": sum(v >= least for v in largest[split]) / len(largest[split]) for least in OVERLAPS}
        for split in vocab.SPLITS
        if largest[split]
    }
