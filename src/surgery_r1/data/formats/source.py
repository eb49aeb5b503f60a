"""What a source of labels gives: one frame after the other, so that a build needs no more memory for more frames."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.records import Frame, Sample

#: Threads that read and decode images while labels are read.
IMAGE_READERS = min(8, os.cpu_count() or 1)


@dataclass(slots=True)
class FrameContent:
    """One labelled frame.

    Attributes:
        frame: None when no question of it is sound; ``sha256`` is empty (filled in by the build).
        samples: its sound questions, in the order of the file.
        errors, warnings: issues in the order of the lines.
        skipped: questions that errors cost, by error.
        labels: the files that its questions come from.
        repeated: questions of later label files that an earlier file has already answered; they are counted once.
    """

    frame: Frame | None = None
    samples: list[Sample] = field(default_factory=list)
    errors: list[ValidationIssue] = field(default_factory=list)
    warnings: list[ValidationIssue] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    labels: list[Path] = field(default_factory=list)
    repeated: int = 0

    def leave_out(self, error: ValidationIssue) -> None:
        """Note an error that costs one question."""
        self.errors.append(error)
        self.skipped[error.what] += 1


class Source(Protocol):
    """Labels and images of one origin.

    Attributes:
        image_root: the folder that ``image`` of samples and frames is relative to.
        label_root: the folder that was named by the user.
        warnings: issues about folders; those about frames come with the frames.
        classes: for each source name the answers that a question of each kind can have.
    """

    image_root: Path
    label_root: Path
    warnings: list[ValidationIssue]
    classes: Mapping[str, Mapping[str, tuple[str, ...]]]

    def frames(self) -> Iterator[FrameContent]:
        """Every labelled frame, sorted by source, sequence and frame."""
        ...


@dataclass(slots=True)
class FolderContent:
    """Everything that a source holds, in memory: for checks and pictures of it.

    Attributes:
        image_root: the folder that ``image`` of samples and frames is relative to.
        samples: sound questions, sorted by sequence, frame and position in the file.
        frames: frames with at least one sound question; their ``sha256`` is empty (filled in by the build).
        errors, warnings: issues in the order of the files.
        skipped: number of questions that errors cost, by error.
        classes: as :class:`Source` has them.
    """

    image_root: Path
    samples: list[Sample] = field(default_factory=list)
    frames: dict[str, Frame] = field(default_factory=dict)
    errors: list[ValidationIssue] = field(default_factory=list)
    warnings: list[ValidationIssue] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    classes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)


def check_folders(*named: Path | None) -> None:
    """Check that every folder that was named is there.

    Raises:
        SurgeryR1Error: naming the first that is not.
    """
    for folder in named:
        if folder is not None and not folder.is_dir():
            raise SurgeryR1Error("no such folder", where=str(folder), fix="check the path")


def read_all(source: Source) -> FolderContent:
    """All of a source at once."""
    content = FolderContent(source.image_root, classes=source.classes)
    # What is warned of about folders while frames are read stands after what was warned of before.
    for part in source.frames():
        if part.frame is not None:
            content.frames[part.frame.frame_id] = part.frame
        content.samples += part.samples
        content.errors += part.errors
        content.warnings += part.warnings
        content.skipped += part.skipped
    content.warnings[:0] = source.warnings
    return content
