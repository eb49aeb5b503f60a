"""Reader of EndoVis-18-VQLA and EndoVis-17-VQLA label folders (FACTS 2): samples, frames, faults and notices."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgery_r1 import vocab
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.schema import Frame, Sample
from surgery_r1.sources import findings as f
from surgery_r1.sources.findings import Finding
from surgery_r1.sources.frame_labels import FrameLabels, derive_objects, merge_answers, read_frame_labels
from surgery_r1.sources.image_files import TornImageError, image_size
from surgery_r1.sources.layout import ImageTree, LabelFile, Layout, scan
from surgery_r1.sources.lines import LabelLine
from surgery_r1.sources.location import measure_by_source, split_disagreements
from surgery_r1.sources.pairing import pair

SOURCES: tuple[str, ...] = ("endovis18", "endovis17")


@dataclass(slots=True)
class FolderContent:
    """What a label folder holds.

    Attributes:
        image_root: the folder that ``image`` of samples and frames is relative to.
        samples: sound questions, sorted by sequence, frame and position in the file.
        frames: frames with at least one sound question; their ``sha256`` is empty (filled in by the build).
        faults, notices: findings in the order of the files.
        skipped: number of questions that faults cost, by fault.
    """

    image_root: Path
    samples: list[Sample] = field(default_factory=list)
    frames: dict[str, Frame] = field(default_factory=dict)
    faults: list[Finding] = field(default_factory=list)
    notices: list[Finding] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Counts, faults and notices of a label folder; see DESIGN 2, ``data check --json``."""

    frames: int
    questions: int
    splits: dict[str, dict[str, Any]]
    location_rule: dict[str, Any]
    faults: tuple[Finding, ...]
    notices: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """The contract's object."""
        return {
            "frames": self.frames,
            "questions": self.questions,
            "splits": self.splits,
            "location_rule": self.location_rule,
            "faults": [finding.to_json() for finding in self.faults],
            "notices": [finding.to_json() for finding in self.notices],
        }


def check_folder(folder: Path, images: Path | None = None) -> CheckReport:
    """Read a label folder and report counts, the measured location rule, every fault and every notice.

    Args:
        folder: folder with labels, in any layout of FACTS 2.
        images: folder with the images, where they lie apart.

    Raises:
        SurgeryR1Error: when a folder does not exist or holds no label file.
    """
    return summarise(read_folder(folder, images))


def summarise(content: FolderContent) -> CheckReport:
    """The report of a folder already read."""
    splits: dict[str, dict[str, Any]] = {}
    for split in vocab.SPLITS:
        samples = [sample for sample in content.samples if sample.split == split]
        kinds = Counter(sample.kind for sample in samples)
        splits[split] = {
            "frames": len({sample.frame_id for sample in samples}),
            "questions": len(samples),
            "by_kind": {kind: kinds[kind] for kind in vocab.KINDS if kinds[kind]},
        }
    return CheckReport(
        frames=len(content.frames),
        questions=len(content.samples),
        splits=splits,
        location_rule=measure_by_source(content.samples, content.frames),
        faults=tuple(content.faults),
        notices=tuple(content.notices) + tuple(split_disagreements(content.samples, content.frames)),
    )


def official_split(source: str, sequence: int | None) -> str | None:
    """Split of a sequence: by number for EndoVis-18 (dev is ours), ``test`` for EndoVis-17, None for no split."""
    if source == "endovis17":
        return "test"
    if sequence in vocab.VAL_SEQUENCES:
        return "val"
    if sequence in vocab.TRAIN_SEQUENCES:
        return "dev" if sequence in vocab.DEV_SEQUENCES else "train"
    return None


def read_folder(folder: Path, images: Path | None = None) -> FolderContent:
    """Read every labelled frame of a folder; faulty questions are left out, listed and counted.

    Raises:
        SurgeryR1Error: when a folder does not exist or holds no label file.
    """
    for named in (folder, images):
        if named is not None and not named.is_dir():
            raise SurgeryR1Error("no such folder", where=str(named), fix="check the path")
    layout = scan(folder, images)
    if not layout.labels:
        raise SurgeryR1Error(
            "no label file found",
            where=str(folder),
            fix="expected seq_N/vqla/label/frame003_QA.txt, seq_N/vqla/, seq_N/vqa/Classification/ or "
            "vqla/label/seq1_frame015.txt",
        )
    trees, notices = pair(layout)
    used = [tree.path for tree in trees.values()]
    content = FolderContent(image_root=_image_root(used, folder, images), notices=layout.notices + notices)
    repeated: Counter[str] = Counter()
    for files in _by_frame(layout):
        labels = _read_frame(files, trees.get(files[0].tree_key), content)
        if labels.repeated:
            repeated[str(files[1].path.parent)] += labels.repeated
    for path, count in repeated.items():
        value, fix = f"{count} questions already read from another label folder", "nothing to do: counted once"
        content.notices.append(Finding(path, None, "second label folder for the same frames", value, fix))
    return content


