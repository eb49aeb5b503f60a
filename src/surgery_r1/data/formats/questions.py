"""The questions of one frame: label lines merged over files, several right answers merged, objects derived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from surgery_r1 import vocab
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.endovis_scan import LabelFile
from surgery_r1.data.formats.lines import LabelLine, LineError, check_answer, parse_box, read_lines, split_fields
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.geometry import Box
from surgery_r1.records import AnnotatedObject


@dataclass(slots=True)
class FrameLabels:
    """What the label files of one frame say. ``skipped`` counts faulty lines by reason; ``lines`` are sound."""

    lines: list[LabelLine] = field(default_factory=list)
    errors: list[ValidationIssue] = field(default_factory=list)
    warnings: list[ValidationIssue] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    repeated: int = 0

    def error(self, issue: ValidationIssue) -> None:
        self.errors.append(issue)
        self.skipped[issue.what] += 1


def read_frame_labels(files: Sequence[LabelFile], size: tuple[int, int] | None) -> FrameLabels:
    """Read the label files of one frame, the preferred layout first.

    A question that an earlier file has already answered is not counted again; only questions that are new there are
    taken from a later file. ``size`` is the frame's (width, height), None when the image could not be read.
    """
    labels = FrameLabels()
    first_index = 0
    for number, file in enumerate(files):
        before = list(labels.lines)
        lines, errors = read_lines(file.path)
        for error in errors:
            labels.error(error)
        if not lines and not errors:
            fix = "nothing to do, or restore the file"
            labels.warnings.append(
                ValidationIssue(str(file.path), None, "label file without questions", "0 lines", fix)
            )
        written: set[tuple[str, str, Box]] = set()
        # Ids keep the position in the file, faulty lines included, so that repairing one line renames no other.
        for offset, (line_number, text) in enumerate(lines):
            if number and _known(text, before, file, line_number, labels):
                continue
            line = _read_line(file, line_number, first_index + offset, text, size, labels)
            if line is None:
                continue
            content = (line.key, line.answer, line.box_px)
            if content in written:
                value, fix = repr(text[:80]), "delete the line"
                labels.error(ValidationIssue(str(file.path), line_number, validation.DUPLICATE, value, fix))
                continue
            written.add(content)
            labels.lines.append(line)
        first_index += len(lines)
    return labels


def _known(text: str, before: Sequence[LabelLine], file: LabelFile, number: int, labels: FrameLabels) -> bool:
    """Whether an earlier file has this line's question; a different answer or box there is warned of."""
    fields = [part.strip() for part in text.split("|")]
    key = " ".join(fields[0].lower().split())
    known = [line for line in before if line.key == key]
    if not known:
        return False
    labels.repeated += 1
    if len(fields) == 2:  # Surgical-VQA, the label set before boxes were added, lies in vqa/Classification
        same = any(line.answer == fields[1] for line in known)
    else:
        try:
            _, answer, corners = split_fields(text)
            box = parse_box(corners, None)
            same = any(line.answer == answer and line.box_px == box for line in known)
        except LineError:
            same = False
    if not same:
        value = f"{text[:60]!r} differs from {known[0].path}:{known[0].line}; the latter is used"
        labels.warnings.append(
            ValidationIssue(str(file.path), number, "label files disagree", value, "delete the wrong file")
        )
    return True


def _read_line(
    file: LabelFile, number: int, index: int, text: str, size: tuple[int, int] | None, labels: FrameLabels
) -> LabelLine | None:
    path = str(file.path)
    try:
        question, answer, corners = split_fields(text)
        kind, subject = vocab.classify_question(question)
        if kind is None or subject is None or (kind == "tool" and subject not in vocab.LOCATIONS):
            labels.warnings.append(
                ValidationIssue(path, number, validation.UNKNOWN_FORM, repr(question[:60]), "the line is left out")
            )
            labels.skipped[validation.UNKNOWN_FORM] += 1
            return None
        check_answer(kind, answer)
        box = parse_box(corners, size)
    except LineError as error:
        labels.error(ValidationIssue(path, number, error.what, error.value, error.fix))
        return None
    if kind in ("state", "location") and subject not in vocab.TOOLS:
        fix = "the question is kept; check the spelling"
        labels.warnings.append(ValidationIssue(path, number, "unknown tool in a question", repr(subject), fix))
    return LabelLine(file.path, number, index, question, kind, subject, answer, box)


def merge_answers(lines: Sequence[LabelLine]) -> tuple[list[list[LabelLine]], list[ValidationIssue]]:
    """Lines grouped by question, in file order, with a warning for each question that has several right answers."""
    groups: dict[str, list[LabelLine]] = {}
    for line in lines:
        groups.setdefault(line.key, []).append(line)
    warnings = []
    for group in groups.values():
        if len(group) > 1:
            answers = ", ".join(line.answer for line in group)
            value = f"{group[0].question!r}: {answers}"
            fix = "nothing to do: each counts as right"
            what = "question with several right answers"
            warnings.append(ValidationIssue(str(group[0].path), group[1].line, what, value, fix))
    return list(groups.values()), warnings


def derive_objects(lines: Sequence[LabelLine]) -> tuple[tuple[AnnotatedObject, ...], list[ValidationIssue]]:
    """Every object that the lines of a frame annotate, the organ first and then in order of mention.

    Two lines that disagree on the box of one tool give a warning; the first box is kept.
    """
    organ: AnnotatedObject | None = None
    tools: dict[str, list[dict]] = {}
    warnings: list[ValidationIssue] = []
    for line in lines:
        if line.kind == "organ":
            organ = organ or AnnotatedObject(line.answer, None, None, line.box_px)
            continue
        name = line.answer if line.kind == "tool" else line.subject
        part, value = ("state", line.answer) if line.kind == "state" else ("location", line.answer)
        if line.kind == "tool":
            value = line.subject
        warning = _place(tools.setdefault(name, []), part, value, line, name)
        if warning is not None:
            warnings.append(warning)
    objects = [
        AnnotatedObject(name, seen.get("state"), seen.get("location"), seen["box"])
        for name, instances in tools.items()
        for seen in instances
    ]
    return tuple([organ] if organ else []) + tuple(objects), warnings


def _place(instances: list[dict], part: str, value: str, line: LabelLine, name: str) -> ValidationIssue | None:
    """Add a state or a location to the instance of a tool with the same box, else to one that lacks it."""
    for seen in instances:
        if seen["box"] == line.box_px and seen.setdefault(part, value) == value:
            return None
    for seen in instances:
        if part not in seen:
            seen[part] = value
            what, fix = f"two boxes for {name}", "the first is used for the object; each question keeps its own"
            found = f"{list(line.box_px)} here, {list(seen['box'])} before (0-based)"
            return ValidationIssue(str(line.path), line.line, what, found, fix)
    instances.append({"box": line.box_px, part: value})
    return None
