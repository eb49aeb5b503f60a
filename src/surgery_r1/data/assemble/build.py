"""``build_dataset``: label folders in, one dataset folder out, whole or not at all.

Two passes, frame by frame. The first reads and checks labels and images and measures what "top" means; the second
writes records and rows. Between them frames lie on disk, so that memory does not grow with their number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from surgery_r1 import __version__, vocab
from surgery_r1._util.files import dump_json, sha256_file, write_json
from surgery_r1._util.folders import replacing_folder
from surgery_r1._util.parallel import ordered_map
from surgery_r1.data.assemble.card import dataset_card
from surgery_r1.data.assemble.counts import Counts
from surgery_r1.data.assemble.rows import ROW_SPLITS, rows_of
from surgery_r1.data.assemble.splits import Splits
from surgery_r1.data.assemble.staging import StagingFiles
from surgery_r1.data.formats.endovis import LabelFolder
from surgery_r1.data.formats.source import FrameContent, Source
from surgery_r1.data.formats.validation import UNREADABLE, ValidationIssue
from surgery_r1.data.location_rule import TRUSTED_AGREEMENT, SourceTally
from surgery_r1.data.rationales.generate import RationaleGenerator
from surgery_r1.data.rationales.writer import RationaleWriter, TemplateWriter
from surgery_r1.data.recipe import TEMPLATE, Recipe
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import LocationRule, location_rule
from surgery_r1.records import TASKS, Frame, Sample

FORMAT = 2
RECORDS = ("frames.jsonl", "samples.jsonl", "rows.jsonl", "labels.jsonl")
_ERRORS_SHOWN = 5
#: What a manifest says of every build alike.
_VERSIONS: dict[str, Any] = {
    "dev_sequences": [f"seq_{number}" for number in vocab.DEV_SEQUENCES],
    "versions": {"surgery_r1": __version__, "format": FORMAT},
}
_HASHERS = min(8, os.cpu_count() or 1)


def build_dataset(
    folders: Sequence[Path],
    out: Path,
    *,
    images: Path | None = None,
    recipe: Recipe | None = None,
    seed: int | None = None,
    on_fault: Literal["stop", "skip"] = "stop",
    embed_images: bool = False,
    overwrite: bool = False,
    writers: Mapping[str, RationaleWriter] | None = None,
    open_source: Callable[[Path, Path | None], Source] = LabelFolder,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Build a dataset folder from label folders. The same input, recipe and seed give the same bytes.

    Args:
        folders: label folders, in any layout of EndoVis-VQLA, or in that of ``open_source``.
        out: the dataset folder to write; replaced only when ``overwrite`` and it is a dataset folder.
        images: folder with the images, where they lie apart from the labels.
        recipe: rows and reasoning; by default one row of each kind, by the template writer.
        seed: instead of the recipe's.
        on_fault: ``stop`` at faulty labels, or ``skip`` the faulty questions and count them in the manifest.
        embed_images: copy the images into ``out/images`` instead of referring to them.
        overwrite: replace a dataset folder that is there.
        writers: writers that the recipe names, beside ``template``.
        open_source: reads a folder (and the one with its images); label folders of EndoVis by default.
        progress: called with the number of frames whose rows are written, and of all frames.

    Returns:
        The manifest.

    Raises:
        SurgeryR1Error: for faulty labels under ``stop``, a sequence in two splits, one frame in two folders, an
            ``out`` that must not be replaced, a writer that cannot go on, or a full disk. ``out`` is then as it was.
    """
    if not folders:
        raise SurgeryR1Error("no label folder given", fix="surgery-r1 data build FOLDER... --out DATASET")
    recipe = recipe or Recipe()
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed)
    with replacing_folder(out, overwrite) as target:
        reading = _Reading([open_source(folder, images) for folder in folders], target, embed_images)
        try:
            reading.run()
            if on_fault == "stop":
                _stop_at_errors(reading.errors)
            if not reading.staging.frames:
                raise SurgeryR1Error("no usable question found", fix="surgery-r1 data check FOLDER lists what is wrong")
            generator = _generator(reading, recipe, writers or {})
            counts = _write_records(target, reading.staging, recipe, generator, progress)
        finally:
            reading.staging.close()
        manifest = _manifest(target, reading, generator, counts, recipe)
        manifest["image_root"] = "images" if embed_images else str(reading.image_root)
        manifest["recipe"] |= {"on_fault": on_fault, "embed_images": embed_images, **_VERSIONS}
        (target / "README.md").write_text(dataset_card(manifest), encoding="utf-8")
        write_json(target / "manifest.json", manifest)
    return manifest


