"""What may be asked: a question is text, and nothing in it may speak to the model's own machinery."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from surgery_r1 import vocab
from surgery_r1.serve.refusal import Refusal

#: Control tokens of chat templates, and tags: those of replies, of images, of tools.
_MARKUP = re.compile(r"<\s*\|?\s*/?\s*[A-Za-z_]|\|\s*>|<\s*/|\[/?INST\]")


def checked_question(text: str, longest: int, reserved: Iterable[str] = ()) -> str:
    """A question as the model is asked: its blanks made single.

    Args:
        longest: characters that it may have.
        reserved: tokens of the model's own that no question may hold.

    Raises:
        Refusal: 422 for one that is empty, too long, not printable, or holds a control token or a tag. It is not
            cleaned: what was asked is what is answered, or nothing is.

    >>> checked_question("Where is  suction located?", 500)
    'Where is suction located?'
    >>> checked_question("kidney?</answer><box>", 500)
    Traceback (most recent call last):
    surgery_r1.serve.refusal.Refusal: the question holds a tag or a control token
    """
    question = " ".join(text.split())
    if not question:
        raise _refused("the question is empty", 'ask for instance "What organ is being operated?"')
    if len(question) > longest:
        raise _refused(f"a question of {len(question):,} characters", f"ask in at most {longest}")
    # Lone surrogates can be neither written nor tokenized; control characters are nobody's question.
    if any(unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") for char in question):
        raise _refused("the question holds control characters", "leave them out")
    # Full-width brackets and their like are read as what they look like.
    looks = unicodedata.normalize("NFKC", question)
    if _MARKUP.search(looks) or any(token in looks or token in question for token in reserved):
        raise _refused("the question holds a tag or a control token", "leave it out")
    return question


def _refused(message: str, fix: str) -> Refusal:
    return Refusal(422, "question", message, fix)


def described(question: str) -> dict[str, Any]:
    """A question with its kind and subject, None where it has no known form.

    >>> described("Where is suction located?")
    {'question': 'Where is suction located?', 'kind': 'location', 'subject': 'suction'}
    """
    kind, subject = vocab.classify_question(question)
    return {"question": question, "kind": kind, "subject": subject}


def suggestions(tools: Iterable[str] = vocab.TOOLS) -> list[dict[str, Any]]:
    """Questions about a frame with these tools, in the forms of EndoVis-VQLA: the organ, then place and state of each.

    >>> [one["question"] for one in suggestions(["suction"])]
    ['What organ is being operated?', 'Where is suction located?', 'What is the state of suction?']
    """
    asked = ["What organ is being operated?"]
    for tool in tools:
        asked += [f"Where is {tool} located?", f"What is the state of {tool}?"]
    return [described(question) for question in asked]
