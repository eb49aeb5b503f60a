"""The questions of one frame: several right answers merged, objects derived."""

from __future__ import annotations

from collections.abc import Sequence

from surgery_r1.data.formats.lines import LabelLine
from surgery_r1.data.formats.validation import ValidationIssue
from surgery_r1.records import AnnotatedObject


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
