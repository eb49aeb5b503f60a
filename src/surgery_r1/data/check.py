"""What ``surgery-r1 data check`` reports of a label folder: counts, the measured top/bottom rule, errors, warnings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery_r1 import vocab
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.endovis import read_folder
from surgery_r1.data.formats.source import FolderContent
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.data.location_rule import measure_by_source, split_disagreements
from surgery_r1.records import Frame


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Counts, errors and warnings of a label folder."""

    frames: int
    questions: int
    splits: dict[str, dict[str, Any]]
    location_rule: dict[str, Any]
    errors: tuple[ValidationIssue, ...]
    warnings: tuple[ValidationIssue, ...]

    def to_json(self) -> dict[str, Any]:
        """The contract's object."""
        return {
            "frames": self.frames,
            "questions": self.questions,
            "splits": self.splits,
            "location_rule": self.location_rule,
            "faults": [issue.to_json() for issue in self.errors],
            "notices": [issue.to_json() for issue in self.warnings],
        }


def check_folder(folder: Path, images: Path | None = None) -> CheckReport:
    """Read a label folder and report counts, the measured location rule, every error and every warning.

    Args:
        folder: folder with labels, in any layout of EndoVis-18-VQLA or EndoVis-17-VQLA.
        images: folder with the images, where they lie apart.

    Raises:
        SurgeryR1Error: when a folder does not exist or holds no label file.
    """
    return check_report(read_folder(folder, images))


def check_report(content: FolderContent) -> CheckReport:
    """The report of a folder already read."""
    splits: dict[str, dict[str, Any]] = {}
    for split in vocab.SPLITS:
        samples = [sample for sample in content.samples if sample.split == split]
        kinds = Counter(sample.kind for sample in samples)
        splits[split] = {
            "frames": len({sample.frame_id for sample in samples}),
            "questions": len(samples),
            "by_kind": {kind: kinds[kind] for kind in dict.fromkeys((*vocab.KINDS, *sorted(kinds))) if kinds[kind]},
        }
    return CheckReport(
        frames=len(content.frames),
        questions=len(content.samples),
        splits=splits,
        location_rule=measure_by_source(content.samples, content.frames),
        errors=(*content.errors, *_nothing_read(content)),
        warnings=(
            *content.warnings,
            *split_disagreements(content.samples, content.frames),
            *_several_sizes(content.frames.values()),
        ),
    )


def _nothing_read(content: FolderContent) -> Iterator[ValidationIssue]:
    """An error where a folder says nothing, not even what is wrong with it."""
    if not content.samples and not content.errors:
        fix = (
            "are the label files empty, or of another set? surgery-r1 data check FOLDER --adapter names another format"
        )
        yield ValidationIssue(str(content.image_root), None, validation.NOTHING_READ, "0 questions", fix)


def _several_sizes(frames: Iterable[Frame]) -> Iterator[ValidationIssue]:
    """A warning for each source whose frames differ in size."""
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for frame in frames:
        sizes[frame.frame_id.split("/")[0]][f"{frame.width}x{frame.height}"] += 1
    for source, counts in sorted(sizes.items()):
        if len(counts) > 1:
            found = ", ".join(f"{size}: {count}" for size, count in counts.most_common())
            fix = "boxes count in pixels of their own frame: see that none was resized"
            yield ValidationIssue(source, None, "frames of several sizes", found, fix)