def _generator(reading: _Reading, recipe: Recipe, writers: Mapping[str, RationaleWriter]) -> RationaleGenerator:
    """The rationales that the recipe asks for, by the writers that it names."""
    rules = trusted_rules(reading.rule.result())
    known = {TEMPLATE: TemplateWriter(rules), **writers}
    unknown = next((name for name in recipe.turns if name not in known), None)
    if unknown is not None:
        raise SurgeryR1Error(f"the recipe names the writer {unknown!r}", fix="give it with writers=")
    used = {name: known[name] for name in recipe.turns}
    return RationaleGenerator(recipe, used, rules, reading.classes, reading.copies or reading.image_root)


def _manifest(
    target: Path, reading: _Reading, generator: RationaleGenerator, counts: Counts, recipe: Recipe
) -> dict[str, Any]:
    """What was built of what; the caller fills in how."""
    return {
        "format": FORMAT,
        "image_root": "",
        "label_root": str(reading.label_root),
        **counts.to_json(),
        "skipped": dict(sorted(reading.skipped.items())),
        "reasoning": {name: writer.to_json() for name, writer in generator.counts.items()},
        "location_rule": reading.rule.result(),
        "sources": counts.sources(reading.classes),
        "images_in_two_splits": reading.splits.images_in_two,
        "sha256": {name: sha256_file(target / name) for name in RECORDS} | {"images": reading.images_hash},
        "recipe": {
            **recipe.to_json(),
            "writer": ", ".join(generator.counts),
            "writers": generator.facts(),
            "tasks": [task for task in TASKS if getattr(recipe.rows, task)],
        },
    }


def trusted_rules(measured: Mapping[str, Any]) -> dict[str, LocationRule | None]:
    """The location rule of each source, None where the labels follow it in less than 95 % of the cases."""
    return {
        source: location_rule(facts["rule"]) if (facts["agreement"] or 0.0) >= TRUSTED_AGREEMENT else None
        for source, facts in measured["by_source"].items()
    }


