"""A specialist's predictions: an answer and a box for each question, no text and no rationale."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from surgery_r1._util.progress import Progress
from surgery_r1.codec import Prediction
from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.predict import NumberedLine, questions, refuse_taken, write_predictions
from surgery_r1.geometry import is_box
from surgery_r1.models.specialist.encoders import Encoder, collated, open_encoder
from surgery_r1.models.specialist.folder import SpecialistInfo, load_state, specialist_sha256
from surgery_r1.models.specialist.network import build_specialist
from surgery_r1.models.specialist.words import Words
from surgery_r1.records import Sample

logger = logging.getLogger(__name__)


class SpecialistEngine:
    """Answers questions, the questions of a batch at a time.

    Args:
        model: see :class:`surgery_r1.models.specialist.network.Specialist`.
    """

    name = "specialist"

    def __init__(
        self, model: Any, encoder: Encoder, words: Words, classes: Sequence[str], dataset: Dataset, batch_size: int
    ) -> None:
        self.model, self._encoder, self._words = model, encoder, words
        self._classes, self._dataset, self._batch_size = tuple(classes), dataset, batch_size

    def predictions(self, samples: Sequence[Sample]) -> Iterator[list[Prediction]]:
        """Answers and boxes, batch by batch, in the order of ``samples``; no box in sets without."""
        was_training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(samples), self._batch_size):
                yield self._batch(samples[start : start + self._batch_size])
        finally:
            self.model.train(was_training)

    def _batch(self, samples: Sequence[Sample]) -> list[Prediction]:
        frames = {path: number for number, path in enumerate(dict.fromkeys(map(self._dataset.image_path, samples)))}
        batch = {
            **collated([self._encoder(path) for path in frames]),
            "frames": torch.tensor([frames[self._dataset.image_path(sample)] for sample in samples]),
            "words": torch.tensor([self._words(sample.question) for sample in samples]),
        }
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            found = self.model(**{name: tensor.to(device) for name, tensor in batch.items()})
        answers, boxes = found["answers"].argmax(-1).tolist(), found["boxes"].cpu().tolist()
        return [self._read(*one) for one in zip(samples, answers, boxes, strict=True)]

    def _read(self, sample: Sample, answer: int, shares: list[float]) -> Prediction:
        # Cut at the frame's edges, where the truth is too.
        cut = [min(max(share, 0.0), 1.0) for share in shares]
        x1, y1, x2, y2 = (v * size for v, size in zip(cut, (sample.width, sample.height) * 2, strict=True))
        box = (x1, y1, x2, y2) if sample.box_px is not None and is_box((x1, y1, x2, y2)) else None
        return Prediction(None, self._classes[answer], box)

    def replies(self, samples: Sequence[Sample]) -> Iterator[list[NumberedLine]]:
        """The same as lines of a prediction file."""
        done = 0
        for batch in self.predictions(samples):
            yield [
                (number, {"answer": found.answer, "box_px": found.box_px and [round(v, 2) for v in found.box_px]})
                for number, found in enumerate(batch, start=done)
            ]
            done += len(batch)


def load_specialist(
    folder: Path, dataset: Dataset, batch_size: int, *, allow_hub: bool = False
) -> tuple[SpecialistEngine, SpecialistInfo]:
    """A trained specialist, to be asked about a dataset.

    Raises:
        SurgeryR1Error: for a torn folder, or an encoder that is not there or has changed since.
    """
    info = SpecialistInfo.read(folder)
    encoder = open_encoder(info.design, info.encoder, allow_hub=allow_hub)
    if encoder.sha256 != info.encoder_sha256:
        raise SurgeryR1Error(
            f"its encoder {info.encoder} has other weights now than when it was trained",
            where=folder,
            fix="put the old weights back, or train again",
        )
    words = Words(info.words, info.max_words)
    model = build_specialist(info, len(words))
    load_state(model, folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return SpecialistEngine(model, encoder, words, info.classes, dataset, batch_size), info


def predict_with_specialist(
    folder: Path,
    dataset: Dataset,
    split: str,
    out: Path,
    *,
    name: str,
    batch_size: int = 64,
    limit: int = 0,
    allow_hub: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write ``predictions.jsonl`` without rationales; the number predicted in this call.

    Args:
        folder: see :func:`surgery_r1.models.specialist.folder.specialist_folder`.
        name: what the lines call the model.

    Raises:
        SurgeryR1Error: as :func:`load_specialist` and :func:`surgery_r1.evaluate.predict.write_predictions`.
    """
    refuse_taken(out)
    samples = questions(dataset, split, limit)
    engine, info = load_specialist(folder, dataset, batch_size, allow_hub=allow_hub)
    words = Words(info.words, info.max_words)
    unknown = sorted({word for sample in samples for word in words.unknown(sample.question)})
    if unknown:
        logger.warning("%d words of the questions are new to the model, such as %r", len(unknown), unknown[0])
    stamp = {
        "model": name,
        "weights_sha256": specialist_sha256(folder),
        "stage": "specialist",
        "engine": engine.name,
        "split": split,
        "dataset_hash": dataset.hash,
        "box_space": "source",
        "box_format": "xyxy",
        "box_origin": 0,
    }
    return write_predictions(samples, out, stamp, engine.replies, progress)
