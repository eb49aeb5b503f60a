"""Opening a dataset folder that ``surgery-r1 data build`` wrote."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from surgery_r1 import vocab
from surgery_r1._util.checked import WrongData, checked
from surgery_r1._util.files import read_json, read_jsonl, sha256_file
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.data.location_rule import TRUSTED_AGREEMENT
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import LocationRule, location_rule
from surgery_r1.records import TASKS, Frame, Sample, TrainingRow

CHANGED_RECORD = "changed since it was built"
CHANGED_IMAGE = "image changed since the dataset was built"
CHANGED_LABELS = "label file changed since the dataset was built"
_REBUILD = "build it again with surgery-r1 data build FOLDER... --out DATASET --overwrite"


@dataclass(frozen=True)
class _Counts:
    total: int


@dataclass(frozen=True)
class _MeasuredRule:
    rule: str | None
    agreement: float | None
    by_source: dict[str, _MeasuredRule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rule is not None:
            location_rule(self.rule)


@dataclass(frozen=True)
class _Manifest:
    """What is read of ``manifest.json``, which holds more."""

    image_root: str
    samples: _Counts
    frames: _Counts
    rows: _Counts
    location_rule: _MeasuredRule
    sha256: dict[str, str]
    label_root: str = ""


@dataclass
class Dataset:
    """A dataset folder.

    Attributes:
        root: the folder.
        image_root: the folder that image paths are relative to.
        manifest: the parsed ``manifest.json``.
        samples: id to sample, in file order.
        frames: frame id to frame, in file order.
    """

    root: Path
    image_root: Path
    manifest: dict[str, Any]
    samples: dict[str, Sample] = field(repr=False)
    frames: dict[str, Frame] = field(repr=False)

    @cached_property
    def rows(self) -> list[TrainingRow]:
        """Training rows of train and dev, in file order; read when first asked for.

        Raises:
            SurgeryR1Error: when ``rows.jsonl`` is torn or names an unknown sample.
        """
        rows = [TrainingRow.from_json(data, where) for where, data in read_jsonl(self.root / "rows.jsonl")]
        _check_count(self.root / "rows.jsonl", len(rows), self.manifest["rows"]["total"])
        stray = next((row for row in rows if row.sample_id not in self.samples), None)
        if stray is not None:
            raise SurgeryR1Error(
                f"row {stray.id} of unknown sample {stray.sample_id}", where=str(self.root), fix=_REBUILD
            )
        return rows

    @cached_property
    def rows_of(self) -> dict[str, list[TrainingRow]]:
        """Training rows by the id of their sample, which may have none."""
        rows: dict[str, list[TrainingRow]] = defaultdict(list)
        for row in self.rows:
            rows[row.sample_id].append(row)
        return rows

    def split(self, name: str) -> list[Sample]:
        """Samples of a split, in file order.

        Raises:
            SurgeryR1Error: for an unknown split.
        """
        if name not in vocab.SPLITS:
            raise SurgeryR1Error(f"unknown split {name!r}", fix=f"one of {', '.join(vocab.SPLITS)}")
        return [sample for sample in self.samples.values() if sample.split == name]

    def train_samples(self, include_dev: bool = False) -> list[Sample]:
        """Samples to train on: train, and dev on request."""
        return self.split("train") + (self.split("dev") if include_dev else [])

    def train_rows(self, tasks: Sequence[str] = TASKS, include_dev: bool = False) -> list[TrainingRow]:
        """Rows to train on, in file order: those of ``tasks`` on train samples, with dev only on request.

        Raises:
            SurgeryR1Error: for an unknown task.
        """
        unknown = sorted(set(tasks) - set(TASKS))
        if unknown:
            raise SurgeryR1Error(f"unknown task {unknown[0]!r}", fix=f"one of {', '.join(TASKS)}")
        splits = {"train", "dev"} if include_dev else {"train"}
        return [row for row in self.rows if row.task in tasks and self.samples[row.sample_id].split in splits]

    def image_path(self, sample: Sample | Frame) -> Path:
        """Path of the image of a sample or frame."""
        return self.image_root / sample.image

    def frame_of(self, sample: Sample) -> Frame:
        """The frame that a sample asks about."""
        return self.frames[sample.frame_id]

    @property
    def location_rule(self) -> LocationRule | None:
        """The measured top/bottom rule, None where fewer than 95 % of the labels follow it."""
        return _trusted(self.manifest["location_rule"])

    def location_rule_of(self, source: str) -> LocationRule | None:
        """The same for the labels of one source."""
        return _trusted(self.manifest["location_rule"].get("by_source", {}).get(source, {}))

    @cached_property
    def answers(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The set's own classes: source -> question kind -> answers, in class order.

        A manifest that does not list them says of a source what its questions say.
        """
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for source in dict.fromkeys(sample.source for sample in self.samples.values()):
            listed = self.manifest.get("sources", {}).get(source, {}).get("answers") or self._answered(source)
            found[source] = {kind: tuple(names) for kind, names in listed.items()}
        return found

    def _answered(self, source: str) -> dict[str, list[str]]:
        answers: dict[str, dict[str, None]] = defaultdict(dict)
        for sample in self.samples.values():
            if sample.source == source:
                answers[sample.kind] |= dict.fromkeys(answer for answer, _ in sample.accepted)
        return {kind: sorted(names) for kind, names in answers.items()}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Every class that a question can have, once, in the order of :data:`surgery_r1.vocab.KINDS` and other kinds.

        Kinds that no question asks are left out: names of tools are no answers in EndoVis-18-VQLA.
        """
        asked = {sample.kind for sample in self.samples.values()}
        kinds = dict.fromkeys([*vocab.KINDS, *(kind for answers in self.answers.values() for kind in answers)])
        names = (
            name
            for kind in kinds
            if kind in asked
            for answers in self.answers.values()
            for name in answers.get(kind, ())
        )
        return tuple(dict.fromkeys(names))

    @cached_property
    def hash(self) -> str:
        """Sha256 over the manifest's file hashes: names the data that a checkpoint was trained on."""
        listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.manifest["sha256"].items()))
        return hashlib.sha256(listing.encode()).hexdigest()


