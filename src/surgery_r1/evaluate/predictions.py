"""Reading ``predictions.jsonl``: raw model text, or an answer and a box from any other system."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery_r1.codec import CODEC_VERSION, Prediction
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.box_check import refuse_other_units
from surgery_r1.evaluate.box_units import BoxUnits, WrittenBox
from surgery_r1.evaluate.prediction_lines import AGREED, KNOWN, PARTS, LineReading, read_line
from surgery_r1.evaluate.prediction_source import json_lines, shown
from surgery_r1.prompts import PROMPT_VERSION
from surgery_r1.records import Sample

logger = logging.getLogger(__name__)

#: What ``metrics.json`` says of boxes whose space nobody stated.
ASSUMED_SOURCE = "source (assumed)"

#: From so many malformed boxes on, if they are most of a file, a converter is wrong and not a model.
_MALFORMED = 5


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
        problems: problem code -> lines that have it, see :data:`surgery_r1.codec.PROBLEMS` and
            :data:`surgery_r1.evaluate.prediction_lines.LINE_PROBLEMS`.
        meta: what the lines say of their run (:data:`AGREED`, as one value); the units of boxes as stated for the file
            or by its lines, as a sorted list where lines differ.
    """

    by_id: dict[str, PredictionLine] = field(default_factory=dict)
    duplicates: int = 0
    problems: Counter[str] = field(default_factory=Counter)
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
    units: BoxUnits | None = None,
    everything: Mapping[str, Sample] | None = None,
) -> PredictionFile:
    """Read and check a prediction file against the samples of a split.

    Args:
        samples: the samples of ``split`` by id.
        dataset_hash: hash of the dataset; lines that carry another one are refused.
        units: what is stated of the boxes of all lines; a line may state it of its own (``box_space``,
            ``box_format``, ``box_origin``). Boxes of which it is not stated are checked against the truth.
        everything: the samples of all splits by id, so that an error can name the split of an id.

    Raises:
        SurgeryR1Error: as ``path:line`` for a line that is no JSON object, an id outside the split, a second and
            different line for an id, a codec or prompt version, dataset or split that does not fit, or lines that
            disagree on the run that wrote them; as ``path`` for boxes that look like other units than they are read
            in, and for a part that stands under another key in all lines.
    """
    file = _File(path, units or BoxUnits())
    seen: dict[str, tuple[bytes, str]] = {}
    for where, record in json_lines(path):
        _check_origin(record, split, dataset_hash, where)
        sample = _sample_of(record, samples, split, everything or {}, where)
        if _is_repeat(record, sample.id, seen, where):
            file.result.duplicates += 1
            continue
        file.agree(record, where)
        file.add(record, sample, read_line(record, sample, file.units, where), where)
    return file.finished()


class _File:
    """What is gathered of a file while its lines are read."""

    def __init__(self, path: Path, units: BoxUnits) -> None:
        self.path, self.units = path, units
        self.result = PredictionFile()
        self.boxes: list[WrittenBox] = []
        self.well_formed = 0
        #: How malformed boxes look, and where; keys that seem to hold a part; wrong types; texts whose box cannot be
        #: read: each with its places.
        self.malformed: dict[str, list[str]] = {}
        self.renamed: dict[tuple[str, str], list[str]] = {}
        self.wrong: dict[str, list[str]] = {}
        self.unread: list[str] = []
        self.parts: Counter[str] = Counter()
        self.assumed = 0
        self.first: dict[str, tuple[Any, str]] = {}
        self.stated: dict[str, set[Any]] = {"box_space": set(), "box_format": set(), "box_origin": set()}

    def agree(self, record: Mapping[str, Any], where: str) -> None:
        """Refuse a line that was written by another run than the lines before it."""
        for key in AGREED:
            if key not in record or (key == "reasoning" and not isinstance(record[key], bool)):
                continue
            value = record[key]
            before, at = self.first.setdefault(key, (value, where))
            if before != value or type(before) is not type(value):
                raise SurgeryR1Error(
                    f"{key} is {shown(value)}, but {shown(before)} at {at}",
                    where=where,
                    fix="a prediction file holds the lines of one run: score each run alone",
                )

    def add(self, record: Mapping[str, Any], sample: Sample, line: LineReading, where: str) -> None:
        """Take a line that was read."""
        text = record.get("text", record.get("reply"))
        number = int(where.rpartition(":")[2])
        self.result.by_id[sample.id] = PredictionLine(number, line.reading, text if isinstance(text, str) else None)
        for code in line.reading.problems:
            self.result.problems[code] += 1
        for part in PARTS:
            self.parts[part] += part in record
        if line.box is not None:
            self.boxes.append(line.box)
        if line.malformed is not None:
            self.malformed.setdefault(line.malformed, []).append(where)
        elif "text" not in record and record.get("box_px"):
            self.well_formed += 1
        for key, part in (line.renamed or {}).items():
            self.renamed.setdefault((key, part), []).append(where)
        if "text" in record and "bad_box" in line.reading.problems:
            self.unread.append(where)
        for code in ("bad_text", "bad_answer"):
            if code in line.reading.problems:
                self.wrong.setdefault(code.removeprefix("bad_"), []).append(where)
        given = (self.units.space, self.units.format, self.units.origin)
        for (key, values), ours in zip(self.stated.items(), given, strict=True):
            value = ours if record.get(key) is None else record[key]
            if value is not None:
                values.add(value)
            elif key == "box_space" and "text" in record:
                values.add(ASSUMED_SOURCE)
                self.assumed += 1

    def finished(self) -> PredictionFile:
        """The file, after what can only be said of it as a whole."""
        self._check_keys()
        self._check_malformed()
        refuse_other_units(self.path, self.boxes)
        for part, places in self.wrong.items():
            logger.warning("%s: %s is not a string: not read; %s like it", places[0], part, _lines(places))
        if self.result.duplicates:
            logger.warning("%s: %d lines repeat another one and are ignored", self.path, self.result.duplicates)
        if self.assumed:
            logger.warning(
                "%s: %d text lines do not say their box_space; their boxes are read as source pixels. "
                "Pass --box-space %s if that is wrong",
                *(self.path, self.assumed, "pixels|norm1000|norm100|norm1|source"),
            )
        self.result.meta = {key: _plain(value) for key, (value, _) in self.first.items() if key != "split"}
        for key, values in self.stated.items():
            if values:
                self.result.meta[key] = sorted(values) if len(values) > 1 else min(values)
        return self.result

    def _check_keys(self) -> None:
        """Refuse a part that stands under another key in every line; tell where it does in some.

        A rationale is told only: no score needs it.
        """
        for (key, part), places in self.renamed.items():
            if part in PARTS and not self.parts[part]:
                raise SurgeryR1Error(
                    f"no line has {part!r}, but {_lines(places)} {'has' if len(places) == 1 else 'have'} {shown(key)}",
                    where=places[0],
                    fix=f"did you mean {part!r}? Rename the key"
                    + (", and see that the box is x1, y1, x2, y2 in pixels" if part == "box_px" else ""),
                )
            logger.warning(
                "%s: %r stands under %s, which is not read; %s like it", places[0], part, shown(key), _lines(places)
            )

    def _check_malformed(self) -> None:
        """Refuse a file most of whose boxes are not four numbers in a list; tell of some."""
        count = sum(map(len, self.malformed.values()))
        if count >= _MALFORMED and count > self.well_formed and not self.units.whole:
            look, places = max(self.malformed.items(), key=lambda item: len(item[1]))
            raise SurgeryR1Error(
                f"{count} of {count + self.well_formed} boxes are not four numbers, {len(places)} are {look}",
                where=places[0],
                fix='write "box_px": [x1, y1, x2, y2] with numbers, or null',
            )
        for look, places in self.malformed.items():
            logger.warning("%s: box_px is %s: not read; %s like it", places[0], look, _lines(places))
        # A bad model writes such boxes too, so they are not refused; told, because so does a converter gone wrong.
        if len(self.unread) >= _MALFORMED and len(self.unread) > self.parts["text"] / 2:
            logger.warning(
                "%s: <box> does not hold [x1, y1, x2, y2] in plain numbers: not read; %s like it",
                *(self.unread[0], _lines(self.unread)),
            )


