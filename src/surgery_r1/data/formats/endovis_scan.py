"""Where label files and images lie in a folder: every layout and form of file names found in the wild.

Nothing is read by position in a path: a label folder is known by its name (``vqla``, ``vqla/label``,
``vqa/Classification``), an image folder by ``left_frames``, a sequence by the nearest ``seq_N`` above them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from surgery_r1.data.formats.image_files import IMAGE_SUFFIXES
from surgery_r1.data.formats.path_patterns import SHADOW
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.errors import SurgeryR1Error

#: ``(source, sequence number)``; EndoVis-17 names its sequence in the file and has one tree for all, number None.
TreeKey = tuple[str, int | None]

_SEQUENCE = re.compile(r"seq(?:uence)?_?(\d+)", re.I)
_LABEL_NAME = re.compile(r"(?:seq_?(?P<seq>\d+)_)?(?P<frame>frame_?\d+)(?:[_\-. ].*)?", re.I)
_IMAGE_NAME = re.compile(r"(?:seq_?(?P<seq>\d+)_)?frame_?\d+", re.I)
_TEST_LIKE = re.compile(r"(?:^|[^a-z])test", re.I)


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A label file and what its name and place say about it. ``rank`` orders several files of one frame."""

    path: Path
    source: str
    sequence: int | None
    frame: str
    stem: str
    rank: int

    @property
    def tree_key(self) -> TreeKey:
        return (self.source, self.sequence if self.source == "endovis18" else None)


@dataclass(slots=True)
class ImageTree:
    """A ``left_frames`` folder: ``files`` maps the lower-case stem to the file name."""

    path: Path
    sequence: int | None
    test_like: bool
    root_index: int
    files: dict[str, str] = field(default_factory=dict)

    def sequences(self) -> set[TreeKey]:
        """The sequences that images of this folder can belong to."""
        keys: set[TreeKey] = set()
        for stem in self.files:
            keys.add(("endovis17", None) if stem.startswith("seq") else ("endovis18", self.sequence))
        return keys


@dataclass(slots=True)
class Layout:
    """What a walk over the folders found."""

    labels: list[LabelFile] = field(default_factory=list)
    trees: list[ImageTree] = field(default_factory=list)
    warnings: list[ValidationIssue] = field(default_factory=list)


def scan(folder: Path, images: Path | None = None) -> Layout:
    """Label files of ``folder`` and image folders of ``images`` (searched first) and ``folder``, sorted by path."""
    layout = Layout()
    for directory, names in _walk(folder, layout.warnings):
        _labels(directory, names, layout)
        _images(directory, names, folder, 1, layout)
    if images is not None:
        inside = {tree.path.resolve(): tree for tree in layout.trees}
        found: list[ValidationIssue] = []
        for directory, names in _walk(images, found):
            known = inside.get(directory.resolve())
            if known is not None:
                known.root_index = 0
            else:
                _images(directory, names, images, 0, layout)
        layout.warnings += [warning for warning in found if warning not in layout.warnings]
    layout.trees.sort(key=lambda tree: str(tree.path))
    return layout


def _walk(root: Path, warnings: list[ValidationIssue]) -> Iterator[tuple[Path, list[str]]]:
    """Every folder with its sorted file names; shadow trees are left out with a warning."""
    seen: set[str] = set()
    right: list[Path] = []
    for current, folders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(current)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        here = Path(current)
        for name in sorted(folders):
            if name.lower() == SHADOW:
                fix = "nothing to do: archives packed on macOS carry it"
                warnings.append(ValidationIssue(str(here / name), None, "shadow tree", "not read", fix))
            elif name.lower() == "right_frames":
                right.append(here / name)
        skipped = (SHADOW, "right_frames")
        folders[:] = sorted(n for n in folders if n.lower() not in skipped and not n.startswith("."))
        shadows = sum(name.startswith("._") for name in files)
        if shadows:
            fix = "nothing to do: archives packed on macOS carry them"
            warnings.append(
                ValidationIssue(str(here), None, "shadow files", f"{shadows} files named ._*, not read", fix)
            )
        yield here, sorted(name for name in files if not name.startswith("."))
    if right:
        value, fix = f"{len(right)} right_frames folders, not read", "nothing to do: labels belong to left_frames"
        warnings.append(ValidationIssue(str(right[0]), None, "right camera", value, fix))


def _unreadable(error: OSError) -> None:
    raise SurgeryR1Error(f"cannot read the folder: {error.strerror}", where=error.filename, fix="check permissions")


def _sequence_above(directory: Path) -> int | None:
    """Number of the nearest ``seq_N`` among the folder and those above it."""
    resolved = directory.resolve()
    for part in (resolved, *resolved.parents):
        match = _SEQUENCE.fullmatch(part.name)
        if match:
            return int(match.group(1))
    return None


def _label_rank(directory: Path) -> int | None:
    parts = [part.lower() for part in directory.resolve().parts[-2:]]
    if parts == ["vqla", "label"]:
        return 0
    if parts[-1] == "vqla":
        return 1
    return 2 if parts == ["vqa", "classification"] else None


def _labels(directory: Path, names: list[str], layout: Layout) -> None:
    texts = [name for name in names if name.lower().endswith(".txt")]
    rank = _label_rank(directory)
    if not texts:
        return
    if rank is None:
        if {part.lower() for part in directory.parts[-3:]} & {"vqla", "vqa"}:
            fix = "labels are read from vqla, vqla/label and vqa/Classification"
            layout.warnings.append(
                ValidationIssue(str(directory), None, "other texts", f"{len(texts)} files, not read", fix)
            )
        return
    above = _sequence_above(directory)
    for name in texts:
        match = _LABEL_NAME.fullmatch(name[:-4])
        if match is None:
            fix = "label files are named frame003_QA.txt or seq1_frame015.txt"
            layout.warnings.append(
                ValidationIssue(str(directory / name), None, "unknown label file name", repr(name), fix)
            )
            continue
        frame = match.group("frame").lower()
        if match.group("seq"):
            stem = name[: match.end("frame")].lower()
            label = LabelFile(directory / name, "endovis17", int(match.group("seq")), frame, stem, rank)
        else:
            label = LabelFile(directory / name, "endovis18", above, frame, frame, rank)
        layout.labels.append(label)


def _images(directory: Path, names: list[str], root: Path, root_index: int, layout: Layout) -> None:
    if directory.resolve().name.lower() != "left_frames":
        return
    # Only folders below the root the user named count: the root may lie in somebody's ~/tests.
    test_like = any(_TEST_LIKE.search(part) for part in directory.relative_to(root).parts)
    tree = ImageTree(directory, _sequence_above(directory), test_like, root_index)
    for name in names:
        stem, _, suffix = name.rpartition(".")
        if f".{suffix.lower()}" in IMAGE_SUFFIXES and _IMAGE_NAME.fullmatch(stem):
            tree.files.setdefault(stem.lower(), name)
    if tree.files:
        layout.trees.append(tree)
