"""Other words for a question, so that a model learns what is asked and not a sentence (ours).

The first paraphrase is always the question as the labels have it. What is asked must not change: the answer stays the
answer. Grounding-QA asks for the place alone, so that its other paraphrases may say so.
"""

from __future__ import annotations

from surgery_r1.records import Sample

#: task -> kind -> paraphrases; None is the question as the labels have it.
PARAPHRASES: dict[str, dict[str, tuple[str | None, ...]]] = {
    "visual_qa": {
        "organ": (None, "Which organ do the surgeons operate on?", "What is the operated organ?"),
        "state": (None, "What is {subject} doing?", "In which state is {subject}?"),
        "location": (None, "In which part of the frame is {subject}?", "What is the position of {subject}?"),
        "tool": (None, "Which instrument can be seen in the {subject}?", "Name the tool in the {subject}."),
    },
    "grounding_qa": {
        "organ": (None, "Find the organ that is operated on.", "Show the operated organ."),
        "state": (None, "Find {subject} and what it is doing.", "Show {subject} at work or at rest."),
        "location": (None, "Find {subject} in the frame.", "Show where {subject} is."),
        "tool": (None, "Find the tool in the {subject}.", "Show the instrument in the {subject}."),
    },
}

#: task -> paraphrases of questions of any other kind, which say nothing but what was asked.
OWN_KINDS: dict[str, tuple[str | None, ...]] = {
    "visual_qa": (None, "Look at the frame. {question}", "Answer what is asked of this frame. {question}"),
    "grounding_qa": (None, "Show what answers this question. {question}", "Find what is asked about. {question}"),
}


def paraphrase(sample: Sample, task: str, number: int) -> str:
    """The ``number``-th paraphrase (from 0) of a sample's question for a row of ``task``."""
    form = PARAPHRASES[task].get(sample.kind, OWN_KINDS[task])[number]
    return sample.question if form is None else form.format(subject=sample.subject, question=sample.question)


#: Ways to ask for the box of a named object, with no question behind it: what base models were pretrained on.
DETECTION: tuple[str, ...] = (
    "Detect the {}.",
    "Find the {} in this frame.",
    "Show me the {} that you see.",
    "A box around the {} is needed.",
    "Mark the {}.",
)