class _Reading:
    """The first pass: every frame of every source, hashed, checked and staged."""

    def __init__(self, sources: Sequence[Source], target: Path, embed: bool) -> None:
        self._sources, self._target = sources, target
        #: Where images are copied to, None where they stay.
        self.copies = target / "images" if embed else None
        # Everything under one root, the nearest folder above all images.
        self.image_root = _above(source.image_root for source in sources)
        self.label_root = _above(source.label_root for source in sources)
        self.classes = {name: kinds for source in sources for name, kinds in source.classes.items()}
        self.errors: list[ValidationIssue] = []
        self.skipped: Counter[str] = Counter()
        self.rule = SourceTally()
        self.splits = Splits()
        self._hashes: dict[str, str] = {}
        self._label_hashes: dict[Path, str] = {}
        (target / "staging").mkdir()
        self.staging = StagingFiles(target / "staging")

    def run(self) -> None:
        """Read everything."""
        with (self._target / "labels.jsonl").open("w", encoding="utf-8", newline="\n") as labels:
            written: set[Path] = set()
            contents = ((source, content) for source in self._sources for content in source.frames())
            for (source, content), (digest, of_labels) in ordered_map(self._hash, contents, _HASHERS):
                self.errors += content.errors
                self.skipped += content.skipped
                for path, sha in of_labels.items():
                    if path not in written:
                        written.add(path)
                        relative = os.path.relpath(path.resolve(), self.label_root)
                        labels.write(dump_json({"path": Path(relative).as_posix(), "sha256": sha}) + "\n")
                if content.frame is not None:
                    self._add(source, content.frame, content.samples, digest)

    @property
    def images_hash(self) -> str:
        """One hash for all images."""
        listing = "".join(f"{digest}  {frame_id}\n" for frame_id, digest in sorted(self._hashes.items()))
        return hashlib.sha256(listing.encode()).hexdigest()

    def _hash(self, item: tuple[Source, FrameContent]) -> tuple[str, dict[Path, str]]:
        source, content = item
        digest = "" if content.frame is None else sha256_file(source.image_root / content.frame.image)
        # What cannot be read has no hash; it has an error, which is listed and counted.
        unreadable = {error.path for error in content.errors if error.what == UNREADABLE}
        labels = [path for path in content.labels if str(path) not in unreadable]
        # A file that holds the labels of many frames is hashed once.
        for path in labels:
            if path not in self._label_hashes:
                self._label_hashes[path] = sha256_file(path)
        return digest, {path: self._label_hashes[path] for path in labels}

    def _add(self, source: Source, frame: Frame, samples: list[Sample], digest: str) -> None:
        if frame.frame_id in self._hashes:
            raise SurgeryR1Error(f"{frame.frame_id} is in two of the folders", fix="name each set of labels once")
        self._hashes[frame.frame_id] = digest
        path = source.image_root / frame.image
        image = (source.image_root.relative_to(self.image_root) / frame.image).as_posix()
        if self.copies is not None:
            image = frame.frame_id + path.suffix.lower()
            copy = self.copies / image
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        frame = dataclasses.replace(frame, image=image, sha256=digest)
        samples = [dataclasses.replace(sample, image=image) for sample in samples]
        for sample in samples:
            self.splits.add(sample, frame)
            self.rule.add(sample, frame.organ_box)
        self.staging.add(frame, samples)


def _above(roots: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([root.resolve() for root in roots]))


def _stop_at_errors(errors: Sequence[ValidationIssue]) -> None:
    if not errors:
        return
    shown = "".join(f"\n  {error}" for error in errors[:_ERRORS_SHOWN])
    more = f"\n  and {len(errors) - _ERRORS_SHOWN} more" if len(errors) > _ERRORS_SHOWN else ""
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    raise SurgeryR1Error(
        f"{count} in the labels:{shown}{more}\nNothing was built",
        fix="repair them (surgery-r1 data check FOLDER lists all), or leave them out with --on-fault skip",
    )


def _write_records(
    target: Path,
    staging: StagingFiles,
    recipe: Recipe,
    generator: RationaleGenerator,
    progress: Callable[[int, int], None] | None,
) -> Counts:
    """The second pass: frames, questions and rows, in the order of the staging files."""
    counts = Counts()
    work = ((frame, samples, [s for s in samples if s.split in ROW_SPLITS]) for frame, samples in staging)
    with (
        (target / "frames.jsonl").open("w", encoding="utf-8", newline="\n") as frames_file,
        (target / "samples.jsonl").open("w", encoding="utf-8", newline="\n") as samples_file,
        (target / "rows.jsonl").open("w", encoding="utf-8", newline="\n") as rows_file,
    ):
        for done, ((frame, samples, asked), rationales) in enumerate(generator(work), start=1):
            written = [row for s, r in zip(asked, rationales, strict=True) for row in rows_of(s, recipe.rows, r)]
            frames_file.write(dump_json(frame.to_json()) + "\n")
            samples_file.writelines(dump_json(sample.to_json()) + "\n" for sample in samples)
            rows_file.writelines(dump_json(row.to_json()) + "\n" for row in written)
            counts.add(samples, written)
            if progress is not None:
                progress(done, staging.frames)
    return counts