def open_dataset(
    folder: str | Path, *, images: Path | None = None, check_images: bool = True, verify: bool = False
) -> Dataset:
    """Open a dataset folder.

    Args:
        folder: what ``surgery-r1 data build`` wrote.
        images: where the images lie now, if they moved.
        check_images: check that every image is there.
        verify: compare records and images with their sha256 sums.

    Raises:
        SurgeryR1Error: when there is no such dataset, a file is incomplete, or images are missing or changed.

    >>> open_dataset("no/such/folder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    surgery_r1.errors.SurgeryR1Error: no/such/folder: no such dataset folder; surgery-r1 data build ...
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        what = "not a dataset folder: no manifest.json" if folder.is_dir() else "no such dataset folder"
        raise SurgeryR1Error(what, where=str(folder), fix=f"surgery-r1 data build FOLDER... --out {folder}")
    manifest = read_json(folder / "manifest.json")
    try:
        read = checked(_Manifest, manifest, others="ignore")
    except WrongData as error:
        raise SurgeryR1Error(f"not a manifest: {error}", where=folder / "manifest.json", fix=_REBUILD) from None
    image_root = Path(images) if images is not None else folder / read.image_root
    samples = {s.id: s for s in (Sample.from_json(d, where) for where, d in read_jsonl(folder / "samples.jsonl"))}
    frames = {f.frame_id: f for f in (Frame.from_json(d, where) for where, d in read_jsonl(folder / "frames.jsonl"))}
    _check_count(folder / "samples.jsonl", len(samples), read.samples.total)
    _check_count(folder / "frames.jsonl", len(frames), read.frames.total)
    stray = next((sample for sample in samples.values() if sample.frame_id not in frames), None)
    if stray is not None:
        raise SurgeryR1Error(f"sample {stray.id} without its frame", where=str(folder / "frames.jsonl"), fix=_REBUILD)
    dataset = Dataset(folder, image_root, manifest, samples, frames)
    if check_images or verify:
        _check_images(dataset)
    if verify:
        _verify(dataset)
    return dataset


def _trusted(measured: dict[str, Any]) -> LocationRule | None:
    rule, agreement = measured.get("rule"), measured.get("agreement") or 0.0
    return location_rule(rule) if rule and agreement >= TRUSTED_AGREEMENT else None


def _check_count(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise SurgeryR1Error(
            f"incomplete file: {found} records, the manifest says {expected}", where=str(path), fix=_REBUILD
        )


def _check_images(dataset: Dataset) -> None:
    missing = [frame for frame in dataset.frames.values() if not dataset.image_path(frame).is_file()]
    if missing:
        raise SurgeryR1Error(
            f"{len(missing)} of {len(dataset.frames)} images missing, such as {missing[0].image}",
            where=str(dataset.image_root),
            fix="if they moved, say where with --images ROOT",
        )


def changes(dataset: Dataset) -> Iterator[ValidationIssue]:
    """Records and images that are not what they were when the dataset was built, by their sha256."""
    for name, digest in dataset.manifest["sha256"].items():
        if name != "images":
            yield from _change(dataset.root / name, digest, CHANGED_RECORD)
    for frame in dataset.frames.values():
        yield from _change(dataset.image_path(frame), frame.sha256, CHANGED_IMAGE)


def label_changes(dataset: Dataset) -> Iterator[ValidationIssue]:
    """The same for the label files that the dataset was built from.

    Raises:
        SurgeryR1Error: when they are not there any more, or the list of them is torn.
    """
    listing, labels = dataset.root / "labels.jsonl", Path(dataset.manifest.get("label_root", ""))
    if not listing.is_file() or not labels.is_dir():
        fix = "nothing to do, if they were moved on purpose"
        raise SurgeryR1Error("the label files are not where they were", where=str(labels), fix=fix)
    for where, record in read_jsonl(listing):
        if not {"path", "sha256"} <= set(record):
            raise SurgeryR1Error("damaged list of label files", where=where, fix=_REBUILD)
        yield from _change(labels / record["path"], record["sha256"], CHANGED_LABELS)


def _change(path: Path, digest: str, what: str) -> Iterator[ValidationIssue]:
    try:
        found = sha256_file(path)
    except OSError as error:
        yield ValidationIssue(str(path), None, what, f"cannot be read: {error.strerror}", "restore it, or " + _REBUILD)
        return
    if found != digest:
        value = f"sha256 {found[:12]}, was {digest[:12]}"
        yield ValidationIssue(str(path), None, what, value, "restore it, or " + _REBUILD)


def _verify(dataset: Dataset) -> None:
    found = next(changes(dataset), None)
    if found is not None:
        raise SurgeryR1Error(f"{found.what}: {found.value}", where=found.path, fix=found.fix)