def _by_frame(layout: Layout) -> Iterable[list[LabelFile]]:
    """The label files of each frame, the preferred layout first; frames in the order of source, sequence, name."""
    frames: dict[tuple, list[LabelFile]] = defaultdict(list)
    for label in layout.labels:
        sequence = -1 if label.sequence is None else label.sequence
        number = int("".join(filter(str.isdigit, label.frame)))
        frames[SOURCES.index(label.source), sequence, number, label.frame].append(label)
    for key in sorted(frames):
        yield sorted(frames[key], key=lambda label: (label.rank, str(label.path)))


def _image_root(trees: list[Path], folder: Path, images: Path | None) -> Path:
    """The folder the user named, where every image lies in it, else the nearest one above all."""
    resolved = [tree.resolve() for tree in trees]
    for root in filter(None, (images, folder)):
        if all(path.is_relative_to(root.resolve()) for path in resolved):
            return root.resolve()
    return Path(os.path.commonpath(resolved)) if resolved else folder.resolve()


def _read_frame(files: list[LabelFile], tree: ImageTree | None, content: FolderContent) -> FrameLabels:
    head = files[0]
    image, size, fault = _find_image(head, tree)
    labels = read_frame_labels(files, size)
    content.notices += labels.notices
    split = official_split(head.source, head.sequence)
    if split is None:
        found = "no seq_N folder above it" if head.sequence is None else f"sequence {head.sequence}"
        known = sorted((*vocab.TRAIN_SEQUENCES, *vocab.VAL_SEQUENCES))
        fix = f"EndoVis-18 labels belong to sequences {', '.join(map(str, known))}"
        fault = Finding(str(head.path), 1, f.NO_SEQUENCE, found, fix)
    content.faults += ([fault] if fault else []) + labels.faults
    content.skipped += labels.skipped
    if fault or image is None or size is None or split is None:
        if fault:
            content.skipped[fault.what] += len(merge_answers(labels.lines)[0])
        return labels
    if labels.lines:
        relative = Path(os.path.relpath(image.parent.resolve() / image.name, content.image_root)).as_posix()
        _add_frame(head, split, relative, size, labels.lines, content)
    return labels


def _find_image(label: LabelFile, tree: ImageTree | None) -> tuple[Path | None, tuple[int, int] | None, Finding | None]:
    name = tree.files.get(label.stem) if tree else None
    if tree is None or name is None:
        place = tree.path if tree else f"seq_{label.sequence}/left_frames"
        value = f"{place}/{label.stem}.*" if tree else f"{label.stem} in {place}, no such folder"
        return None, None, Finding(str(label.path), 1, f.MISSING_IMAGE, value, "restore it, or name --images ROOT")
    image = tree.path / name
    try:
        return image, image_size(image), None
    except FileNotFoundError:  # a dangling link
        return None, None, Finding(str(label.path), 1, f.MISSING_IMAGE, str(image), "restore the file")
    except (TornImageError, OSError) as error:
        return None, None, Finding(str(label.path), 1, f.TORN_IMAGE, f"{image}: {error}", "unpack the archive again")


def _add_frame(
    label: LabelFile, split: str, image: str, size: tuple[int, int], lines: list[LabelLine], content: FolderContent
) -> None:
    sequence = f"seq_{label.sequence}"
    frame_id = f"{label.source}/{sequence}/{label.frame}"
    groups, several = merge_answers(lines)
    objects, disagreeing = derive_objects(lines)
    content.notices += several + disagreeing
    content.frames[frame_id] = Frame(frame_id, image, *size, sha256="", objects=objects)
    for group in groups:
        first = group[0]
        content.samples.append(
            Sample(
                id=f"{frame_id}/{first.index}",
                source=label.source,
                split=split,
                sequence=sequence,
                frame=label.frame,
                image=image,
                width=size[0],
                height=size[1],
                question=first.question,
                kind=first.kind,
                subject=first.subject,
                answer=first.answer,
                box_px=first.box_px,
                answers_accepted=tuple(line.answer for line in group) if len(group) > 1 else (),
                boxes_accepted=tuple(line.box_px for line in group) if len(group) > 1 else (),
            )
        )
