"""What can be said of a reply without the truth: whether its parts agree, and what its rationale names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from surgery_r1 import vocab
from surgery_r1.data.rationales.checks import SourceWords
from surgery_r1.data.rationales.claims import conclusion
from surgery_r1.data.rationales.phrases import Names, corners, place_classes, place_spans
from surgery_r1.geometry import Box, LocationRule, iou, quadrant
from surgery_r1.inference import Reply

#: The class names of EndoVis-VQLA: what models of this project answer.
WORDS = SourceWords({"organ": (vocab.ORGAN,), "state": vocab.STATES, "location": vocab.LOCATIONS, "tool": vocab.TOOLS})
#: Longer rationales are read up to here, as evaluation reads them.
_LONGEST = 4000
_SEEN = LocationRule("image", "normal")
FLAGS = ("rationale_answer", "answer_box", "rationale_box", "names_subject")


def agreement(reply: Reply, rule: LocationRule | None) -> dict[str, Any]:
    """Whether rationale, answer and box of a reply agree with each other; nothing here knows whether they are right.

    Args:
        rule: how places follow from boxes in the labels that the model was trained on; None where it is not known.

    Returns:
        ``conclusion`` (the answer that the rationale ends at), ``box_place`` (the quadrant of the box), and flags, None
        where there is nothing to compare: ``rationale_answer`` (the rationale ends at the answer given),
        ``answer_box`` and ``rationale_box`` (location questions: answer, and what the rationale ends at, are the
        quadrant of the box), ``names_subject`` (the rationale names what was asked about, and not only others).
        ``disagree`` lists flags that are false.
    """
    kind, subject = vocab.classify_question(reply.question)
    rationale = (reply.rationale or "")[:_LONGEST]
    ends_at = conclusion(rationale, kind, WORDS, rule) if kind and rationale else None
    place = None
    if reply.box_px is not None and rule is not None and reply.frame is not None:
        place = quadrant(reply.box_px, rule, *reply.frame.size, None)
    located = place if kind == "location" else None
    flags = {
        "rationale_answer": _same(ends_at, reply.answer),
        "answer_box": _same(reply.answer, located),
        "rationale_box": _same(ends_at, located),
        "names_subject": _names(rationale, kind, subject) if rationale and kind and subject else None,
    }
    disagree = [name for name in FLAGS if flags[name] is False]
    return {"conclusion": ends_at, "box_place": place, **flags, "disagree": disagree}


def _same(one: str | None, other: str | None) -> bool | None:
    return None if one is None or other is None else one == other


def _names(rationale: str, kind: str, subject: str) -> bool | None:
    """Whether a rationale names its subject and not only others like it; None where it names none: "it is Idle"."""
    if kind == "tool":
        named = [*place_classes(rationale), *corners(rationale)]
        return subject in named if named else None
    # Also by its last word alone: "the forceps".
    if next(Names([subject, subject.split("_")[-1]]).find(rationale), None) is not None:
        return True
    others = WORDS.answers["organ"] if kind == "organ" else WORDS.tools
    return None if next(others.find(rationale), None) is None else False


def spans(reply: Reply, rule: LocationRule | None) -> list[dict[str, Any]]:
    """What the rationale of a reply names, each with where it stands in the text and where to point in the frame.

    Returns:
        ``start``, ``end`` (characters), ``kind`` (``tool``, ``organ``, ``state``, ``place``, ``half``), ``name`` and
        ``box_px``: of places the part of the frame, of what was asked about or answered the reply's box, else None. In
        order, and never overlapping.
    """
    text = (reply.rationale or "")[:_LONGEST]
    shown, end = [], 0
    for span in sorted(_named(text, reply, rule), key=lambda one: (one["start"], -one["end"])):
        if span["start"] >= end:
            shown.append(span)
            end = span["end"]
    return shown


def _named(text: str, reply: Reply, rule: LocationRule | None) -> Iterator[dict[str, Any]]:
    _, subject = vocab.classify_question(reply.question)
    for kind, names in (("tool", WORDS.tools), ("organ", WORDS.answers["organ"]), ("state", WORDS.states)):
        for start, end, name in names.spans(text):
            own = name in (subject, reply.answer) and reply.box_px is not None
            box = list(reply.box_px) if own and reply.box_px is not None else None
            yield {"start": start, "end": end, "kind": kind, "name": name, "box_px": box}
    if reply.frame is None:
        return
    for start, end, how, names_of in place_spans(text):
        # A class means what labels mean by it, words mean what is seen.
        box = _part(names_of, rule if how == "class" else _SEEN, *reply.frame.size)
        kind = "half" if how == "half" and len(names_of) == 1 else "place"
        yield {"start": start, "end": end, "kind": kind, "name": "-".join(names_of), "box_px": box}


def _part(names: Sequence[str], rule: LocationRule | None, width: int, height: int) -> list[float] | None:
    """The part of a frame that a place means; None where that depends on what is not known here."""
    if rule is None or rule.reference != "image":
        return None
    sides = {side for name in names for side in name.split("-")}
    if rule.y == "flipped":
        sides = {{"top": "bottom", "bottom": "top"}.get(side, side) for side in sides}
    x1 = width / 2 if "right" in sides else 0
    x2 = width / 2 if "left" in sides else width
    y1 = height / 2 if "bottom" in sides else 0
    y2 = height / 2 if "top" in sides else height
    return [x1, y1, x2, y2]


def sampled(greedy: Reply, samples: Sequence[Reply]) -> dict[str, Any] | None:
    """How far sampled replies to a question agree with the greedy one; None without any.

    Returns:
        ``n``, ``answers`` (each with its ``count``, most frequent first), ``agree`` (share with the greedy answer),
        ``boxes_px``, and ``box_iou`` (mean IoU with the greedy box; a sample without a box has 0; None where the
        greedy reply has none).
    """
    if not samples:
        return None
    answers: dict[str | None, int] = {}
    for one in samples:
        answers[one.answer] = answers.get(one.answer, 0) + 1
    counted = sorted(answers.items(), key=lambda item: -item[1])
    boxes: list[Box | None] = [one.box_px for one in samples]
    overlap = sum(iou(greedy.box_px, box) for box in boxes) / len(boxes)
    agree = None if greedy.answer is None else answers.get(greedy.answer, 0) / len(samples)
    return {
        "n": len(samples),
        "answers": [{"answer": answer, "count": count} for answer, count in counted],
        "agree": agree,
        "boxes_px": [None if box is None else list(box) for box in boxes],
        "box_iou": None if greedy.box_px is None else overlap,
    }
