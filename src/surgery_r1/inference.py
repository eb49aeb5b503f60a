"""One question about one image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery_r1 import prompts
from surgery_r1._util.files import atomic_write
from surgery_r1.codec import Prediction, read_reply
from surgery_r1.errors import SurgeryR1Error


@dataclass(frozen=True, slots=True)
class Reply:
    """The raw text and what it says, box in pixels of the image."""

    text: str
    reading: Prediction

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        box = self.reading.box_px
        return {
            "reasoning": self.reading.rationale,
            "answer": self.reading.answer,
            "box_px": None if box is None else list(box),
            "problems": list(self.reading.problems),
            "text": self.text,
        }


def ask(
    image: Path,
    question: str,
    model: str | Path = "tiny",
    *,
    picture: Path | None = None,
    reasoning: bool = True,
    max_new_tokens: int = 256,
    allow_hub: bool = False,
) -> Reply:
    """Ask a model; with ``picture``, draw the box into a copy of the image.

    Raises:
        SurgeryR1Error: for an empty question, a missing or torn image, or no such model.
    """
    from surgery_r1.evaluate.generation import TransformersEngine
    from surgery_r1.models.encode import Prompt, load_image
    from surgery_r1.models.load import from_pretrained
    from surgery_r1.models.processor import view_of
    from surgery_r1.report.drawing import draw_boxes

    if not question.strip():
        raise SurgeryR1Error("the question is empty", fix='ask for instance "What organ is being operated?"')
    frame = load_image(image)
    bundle = from_pretrained(model, allow_hub=allow_hub)
    space = bundle.info.box_space
    engine = TransformersEngine(bundle.model, bundle.processor, space, batch_size=1, max_new_tokens=max_new_tokens)
    text = next(iter(engine.generate([Prompt((image,), prompts.user_text(question, "cot", reasoning))])))[0]
    reading = read_reply(text, space, view_of(bundle.processor, *frame.size))
    if picture is not None:
        drawn = draw_boxes(
            frame, predicted_px=reading.box_px, predicted_label=reading.answer or "no answer", caption=question
        )
        with atomic_write(picture, "wb") as handle:
            drawn.save(handle, format="PNG")
    return Reply(text, reading)
