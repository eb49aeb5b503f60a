"""The score record: what is known of one question once its prediction was compared with the truth."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Self

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import Box
from surgery_r1.matching import IOU_RIGHT, Referent
from surgery_r1.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRecord(Record):
    """One question and its prediction: a line of ``scores.jsonl``, whose keys are these fields in this order.

    Fields with a default are those that no metric needs; a line may lack them and then says nothing about them.

    Attributes:
        id, kind, source, sequence, frame, question, subject: of the sample, see :class:`surgery_r1.records.Sample`.
        answer_true: the accepted answer that the prediction comes closest to.
        answer: the answer given; None where none was given or could be read.
        answer_right: whether it is an accepted one.
        outside_classes: whether it is none of the set's own classes: a miss, never a class of its own.
        rare: whether ``answer_true`` is of the rare half of the classes, by training questions.
        iou: true IoU with ``box_true_px``, in [0, 1]; 0 without a box, None where the truth has none.
        iou_published: the number that the field prints as IoU, kept in [0, 1]; see :mod:`.metrics`.
        joint: the IoU where the answer is right, else 0; in [0, 1].
        joint_at_iou50: right answer and an IoU of at least 0.5.
        coherence: ``coherent``, ``right answer, wrong box``, ``wrong answer, right box`` or ``both wrong``.
        referent: what the box refers to, a value of :class:`surgery_r1.matching.Referent`; None where that means
            nothing (the frame has no other object, or the truth no box).
        answer_fits_box: whether the answer fits the model's own box, see :mod:`.agreement`; None where that is unknown.
        conclusion: the answer that the rationale ends at; None where it ends at none, or there is no rationale.
        conclusion_right: whether that is an accepted answer.
        conclusion_fits_box: as ``answer_fits_box``, of the conclusion; None without a rationale.
        facts: objects, states and places that the rationale names; None without one.
        unsupported: checks of rationales that it fails: it names what is not annotated.
        box_px: the predicted box, xyxy in source pixels; None where none was given or could be read.
        box_true_px: the accepted box that belongs to ``answer_true``, xyxy in source pixels; None in boxless sets.
        width, height: size of the frame in pixels.
        reasoning: the model's rationale, cut to 2,000 characters; None where there was none.
        problems: what was wrong with the form of the prediction, see :mod:`surgery_r1.codec`.
        missing: whether the prediction file has no line for this question.
        line: number of that line, from 1; None where there is none.
        text: the raw text, cut to 2,000 characters. Only where no answer or no box could be read in it.
        text_length: characters of the whole text. Only where ``text`` is given.
    """

    id: str
    kind: str = ""
    source: str
    sequence: str
    frame: str
    question: str = ""
    subject: str = ""
    answer_true: str
    answer: str | None
    answer_right: bool
    outside_classes: bool = False
    rare: bool = False
    iou: float | None
    iou_published: float | None
    joint: float | None
    joint_at_iou50: bool | None
    coherence: str | None = None
    referent: str | None = None
    answer_fits_box: bool | None = None
    conclusion: str | None = None
    conclusion_right: bool = False
    conclusion_fits_box: bool | None = None
    facts: int | None = None
    unsupported: tuple[str, ...] = ()
    box_px: Box | None
    box_true_px: Box | None = None
    width: int = 0
    height: int = 0
    reasoning: str | None = None
    problems: tuple[str, ...] = ()
    missing: bool = False
    line: int | None = None
    text: str | None = None
    text_length: int | None = None

    _optional: ClassVar[frozenset[str]] = frozenset({"text", "text_length"})

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str | None = None) -> Self:
        """Read a line of ``scores.jsonl``; keys that are not fields are ignored.

        Args:
            data: the line as parsed JSON.
            where: ``path:line``, for the error.

        Raises:
            SurgeryR1Error: when a field is absent without which no metric can be computed.
        """
        absent = [f.name for f in fields(cls) if f.default is MISSING and f.name not in data]
        if absent:
            raise SurgeryR1Error(f"a score line without {', '.join(absent)}", where=where, fix="score again")
        known: dict[str, Any] = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        for name, value in known.items():
            known[name] = tuple(value) if isinstance(value, list) else value
        return cls(**known)

    @property
    def frame_id(self) -> str:
        """Key of the frame in ``frames.jsonl``."""
        return f"{self.source}/{self.sequence}/{self.frame}"

    @property
    def tool(self) -> str:
        """The tool that the question is about; empty for one about something else."""
        if self.kind in ("state", "location"):
            return self.subject
        return self.answer_true if self.kind == "tool" else ""

    @property
    def wrong_referent(self) -> bool:
        """Whether the box refers to another object than the one asked about."""
        return self.referent is not None and Referent(self.referent).wrong

    @property
    def contradicts(self) -> bool:
        """Whether the rationale ends at another answer than the one given."""
        return None not in (self.conclusion, self.answer) and self.conclusion != self.answer

    @property
    def right_parts(self) -> str:
        """What is right: the answer that the rationale ends at, the answer given, the box (an IoU of at least .5).

        Such as ``rationale + answer``; ``none`` where nothing is.
        """
        box = self.iou is not None and self.iou >= IOU_RIGHT
        right = {"rationale": self.conclusion_right, "answer": self.answer_right, "box": box}
        return " + ".join(name for name, is_right in right.items() if is_right) or "none"

    @property
    def failed(self) -> bool:
        """Whether what was asked for, the answer and (but in sets without boxes) the box, was not given or not read."""
        return self.answer is None or (self.box_px is None and self.iou is not None)
