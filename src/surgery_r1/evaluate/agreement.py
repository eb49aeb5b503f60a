"""Whether rationale, answer and box of a reply agree with each other and with the annotations (ours).

Read from what is in ``predictions.jsonl``, with the checks that training rationales must pass. Nothing here asks a
model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from surgery_r1 import vocab
from surgery_r1.codec import Prediction
from surgery_r1.data.rationales.checks import CheckContext, SourceWords
from surgery_r1.data.rationales.claims import Claims, read_claims
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.geometry import Box, LocationRule, iou, quadrant
from surgery_r1.matching import Asked
from surgery_r1.records import AnnotatedObject, Frame, Sample

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset

#: Key of ``agreement`` in ``metrics.json`` -> metric.
_RATES = {
    "rationale_answer": "rationale_answer",
    "rationale_contradicts_answer": "rationale_contradicts",
    "rationale_right": "rationale_right",
    "rationale_unsupported": "rationale_unsupported",
    "rationale_box": "rationale_box",
    "answer_box": "answer_box",
}


class Annotated(Protocol):
    """A frame, as both :class:`surgery_r1.records.Frame` and a reward's truth hold it."""

    @property
    def width(self) -> int:
        """Width in pixels."""
        ...

    @property
    def height(self) -> int:
        """Height in pixels."""
        ...

    @property
    def objects(self) -> tuple[AnnotatedObject, ...]:
        """Every annotated object."""
        ...

    @property
    def organ_box(self) -> Box | None:
        """Box of the organ in pixels, where annotated."""
        ...


class AgreementReader:
    """Reads rationales against the annotations of their frames, by the class names and rules of a dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self._words = {source: SourceWords(answers) for source, answers in dataset.answers.items()}
        self._rules = {source: dataset.location_rule_of(source) for source in dataset.answers}

    def rule(self, sample: Sample) -> LocationRule | None:
        """The location rule of the sample's source, None where its labels follow none."""
        return self._rules[sample.source]

    def claims(self, rationale: str, sample: Sample, frame: Frame) -> Claims:
        """What a rationale says about a question."""
        return read_claims(rationale, CheckContext(sample, frame, self._words[sample.source], self.rule(sample)))


def answer_fits_box(reading: Prediction, asked: Asked, seen: Annotated, rule: LocationRule | None) -> bool | None:
    """Whether the answer fits the model's own box, right or wrong.

    A place fits if it is the quadrant of the box under the measured location rule. A state, tool or organ fits if it
    is that of the annotated object which the box overlaps most. A reply without an answer, or whose box touches
    nothing, does not fit.

    Returns:
        None where the truth does not let it be told: no box in the set, no trusted rule, a kind of its own.
    """
    if asked.accepted[0][1] is None or asked.kind not in vocab.KINDS:
        return None
    if asked.kind == "location":
        if rule is None or (rule.reference == "organ" and seen.organ_box is None):
            return None
        if reading.box_px is None:
            return False
        return reading.answer == quadrant(reading.box_px, rule, seen.width, seen.height, seen.organ_box)
    if reading.box_px is None:
        return False
    overlaps = [(iou(reading.box_px, one.box_px), -i) for i, one in enumerate(seen.objects)]
    best, index = max(overlaps, default=(0.0, 0))
    if best == 0.0:
        return False
    shown = seen.objects[-index]
    return reading.answer == (shown.state if asked.kind == "state" else shown.name)


def agreement(
    lines: Sequence[ScoreRecord], metrics: Mapping[str, Any], by_kind: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """``agreement`` of ``metrics.json``: rates in [0, 1] over the replies with a rationale, all kinds and each alone.

    Args:
        metrics: of all lines, see :func:`surgery_r1.evaluate.metrics.summarise`.
        by_kind: of those of each question kind.

    Returns:
        ``rationale_answer`` (the rationale ends at the answer given), ``rationale_contradicts_answer`` (at another
        one), ``rationale_right`` (at an accepted one), ``rationale_unsupported`` (names what is not annotated),
        ``rationale_box`` (ends at what fits the model's own box), ``answer_box`` (the answer fits that box; over
        ``n_answer_box`` questions), ``facts_per_rationale`` (what it names on average), ``n`` (rationales),
        ``without_rationale`` (questions that have none), and the same ``by_kind``. None where there is nothing to
        count.
    """
    of_kind: dict[str, list[ScoreRecord]] = {kind: [] for kind in by_kind}
    for line in lines:
        of_kind[line.kind].append(line)
    kinds = {kind: _rates(members, by_kind[kind]) for kind, members in of_kind.items()}
    return _rates(lines, metrics) | {"by_kind": kinds}


def facts_per_rationale(lines: Sequence[ScoreRecord]) -> float | None:
    """How many objects, states and places a rationale names on average; None without any rationale."""
    facts = [line.facts for line in lines if line.facts is not None]
    return sum(facts) / len(facts) if facts else None


def _rates(lines: Sequence[ScoreRecord], metrics: Mapping[str, Any]) -> dict[str, Any]:
    count = sum(line.facts is not None for line in lines)
    return {
        **{key: metrics[metric] for key, metric in _RATES.items()},
        "facts_per_rationale": facts_per_rationale(lines),
        "n": count,
        "n_answer_box": sum(line.answer_fits_box is not None for line in lines),
        "without_rationale": len(lines) - count,
    }
