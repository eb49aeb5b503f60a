"""What a model that was not trained here is asked, and the JSON that it replies with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surgery_r1.codec import View
from surgery_r1.evaluate.native.boxes import NativeBoxes
from surgery_r1.evaluate.prediction_lines import four_numbers
from surgery_r1.geometry import Box, is_box

#: Bumped whenever a word below changes; recorded by predictions.
NATIVE_VERSION = "1"

#: Keys of a reply: the one that is asked for (as Qwen-VL models write it), then others that models are known to write.
_ANSWER = ("label", "answer")
_BOX = ("bbox_2d", "bbox", "box_2d", "box", "bounding_box")
_RATIONALE = ("reasoning", "rationale", "thought")

#: Longest reply that is searched for JSON, in characters, and the places in it that are tried.
_LONGEST, _TRIES = 20_000, 1_000


@dataclass(frozen=True, slots=True)
class NativePrompt:
    """What is asked of one frame, and what may be replied.

    Attributes:
        question: its words.
        answers: to choose from.
        boxes: how the box is written; None in sets without boxes.
        reasoning: ask for a rationale first.
    """

    question: str
    answers: tuple[str, ...]
    boxes: NativeBoxes | None
    reasoning: bool

    def text(self, view: View) -> str:
        """What follows the image.

        >>> NativePrompt("Where is suction located?", ("left-top", "right-top"), None, False).text(View(4, 3, 4, 3))
        'Where is suction located?\\nAnswers: left-top, right-top.\\nReply with one JSON object: {"label": "answer"}'
        """
        parts = ['"reasoning": "what you see, in one sentence"'] if self.reasoning else []
        parts.append('"label": "answer"')
        lines = [self.question.strip(), f"Answers: {', '.join(self.answers)}."]
        if self.boxes is not None:
            parts.append('"bbox_2d": box')
            lines.append(f"The box holds what shows the answer: {self.boxes.words(view)}.")
        return "\n".join([*lines, f"Reply with one JSON object: {{{', '.join(parts)}}}"])

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a reply."""
        parts: dict[str, Any] = {"reasoning": {"type": "string", "maxLength": 600}} if self.reasoning else {}
        parts["label"] = {"type": "string", "enum": list(self.answers)}
        if self.boxes is not None:
            number = {"type": "integer" if self.boxes.whole else "number"}
            parts["bbox_2d"] = {"type": "array", "items": number, "minItems": 4, "maxItems": 4}
        return {"type": "object", "properties": parts, "required": list(parts), "additionalProperties": False}

    def reply(self, answer: str, box_px: Box | None, rationale: str | None, view: View) -> str:
        """The reply of an example: what the model would write if it knew."""
        found: dict[str, Any] = {"reasoning": rationale} if self.reasoning else {}
        found["label"] = answer
        if self.boxes is not None and box_px is not None:
            found["bbox_2d"] = self.boxes.from_px(box_px, view)
        return json.dumps(found)


@dataclass(frozen=True, slots=True)
class NativeReply:
    """What a reply held, in source terms; what is absent or unusable is None, and ``problems`` says why."""

    answer: str | None = None
    box_px: Box | None = None
    rationale: str | None = None
    problems: tuple[str, ...] = ()


def read_native(text: str, prompt: NativePrompt, view: View) -> NativeReply:
    """Read a reply; never raises on any string.

    Words and code fences around the JSON are passed over, as is what stood between ``<think>`` and ``</think>``. Where
    several objects differ in a part, none is taken: writing several answers cannot win.

    >>> prompt = NativePrompt("?", ("Idle", "Tissue_Manipulation"), NativeBoxes("norm1000"), False)
    >>> read_native('[{"bbox_2d": [0, 0, 500, 500], "label": "idle"}]', prompt, View(100, 80, 0, 0))
    NativeReply(answer='Idle', box_px=(0.0, 0.0, 50.0, 40.0), rationale=None, problems=('respelled',))
    """
    thought, text = _without_thought(text)
    if not text.strip():
        return NativeReply(rationale=thought, problems=("empty",))
    objects = [found for found in _objects(text[:_LONGEST]) if found.keys() & {*_ANSWER, *_BOX}]
    if not objects:
        return NativeReply(rationale=thought, problems=("no_json",))
    problems: list[str] = []
    answer = _answer(_only(objects, _ANSWER, "answer", problems), prompt.answers, problems)
    box = None
    if prompt.boxes is not None:
        box = _box(_only(objects, _BOX, "box", problems), prompt.boxes, view, problems)
    rationale = _only(objects, _RATIONALE, "reasoning", []) if prompt.reasoning else None
    said = _writable(rationale.strip()) if isinstance(rationale, str) else ""
    return NativeReply(answer, box, said or thought, tuple(dict.fromkeys(problems)))


def _without_thought(text: str) -> tuple[str | None, str]:
    """What a reasoning model thought, and the rest of its reply; no rest where it never came to an end."""
    if _is_object(text):
        # A rationale in it may speak of tags.
        return None, text
    opened, closed, rest = text.partition("</think>")
    if closed:
        return opened.removeprefix("<think>").strip() or None, rest
    return (text.removeprefix("<think>").strip() or None, "") if text.startswith("<think>") else (None, text)


def _is_object(text: str) -> bool:
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects of a text, alone or in lists, in order."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    found: list[dict[str, Any]] = []
    at = 0
    for _ in range(_TRIES):
        starts = [place for mark in "{[" if (place := text.find(mark, at)) >= 0]
        if not starts:
            break
        try:
            value, at = decoder.raw_decode(text, min(starts))
        except (ValueError, RecursionError):
            at = min(starts) + 1
            continue
        found += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _only(objects: Sequence[dict[str, Any]], keys: Sequence[str], part: str, problems: list[str]) -> Any:
    """The value of a part, None where it is absent or objects differ in it."""
    values = [found[key] for found in objects for key in keys if found.get(key) not in (None, "", [])]
    if not values:
        problems.append(f"no_{part}")
        return None
    if any(value != values[0] for value in values):
        problems.append({"answer": "several_answers", "box": "several_boxes"}.get(part, ""))
        return None
    return values[0]


def _answer(value: Any, answers: Sequence[str], problems: list[str]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        problems.append("empty_answer")
        return None
    value = _writable(value.strip())
    if len(value) > 200:
        problems.append("long_answer")
        return None
    alike = [answer for answer in answers if _plain(answer) == _plain(value)]
    if value in answers or len(alike) != 1:
        return value
    problems.append("respelled")
    return alike[0]


def _writable(text: str) -> str:
    """The text without halves of characters: escapes of JSON can make them, no file can hold them."""
    return text.encode("utf-8", "replace").decode()


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").rstrip(".").split())


def _box(value: Any, boxes: NativeBoxes, view: View, problems: list[str]) -> Box | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    numbers = four_numbers(value)
    if numbers is None or max(map(abs, numbers)) > 1e7:
        problems.append("bad_box")
        return None
    box = boxes.to_px(numbers, view)
    if not is_box(box):
        problems.append("inverted_box")
        return None
    return box
