"""What a reply is judged against: everything a reward needs, as one value that travels as one JSON string."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

from surgery_r1 import geometry, prompts
from surgery_r1._util.checked import WrongData, checked
from surgery_r1._util.files import dump_json
from surgery_r1.codec import BOX_SPACES, View
from surgery_r1.data.location_rule import TRUSTED_AGREEMENT
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import Box, LocationRule
from surgery_r1.records import TASKS, AnnotatedObject, Frame, Sample, check_choice

#: Below this share of labels that follow the measured location rule, quadrants and boxes are not compared.
MIN_AGREEMENT = TRUSTED_AGREEMENT


@dataclass(frozen=True, slots=True)
class Truth:
    """The truth of one prompt: the question's answers and boxes, its frame, and how the model was asked.

    Attributes:
        sample_id: id of the sample; seeds the random control.
        task, reasoning: what the prompt asked for, see :func:`surgery_r1.prompts.parts`.
        kind, subject: of the question, see :func:`surgery_r1.vocab.classify_question`.
        accepted: every right (answer, box) pair, boxes in source pixels; None in sets without boxes, where no task may
            ask for one.
        width, height: size of the source frame in pixels.
        objects: every annotated object of the frame.
        location_rule: name of the measured rule (:data:`surgery_r1.geometry.LOCATION_RULES`), or None if not measured.
        agreement: share in [0, 1] of the location labels that follow the rule, or None if not measured.
        view, box_space: how the model saw the frame and in which units it writes boxes.
        classes: (question kind, its answers) of the sample's source, by which rationales are read; empty where they are
            not known.

    Raises:
        ValueError: for an unknown task, box space or rule, a bad or missing box, or no accepted pair.
    """

    sample_id: str
    task: str
    reasoning: bool
    kind: str
    subject: str
    accepted: tuple[tuple[str, Box | None], ...]
    width: int
    height: int
    objects: tuple[AnnotatedObject, ...]
    location_rule: str | None
    agreement: float | None
    view: View
    box_space: str
    classes: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASKS)
        check_choice("box_space", self.box_space, tuple(BOX_SPACES))
        if not self.accepted:
            raise ValueError("no accepted answer")
        for _, box in self.accepted:
            if box is None and prompts.parts(self.task, self.reasoning)["box"]:
                raise ValueError(f"task={self.task!r} asks for a box, but an accepted box is None")
            if box is not None and not geometry.is_box(box):
                raise ValueError(f"accepted box {list(box)} is not a box with x2 > x1 and y2 > y1")
        if self.location_rule is not None:
            geometry.location_rule(self.location_rule)

    @classmethod
    def from_sample(
        cls,
        sample: Sample,
        frame: Frame | None,
        *,
        view: View,
        box_space: str,
        rule: str | None,
        agreement: float | None,
        task: str = "cot",
        reasoning: bool = True,
        classes: Mapping[str, Sequence[str]] | None = None,
    ) -> Truth:
        """The truth of a sample under one prompt.

        Args:
            frame: the sample's frame, or None where its other objects are unknown.
            rule, agreement: ``location_rule`` of the dataset's manifest.
            classes: question kind -> answers of the sample's source, see
                :attr:`surgery_r1.data.dataset.Dataset.answers`; None where they are not known.
        """
        return cls(
            sample_id=sample.id,
            task=prompts.task_without_box(task, has_box=sample.box_px is not None),
            reasoning=reasoning,
            kind=sample.kind,
            subject=sample.subject,
            accepted=sample.accepted,
            width=sample.width,
            height=sample.height,
            objects=() if frame is None else frame.objects,
            location_rule=rule,
            agreement=agreement,
            view=view,
            box_space=box_space,
            classes=tuple((kind, tuple(names)) for kind, names in (classes or {}).items()),
        )

    @property
    def parts(self) -> dict[str, bool]:
        """Which of reasoning, answer and box the reply must have."""
        return prompts.parts(self.task, self.reasoning)

    @property
    def organ_box(self) -> Box | None:
        """Box of the organ in source pixels, where annotated."""
        return next((item.box_px for item in self.objects if item.is_organ), None)

    @property
    def trusted_rule(self) -> LocationRule | None:
        """The location rule where it was measured and enough labels follow it."""
        if self.location_rule is None or self.agreement is None or not self.agreement >= MIN_AGREEMENT:
            return None
        return geometry.location_rule(self.location_rule)

    @property
    def usable_rule(self) -> LocationRule | None:
        """:attr:`trusted_rule` where it can be applied: the organ is known if it needs one."""
        rule = self.trusted_rule
        return None if rule is not None and rule.reference == "organ" and self.organ_box is None else rule

    def to_json(self) -> str:
        """One line of JSON: the ``truth`` column of a trainer's dataset, or verl's and EasyR1's ``ground_truth``."""
        data = {name: getattr(self, name) for name in self.__slots__}
        data["objects"] = [item.to_json() for item in self.objects]
        data["view"] = astuple(self.view)
        return dump_json(data)

    @classmethod
    def from_json(cls, text: str) -> Truth:
        """Read what :meth:`to_json` wrote.

        Raises:
            SurgeryR1Error: when it is not such a string.
        """
        try:
            data = json.loads(text)
            data["view"] = dict(zip((f.name for f in fields(View)), data["view"], strict=True))
            return checked(cls, data)
        except (TypeError, ValueError, KeyError, WrongData) as error:
            raise SurgeryR1Error(
                f"the truth column holds {str(text)[:60]!r}, which is not a truth ({error})",
                fix="write it with surgery_r1.rewards.Truth.to_json of this version",
            ) from None
