"""The questions of one frame: several right answers merged, objects derived."""

from __future__ import annotations

from collections.abc import Sequence

from surgery_r1.data.formats.lines import LabelLine
from surgery_r1.data.formats.validation import ValidationIssue, shown
from surgery_r1.geometry import Box
from surgery_r1.records import AnnotatedObject

#: Kinds of question that are about an object which the box shows.
_OF_OBJECTS = ("organ", "state", "location", "tool")


def merge_answers(lines: Sequence[LabelLine]) -> tuple[list[list[LabelLine]], list[ValidationIssue]]:
    """Lines grouped by question, in file order, with a warning for each question that has several right answers."""
    groups: dict[str, list[LabelLine]] = {}
    for line in lines:
        groups.setdefault(line.key, []).append(line)
    warnings = []
    for group in groups.values():
        if len(group) > 1:
            answers = ", ".join(line.answer for line in group)
            value = f"{shown(group[0].question, 80)}: {answers}"
            fix = "nothing to do: each counts as right"
            what = "question with several right answers"
            warnings.append(ValidationIssue(str(group[0].path), group[1].line, what, value, fix))
    return list(groups.values()), warnings


def derive_objects(lines: Sequence[LabelLine]) -> tuple[tuple[AnnotatedObject, ...], list[ValidationIssue]]:
    """Every object that the lines of a frame annotate with a box, the organ first and then in order of mention.

    Two lines that disagree on the box of one tool give a warning; the first box is kept. Of several boxes of a line
    each is an object.
    """
    organs: list[AnnotatedObject] = []
    tools: dict[str, list[dict]] = {}
    warnings: list[ValidationIssue] = []
    for line in lines:
        if line.kind not in _OF_OBJECTS or not line.boxes:
            continue
        if line.kind == "organ":
            organs = organs or [AnnotatedObject(line.answer, None, None, box) for box in line.boxes]
            continue
        name = line.answer if line.kind == "tool" else line.subject
        part, value = ("state", line.answer) if line.kind == "state" else ("location", line.answer)
        if line.kind == "tool":
            value = line.subject
        for box in line.boxes:
            first = _place(tools.setdefault(name, []), part, value, box, alone=len(line.boxes) == 1)
            if first is not None:
                what, fix = f"two boxes for {name}", "the first is used for the object; each question keeps its own"
                found = f"{list(box)} here, {list(first)} before (0-based)"
                warnings.append(ValidationIssue(str(line.path), line.line, what, found, fix))
    objects = [
        AnnotatedObject(name, seen.get("state"), seen.get("location"), seen["box"])
        for name, instances in tools.items()
        for seen in instances
    ]
    return (*organs, *objects), warnings


def _place(instances: list[dict], part: str, value: str, box: Box, *, alone: bool) -> Box | None:
    """Add a state or a location to the instance of a tool with the same box, else to one that lacks it.

    Returns:
        The box of the latter, which is another one.
    """
    for seen in instances:
        if seen["box"] == box and seen.setdefault(part, value) == value:
            return None
    for seen in instances if alone else ():
        if part not in seen:
            seen[part] = value
            return seen["box"]
    instances.append({"box": box, part: value})
    return None
