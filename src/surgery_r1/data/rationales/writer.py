"""Reasoning for CoT rows: the ``RationaleWriter`` protocol and the template writer that the default build uses.

A writer sees only annotations, never pixels or other people's servers, so hospital frames stay where they are.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from surgery_r1 import vocab
from surgery_r1.geometry import Box, LocationRule, quadrant
from surgery_r1.records import AnnotatedObject, Frame, Sample


@dataclass(frozen=True, slots=True)
class RationaleRequest:
    """One reasoning to write.

    Attributes:
        number: which of the rationales of this question, from 0.
        attempt: how often it has been rejected before.
        rejected: the checks that the last attempt failed.
        seed: of the dataset; with the sample's id it seeds what is drawn, so that order never matters.
        image: the frame's image; None where a writer does without.
    """

    sample: Sample
    frame: Frame
    number: int = 0
    attempt: int = 0
    rejected: tuple[str, ...] = ()
    seed: int = 0
    image: Path | None = None


class RationaleWriter(Protocol):
    """Writes the reasoning of one question as plain text: no tags, no coordinates.

    Attributes:
        name: as rows and the manifest have it.
        workers: frames that it can be asked about at a time.
    """

    name: str
    workers: int

    def write(self, task: RationaleRequest) -> Draft:
        """Reasoning that leads to the sample's answer. Called from several threads where ``workers`` > 1."""
        ...

    def stop(self) -> None:
        """Begin nothing new: the build is over. ``write`` may raise from then on."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it, beside its name."""
        ...


@dataclass(frozen=True, slots=True)
class Draft:
    """What a writer wrote.

    Attributes:
        text: the reasoning; empty when there is none.
        answer: the answer that the writer gives after it; None where the reasoning says it itself.
        fault: why it cannot be used, known before any check (such as ``cut_off``).
    """

    text: str
    answer: str | None = None
    fault: str | None = None


#: What a state looks like, in words that are no class names.
_SEEN: dict[str, str] = {
    "Idle": "at rest",
    "Grasping": "gripping",
    "Retraction": "pulling tissue aside",
    "Tissue_Manipulation": "moving tissue",
    "Tool_Manipulation": "moving a tool",
    "Cutting": "making a cut",
    "Cauterization": "burning tissue",
    "Suction": "drawing up fluid",
    "Looping": "winding a thread",
    "Suturing": "stitching tissue",
    "Clipping": "placing a clip",
    "Staple": "setting staples",
    "Ultrasound_Sensing": "scanning tissue",
}


class TemplateWriter:
    """One short sentence: what is seen, where, and why that gives the answer. Two templates for each kind (ours).

    Questions of a kind of their own get a sentence that claims nothing but the answer.

    The first reasoning of a question draws one of the two, the second is the other one; there is no third.

    The vocabulary is small and fixed on purpose: a model of a million parameters has to learn to say it. Nothing is
    claimed that no annotation supports: a place comes from a location label, or from the box where the measured rule
    is trusted; what a box has no rule for is not said.

    Args:
        rules: the trusted location rule of each source, None or missing where the labels follow none.
    """

    name = "template-1"
    workers = 1

    def __init__(self, rules: Mapping[str, LocationRule | None]) -> None:
        self._rules = rules

    def write(self, task: RationaleRequest) -> Draft:
        sample, frame = task.sample, task.frame
        drawn = random.Random(f"{task.seed}:{sample.id}").random() < 0.5
        first = drawn ^ bool((task.number + task.attempt) % 2)
        sentences = {"organ": _organ, "location": _location, "tool": _tool, "state": _state}
        write = sentences.get(sample.kind, _own_kind)
        return Draft(write(sample, frame, self._rules.get(sample.source))[0 if first else 1])

    def stop(self) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return {}


def _organ(sample: Sample, frame: Frame, rule: LocationRule | None) -> tuple[str, str]:
    organ = sample.answer
    tool = next((seen for seen in frame.objects if not seen.is_organ), None)
    where = f"with the {tool.name}{_in_place(tool, frame, rule)}" if tool else "in the frame"
    return (
        f"the {organ} is seen {where}, so the organ is {organ}",
        f"{where} the {organ} is seen, so the organ is {organ}",
    )


def _state(sample: Sample, frame: Frame, rule: LocationRule | None) -> tuple[str, str]:
    own = [seen for seen in frame.objects if seen.name == sample.subject]
    tool = next((seen for seen in own if seen.box_px == sample.box_px), own[0] if own else None)
    where = _in_place(tool, frame, rule) if tool else ""
    # Classes of other sets are said as they are.
    seen = _SEEN.get(sample.answer, f"in the state {sample.answer}")
    return (
        f"the {sample.subject}{where} is seen {seen}, so its state is {sample.answer}",
        f"{where.strip() or 'in the frame'} the {sample.subject} is {seen}, so its state is {sample.answer}",
    )


def _location(sample: Sample, frame: Frame, rule: LocationRule | None) -> tuple[str, str]:
    tool, answer = sample.subject, sample.answer
    where = f"in the {answer} part of the frame"
    seen = _quadrant(sample.box_px, frame, rule) if rule is not None and sample.box_px is not None else None
    if rule is not None and seen == answer and answer in vocab.LOCATIONS:
        side, level = answer.split("-")
        # With a flipped rule "top" is the lower half of the picture: say what is seen, then what it is called.
        height = "above" if (level == "top") == (rule.y == "normal") else "below"
        organ = next((seen.name for seen in frame.objects if seen.is_organ), "organ")
        where = f"{side} of and {height} the {'' if rule.reference == 'image' else f'{organ} '}center"
    return f"the {tool} is seen {where}, so it is {answer}", f"{where} the {tool} is seen, so it is {answer}"


def _tool(sample: Sample, frame: Frame, _: LocationRule | None) -> tuple[str, str]:
    own = [seen for seen in frame.objects if seen.name == sample.answer and seen.box_px == sample.box_px]
    state = next((seen.state for seen in own if seen.state), None)
    seen = f"the {sample.answer} is seen" + (f" {_SEEN[state]}" if state in _SEEN else "")
    where, claim = f"in the {sample.subject}", f"so the tool is {sample.answer}"
    return f"{where} {seen}, {claim}", f"{seen} {where}, {claim}"


def _own_kind(sample: Sample, frame: Frame, _: LocationRule | None) -> tuple[str, str]:
    """What is asked about and the answer: annotations of other kinds of question say nothing of why."""
    about = vocab.spoken(sample.kind) + (f" of {sample.subject}" if sample.subject else "")
    return (
        f"the frame is looked at for the {about}, and the answer is {sample.answer}",
        f"as to the {about}, the frame is looked at and the answer is {sample.answer}",
    )


def _in_place(seen: AnnotatedObject, frame: Frame, rule: LocationRule | None) -> str:
    place = seen.location
    if place is None and rule is not None:
        place = _quadrant(seen.box_px, frame, rule)
    return f" in the {place}" if place else ""


def _quadrant(box: Box, frame: Frame, rule: LocationRule) -> str | None:
    return quadrant(box, rule, frame.width, frame.height, frame.organ_box)
