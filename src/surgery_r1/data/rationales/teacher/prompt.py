"""What a teacher is asked, and how its reply is read."""

from __future__ import annotations

import re

from surgery_r1.data.rationales.writer import RationaleRequest
from surgery_r1.records import AnnotatedObject, Sample

#: Bumped whenever a word below changes; part of a request's key.
VERSION = "1"

SYSTEM = (
    "You are a surgical scene analyst. You look at a frame of an endoscopic operation and explain, as if you had found "
    "it out by looking, why a question about it has the answer that it has."
)

#: One way of writing for each reasoning of a question.
_STYLES = (
    "Start from what can be seen at the tip of the instrument.",
    "Start from where things lie in the frame.",
    "Start from what surrounds what is asked about.",
    "Start from the organ and what is done to it.",
)

#: What to do about a reasoning that was rejected, by the check that rejected it.
_ADVICE: dict[str, str] = {
    "empty": "write something",
    "language": "write in English",
    "length": "keep to the length",
    "cut_off": "write less",
    "markup": "use no tags",
    "box_outside": "write no coordinates",
    "coordinates": "write no coordinates",
    "leak": "do not mention that anything was given, known, labelled or annotated",
    "no_answer": "name the answer, written as it is here",
    "own_answer": "end with the answer, written as it is here",
    "wrong_answer": "let the last answer that you name be the answer",
    "absent_tool": "name no instrument that is not listed",
    "wrong_place": "place nothing elsewhere than listed",
    "wrong_state": "give no instrument a state that is not listed for it",
    "copy": "say it in other words",
}

_ANSWER = re.compile(
    r"(?:^|(?<=[.!?*])\s+)[\s*_#>-]*(?:final\s+)?answer[\s*_]*[:=][\s*_]*(?P<answer>[^.:=]+?)[\s*_.]*$", re.I
)
#: What a reasoning model has thought; some templates open the tag themselves.
_THOUGHT = re.compile(r"\A(?:\s*<think>)?.*?</think>", re.S)


def _region(sample: Sample) -> list[str]:
    if sample.box_px is None:
        return []
    size = f"pixels of a frame of {sample.width} x {sample.height}"
    return [f"The answer is about the region {_corners(sample.box_px)} (x1, y1, x2, y2 in {size})."]


def request_text(task: RationaleRequest, min_words: int, max_words: int) -> str:
    """The text that goes with the frame: question, gold answer, box, what is annotated, and what to write."""
    sample, frame = task.sample, task.frame
    lines = [
        f"Question: {sample.question}",
        f"Answer: {sample.answer}",
        *_region(sample),
        "In the frame:",
        *(f"- {_object(seen)}" for seen in frame.objects),
        "",
        f"Write one paragraph of {min_words} to {max_words} words of English that leads from what is seen to the "
        "answer.",
        _STYLES[task.number % len(_STYLES)],
        "Speak only of what is listed above and of what you see. Write names of instruments, states and places as they "
        "are written above. No coordinates, no lists, no tags. Do not mention that answer or objects were told to you.",
        "Then write a last line: Answer: and the answer, written exactly as above.",
    ]
    advice = [_ADVICE[reason] for reason in task.rejected if reason in _ADVICE]
    if advice:
        lines.append(f"An earlier attempt was not accepted. This time: {'; '.join(dict.fromkeys(advice))}.")
    return "\n".join(lines)


def parse_response(text: str) -> tuple[str, str | None]:
    """Reasoning and the answer of its last line, None where there is no such line.

    >>> parse_response("<think>hm</think>The tip is closed on tissue.\\n\\n**Answer:** Grasping")
    ('The tip is closed on tissue.', 'Grasping')
    >>> parse_response("It is seen at the left.")
    ('It is seen at the left.', None)
    >>> parse_response("hm</think>The tip is open. Answer: Idle.")
    ('The tip is open.', 'Idle')
    """
    lines = [line.strip() for line in _THOUGHT.sub("", text).strip().splitlines() if line.strip()]
    match = _ANSWER.search(lines[-1]) if lines else None
    if match:
        lines[-1] = lines[-1][: match.start()].strip()
    return " ".join(line for line in lines if line), match["answer"].strip() if match else None


def _object(seen: AnnotatedObject) -> str:
    facts = [f"state {seen.state}"] if seen.state else []
    facts += [f"place {seen.location}"] if seen.location else []
    return f"{seen.name}: {', '.join([*facts, f'region {_corners(seen.box_px)}'])}"


def _corners(box: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
