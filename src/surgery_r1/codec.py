"""The codec: the one place that renders targets and reads model text.

A reply is ``<think>reasoning</think><answer>left-top</answer><box>[x1, y1, x2, y2]</box>``; parts may be absent
(Visual-QA has the answer alone, Grounding-QA the box alone, reasoning can be off). Datasets never hold tags or model
coordinates: both are applied and removed here. Tags, prompts and box format of the paper are unknown; these are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from surgery_r1.geometry import Box, is_box

#: Bumped whenever rendering or reading changes; recorded by checkpoints and predictions.
CODEC_VERSION = "1"

#: Name of a box space -> units along each axis, or None where the unit is a pixel.
#: ``pixels``: of the resized image (Qwen2.5-VL); ``norm1000``: Qwen2-VL, Qwen3-VL; ``norm100``: the tiny model;
#: ``source``: pixels of the source frame, for systems that are not resized.
BOX_SPACES: dict[str, int | None] = {"pixels": None, "norm1000": 1000, "norm100": 100, "source": None}

_TAG = re.compile(r"<(/?)(think|answer|box)>")
_NUMBER = r"(-?[0-9]{1,7}(?:\.[0-9]{1,7})?)"
_BOX = re.compile(rf"\[ ?{_NUMBER}, ?{_NUMBER}, ?{_NUMBER}, ?{_NUMBER} ?\]")
_LONGEST_BOX = 80
_LONGEST_ANSWER = 200


@dataclass(frozen=True, slots=True)
class View:
    """How a model sees a frame: the source size and the resized size, both in pixels."""

    width: int
    height: int
    input_width: int
    input_height: int

    def units(self, space: str) -> tuple[float, float]:
        """Model units along x and y that the whole frame spans in ``space``.

        Raises:
            ValueError: for an unknown space.
        """
        if space not in BOX_SPACES:
            raise ValueError(f"unknown box space {space!r}; one of {sorted(BOX_SPACES)}")
        if space == "pixels":
            return self.input_width, self.input_height
        if space == "source":
            return self.width, self.height
        units = BOX_SPACES[space]
        assert units is not None
        return units, units


def to_model(box_px: Sequence[float], space: str, view: View) -> tuple[int, int, int, int]:
    """Source pixels to whole model units, each corner within half a unit.

    A box thinner than a unit is widened to one, because a reply must hold a box with x2 > x1 and y2 > y1; its corners
    are then within one unit.

    >>> to_model((0, 0, 640, 512), "norm1000", View(1280, 1024, 1120, 896))
    (0, 0, 500, 500)
    >>> to_model((0, 0, 640, 512), "pixels", View(1280, 1024, 1120, 896))
    (0, 0, 560, 448)
    """
    ux, uy = view.units(space)
    x1, x2 = _round_pair(box_px[0], box_px[2], ux / view.width, ux)
    y1, y2 = _round_pair(box_px[1], box_px[3], uy / view.height, uy)
    return x1, y1, x2, y2


def _round_pair(low: float, high: float, factor: float, limit: float) -> tuple[int, int]:
    a, b = (min(max(math.floor(value * factor + 0.5), 0), int(limit)) for value in (low, high))
    if a == b:
        # Widened towards its middle, so that no corner moves by more than a unit.
        upwards = a == 0 or (a < limit and (low + high) / 2 * factor >= a)
        a, b = (a, a + 1) if upwards else (a - 1, a)
    return a, b


def to_px(box_model: Sequence[float], space: str, view: View) -> Box:
    """Model units to source pixels. Not clipped: a box outside the frame stays outside.

    >>> to_px((0, 0, 500, 500), "norm1000", View(1280, 1024, 1120, 896))
    (0.0, 0.0, 640.0, 512.0)
    """
    ux, uy = view.units(space)
    sx, sy = view.width / ux, view.height / uy
    return box_model[0] * sx, box_model[1] * sy, box_model[2] * sx, box_model[3] * sy


def begin(rationale: str) -> str:
    """A reply up to the end of its rationale, for a model to go on from.

    >>> begin("it is seen top left")
    '<think>it is seen top left</think>'
    """
    return f"<think>{rationale}</think>"


def render(reasoning: str | None, answer: str | None, box_model: Sequence[int] | None) -> str:
    """The reply that a model is trained to write; parts that are None are left out.

    Raises:
        ValueError: when :func:`parse` would not read the reply as well-formed, such as reasoning that is blank or
            holds a tag: a target that earns nothing must not be trained on.

    >>> render("it is seen top left", "left-top", (1, 2, 3, 4))
    '<think>it is seen top left</think><answer>left-top</answer><box>[1, 2, 3, 4]</box>'
    >>> render("I write <answer> first", "left-top", None)
    Traceback (most recent call last):
    ...
    ValueError: cannot render a reply that reads back with ['several_answers', 'nested_tags']
    """
    parts = []
    if reasoning is not None:
        parts.append(begin(reasoning))
    if answer is not None:
        parts.append(f"<answer>{answer}</answer>")
    if box_model is not None:
        parts.append("<box>[" + ", ".join(str(int(value)) for value in box_model) + "]</box>")
    text = "".join(parts)
    parsed = parse(text)
    if not parsed.well_formed(reasoning=reasoning is not None, answer=answer is not None, box=box_model is not None):
        raise ValueError(f"cannot render a reply that reads back with {[*parsed.blocking]}")
    return text


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """What a reply held. What is absent or unusable is None, and ``problems`` says why.

    Attributes:
        rationale, answer: stripped text of the tags.
        box_model: corners in the model's space, x2 > x1 and y2 > y1.
        problems: codes out of :data:`PROBLEMS`, in a fixed order, without repeats.
        box_numbers: the four numbers of the box as written, also where they are no corners (``inverted_box``): systems
            that write another box format are read from them.
    """

    rationale: str | None = None
    answer: str | None = None
    box_model: Box | None = None
    problems: tuple[str, ...] = ()
    box_numbers: Box | None = field(default=None, compare=False, repr=False)

    def well_formed(self, *, reasoning: bool = True, answer: bool = True, box: bool = True) -> bool:
        """Whether exactly the expected parts are there, each once, in order, with nothing around them."""
        found = (self.rationale is not None, self.answer is not None, self.box_model is not None)
        return found == (reasoning, answer, box) and not self.blocking

    @property
    def blocking(self) -> tuple[str, ...]:
        """The problems that stay whatever parts were expected: all but the absence of a part."""
        return tuple(problem for problem in self.problems if problem not in _ABSENT)


_ABSENT = frozenset({"no_reasoning", "no_answer", "no_box"})

#: Every problem code and its meaning.
PROBLEMS: dict[str, str] = {
    "empty": "the reply is empty or blank",
    "no_reasoning": "no <think>...</think>",
    "no_answer": "no <answer>...</answer>",
    "no_box": "no <box>...</box>",
    "empty_reasoning": "<think> holds no text",
    "empty_answer": "<answer> holds no text",
    "several_reasonings": "more than one <think>: none is taken",
    "several_answers": "more than one <answer>: none is taken",
    "several_boxes": "more than one <box>: none is taken",
    "long_answer": f"<answer> holds more than {_LONGEST_ANSWER} characters: not taken",
    "bad_box": "<box> does not hold four plain decimal numbers in brackets",
    "inverted_box": "x2 <= x1 or y2 <= y1: not taken",
    "nested_tags": "a tag opens inside another",
    "unclosed_tag": "a tag opens and never closes, or closes and never opened",
    "outside_text": "text outside the tags",
    "wrong_order": "not in the order think, answer, box",
}


def parse(text: str) -> ParsedReply:
    """Read a reply. Never raises on any string; one pass, linear in its length.

    A part that opens twice is not taken at all, so that writing several answers or boxes cannot win, not even where
    all but one are torn or sit inside another tag. Numbers are ASCII decimals of at most seven digits; NaN, exponents
    and other scripts' digits are ``bad_box``.

    >>> parse("<think>why</think><answer>kidney</answer><box>[1, 2, 3, 4]</box>").box_model
    (1.0, 2.0, 3.0, 4.0)
    >>> parse("<answer>kidney</answer><answer>Idle</answer>").problems
    ('no_reasoning', 'no_box', 'several_answers')
    """
    found: dict[str, list[str]] = {"think": [], "answer": [], "box": []}
    opened: dict[str, int] = dict.fromkeys(found, 0)
    order: list[str] = []
    problems: set[str] = set()
    open_tag: str | None = None
    start = 0
    for match in _TAG.finditer(text):
        closing, name = match.group(1) == "/", match.group(2)
        if not closing:
            opened[name] += 1
        if open_tag is None:
            if text[start : match.start()].strip():
                problems.add("outside_text")
            if closing:
                problems.add("unclosed_tag")
            else:
                open_tag = name
            start = match.end()
        elif closing and name == open_tag:
            found[name].append(text[start : match.start()])
            order.append(name)
            open_tag, start = None, match.end()
        else:
            # A tag inside a tag spoils the outer one: it is closed here without being taken.
            problems.add("nested_tags")
            open_tag = None if closing else name
            start = match.end()
    if open_tag is not None:
        problems.add("unclosed_tag")
    elif text[start:].strip():
        problems.add("outside_text")
    if not text.strip():
        problems.add("empty")
    if list(dict.fromkeys(order)) != [name for name in ("think", "answer", "box") if name in order]:
        problems.add("wrong_order")

    rationale = _single(found["think"], opened["think"], "reasoning", problems)
    answer = _single(found["answer"], opened["answer"], "answer", problems)
    if answer is not None and len(answer) > _LONGEST_ANSWER:
        problems.add("long_answer")
        answer = None
    numbers = _read_box(_single(found["box"], opened["box"], "box", problems), problems)
    box = None if "inverted_box" in problems else numbers
    return ParsedReply(rationale, answer, box, tuple(code for code in PROBLEMS if code in problems), numbers)


def answer_span(text: str) -> tuple[int, int] | None:
    """Where the answer of a reply stands, from behind its tag to before the closing one; None where none was taken.

    >>> start, end = answer_span("<think>why</think><answer>kidney</answer>")
    >>> (start, end)
    (26, 32)
    """
    if parse(text).answer is None:
        return None
    # Taken only where it opens once.
    start = text.index("<answer>") + len("<answer>")
    return start, text.index("</answer>", start)


def _single(texts: list[str], opened: int, part: str, problems: set[str]) -> str | None:
    if opened > 1:
        problems.add({"reasoning": "several_reasonings", "answer": "several_answers", "box": "several_boxes"}[part])
        return None
    if not texts:
        problems.add(f"no_{part}")
        return None
    text = texts[0].strip()
    if not text:
        problems.add("bad_box" if part == "box" else f"empty_{part}")
        return None
    return text


def _read_box(text: str | None, problems: set[str]) -> Box | None:
    """The four numbers of a box, also where they are no corners (``inverted_box``)."""
    if text is None:
        return None
    match = _BOX.fullmatch(text) if len(text) <= _LONGEST_BOX else None
    if match is None:
        problems.add("bad_box")
        return None
    x1, y1, x2, y2 = (float(value) for value in match.groups())
    if not is_box((x1, y1, x2, y2)):
        problems.add("inverted_box")
    return x1, y1, x2, y2


@dataclass(frozen=True, slots=True)
class Prediction:
    """A prediction in source terms, whatever system wrote it.

    Attributes:
        box_px: predicted corners in source pixels, or None.
        problems: codes of :data:`PROBLEMS`; empty for predictions that came without text.
    """

    rationale: str | None
    answer: str | None
    box_px: Box | None
    problems: tuple[str, ...] = ()


def read_reply(text: str, space: str, view: View) -> Prediction:
    """Parse a reply and bring its box to source pixels."""
    parsed = parse(text)
    box = None if parsed.box_model is None else to_px(parsed.box_model, space, view)
    return Prediction(parsed.rationale, parsed.answer, box, parsed.problems)
