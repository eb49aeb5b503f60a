"""What a specialist is shown: frames with all their questions, in the wordings of the training rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from surgery_r1.data.dataset import Dataset
from surgery_r1.data.mirroring import flip_places, flip_sample
from surgery_r1.models.specialist.encoders import Encoder, collated
from surgery_r1.models.specialist.words import Words
from surgery_r1.records import Sample

#: The class of an answer that does not count.
_NO_CLASS = -100


class Visits:
    """Every frame once an epoch, in an order drawn anew.

    A visit depends on seed and number alone: a resumed run sees what it would have seen.

    Args:
        samples: to train on.
        count: visits in all.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples: Sequence[Sample],
        encoder: Encoder,
        words: Words,
        classes: Sequence[str],
        *,
        flips: Sequence[str],
        seed: int,
        count: int,
    ) -> None:
        self._dataset, self._encoder, self._words = dataset, encoder, words
        self._classes = {name: number for number, name in enumerate(classes)}
        self._flips, self._seed, self._count = ("none", *flips), seed, count
        by_frame: dict[str, list[Sample]] = {}
        for sample in samples:
            by_frame.setdefault(sample.frame_id, []).append(sample)
        self._frames = list(by_frame.values())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, place = divmod(number, len(self._frames))
        order = random.Random(f"{self._seed}:{epoch}").sample(range(len(self._frames)), len(self._frames))
        draw = random.Random(f"{self._seed}:visit {number}")
        samples, flip = self._frames[order[place]], draw.choice(self._flips)
        shown = [flip_sample(sample, flip) for sample in samples]
        return {
            "frame": self._encoder(self._dataset.image_path(samples[0]), flip),
            "words": [self._words(flip_places(self._worded(sample, draw), flip)) for sample in samples],
            "answers": [self._classes.get(sample.answer, _NO_CLASS) for sample in shown],
            "boxes": [_shares(sample) for sample in shown],
        }

    def _worded(self, sample: Sample, draw: random.Random) -> str:
        """The question in the words of one of its rows."""
        return draw.choice([sample.question, *(row.question for row in self._dataset.rows_of.get(sample.id, ()))])


def _shares(sample: Sample) -> list[float]:
    if sample.box_px is None:
        return [float("nan")] * 4
    return [value / size for value, size in zip(sample.box_px, (sample.width, sample.height) * 2, strict=True)]


def batch_of(visits: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Visits as arguments of the model."""
    counts = torch.tensor([len(visit["words"]) for visit in visits])
    return {
        **collated([visit["frame"] for visit in visits]),
        "frames": torch.repeat_interleave(torch.arange(len(visits)), counts),
        "words": torch.tensor([row for visit in visits for row in visit["words"]]),
        "answers": torch.tensor([answer for visit in visits for answer in visit["answers"]]),
        "boxes": torch.tensor([box for visit in visits for box in visit["boxes"]]),
    }
