"""One line of a prediction file: which keys it has, and the answer and box that it holds."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery_r1.codec import PROBLEMS, Prediction, parse
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.box_units import BoxUnits, WrittenBox, view_of_line
from surgery_r1.geometry import Box, is_box
from surgery_r1.records import Sample

#: Fields of a line that describe the run that wrote it, recorded in ``metrics.json``. All lines of a file that have
#: them must agree: one file is one run.
AGREED: tuple[str, ...] = (
    *("model", "weights_sha256", "engine_sha256", "stage", "reasoning", "codec_version", "prompt_version"),
    *("dataset_hash", "split", "min_pixels", "max_pixels", "max_new_tokens", "dtype", "engine"),
    *("asked", "served_as"),
)

#: The keys that hold a prediction.
PARTS: tuple[str, ...] = ("text", "answer", "box_px")

#: Every key that a line may have without a word.
KNOWN: frozenset[str] = frozenset(
    {
        *("id", *PARTS, *AGREED, "box_space", "box_format", "box_origin", "input_width", "input_height"),
        *("reply", "reply_problems", "fingerprint"),
    }
)

#: What other tools call the parts; near misses in spelling are found too.
_CALLED: dict[str, str] = {
    **dict.fromkeys(("response", "prediction", "output", "completion", "generated_text", "reply", "raw"), "text"),
    **dict.fromkeys(("label", "pred", "predicted_answer", "answers", "class", "prediction_answer"), "answer"),
    **dict.fromkeys(
        ("box", "bbox", "boxes", "bboxes", "box_2d", "bbox_2d", "bounding_box", "xyxy", "bbox_px"), "box_px"
    ),
    **dict.fromkeys(
        ("rationale", "explanation", "thinking", "think", "thought", "cot", "chain_of_thought", "reason"), "reasoning"
    ),
}

#: Problem codes of a reply in JSON (``predict --prompt native``), beside those of :data:`surgery_r1.codec.PROBLEMS`.
NATIVE_PROBLEMS: dict[str, str] = {
    "no_json": "the reply holds no JSON object with an answer or a box",
    "respelled": "the answer is spelt otherwise than in the list: taken",
    "cut_off": "the reply was cut off at --max-new-tokens",
    "filtered": "the server kept the reply back",
}

#: Problem codes of a line, beside those of :data:`surgery_r1.codec.PROBLEMS` for the text that it holds.
LINE_PROBLEMS: dict[str, str] = {
    "missing": "the file has no line for the question",
    "wrong_key": "a part stands under another key than text, answer or box_px: not read",
    "bad_text": "text is not a string",
    "bad_answer": "answer is not a string",
    "no_answer": "no answer, or null",
    "empty_answer": "answer holds no text",
    "no_box": "no box_px, or an empty one",
    "bad_box": "box_px is not four finite numbers in a list",
    "inverted_box": PROBLEMS["inverted_box"],
    **NATIVE_PROBLEMS,
}


@dataclass(frozen=True, slots=True)
class LineReading:
    """What one line holds.

    Attributes:
        reading: the prediction in source terms.
        box: the box as written, where there were four numbers.
        malformed: how ``box_px`` looks where it is not four numbers in a list, in words.
        renamed: keys that seem to hold a part under another name -> that part.
    """

    reading: Prediction
    box: WrittenBox | None = None
    malformed: str | None = None
    renamed: Mapping[str, str] | None = None


def read_line(record: Mapping[str, Any], sample: Sample, units: BoxUnits, where: str) -> LineReading:
    """Read a line whose id is known.

    Args:
        units: of boxes, as asked for; what the line says itself is added.

    Raises:
        SurgeryR1Error: for units that are unknown or contradict what was asked for, or a line without any part.
    """
    renamed = {} if record.keys() <= KNOWN else {k: part for k in record if (part := renamed_part(k, record))}
    if not set(PARTS) & {*record, *renamed.values()}:
        raise SurgeryR1Error(
            f"id {sample.id!r} has neither text nor answer and box_px",
            where=where,
            fix='write {"id", "text"} or {"id", "answer", "box_px"}',
        )
    units = units.of_line(record, where)
    written = _Written(record, sample, units, where)
    if "text" in record:
        return _read_text(record, written, renamed)
    return _read_fields(record, written, renamed)


def renamed_part(key: str, record: Mapping[str, Any]) -> str | None:
    """The part that a line lacks and that ``key`` seems to hold, or None: one of :data:`PARTS`, or ``reasoning``.

    >>> renamed_part("bbox", {"id": "a", "answer": "kidney", "bbox": [1, 2, 3, 4]})
    'box_px'
    >>> renamed_part("response", {"id": "a", "answer": "kidney", "box_px": None, "response": "..."}) is None
    True
    """
    if key in KNOWN:
        return None
    plain = key.strip().lower().replace("-", "_").replace(" ", "_")[:40]
    near = difflib.get_close_matches(plain, PARTS, n=1, cutoff=0.75)
    part = plain if plain in PARTS else _CALLED.get(plain) or (near[0] if near else None)
    if part == "text":
        return part if not record.keys() & set(PARTS) else None
    return part if part and part not in record and "text" not in record else None


class _Written:
    """Turns the four numbers of a line into a box in source pixels, and keeps them for the check of units."""

    def __init__(self, record: Mapping[str, Any], sample: Sample, units: BoxUnits, where: str) -> None:
        self.sample, self.units = sample, units
        self.in_force = units.in_force
        self.view = view_of_line(record, sample.width, sample.height, self.in_force.space, where)
        # The codec writes corners counted from 0: what predict wrote leaves nothing to ask.
        self.stated = units.space is not None and "codec_version" in record and "text" in record

    def read(self, numbers: Box) -> tuple[Box | None, WrittenBox | None]:
        """The box in source pixels, or None where it is inverted; and the numbers as they were written."""
        box = self.in_force.to_px(numbers, self.view)
        kept = None
        if not (self.stated or self.units.whole):
            truths = tuple(box for _, box in self.sample.accepted if box is not None)
            kept = WrittenBox(numbers, self.view, self.units, truths, self.sample.question)
        return (box if is_box(box) else None), kept


def _read_text(record: Mapping[str, Any], written: _Written, renamed: Mapping[str, str]) -> LineReading:
    text = record["text"]
    if not isinstance(text, str):
        code = "empty" if text is None else "bad_text"
        return LineReading(Prediction(None, None, None, (code,)), renamed=renamed)
    parsed = parse(text)
    problems, box, kept = parsed.problems, None, None
    if parsed.box_numbers is not None:
        box, kept = written.read(parsed.box_numbers)
        if (box is None) != ("inverted_box" in problems):
            problems = tuple(code for code in problems if code != "inverted_box")
            problems += () if box else ("inverted_box",)
    return LineReading(Prediction(parsed.rationale, parsed.answer, box, problems), kept, renamed=renamed)


def _read_fields(record: Mapping[str, Any], written: _Written, renamed: Mapping[str, str]) -> LineReading:
    problems: list[str] = ["wrong_key"] if set(PARTS) & set(renamed.values()) else []
    answer = record.get("answer")
    if isinstance(answer, str):
        answer = answer.strip() or None
        problems += [] if answer else ["empty_answer"]
    else:
        problems += ["no_answer"] if answer is None else ["bad_answer"]
        answer = None
    box, kept, malformed = None, None, None
    value = record.get("box_px")
    numbers = four_numbers(value)
    if numbers is not None:
        box, kept = written.read(numbers)
        problems += [] if box else ["inverted_box"]
    else:
        # An empty list is how some detectors say that they found nothing.
        absent = value is None or value in ("", [], {})
        problems += ["no_box" if absent else "bad_box"]
        malformed = None if absent else looks_like(value)
    reasoning = record.get("reasoning")
    rationale = reasoning if isinstance(reasoning, str) else None
    problems += _of_reply(record, problems)
    return LineReading(Prediction(rationale, answer, box, tuple(problems)), kept, malformed, renamed)


def _of_reply(record: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """What the line says was wrong with the reply that it was read from (``predict --prompt native``)."""
    said = record.get("reply_problems")
    said = [code for code in said if isinstance(code, str)] if isinstance(said, list) else []
    return [code for code in PROBLEMS | NATIVE_PROBLEMS if code in said and code not in known]


def four_numbers(value: Any) -> Box | None:
    """Four finite numbers in a list, or None. Truth values are no numbers, nor are integers beyond a float."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
        return None
    try:
        a, b, c, d = (float(v) for v in value)
    except OverflowError:
        return None
    return (a, b, c, d) if all(math.isfinite(v) for v in (a, b, c, d)) else None


def looks_like(value: Any) -> str:
    """What a box that is not four numbers in a list looks like, in words.

    >>> looks_like("[1, 2, 3, 4]"), looks_like([1, 2, 3]), looks_like([[1, 2], [3, 4]])
    ('a string', 'a list of 3', 'nested lists')
    """
    if isinstance(value, str):
        return "a string"
    if isinstance(value, dict):
        return "an object with keys"
    if not isinstance(value, list):
        return "a single value"
    if any(isinstance(v, list | dict) for v in value):
        return "nested lists"
    if len(value) != 4:
        return f"a list of {len(value)}"
    return "a list of strings" if all(isinstance(v, str) for v in value) else "a list of other things than numbers"
