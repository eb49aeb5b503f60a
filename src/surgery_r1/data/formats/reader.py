"""A folder read by a dataset format alone: its patterns say which files belong to which frame."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from string import Formatter
from typing import Any

from surgery_r1._util.parallel import ordered_map
from surgery_r1._util.sorting import natural_key
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import DatasetFormat, several
from surgery_r1.data.formats.frame_assembly import FrameAssembler, FramePlace, ImageCheck, check_image
from surgery_r1.data.formats.label_records import LabelRecord, RecordReader
from surgery_r1.data.formats.path_patterns import PathPattern, files_below
from surgery_r1.data.formats.source import IMAGE_READERS, FrameContent, check_folders
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.errors import SurgeryR1Error

_Key = tuple[str, str]
#: Key, label files and records of a frame, and where it lies; without key and place for rows that belong to no frame.
_Labelled = tuple[_Key | None, tuple[Path, ...], list[LabelRecord], FramePlace | None]
_EXAMPLES = 3


class FormatReader:
    """Frames and labels of a folder, as a dataset format says.

    Args:
        dataset_format: from :func:`surgery_r1.data.formats.declarative.load_format`.
        folder: with the labels.
        images: with the images, where they lie apart.

    Raises:
        SurgeryR1Error: when a folder does not exist, or a pattern matches nothing.
    """

    def __init__(self, dataset_format: DatasetFormat, folder: Path, images: Path | None = None) -> None:
        check_folders(folder, images)
        self._format = dataset_format
        self._records = RecordReader(dataset_format)
        self.label_root, self.image_root = folder, (images or folder).resolve()
        self.classes: Mapping[str, Mapping[str, tuple[str, ...]]] = {dataset_format.name: dataset_format.answers}
        self.warnings: list[ValidationIssue] = []
        named = {name for text in several(dataset_format.labels) for name in PathPattern(text).names}
        self._labels_name_frames = _names(dataset_format.sequence) | _names(dataset_format.frame) <= named
        self._images = self._find_images()
        self._labels = [
            (folder / path, parts) for path, parts in self._matching("labels", dataset_format.labels, self.label_root)
        ]

    def _matching(self, key: str, patterns: str | tuple[str, ...], root: Path) -> list[tuple[str, dict[str, str]]]:
        """Files below ``root`` that match, with the named parts of their paths."""
        left_out = [PathPattern(text) for text in self._format.exclude]
        files = [path for path in files_below(root) if all(pattern.match(path) is None for pattern in left_out)]
        found: dict[str, dict[str, str]] = {}
        for text in several(patterns):
            pattern = PathPattern(text)
            for path in files:
                parts = pattern.match(path)
                if parts is not None:
                    # The first pattern that matches a file says what it is.
                    found.setdefault(path, parts)
        if not found:
            few = ", ".join(files[:_EXAMPLES]) or "none"
            raise SurgeryR1Error(
                f"adapter {self._format.name}: {key} = {patterns!r} matches none of {len(files)} files",
                where=str(root),
                fix=f"correct the pattern; the first files are: {few}",
            )
        return list(found.items())

    def _find_images(self) -> dict[_Key, str]:
        images: dict[_Key, str] = {}
        for path, parts in self._matching("images", self._format.images, self.image_root):
            key = self._key(parts)
            first = images.setdefault(key, path)
            if first != path:
                value, fix = f"{path} and {first}", "the first is taken; leave the other out with exclude"
                self.warnings.append(
                    ValidationIssue(str(self.image_root), None, "two images for one frame", value, fix)
                )
        return images

    def _key(self, parts: dict[str, Any]) -> _Key:
        return self._format.sequence.format(**parts), self._format.frame.format(**parts)

    def frames(self) -> Iterator[FrameContent]:
        """Every labelled frame; faulty questions are left out, listed and counted."""
        assembler = FrameAssembler(self._format)
        labelled: set[_Key] = set()
        for (key, labels, records, place), image in ordered_map(_check, self._placed(), IMAGE_READERS):
            if key is None or place is None:
                # Rows that do not even say which frame they are about.
                errors = [record.error for record in records if record.error is not None]
                skipped = Counter(error.what for error in errors)
                yield FrameContent(errors=errors, skipped=skipped, labels=list(labels))
                continue
            labelled.add(key)
            yield assembler.frame(place, {labels[0]: records}, image)
        yield FrameContent(errors=list(assembler.forms.errors()))
        yield from self._unused({sequence for sequence, _ in labelled}, assembler.asked)
        bare = len(self._images.keys() - labelled)
        if bare:
            value, fix = f"{bare} of {len(self._images)} images", "nothing to do, if they were left out on purpose"
            yield FrameContent(
                warnings=[ValidationIssue(str(self.image_root), None, "images without labels", value, fix)]
            )

    def _placed(self) -> Iterator[_Labelled]:
        for key, labels, records in self._by_frame():
            yield key, labels, records, None if key is None else self._place(key, labels, records)

    def _by_frame(self) -> Iterator[tuple[_Key | None, tuple[Path, ...], list[LabelRecord]]]:
        """Label files and records of each frame in natural order; key None: a row that belongs to no frame."""
        if self._format.format == "lines" and self._labels_name_frames:
            # One file a frame, or several: nothing but their paths is held.
            files: dict[_Key, list[tuple[Path, dict[str, str]]]] = defaultdict(list)
            for path, parts in self._labels:
                files[self._key(parts)].append((path, parts))
            for key in sorted(files, key=_order):
                paths = tuple(path for path, _ in files[key])
                yield key, paths, [record for file in files[key] for record in self._records.lines(*file)]
            return
        frames: dict[_Key, list[LabelRecord]] = defaultdict(list)
        for path, parts in self._labels:
            for record in self._rows(path, parts):
                if record.error is not None:
                    yield None, (path,), [record]
                else:
                    frames[self._key(record.fields)].append(record)
        for key in sorted(frames, key=_order):
            records = frames.pop(key)
            yield key, tuple(dict.fromkeys(record.path for record in records)), records

    def _rows(self, path: Path, parts: dict[str, str]) -> Iterable[LabelRecord]:
        return self._records.lines(path, parts) if self._format.format == "lines" else self._records.table(path, parts)

    def _place(self, key: _Key, labels: tuple[Path, ...], records: Sequence[LabelRecord]) -> FramePlace:
        """Where a frame's files lie, and what is wrong with that."""
        sequence, frame = key
        splits, image = self._format.splits_of(sequence), self._images.get(key)
        line = records[0].line if records else 1
        error = None
        if len(splits) != 1:
            what = validation.SEVERAL_SPLITS if splits else validation.NO_SEQUENCE
            value = f"{sequence!r} is in {' and '.join(splits) or 'no split'}"
            error = ValidationIssue(str(labels[0]), line, what, value, "name it in [splits], once")
        elif image is None:
            what, value = validation.MISSING_IMAGE, f"{sequence}/{frame}"
            fix = "restore it, correct images, or name --images ROOT"
            error = ValidationIssue(str(labels[0]), line, what, value, fix)
        return FramePlace(
            source=self._format.name,
            sequence=sequence,
            frame=frame,
            split=splits[0] if len(splits) == 1 else None,
            image=None if image is None else self.image_root / image,
            relative=image or "",
            labels=labels,
            line=line,
            error=error,
        )

    def _unused(self, sequences: set[str], asked: Mapping[str, int]) -> Iterator[FrameContent]:
        """Patterns of the adapter that nothing matched."""
        name = f"adapter {self._format.name}"
        for kind in self._format.questions:
            if not asked[kind]:
                value = f"questions.{kind} matches no question"
                if kind in self._format.optional:
                    fix = "nothing to do: the adapter has it as optional"
                    yield FrameContent(warnings=[ValidationIssue(name, None, validation.NO_QUESTION, value, fix)])
                    continue
                fix = f'correct the pattern, leave the kind out, or write: optional = ["{kind}"]'
                yield FrameContent(errors=[ValidationIssue(name, None, validation.NO_QUESTION, value, fix)])
        for split, patterns in self._format.splits.items():
            bare = [p for p in patterns if not any(fnmatchcase(sequence, p) for sequence in sequences)]
            if bare:
                few = ", ".join(map(repr, bare[:_EXAMPLES]))
                few += f" and {len(bare) - _EXAMPLES} more" if len(bare) > _EXAMPLES else ""
                value = f"splits.{split}: {few} {'matches' if len(bare) == 1 else 'match'} no sequence"
                found = ValidationIssue(name, None, validation.NO_QUESTION, value, "nothing to do, if it is not here")
                yield FrameContent(warnings=[found])


def _names(template: str) -> set[str]:
    return {name for _, name, *_ in Formatter().parse(template) if name is not None}


def _check(labelled: _Labelled) -> ImageCheck:
    place = labelled[-1]
    return (None, None) if place is None else check_image(place)


def _order(key: _Key) -> tuple[Any, Any]:
    return natural_key(key[0]), natural_key(key[1])
