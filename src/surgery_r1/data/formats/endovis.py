"""Label folders of EndoVis-18-VQLA and EndoVis-17-VQLA in every layout found in the wild.

Files are found by :mod:`surgery_r1.data.formats.endovis_scan` and images chosen by
:mod:`surgery_r1.data.formats.endovis_images`. What is written in the files is read as any dataset format says it.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from surgery_r1 import vocab
from surgery_r1._util.parallel import ordered_map
from surgery_r1._util.sorting import natural_key
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import load_format
from surgery_r1.data.formats.endovis_images import pair
from surgery_r1.data.formats.endovis_scan import LabelFile, Layout, scan
from surgery_r1.data.formats.frame_assembly import FrameAssembler, FramePlace, check_image
from surgery_r1.data.formats.label_records import RecordReader
from surgery_r1.data.formats.source import IMAGE_READERS, FolderContent, FrameContent, check_folders, read_all
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.errors import SurgeryR1Error

SOURCES: tuple[str, ...] = ("endovis18", "endovis17")
#: Dataset format with the lines, questions and answers of all these sets; they differ in where their files lie.
_FORMAT = "endovis18_extended"


class LabelFolder:
    """A label folder as a :class:`surgery_r1.data.formats.source.Source`.

    Args:
        folder: folder with labels, in any layout of EndoVis-18-VQLA or EndoVis-17-VQLA.
        images: folder with the images, where they lie apart.

    Raises:
        SurgeryR1Error: when a folder does not exist or holds no label file.
    """

    def __init__(self, folder: Path, images: Path | None = None) -> None:
        check_folders(folder, images)
        layout = scan(folder, images)
        if not layout.labels:
            raise SurgeryR1Error(
                "no label file found",
                where=str(folder),
                fix="expected seq_N/vqla/label/frame003_QA.txt, seq_N/vqla/, seq_N/vqa/Classification/ or "
                "vqla/label/seq1_frame015.txt; for other sets name an --adapter, or put an adapter.toml in the folder",
            )
        self.label_root = folder
        self._trees, warnings = pair(layout)
        used = [tree.path for tree in self._trees.values()]
        self.image_root = _image_root(used, folder, images)
        self.warnings = layout.warnings + warnings
        self._files = list(_by_frame(layout))
        self._format = load_format(_FORMAT)
        self._official = {source: load_format(source) for source in SOURCES}
        self.classes: Mapping[str, Mapping[str, tuple[str, ...]]] = dict.fromkeys(SOURCES, self._format.answers)

    def frames(self) -> Iterator[FrameContent]:
        """Every labelled frame; faulty questions are left out, listed and counted."""
        reader, assembler = RecordReader(self._format), FrameAssembler(self._format, known_tools=vocab.TOOLS)
        repeated: Counter[str] = Counter()
        places = ((self._place(files), files) for files in self._files)
        for (place, files), image in ordered_map(lambda item: check_image(item[0]), places, IMAGE_READERS):
            content = assembler.frame(place, {file.path: reader.lines(file.path, {}) for file in files}, image)
            if content.repeated:
                repeated[str(files[1].path.parent)] += content.repeated
            yield content
        for path, count in repeated.items():
            value, fix = f"{count} questions already read from another label folder", "nothing to do: counted once"
            found = ValidationIssue(path, None, "second label folder for the same frames", value, fix)
            yield FrameContent(warnings=[found])
        yield FrameContent(errors=list(assembler.forms.errors()))

    def _place(self, files: list[LabelFile]) -> FramePlace:
        """Where a frame's files lie, and what is wrong with that; no split matters more than no image."""
        head, tree = files[0], self._trees.get(files[0].tree_key)
        sequence, official = f"seq_{head.sequence}", self._official[head.source]
        split = next(iter(official.splits_of(sequence)), None)
        name = tree.files.get(head.stem) if tree else None
        image = tree.path / name if tree and name else None
        error = None
        if split is None:
            value = "no seq_N folder above it" if head.sequence is None else f"sequence {head.sequence}"
            known = sorted((name for names in official.splits.values() for name in names), key=natural_key)
            fix = f"EndoVis-18 labels belong to sequences {', '.join(name.removeprefix('seq_') for name in known)}"
            error = ValidationIssue(str(head.path), 1, validation.NO_SEQUENCE, value, fix)
        elif image is None:
            value = f"{tree.path}/{head.stem}.*" if tree else f"{head.stem} in {sequence}/left_frames, no such folder"
            fix = "restore it, or name --images ROOT"
            error = ValidationIssue(str(head.path), 1, validation.MISSING_IMAGE, value, fix)
        return FramePlace(
            source=head.source,
            sequence=sequence,
            frame=head.frame,
            split=split,
            image=image,
            relative=_relative(image, self.image_root) if image else "",
            labels=tuple(file.path for file in files),
            error=error,
        )


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


def _relative(image: Path, root: Path) -> str:
    """Path of an image below a root, with ``/``; the name of the file may be a link, folders may not."""
    return Path(os.path.relpath(image.parent.resolve() / image.name, root)).as_posix()
