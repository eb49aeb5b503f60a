"""Prompts: constant system text, image, then question, task and reasoning switch.

Everything up to the end of the image is the same for all rows of a frame, so that a frame can be read once.
"""

from __future__ import annotations

from typing import Any

#: Bumped whenever a word below changes; recorded by checkpoints and predictions.
PROMPT_VERSION = "1"

#: The tail of the prompt by task and reasoning switch.
_REPLY: dict[tuple[str, bool], str] = {
    ("cot", True): "Reply with think, answer and box.",
    ("cot", False): "Reply with answer and box.",
    ("visual_qa", True): "Reply with think and answer.",
    ("visual_qa", False): "Reply with answer.",
    ("grounding_qa", True): "Reply with think and box.",
    ("grounding_qa", False): "Reply with box.",
}

_UNITS: dict[str, str] = {
    "pixels": "pixels of the image",
    "source": "pixels of the image",
    "norm1000": "units from 0 to 1000",
    "norm100": "units from 0 to 100",
}


def system_text(box_space: str) -> str:
    """The constant system text for models that write boxes in ``box_space``."""
    return (
        "Look at the surgical frame and reply as <think>reasoning</think><answer>answer</answer>"
        f"<box>[left, top, right, bottom]</box>, box in {_UNITS[box_space]}."
    )


def task_without_box(task: str, *, has_box: bool) -> str:
    """The task to ask for: where nothing says where the answer is seen, ``cot`` is answer (and rationale) alone.

    >>> task_without_box("cot", has_box=False), task_without_box("cot", has_box=True)
    ('visual_qa', 'cot')
    """
    return "visual_qa" if task == "cot" and not has_box else task


def user_text(question: str, task: str = "cot", reasoning: bool = True) -> str:
    """What follows the image: question, then task and reasoning switch.

    >>> user_text("Where is suction located?", "visual_qa", False)
    'Where is suction located? Reply with answer.'
    """
    return f"{question.strip()} {_REPLY[task, reasoning]}"


def parts(task: str, reasoning: bool) -> dict[str, bool]:
    """Which parts a reply to this task has, as keywords of :meth:`surgery_r1.codec.ParsedReply.well_formed`."""
    return {"reasoning": reasoning, "answer": task != "grounding_qa", "box": task != "visual_qa"}


def messages(text: str, box_space: str, images: int = 1) -> list[dict[str, Any]]:
    """The conversation of a prompt in the form that chat templates take, with placeholders for the images."""
    return chat_messages(system_text(box_space), text, images)


def chat_messages(system: str, text: str, images: int = 1) -> list[dict[str, Any]]:
    """:func:`messages` with a system text of its own."""
    content: list[dict[str, Any]] = [{"type": "image"} for _ in range(images)]
    content.append({"type": "text", "text": text})
    return [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": content},
    ]
