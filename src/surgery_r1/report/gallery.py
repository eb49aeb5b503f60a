"""The gallery's data: every question with every system's answer and box, small enough for one page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from surgery_r1.report.inputs import Group

if TYPE_CHECKING:
    from surgery_r1.evaluate.score_record import ScoreRecord

#: Questions that a page can hold; failures are taken first.
MOST_QUESTIONS = 8000

_LONGEST_REASONING = 500
_LONGEST_TEXT = 300

#: Order in which the outcomes take turns, so that the first cards show some of each.
_OUTCOMES = ("right answer, wrong box", "coherent", "both wrong", "wrong answer, right box")


@dataclass(slots=True)
class Gallery:
    """What the page's script reads.

    Attributes:
        items: one question each, see :func:`_item`, in the order they are shown.
        left_out: questions for which there was no room.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0


def gallery(groups: Sequence[Group], most: int = MOST_QUESTIONS) -> Gallery:
    """Questions of all groups: the outcomes of the last system take turns, then what is left in file order.

    Where there are more than ``most``, the share of each group is cut from its end after failures were put first.
    """
    result = Gallery()
    total = sum(len(group.scored[-1].lines) for group in groups)
    for number, group in enumerate(groups):
        last = group.scored[-1].lines
        room = len(last) if total <= most else max(1, most * len(last) // total)
        order = list(range(len(last)))
        if room < len(last):
            order.sort(key=lambda i: _went_right(last[i]))
            result.left_out += len(last) - room
        by_id = [{line.id: line for line in scored.lines} for scored in group.scored]
        for i in _take_turns(sorted(order[:room]), [line.coherence or "" for line in last]):
            lines = [lookup.get(last[i].id) for lookup in by_id]
            result.items.append(_item(number, last[i], lines))
    return result


def _went_right(line: ScoreRecord) -> bool:
    """Right answer and box; in sets without boxes, right answer."""
    return line.answer_right if line.joint_at_iou50 is None else line.joint_at_iou50


def _take_turns(order: Sequence[int], outcomes: Sequence[str]) -> list[int]:
    """``order`` with the outcomes alternating for as long as there are several, each spread over all the frames."""
    names = dict.fromkeys([*_OUTCOMES, *(outcomes[i] for i in order)])
    queues = [_spread([i for i in order if outcomes[i] == outcome]) for outcome in names]
    return [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]


def _spread(indices: Sequence[int], steps: int = 7) -> list[int]:
    """Every seventh first, then the ones between: neighbouring questions look alike."""
    return [i for start in range(steps) for i in indices[start::steps]]


def _item(group: int, line: ScoreRecord, lines: Iterable[ScoreRecord | None]) -> dict[str, Any]:
    return {
        "id": line.id,
        "group": group,
        "kind": line.kind,
        "tool": line.tool,
        "sequence": line.sequence,
        "frame": line.frame_id,
        "question": line.question,
        "size": [line.width, line.height],
        "by": [None if one is None else _prediction(one) for one in lines],
    }


def _prediction(line: ScoreRecord) -> dict[str, Any]:
    """A system's prediction: the outcome words are the record's own; nothing is computed again here."""
    data: dict[str, Any] = {
        "true": line.answer_true,
        "trueBox": _rounded(line.box_true_px),
        "answer": _cut(line.answer, 80),
        "box": _rounded(line.box_px),
        "iou": None if line.iou is None else round(line.iou, 3),
        "right": line.answer_right,
        "outcome": line.coherence,
        "rightParts": line.right_parts if line.reasoning else None,
        "wrongReferent": line.wrong_referent,
    }
    if line.reasoning:
        data["reasoning"] = _cut(line.reasoning, _LONGEST_REASONING)
    if line.contradicts:
        data["contradicts"] = _cut(line.conclusion, 80)
    if line.conclusion_fits_box is False:
        data["rationaleOffBox"] = True
    if line.answer_fits_box is False:
        data["answerOffBox"] = True
    if line.failed:
        data["problems"] = ", ".join(line.problems)
        if line.text:
            data["text"] = _cut(line.text, _LONGEST_TEXT)
    return data


def _rounded(box: Sequence[float] | None) -> list[float] | None:
    # Boxes far outside any frame are drawn nowhere; kept in a range that every browser can draw.
    return None if box is None else [round(min(max(value, -1e6), 1e6), 1) for value in box]


def _cut(text: str | None, length: int) -> str | None:
    return text if text is None or len(text) <= length else text[: length - 1] + "…"
