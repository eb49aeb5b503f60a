"""Scoring: ``predictions.jsonl`` and a dataset become ``scores.jsonl`` and ``metrics.json``."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1 import __version__, vocab
from surgery_r1._util.files import sha256_file, write_json, write_jsonl
from surgery_r1.codec import CODEC_VERSION, Prediction
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.agreement import AgreementReader, answer_fits_box
from surgery_r1.evaluate.box_units import BoxUnits
from surgery_r1.evaluate.floor import NoImageFloor
from surgery_r1.evaluate.metrics import METRICS, published
from surgery_r1.evaluate.prediction_source import write_lines
from surgery_r1.evaluate.predictions import PredictionFile, PredictionLine, clean, read_predictions
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.evaluate.summary import counted_by_line, metrics_of
from surgery_r1.geometry import Box
from surgery_r1.matching import IOU_RIGHT, Match, match, referent
from surgery_r1.prompts import PROMPT_VERSION
from surgery_r1.records import Frame, Sample

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset

logger = logging.getLogger(__name__)

_MISSING = Prediction(None, None, None, ("missing",))
_LONGEST_TEXT = 2000


def _coherence(matched: Match) -> str | None:
    if matched.iou is None:
        return None
    box_right = matched.iou >= IOU_RIGHT
    if matched.answer_right:
        return "coherent" if box_right else "right answer, wrong box"
    return "wrong answer, right box" if box_right else "both wrong"


class Scorer:
    """Compares predictions with the questions of a dataset.

    Attributes:
        classes: the set's own classes in order.
        rare: the rare half of those that the set asks for, by how many training questions (train and dev) have them as
            their answer. Classes that no question has would fill that half and leave the truly rare ones out.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._frames = dataset.frames
        self._agreement = AgreementReader(dataset)
        self.classes = dataset.classes
        counts = Counter(sample.answer for split in ("train", "dev") for sample in dataset.split(split))
        if not counts:
            counts = Counter(sample.answer for sample in dataset.samples.values())
        asked = {answer for sample in dataset.samples.values() for answer, _ in sample.accepted}
        ordered = sorted(asked.intersection(self.classes), key=lambda name: (counts[name], self.classes.index(name)))
        self.rare = frozenset(ordered[: len(ordered) // 2])

    def line(self, sample: Sample, reading: Prediction, prediction: PredictionLine | None = None) -> ScoreRecord:
        """The record of a question: its prediction matched with the accepted answer and box that it comes closest to.

        Args:
            reading: the prediction, in source terms.
            prediction: the line of the prediction file, or None where there is none (missing, or the floor's guess).
        """
        frame = self._frames[sample.frame_id]
        matched = match(reading, sample.accepted)
        truth, truth_box = sample.accepted[matched.truth]
        meant = referent(reading.box_px, sample, frame.objects)
        text = prediction.text if prediction is not None and _failed(reading, truth_box) else None
        return ScoreRecord(
            id=sample.id,
            kind=sample.kind,
            source=sample.source,
            sequence=sample.sequence,
            frame=sample.frame,
            question=sample.question,
            subject=sample.subject,
            answer_true=truth,
            answer=None if reading.answer is None else clean(reading.answer),
            answer_right=matched.answer_right,
            outside_classes=reading.answer is not None and reading.answer not in self.classes,
            rare=truth in self.rare,
            iou=matched.iou,
            iou_published=truth_box and published(reading.box_px, truth_box, sample.width, sample.height),
            joint=matched.joint,
            joint_at_iou50=matched.joint_at_iou50,
            coherence=_coherence(matched),
            referent=meant and str(meant),
            answer_fits_box=answer_fits_box(reading, sample, frame, self._agreement.rule(sample)),
            box_px=reading.box_px,
            box_true_px=truth_box,
            width=sample.width,
            height=sample.height,
            problems=reading.problems,
            missing=reading is _MISSING,
            line=None if prediction is None else prediction.line,
            text=None if text is None else clean(text, _LONGEST_TEXT),
            text_length=None if text is None else len(text),
            **self._rationale(sample, frame, reading),
        )

    def _rationale(self, sample: Sample, frame: Frame, reading: Prediction) -> dict[str, Any]:
        """What the record says of the rationale, where there is one."""
        if not reading.rationale:
            return {}
        claims = self._agreement.claims(reading.rationale, sample, frame)
        concluded = dataclasses.replace(reading, answer=claims.conclusion)
        return {
            "reasoning": clean(reading.rationale, _LONGEST_TEXT),
            "conclusion": claims.conclusion,
            "conclusion_right": claims.conclusion in {answer for answer, _ in sample.accepted},
            "conclusion_fits_box": answer_fits_box(concluded, sample, frame, self._agreement.rule(sample)),
            "facts": claims.facts,
            "unsupported": claims.unsupported,
        }

    def lines(self, samples: Sequence[Sample], predictions: Mapping[str, PredictionLine]) -> list[ScoreRecord]:
        """Records in the order of ``samples``; one without a prediction is wrong and stays in the denominator."""
        found = ((sample, predictions.get(sample.id)) for sample in samples)
        return [
            self.line(sample, _MISSING) if line is None else self.line(sample, line.reading, line)
            for sample, line in found
        ]

    def floor_lines(self, training: Sequence[Sample], samples: Sequence[Sample]) -> list[ScoreRecord] | None:
        """Records of ``samples`` as answered by the no-image floor of ``training``; None where that is empty."""
        floor = NoImageFloor.fit(training, self.classes)
        return None if floor is None else [self.line(sample, floor(sample)) for sample in samples]


def _failed(reading: Prediction, truth_box: Box | None) -> bool:
    """As :attr:`ScoreRecord.failed`."""
    return reading.answer is None or (reading.box_px is None and truth_box is not None)


def _line_by_line(
    scorer: Scorer, samples: Sequence[Sample], lines: Sequence[ScoreRecord], predictions: Mapping[str, PredictionLine]
) -> list[ScoreRecord]:
    """A record for each accepted answer, as if it were the only right one; ``lines`` are those of ``samples``."""
    result = []
    for sample, line in zip(samples, lines, strict=True):
        if len(sample.accepted) == 1:
            result.append(line)
            continue
        alone = [
            dataclasses.replace(sample, answer=answer, box_px=box, answers_accepted=(), boxes_accepted=())
            for answer, box in sample.accepted
        ]
        result += scorer.lines(alone, predictions)
    return result


def score_predictions(
    predictions: Path,
    dataset: Dataset,
    split: str,
    out: Path,
    *,
    box_space: str | None = None,
    box_format: str | None = None,
    box_origin: int | None = None,
) -> dict[str, Any]:
    """Score a prediction file on every question of a split; writes ``scores.jsonl`` and ``metrics.json`` in ``out``.

    Empty, missing and unparsable predictions are wrong, with IoU 0. The floor is fitted on every official training
    question (train and dev), and once more without dev.

    Args:
        box_space, box_format, box_origin: in which units boxes are written, for lines that do not say it (see
            :class:`surgery_r1.evaluate.box_units.BoxUnits`). What is not stated is assumed, and checked against the
            truth.

    Returns:
        What ``metrics.json`` holds. Every rate is in [0, 1].

    Raises:
        SurgeryR1Error: for an unknown or empty split, or a prediction file that does not fit (as ``path:line``).
    """
    records, metrics = _scored(predictions, dataset, split, BoxUnits(box_space, box_format, box_origin))
    write_jsonl(out / "scores.jsonl", (record.to_json() for record in records))
    write_json(out / "metrics.json", metrics)
    return metrics


@contextlib.contextmanager
def _no_cycles() -> Iterator[None]:
    """No garbage collection inside: hundreds of thousands of records hold no cycle, and looking for one takes time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@_no_cycles()
def _scored(
    predictions: Path, dataset: Dataset, split: str, units: BoxUnits
) -> tuple[list[ScoreRecord], dict[str, Any]]:
    """What :func:`score_predictions` writes."""
    samples = _samples(dataset, split)
    read = read_predictions(
        predictions,
        {s.id: s for s in samples},
        split=split,
        dataset_hash=dataset.hash,
        units=units,
        everything=dataset.samples,
    )
    scorer = Scorer(dataset)
    lines = scorer.lines(samples, read.by_id)
    missing = sum(line.missing for line in lines)
    if missing:
        logger.warning(
            "%s: %d of %d questions of split %r have no prediction; they count as wrong",
            *(predictions, missing, len(lines), split),
        )
    train, dev = dataset.split("train"), dataset.split("dev")
    metrics = metrics_of(
        lines,
        scorer.floor_lines([*train, *dev], samples),
        without_dev=scorer.floor_lines(train, samples),
        classes=scorer.classes,
    )
    metrics["no_image_floor"]["training_questions"] = len(train) + len(dev)
    metrics["no_image_floor_without_dev"]["training_questions"] = len(train)
    metrics |= {
        "counted_by_line": counted_by_line(_line_by_line(scorer, samples, lines, read.by_id)),
        "rare_classes": [name for name in scorer.classes if name in scorer.rare],
        "split": split,
        "sources": sorted({line.source for line in lines}),
        "frames": len({line.frame_id for line in lines}),
        "missing": missing,
        **_provenance(predictions, read, dataset),
    }
    assert all(name in metrics for name in METRICS)
    return lines, metrics


def _samples(dataset: Dataset, split: str) -> list[Sample]:
    """The questions of a split, of which there must be some."""
    samples = dataset.split(split) if split in vocab.SPLITS else []
    if not samples:
        held = {name: len(dataset.split(name)) for name in vocab.SPLITS}
        raise SurgeryR1Error(
            f"split {split!r} has no questions; the dataset holds {held}", where=str(dataset.root), fix="check --split"
        )
    return samples


def _provenance(predictions: Path, read: PredictionFile, dataset: Dataset) -> dict[str, Any]:
    """What ``metrics.json`` says of where the figures come from: prediction file, model, dataset and versions."""
    run = {key: value for key, value in read.meta.items() if key not in ("model", "box_space")}
    return {
        "duplicates": read.duplicates,
        "problems": dict(sorted(read.problems.items())),
        "model": read.meta.get("model"),
        "box_space": read.meta.get("box_space", "source"),
        "predicted_with": run,
        "predictions": {"file": predictions.name, "sha256": sha256_file(predictions)},
        "dataset_hash": dataset.hash,
        "versions": {
            "surgery_r1": __version__,
            "codec": CODEC_VERSION,
            "prompt": PROMPT_VERSION,
            "python": platform.python_version(),
        },
    }


def score(
    predictions: str | Path | Iterable[Mapping[str, Any]],
    dataset: Dataset | str | Path,
    split: str,
    *,
    box_space: str | None = None,
    box_format: str | None = None,
    box_origin: int | None = None,
) -> dict[str, Any]:
    """The metrics of predictions on every question of a split; nothing is written.

    Args:
        predictions: a ``predictions.jsonl``, or its lines as dicts: ``{"id", "text"}`` for raw model text, or
            ``{"id", "answer", "box_px"}`` with the box as xyxy in 0-based pixels of the source frame.
        dataset: what :func:`surgery_r1.open_dataset` gave, or its folder.
        box_space, box_format, box_origin: see :func:`score_predictions`.

    Returns:
        What ``metrics.json`` holds. Every rate is in [0, 1].

    Raises:
        SurgeryR1Error: as :func:`score_predictions`; a line that was given as a dict is named ``predictions:line``.

    >>> score([], "no/such/dataset", "val")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    surgery_r1.errors.SurgeryR1Error: no/such/dataset: no such dataset folder; surgery-r1 data build FOLDER... --out ...
    """
    from surgery_r1.data.dataset import open_dataset

    if isinstance(dataset, str | Path):
        dataset = open_dataset(Path(dataset), check_images=False)
    units = BoxUnits(box_space, box_format, box_origin)
    if isinstance(predictions, str | Path):
        return _scored(Path(predictions), dataset, split, units)[1]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "predictions"
        write_lines(path, predictions)
        try:
            return _scored(path, dataset, split, units)[1]
        except SurgeryR1Error as error:
            # The caller gave lines and knows of no file.
            here = f"{Path(scratch)}{os.sep}"
            where = error.where and str(error.where).removeprefix(here)
            raise SurgeryR1Error(error.what.replace(here, ""), where=where, fix=error.fix) from None
