"""Scoring: ``predictions.jsonl`` and a dataset become ``scores.jsonl`` and ``metrics.json``."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1 import __version__, vocab
from surgery_r1._util.files import sha256_file, write_json, write_jsonl
from surgery_r1.codec import CODEC_VERSION, Prediction
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.bootstrap import FRAMES_PER_BLOCK, block_ids, intervals, paired
from surgery_r1.evaluate.floor import NoImageFloor
from surgery_r1.evaluate.metrics import (
    METRICS,
    by_answer,
    confusions,
    grouped,
    published,
    summarise,
    tally,
    wrong_referents,
)
from surgery_r1.evaluate.predictions import PredictionFile, PredictionLine, clean, read_predictions
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.matching import IOU_RIGHT, match, wrong_referent
from surgery_r1.prompts import PROMPT_VERSION
from surgery_r1.records import Frame, Sample

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset

logger = logging.getLogger(__name__)

_MISSING = Prediction(None, None, None, ("missing",))
_LONGEST_TEXT = 2000

#: Metrics whose difference to the no-image floor is reported with an interval.
_ABOVE_FLOOR = ("acc", "f_score", "miou", "joint", "joint_at_iou50")


def _coherence(answer_right: bool, box_right: bool) -> str:
    if answer_right:
        return "coherent" if box_right else "right answer, wrong box"
    return "wrong answer, right box" if box_right else "both wrong"


def score_line(
    sample: Sample, frame: Frame | None, reading: Prediction, prediction: PredictionLine | None = None
) -> ScoreRecord:
    """The record of a question: its prediction matched with the accepted answer and box that it comes closest to.

    Args:
        frame: the sample's frame, or None where its other objects are unknown.
        reading: the prediction, in source terms.
        prediction: the line of the prediction file, or None where there is none (missing, or the floor's guess).
    """
    matched = match(reading, sample.accepted)
    truth, truth_box = sample.accepted[matched.truth]
    failed = reading.answer is None or reading.box_px is None
    text = prediction.text if prediction is not None and failed else None
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
        iou=matched.iou,
        iou_published=published(reading.box_px, truth_box, sample.width, sample.height),
        joint=matched.joint,
        joint_at_iou50=matched.joint_at_iou50,
        coherence=_coherence(matched.answer_right, matched.iou >= IOU_RIGHT),
        referent_illusion=wrong_referent(reading.box_px, sample, () if frame is None else frame.objects),
        box_px=reading.box_px,
        box_true_px=truth_box,
        width=sample.width,
        height=sample.height,
        reasoning=None if reading.rationale is None else clean(reading.rationale, _LONGEST_TEXT),
        problems=reading.problems,
        missing=reading is _MISSING,
        line=None if prediction is None else prediction.line,
        text=None if text is None else clean(text, _LONGEST_TEXT),
        text_length=None if text is None else len(text),
    )


def score_samples(
    samples: Sequence[Sample], frames: Mapping[str, Frame], predictions: Mapping[str, PredictionLine]
) -> list[ScoreRecord]:
    """Records in the order of ``samples``; a sample without a prediction is wrong and stays in the denominator."""
    lines = []
    for sample in samples:
        prediction = predictions.get(sample.id)
        reading = _MISSING if prediction is None else prediction.reading
        lines.append(score_line(sample, frames.get(sample.frame_id), reading, prediction))
    return lines


def metrics_of(
    lines: Sequence[ScoreRecord],
    floor_lines: Sequence[ScoreRecord] | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The metrics of score lines as ``metrics.json`` holds them, without anything about where the lines came from.

    Args:
        floor_lines: the same questions as answered by :class:`surgery_r1.evaluate.floor.NoImageFloor`.
        bootstrap: resamples of blocks of neighbouring frames.
    """
    blocks = block_ids(lines)
    sums = tally(lines, blocks)
    failed = [line for line in lines if line.failed]
    floor: dict[str, Any] = {"n": 0, "note": "the dataset has no training split to compute the floor from"}
    if floor_lines is not None:
        floor_sums = tally(floor_lines, blocks)
        floor = {k: v for k, v in summarise(floor_lines).items() if k != "parse_failure_rate"}
        floor["ci95"] = intervals(floor_sums, bootstrap, seed)
        floor["by_kind"] = grouped(floor_lines, lambda line: line.kind, vocab.KINDS)
        floor["above"] = {name: paired(sums, floor_sums, name, bootstrap, seed).to_json() for name in _ABOVE_FLOOR}
    one_source = len({line.source for line in lines}) == 1
    return {
        **summarise(lines),
        **wrong_referents(lines),
        "f_score_18_classes": len({line.answer_true for line in lines} & set(vocab.ANSWERS_EXTENDED)),
        "parse_failures": {
            "missing": sum(line.missing for line in lines),
            "no_answer": sum(line.answer is None and not line.missing for line in failed),
            "no_box": sum(line.box_px is None and not line.missing for line in failed),
        },
        "answers_outside_vocabulary": sum(
            line.answer is not None and line.answer not in vocab.ANSWERS_EXTENDED for line in lines
        ),
        "by_kind": grouped(lines, lambda line: line.kind, vocab.KINDS),
        "by_sequence": grouped(lines, lambda line: line.sequence if one_source else f"{line.source}/{line.sequence}"),
        "by_answer": by_answer(lines),
        "confusions": confusions(lines),
        "ci95": intervals(sums, bootstrap, seed),
        "bootstrap": {
            "resamples": bootstrap,
            "seed": seed,
            "blocks": len(sums.n),
            "frames_per_block": FRAMES_PER_BLOCK,
        },
        "no_image_floor": floor,
    }


def score_predictions(
    predictions: Path,
    dataset: Dataset,
    split: str,
    out: Path,
    *,
    box_space: str | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a prediction file on every question of a split; writes ``scores.jsonl`` and ``metrics.json`` in ``out``.

    Empty, missing and unparsable predictions are wrong, with IoU 0. The floor is computed from the training split,
    without dev.

    Args:
        box_space: space of the boxes in text lines that do not say it (see :data:`surgery_r1.codec.BOX_SPACES`).
        bootstrap: resamples of blocks of neighbouring frames for the 95 % intervals.
        seed: of the bootstrap.

    Returns:
        What ``metrics.json`` holds. Every rate is in [0, 1].

    Raises:
        SurgeryR1Error: for an unknown or empty split, or a prediction file that does not fit (as ``path:line``).
    """
    records, metrics = _scored(predictions, dataset, split, box_space, bootstrap, seed)
    write_jsonl(out / "scores.jsonl", (record.to_json() for record in records))
    write_json(out / "metrics.json", metrics)
    return metrics


def _scored(
    predictions: Path, dataset: Dataset, split: str, box_space: str | None, bootstrap: int, seed: int
) -> tuple[list[ScoreRecord], dict[str, Any]]:
    """What :func:`score_predictions` writes."""
    samples = _samples(dataset, split)
    read = read_predictions(
        predictions, {s.id: s for s in samples}, split=split, dataset_hash=dataset.hash, box_space=box_space
    )
    lines = score_samples(samples, dataset.frames, read.by_id)
    missing = sum(line.missing for line in lines)
    if missing:
        logger.warning(
            "%s: %d of %d questions of split %r have no prediction; they count as wrong",
            *(predictions, missing, len(lines), split),
        )
    floor = NoImageFloor.fit(dataset.split("train"))
    floor_lines = None
    if floor is not None:
        floor_lines = [score_line(s, dataset.frames.get(s.frame_id), floor(s)) for s in samples]
    metrics = metrics_of(lines, floor_lines, bootstrap=bootstrap, seed=seed)
    if floor is not None:
        metrics["no_image_floor"]["training_questions"] = floor.n
    metrics |= {
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
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The metrics of predictions on every question of a split; nothing is written.

    Args:
        predictions: a ``predictions.jsonl``, or its lines as dicts: ``{"id", "text"}`` for raw model text, or
            ``{"id", "answer", "box_px"}`` with the box as xyxy in 0-based pixels of the source frame.
        dataset: what :func:`surgery_r1.open_dataset` gave, or its folder.
        box_space, bootstrap, seed: see :func:`score_predictions`.

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
    if isinstance(predictions, str | Path):
        return _scored(Path(predictions), dataset, split, box_space, bootstrap, seed)[1]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "predictions"
        write_jsonl(path, (dict(line) for line in predictions))
        return _scored(path, dataset, split, box_space, bootstrap, seed)[1]