def _lines(places: list[str]) -> str:
    return "1 line" if len(places) == 1 else f"{len(places):,} lines"


def _is_repeat(record: dict[str, Any], identity: str, seen: dict[str, tuple[bytes, str]], where: str) -> bool:
    """Whether the same line stood in the file before; ``seen`` maps an id to the hash of its line and to its place."""
    canonical = hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).digest()
    before, at = seen.setdefault(identity, (canonical, where))
    if before != canonical:
        raise SurgeryR1Error(
            f"a second, different prediction for id {shown(identity)}; the first is at {at}",
            where=where,
            fix="keep one line for each id",
        )
    return at != where


def _sample_of(
    record: dict[str, Any], samples: Mapping[str, Sample], split: str, everything: Mapping[str, Sample], where: str
) -> Sample:
    identity = record.get("id")
    if not isinstance(identity, str):
        fix = 'write {"id": "...", "text": "..."}'
        near = [key for key in ("sample_id", "ID", "Id", "question_id", "qid") if key in record and key not in KNOWN]
        if identity is None and near:
            fix = f"did you mean 'id' instead of {near[0]!r}?"
        raise SurgeryR1Error(f"no sample id: id={shown(identity)}", where=where, fix=fix)
    if identity in samples:
        return samples[identity]
    if identity in everything:
        held = everything[identity].split
        raise SurgeryR1Error(
            f"id {shown(identity)} is not in split {split!r} of the dataset but in split {held!r}",
            where=where,
            fix=f"give --split {held}, or predict split {split!r}",
        )
    like = f"whose ids are like {shown(next(iter(samples)))}" if samples else "which is empty"
    raise SurgeryR1Error(
        f"id {shown(identity)} is not in split {split!r} of the dataset, {like}",
        where=where,
        fix="check --split and --data",
    )


def _check_origin(record: dict[str, Any], split: str, dataset_hash: str | None, where: str) -> None:
    """Refuse a line that says it was made for another version, dataset or split."""
    for key, words, ours in (
        ("codec_version", "codec version", CODEC_VERSION),
        ("prompt_version", "prompt version", PROMPT_VERSION),
    ):
        if record.get(key) not in (None, ours):
            raise SurgeryR1Error(
                f"written with {words} {shown(record[key])}, this is {ours!r}", where=where, fix="predict again"
            )
    if dataset_hash is not None and record.get("dataset_hash") not in (None, dataset_hash):
        raise SurgeryR1Error(
            f"predicted on dataset {shown(record['dataset_hash'])}, this one is {dataset_hash!r}",
            where=where,
            fix="score with the dataset that was predicted on, or predict again",
        )
    if record.get("split") not in (None, split):
        raise SurgeryR1Error(
            f"predicted on split {shown(record['split'])}", where=where, fix=f"not {split!r}: check --split"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int) or value is None:
        return value
    return clean(value if isinstance(value, str) else json.dumps(value, sort_keys=True), 300)
