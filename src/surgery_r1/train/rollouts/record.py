"""A group of rollouts as a record: the question, and of each reply what it was paid for and what is wrong with it.

Replies are read by the codec, compared and judged as rewards and evaluation do, so that a mark here means what it means
there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from surgery_r1 import codec
from surgery_r1.data.rationales.checks import SourceWords
from surgery_r1.data.rationales.claims import conclusion
from surgery_r1.evaluate.agreement import answer_fits_box
from surgery_r1.geometry import Box
from surgery_r1.matching import IOU_RIGHT, match, referent
from surgery_r1.rewards import Truth

#: What can be wrong with a reply, and what it means.
MARKS: dict[str, str] = {
    "disagreement": "the rationale ends at another answer than the one given, or the answer does not fit its own box",
    "wrong referent": "another annotated object fits the box better than the one asked about",
    "format lost": "not exactly the parts asked for, each once and in order",
    "right answer, wrong box": f"the answer is accepted, the box has an IoU below {IOU_RIGHT:g}",
}

_LONGEST_TEXT = 4000


def group_record(
    step: int,
    shown: Mapping[str, str],
    truth: Truth,
    texts: Sequence[str],
    rewards: Mapping[str, Sequence[float]],
    advantages: Sequence[float],
    weights: Mapping[str, float],
) -> dict[str, Any]:
    """The line of a group.

    Args:
        step: optimiser step that the group is for, from 1.
        shown: ``question``, ``frame`` (its id) and ``flip`` (how it was mirrored; boxes are in the mirrored frame).
        truth: of the prompt.
        texts: the completions, G of them.
        rewards: part -> G values in [0, 1]; NaN where it does not apply.
        advantages: G of them.
        weights: part -> weight.

    Returns:
        JSON-ready; boxes are xyxy in source pixels, ``reward`` is the weighted mean over the parts that apply, in
        [0, 1], and ``rewards_span`` its lowest, mean and highest of the group; ``marks`` are keys of :data:`MARKS`, and
        ``all_equal`` says that no reward part differs in the group.
    """
    replies = []
    for i, text in enumerate(texts):
        parts = {name: _number(values[i]) for name, values in rewards.items()}
        paid = {"rewards": parts, "reward": _mean(parts, weights), "advantage": _number(advantages[i])}
        replies.append({"text": text[:_LONGEST_TEXT], **paid, **_reading(text, truth)})
    total = [reply["reward"] for reply in replies]
    return {
        "step": step,
        "id": truth.sample_id,
        **shown,
        "kind": truth.kind,
        "subject": truth.subject,
        "width": truth.width,
        "height": truth.height,
        "true": [{"answer": answer, "box_px": _box(box)} for answer, box in truth.accepted],
        "objects": [{"name": seen.name, "state": seen.state, "box_px": _box(seen.box_px)} for seen in truth.objects],
        "all_equal": all(reply["rewards"] == replies[0]["rewards"] for reply in replies),
        "rewards_span": [min(total), round(math.fsum(total) / len(total), 4), max(total)],
        "replies": replies,
    }


def _reading(text: str, truth: Truth) -> dict[str, Any]:
    """What a reply says, and its marks."""
    asked = truth.parts
    read = codec.read_reply(text, truth.box_space, truth.view)
    matched = match(read, truth.accepted)
    refers = referent(read.box_px, truth, truth.objects)
    ends_at = _conclusion(read.rationale, truth)
    both = read.answer is not None and read.box_px is not None
    fits = answer_fits_box(read, truth, truth, truth.usable_rule) if both else None
    contradicts = None not in (ends_at, read.answer) and ends_at != read.answer
    wrong_box = matched.iou is not None and matched.iou < IOU_RIGHT
    found = {
        "disagreement": contradicts or fits is False,
        "wrong referent": refers is not None and refers.wrong,
        "format lost": not codec.parse(text).well_formed(**asked),
        "right answer, wrong box": asked["box"] and matched.answer_right and wrong_box,
    }
    return {
        "answer": read.answer,
        "answer_right": matched.answer_right,
        "box_px": _box(read.box_px),
        "iou": _number(matched.iou),
        "conclusion": ends_at,
        "answer_fits_box": fits,
        "referent": refers,
        "problems": [*read.problems] if found["format lost"] else [],
        "marks": [mark for mark in MARKS if found[mark]],
    }


def _conclusion(rationale: str | None, truth: Truth) -> str | None:
    if rationale is None or truth.kind not in dict(truth.classes):
        return None
    return conclusion(rationale, truth.kind, _words(truth.classes), truth.trusted_rule)


@functools.lru_cache(maxsize=64)
def _words(classes: tuple[tuple[str, tuple[str, ...]], ...]) -> SourceWords:
    return SourceWords(dict(classes))


def _mean(parts: Mapping[str, float | None], weights: Mapping[str, float]) -> float:
    """The weighted mean over the parts that apply, so that questions of all kinds compare; 0 where none does."""
    applying = {name: value for name, value in parts.items() if value is not None}
    whole = math.fsum(weights[name] for name in applying)
    return round(math.fsum(weights[name] * value for name, value in applying.items()) / whole, 4) if whole else 0.0


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _box(box: Box | None) -> list[float] | None:
    return None if box is None else [round(value, 1) for value in box]
