"""Reading ``predictions.jsonl``: raw model text, or an answer and a box from any other system."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery_r1._util.files import read_jsonl
from surgery_r1.codec import BOX_SPACES, CODEC_VERSION, Prediction, View, read_reply
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import Box, is_box
from surgery_r1.records import Sample

logger = logging.getLogger(__name__)

#: Fields of a prediction line that describe the run that wrote it; recorded in ``metrics.json``.
META: tuple[str, ...] = (
    *("model", "weights_sha256", "stage", "reasoning"),
    *("codec_version", "prompt_version", "box_space", "dataset_hash"),
)

#: What ``metrics.json`` says of boxes whose space nobody stated.
ASSUMED_SOURCE = "source (assumed)"


@dataclass(frozen=True, slots=True)
class PredictionLine:
    """One line, read: the prediction in source terms, the line it came from, and its raw text where it had one."""

    line: int
    reading: Prediction
    text: str | None


@dataclass(slots=True)
class PredictionFile:
    """A whole prediction file.

    Attributes:
        by_id: predictions by sample id; an id without a line is absent.
        duplicates: identical repeats of a line, which were ignored.
        meta: the fields of :data:`META` that the lines carry, as one value or as a sorted list where lines differ.
    """

    by_id: dict[str, PredictionLine] = field(default_factory=dict)
    duplicates: int = 0
    meta: dict[str, Any] = field(default_factory=dict)


def clean(text: str, limit: int | None = None) -> str:
    """Text that can be written as UTF-8: lone surrogates, which JSON escapes can hold, become question marks."""
    return text[:limit].encode("utf-8", "replace").decode("utf-8")


def read_predictions(
    path: Path,
    samples: Mapping[str, Sample],
    *,
    split: str,
    dataset_hash: str | None = None,
    box_space: str | None = None,
) -> PredictionFile:
    """Read and check a prediction file against the samples of a split.

    Args:
        samples: the samples of ``split`` by id.
        dataset_hash: hash of the dataset; lines that carry another one are refused.
        box_space: space of the boxes in text lines that do not say it themselves.

    Raises:
        SurgeryR1Error: as ``path:line`` for a malformed line, an id outside the split, a second and different line
            for an id, or a codec version, dataset, split or box space that does not fit.
    """
    if box_space is not None and box_space not in BOX_SPACES:
        raise SurgeryR1Error(f"unknown box space {box_space!r}", fix=f"use one of {sorted(BOX_SPACES)}")
    result = PredictionFile()
    seen: dict[str, tuple[str, str]] = {}
    meta: dict[str, dict[str, Any]] = {}
    assumed = 0
    for where, record in _records(path):
        sample = _sample_of(record, samples, split, where)
        if _is_repeat(record, sample.id, seen, where):
            result.duplicates += 1
            continue
        _check_origin(record, split, dataset_hash, where)
        space = _space(record, box_space, where)
        result.by_id[sample.id] = _read_line(record, sample, space, where)
        if "text" in record and space is None:
            assumed += 1
            record = {**record, "box_space": ASSUMED_SOURCE}
        _note_meta(record, meta)
    if assumed:
        logger.warning(
            "%s: %d text lines do not say their box_space; their boxes are read as source pixels. "
            "Pass --box-space %s if that is wrong",
            *(path, assumed, "|".join(BOX_SPACES)),
        )
    for key, values in meta.items():
        result.meta[key] = next(iter(values.values())) if len(values) == 1 else [values[k] for k in sorted(values)]
    return result


def _is_repeat(record: dict[str, Any], identity: str, seen: dict[str, tuple[str, str]], where: str) -> bool:
    """Whether the same line stood in the file before; ``seen`` maps an id to its line as text and to its place."""
    canonical = json.dumps(record, sort_keys=True)
    before, at = seen.setdefault(identity, (canonical, where))
    if before != canonical:
        raise SurgeryR1Error(
            f"a second, different prediction for id {identity!r}; the first is at {at}",
            where=where,
            fix="keep one line for each id",
        )
    return at != where


def _read_line(record: dict[str, Any], sample: Sample, space: str | None, where: str) -> PredictionLine:
    text = record.get("text")
    reading = _read_text(record, sample, space, where) if "text" in record else _read_fields(record, where)
    return PredictionLine(int(where.rpartition(":")[2]), reading, text if isinstance(text, str) else None)


def _note_meta(record: dict[str, Any], meta: dict[str, dict[str, Any]]) -> None:
    """Add what the line says of its run to ``meta``: field -> value as JSON text -> value."""
    for key in META:
        if key in record:
            value = _plain(record[key])
            meta.setdefault(key, {})[json.dumps(value)] = value


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        yield from read_jsonl(path)
    except UnicodeDecodeError as error:
        raise SurgeryR1Error(f"not UTF-8: {error.reason}", where=str(path), fix="write the file as UTF-8") from None
    except RecursionError:
        raise SurgeryR1Error("JSON nested too deeply", where=str(path), fix="write the file again") from None
    except OSError as error:
        raise SurgeryR1Error(f"cannot read: {error.strerror}", where=str(path), fix="check the path") from None


def _sample_of(record: dict[str, Any], samples: Mapping[str, Sample], split: str, where: str) -> Sample:
    identity = record.get("id")
    if not isinstance(identity, str):
        raise SurgeryR1Error(f"no sample id: id={identity!r}", where=where, fix='write {"id": "...", "text": "..."}')
    if identity not in samples:
        raise SurgeryR1Error(
            f"id {identity!r} is not in split {split!r} of the dataset", where=where, fix="check --split and --data"
        )
    if not {"text", "answer", "box_px"} & set(record):
        raise SurgeryR1Error(
            f"id {identity!r} has neither text nor answer and box_px",
            where=where,
            fix='write {"id", "text"} or {"id", "answer", "box_px"}',
        )
    return samples[identity]


def _check_origin(record: dict[str, Any], split: str, dataset_hash: str | None, where: str) -> None:
    version = record.get("codec_version")
    if version is not None and version != CODEC_VERSION:
        raise SurgeryR1Error(
            f"written with codec version {version!r}, this is {CODEC_VERSION!r}", where=where, fix="predict again"
        )
    if dataset_hash is not None and record.get("dataset_hash") not in (None, dataset_hash):
        raise SurgeryR1Error(
            f"predicted on dataset {record['dataset_hash']!r}, this one is {dataset_hash!r}",
            where=where,
            fix="score with the dataset that was predicted on, or predict again",
        )
    if record.get("split") not in (None, split):
        raise SurgeryR1Error(
            f"predicted on split {record['split']!r}", where=where, fix=f"not {split!r}: check --split"
        )


def _space(record: dict[str, Any], given: str | None, where: str) -> str | None:
    own = record.get("box_space")
    if own is None:
        return given
    if not isinstance(own, str) or own not in BOX_SPACES:
        raise SurgeryR1Error(f"unknown box_space {own!r}", where=where, fix=f"use one of {sorted(BOX_SPACES)}")
    if given is not None and own != given:
        raise SurgeryR1Error(f"box_space {own!r}, but {given!r} was asked for", where=where, fix="drop --box-space")
    return own


def _read_text(record: dict[str, Any], sample: Sample, space: str | None, where: str) -> Prediction:
    text = record["text"]
    if not isinstance(text, str):
        return Prediction(None, None, None, ("empty",) if text is None else ("bad_text",))
    return read_reply(text, space or "source", _view(record, sample, space, where))


def _view(record: dict[str, Any], sample: Sample, space: str | None, where: str) -> View:
    width, height = record.get("input_width"), record.get("input_height")
    if space != "pixels":
        return View(sample.width, sample.height, sample.width, sample.height)
    for name, size in (("input_width", width), ("input_height", height)):
        if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
            raise SurgeryR1Error(
                f"box_space 'pixels' with {name}={size!r}",
                where=where,
                fix="write the size in pixels of the resized image that the model saw",
            )
    assert isinstance(width, int) and isinstance(height, int)
    return View(sample.width, sample.height, width, height)


def _read_fields(record: dict[str, Any], where: str) -> Prediction:
    if record.get("box_space") not in (None, "source"):
        raise SurgeryR1Error(
            f"box_px is in source pixels, box_space says {record['box_space']!r}",
            where=where,
            fix="convert box_px, or write the model's text",
        )
    problems = []
    answer = record.get("answer")
    if isinstance(answer, str):
        answer = answer.strip() or None
        problems += [] if answer else ["empty_answer"]
    else:
        problems.append("no_answer" if answer is None else "bad_answer")
        answer = None
    box, problem = _box(record.get("box_px"))
    reasoning = record.get("reasoning")
    return Prediction(
        reasoning if isinstance(reasoning, str) else None,
        answer,
        box,
        tuple(problems) + ((problem,) if problem else ()),
    )


def _box(value: Any) -> tuple[Box | None, str | None]:
    """A box out of JSON, or None and why not. NaN, infinity and whole numbers beyond a float are no box."""
    if value is None:
        return None, "no_box"
    if not isinstance(value, list) or len(value) != 4:
        return None, "bad_box"
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
        return None, "bad_box"
    try:
        x1, y1, x2, y2 = (float(v) for v in value)
    except OverflowError:
        return None, "bad_box"
    if not is_box((x1, y1, x2, y2)):
        return None, "inverted_box" if abs(x1) + abs(y1) + abs(x2) + abs(y2) < float("inf") else "bad_box"
    return (x1, y1, x2, y2), None


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int) or value is None:
        return value
    return clean(value if isinstance(value, str) else json.dumps(value, sort_keys=True), 300)
