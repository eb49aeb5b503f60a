"""``build_dataset``: label folders in, one dataset folder out, whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from surgery_r1 import __version__, vocab
from surgery_r1.build.card import dataset_card
from surgery_r1.build.cot import TemplateWriter, Writer
from surgery_r1.build.output import replacing_folder
from surgery_r1.build.rows import make_rows
from surgery_r1.build.verify import check_splits, images_in_two_splits
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.files import sha256_file, write_json, write_jsonl
from surgery_r1.geometry import LocationRule, location_rule
from surgery_r1.schema import TASKS, Frame, Row, Sample
from surgery_r1.sources.findings import Finding
from surgery_r1.sources.label_folder import FolderContent, read_folder
from surgery_r1.sources.location import TRUSTED_AGREEMENT, measure_by_source

FORMAT = 1
_FAULTS_SHOWN = 5


def build_dataset(
    folders: Sequence[Path],
    out: Path,
    *,
    images: Path | None = None,
    seed: int = 0,
    on_fault: Literal["stop", "skip"] = "stop",
    embed_images: bool = False,
    overwrite: bool = False,
    writer: Writer | None = None,
) -> dict[str, Any]:
    """Build a dataset folder from label folders. The same input and seed give the same bytes.

    Args:
        folders: label folders, in any layout of FACTS 2.
        out: the dataset folder to write; replaced only when ``overwrite`` and it is a dataset folder.
        images: folder with the images, where they lie apart from the labels.
        seed: of the reasoning writer.
        on_fault: ``stop`` at faulty labels, or ``skip`` the faulty questions and count them in the manifest.
        embed_images: copy the images into ``out/images`` instead of referring to them.
        overwrite: replace a dataset folder that is there.
        writer: of the reasoning; the template writer by default.

    Returns:
        The manifest.

    Raises:
        SurgeryR1Error: for faulty labels under ``stop``, a sequence in two splits, one frame in two folders, an
            ``out`` that must not be replaced, or a full disk. ``out`` is then as it was.
    """
    if not folders:
        raise SurgeryR1Error("no label folder given", fix="surgery-r1 data build FOLDER... --out DATASET")
    with replacing_folder(out, overwrite) as target:
        contents = [read_folder(folder, images) for folder in folders]
        if on_fault == "stop":
            _stop_at_faults([fault for content in contents for fault in content.faults])
        image_root, samples, frames = _join(contents)
        check_splits(samples)
        if not samples:
            raise SurgeryR1Error("no sound question found", fix="surgery-r1 data check FOLDER lists what is wrong")
        frames = _with_hashes(frames, image_root)
        if embed_images:
            samples, frames = _embed(samples, frames, image_root, target)
        rule = measure_by_source(samples, frames)
        writer = writer or TemplateWriter(trusted_rules(rule))
        skipped: Counter[str] = Counter()
        for content in contents:
            skipped += content.skipped
        rows = list(make_rows(samples, frames, writer, seed, skipped))
        manifest = {
            "format": FORMAT,
            "image_root": "images" if embed_images else str(image_root),
            "samples": _by_split(samples),
            "frames": _by_split(list({sample.frame_id: sample for sample in samples}.values())),
            "rows": _by_task(rows),
            "skipped": dict(sorted(skipped.items())),
            "location_rule": rule,
            "sources": _sources(samples),
            "images_in_two_splits": images_in_two_splits(samples, frames),
            "sha256": _write_records(target, samples, frames, rows),
            "recipe": {
                "seed": seed,
                "writer": writer.name,
                "tasks": list(TASKS),
                "on_fault": on_fault,
                "embed_images": embed_images,
                "dev_sequences": [f"seq_{number}" for number in vocab.DEV_SEQUENCES],
                "versions": {"surgery_r1": __version__, "format": FORMAT},
            },
        }
        (target / "README.md").write_text(dataset_card(manifest), encoding="utf-8")
        write_json(target / "manifest.json", manifest)
    return manifest


def trusted_rules(measured: Mapping[str, Any]) -> dict[str, LocationRule | None]:
    """The location rule of each source, None where the labels follow it in less than 95 % of the cases."""
    return {
        source: location_rule(facts["rule"]) if (facts["agreement"] or 0.0) >= TRUSTED_AGREEMENT else None
        for source, facts in measured["by_source"].items()
    }


def _stop_at_faults(faults: Sequence[Finding]) -> None:
    if not faults:
        return
    shown = "".join(f"\n  {fault}" for fault in faults[:_FAULTS_SHOWN])
    more = f"\n  and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise SurgeryR1Error(
        f"{count} in the labels:{shown}{more}\nNothing was built",
        fix="repair them (surgery-r1 data check FOLDER lists all), or leave them out with --on-fault skip",
    )


def _join(contents: Sequence[FolderContent]) -> tuple[Path, list[Sample], dict[str, Frame]]:
    """Everything under one image root, the nearest folder above all images."""
    root = Path(os.path.commonpath([content.image_root for content in contents]))
    samples: list[Sample] = []
    frames: dict[str, Frame] = {}
    for content in contents:
        prefix = content.image_root.relative_to(root)
        for frame_id, frame in content.frames.items():
            if frame_id in frames:
                raise SurgeryR1Error(f"{frame_id} is in two of the folders", fix="name each set of labels once")
            frames[frame_id] = dataclasses.replace(frame, image=(prefix / frame.image).as_posix())
        samples += [dataclasses.replace(s, image=(prefix / s.image).as_posix()) for s in content.samples]
    order = {source: number for number, source in enumerate(("endovis18", "endovis17"))}
    samples.sort(key=lambda sample: order.get(sample.source, len(order)))  # stable: keeps the order of each source
    return root, samples, {sample.frame_id: frames[sample.frame_id] for sample in samples}


def _with_hashes(frames: Mapping[str, Frame], root: Path) -> dict[str, Frame]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter lock
        digests = list(pool.map(lambda frame: sha256_file(root / frame.image), frames.values()))
    return {
        frame_id: dataclasses.replace(frame, sha256=digest)
        for (frame_id, frame), digest in zip(frames.items(), digests, strict=True)
    }


def _embed(
    samples: Sequence[Sample], frames: Mapping[str, Frame], root: Path, target: Path
) -> tuple[list[Sample], dict[str, Frame]]:
    """Copy the images to ``images/<frame id>.<suffix>`` in the dataset folder."""
    embedded = {}
    for frame_id, frame in frames.items():
        image = frame_id + Path(frame.image).suffix.lower()
        destination = target / "images" / image
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / frame.image, destination)
        embedded[frame_id] = dataclasses.replace(frame, image=image)
    return [dataclasses.replace(s, image=embedded[s.frame_id].image) for s in samples], embedded


def _write_records(
    target: Path, samples: Sequence[Sample], frames: Mapping[str, Frame], rows: Sequence[Row]
) -> dict[str, str]:
    write_jsonl(target / "frames.jsonl", (frame.to_json() for frame in frames.values()))
    write_jsonl(target / "samples.jsonl", (sample.to_json() for sample in samples))
    write_jsonl(target / "rows.jsonl", (row.to_json() for row in rows))
    digests = {name: sha256_file(target / name) for name in ("frames.jsonl", "samples.jsonl", "rows.jsonl")}
    listing = "".join(f"{frame.sha256}  {frame_id}\n" for frame_id, frame in sorted(frames.items()))
    return digests | {"images": hashlib.sha256(listing.encode()).hexdigest()}


def _by_split(samples: Sequence[Sample]) -> dict[str, int]:
    counts = Counter(sample.split for sample in samples)
    return {"total": len(samples)} | {split: counts[split] for split in vocab.SPLITS}


def _by_task(rows: Sequence[Row]) -> dict[str, int]:
    counts = Counter(row.task for row in rows)
    return {"total": len(rows)} | {task: counts[task] for task in TASKS}


def _sources(samples: Sequence[Sample]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for source in dict.fromkeys(sample.source for sample in samples):
        own = [sample for sample in samples if sample.source == source]
        sequences = {
            split: sorted({s.sequence for s in own if s.split == split}, key=lambda name: int(name.split("_")[1]))
            for split in vocab.SPLITS
        }
        table[source] = {
            "frames": len({sample.frame_id for sample in own}),
            "questions": len(own),
            "sequences": {split: names for split, names in sequences.items() if names},
        }
    return table
