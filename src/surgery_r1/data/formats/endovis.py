"""FieldParser of EndoVis-18-VQLA and EndoVis-17-VQLA label folders (FACTS 2): samples, frames, errors and warnings."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from surgery_r1 import vocab
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.endovis_images import pair
from surgery_r1.data.formats.endovis_scan import ImageTree, LabelFile, Layout, scan
from surgery_r1.data.formats.image_files import TornImageError, image_size
from surgery_r1.data.formats.lines import ANSWERS_OF_KIND
from surgery_r1.data.formats.questions import FrameLabels, merge_answers, read_frame_labels
from surgery_r1.data.formats.source import FolderContent, FrameContent, check_folders, labelled_frame, read_all
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.errors import SurgeryR1Error

SOURCES: tuple[str, ...] = ("endovis18", "endovis17")


def official_split(source: str, sequence: int | None) -> str | None:
    """Split of a sequence: by number for EndoVis-18 (dev is ours), ``test`` for EndoVis-17, None for no split."""
    if source == "endovis17":
        return "test"
    if sequence in vocab.VAL_SEQUENCES:
        return "val"
    if sequence in vocab.TRAIN_SEQUENCES:
        return "dev" if sequence in vocab.DEV_SEQUENCES else "train"
    return None


class LabelFolder:
    """A label folder as a :class:`surgery_r1.data.formats.source.Source`.

    Args:
        folder: folder with labels, in any layout of FACTS 2.
        images: folder with the images, where they lie apart.

    Raises:
        SurgeryR1Error: when a folder does not exist or holds no label file.
    """

    classes: Mapping[str, Mapping[str, tuple[str, ...]]] = dict.fromkeys(SOURCES, ANSWERS_OF_KIND)

    def __init__(self, folder: Path, images: Path | None = None) -> None:
        check_folders(folder, images)
        layout = scan(folder, images)
        if not layout.labels:
            raise SurgeryR1Error(
                "no label file found",
                where=str(folder),
                fix="expected seq_N/vqla/label/frame003_QA.txt, seq_N/vqla/, seq_N/vqa/Classification/ or "
                "vqla/label/seq1_frame015.txt; for other sets name an --adapter",
            )
        self.label_root = folder
        self._trees, warnings = pair(layout)
        used = [tree.path for tree in self._trees.values()]
        self.image_root = _image_root(used, folder, images)
        self.warnings = layout.warnings + warnings
        self._files = list(_by_frame(layout))

    def frames(self) -> Iterator[FrameContent]:
        """Every labelled frame; faulty questions are left out, listed and counted."""
        repeated: Counter[str] = Counter()
        for files in self._files:
            content = FrameContent(labels=[file.path for file in files])
            labels = _read_frame(files, self._trees.get(files[0].tree_key), self.image_root, content)
            if labels.repeated:
                repeated[str(files[1].path.parent)] += labels.repeated
            yield content
        for path, count in repeated.items():
            value, fix = f"{count} questions already read from another label folder", "nothing to do: counted once"
            found = ValidationIssue(path, None, "second label folder for the same frames", value, fix)
            yield FrameContent(warnings=[found])


def read_folder(folder: Path, images: Path | None = None) -> FolderContent:
    """Everything in a label folder; see :class:`LabelFolder`."""
    return read_all(LabelFolder(folder, images))


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


def _read_frame(files: list[LabelFile], tree: ImageTree | None, root: Path, content: FrameContent) -> FrameLabels:
    head = files[0]
    image, size, error = _find_image(head, tree)
    labels = read_frame_labels(files, size)
    content.warnings += labels.warnings
    split = official_split(head.source, head.sequence)
    if split is None:
        found = "no seq_N folder above it" if head.sequence is None else f"sequence {head.sequence}"
        known = sorted((*vocab.TRAIN_SEQUENCES, *vocab.VAL_SEQUENCES))
        fix = f"EndoVis-18 labels belong to sequences {', '.join(map(str, known))}"
        error = ValidationIssue(str(head.path), 1, validation.NO_SEQUENCE, found, fix)
    content.errors += ([error] if error else []) + labels.errors
    content.skipped += labels.skipped
    if error or image is None or size is None or split is None:
        if error:
            content.skipped[error.what] += len(merge_answers(labels.lines)[0])
        return labels
    if labels.lines:
        relative = Path(os.path.relpath(image.parent.resolve() / image.name, root)).as_posix()
        labelled_frame(head.source, split, f"seq_{head.sequence}", head.frame, relative, size, labels.lines, content)
    return labels


def _find_image(
    label: LabelFile, tree: ImageTree | None
) -> tuple[Path | None, tuple[int, int] | None, ValidationIssue | None]:
    name = tree.files.get(label.stem) if tree else None
    if tree is None or name is None:
        place = tree.path if tree else f"seq_{label.sequence}/left_frames"
        value = f"{place}/{label.stem}.*" if tree else f"{label.stem} in {place}, no such folder"
        return (
            None,
            None,
            ValidationIssue(str(label.path), 1, validation.MISSING_IMAGE, value, "restore it, or name --images ROOT"),
        )
    image = tree.path / name
    try:
        return image, image_size(image), None
    except FileNotFoundError:  # a dangling link
        return None, None, ValidationIssue(str(label.path), 1, validation.MISSING_IMAGE, str(image), "restore the file")
    except (TornImageError, OSError) as error:
        return (
            None,
            None,
            ValidationIssue(str(label.path), 1, validation.TORN_IMAGE, f"{image}: {error}", "unpack the archive again"),
        )
