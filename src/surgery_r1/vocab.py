"""Class names, question kinds and official splits of EndoVis-VQLA. The only place they are written.

Source: read in the public Surgical-VQLA repository; ``DEV_SEQUENCES`` is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

ORGAN = "kidney"

TOOLS: tuple[str, ...] = (
    "bipolar_forceps",
    "monopolar_curved_scissors",
    "prograsp_forceps",
    "suction",
    "ultrasound_probe",
    "stapler",
    "large_needle_driver",
    "clip_applier",
)

STATES: tuple[str, ...] = (
    "Idle",
    "Grasping",
    "Retraction",
    "Tissue_Manipulation",
    "Tool_Manipulation",
    "Cutting",
    "Cauterization",
    "Suction",
    "Looping",
    "Suturing",
    "Clipping",
    "Staple",
    "Ultrasound_Sensing",
)

LOCATIONS: tuple[str, ...] = ("left-top", "right-top", "left-bottom", "right-bottom")

#: The 18 answers of EndoVis-18/17-VQLA in class order.
ANSWERS: tuple[str, ...] = (ORGAN, *STATES, *LOCATIONS)

#: The 26 answers of the extended set (Surgical-VQLA++). ``Suction`` is the action, ``suction`` the tool.
ANSWERS_EXTENDED: tuple[str, ...] = (*ANSWERS, *TOOLS)

#: Question kinds, in the order tables list them.
KINDS: tuple[str, ...] = ("organ", "state", "location", "tool")

SPLITS: tuple[str, ...] = ("train", "dev", "val", "test")

#: Official EndoVis-18 split by sequence number. Sequences 8 and 13 carry no labels.
TRAIN_SEQUENCES: tuple[int, ...] = (2, 3, 4, 6, 7, 9, 10, 11, 12, 14, 15)
VAL_SEQUENCES: tuple[int, ...] = (1, 5, 16)

#: Ours: two whole training sequences on which everything is chosen; trained on only with --include-dev.
DEV_SEQUENCES: tuple[int, ...] = (4, 11)

_NAME = r"(?P<subject>[a-z_ ]+?)"
_PLACE = r"(?P<subject>(?:left|right)[ _-](?:top|bottom)|(?:top|bottom)[ _-](?:left|right))"
#: Public files write instructions behind some questions: "... ? Please answer with one word."
_END = r"\s*\?(?:\s+(?:please|answer|reply|respond|use)\b[^?]*)?"
_TOOL = "(?:tool|instrument)"

#: Question kind -> regular expressions of all forms found in public files; the group ``subject`` is what is asked
#: about. The shipped dataset formats have the same ones (a test compares them).
QUESTION_PATTERNS: dict[str, tuple[str, ...]] = {
    "organ": (rf"what organ is being operated{_END}",),
    "state": (rf"what is the state of {_NAME}{_END}",),
    "location": (rf"where is {_NAME} located{_END}",),
    # The extended set: "What is the tool in the left bottom?" [read]; "What tool is in left-top ...?" [second hand].
    "tool": (
        rf"(?:what|which)(?: is the {_TOOL}| {_TOOL} is)(?: located| present| seen)? (?:in|at|on) (?:the )?{_PLACE}"
        rf"(?: .*?)?{_END}",
    ),
}
_QUESTION_FORMS = [(kind, re.compile(text, re.I)) for kind, texts in QUESTION_PATTERNS.items() for text in texts]


#: One question of each form of EndoVis-18-VQLA.
QUESTION_EXAMPLES: tuple[str, ...] = (
    "What organ is being operated?",
    "What is the state of bipolar_forceps?",
    "Where is bipolar_forceps located?",
)


def spoken(name: str) -> str:
    """A class name for comparisons: written with spaces, in small letters.

    >>> spoken("Tissue_Manipulation") == spoken("tissue-manipulation") == "tissue manipulation"
    True
    """
    return re.sub(r"[\s_-]+", " ", name.strip()).lower()


def place_of(text: str, places: Iterable[str] = LOCATIONS) -> str | None:
    """The place that a text names, its words in any order and written in any way; None when it is none or not one.

    >>> place_of("bottom left"), place_of("Left_Bottom"), place_of("left")
    ('left-bottom', 'left-bottom', None)
    """
    words = sorted(spoken(text).split())
    found = [name for name in places if sorted(spoken(name).split()) == words]
    exact = [name for name in found if spoken(name) == spoken(text)]
    return exact[0] if exact else found[0] if len(found) == 1 else None


def classify_question(question: str) -> tuple[str | None, str | None]:
    """Kind and subject of a question, or ``(None, None)`` for a form we do not know.

    The subject is the tool asked about (``state``, ``location``), the organ (``organ``) or the place (``tool``).

    >>> classify_question("Where is bipolar_forceps located?")
    ('location', 'bipolar_forceps')
    >>> classify_question("What organ is being operated?")
    ('organ', 'kidney')
    >>> classify_question("What is the tool in the left bottom? Please answer with one word.")
    ('tool', 'left-bottom')
    >>> classify_question("How many tools are there?")
    (None, None)
    """
    text = question.strip()
    for kind, pattern in _QUESTION_FORMS:
        match = pattern.fullmatch(text)
        if match:
            if kind == "organ":
                return kind, ORGAN
            subject = match.group("subject").strip().lower()
            return kind, place_of(subject) if kind == "tool" else re.sub(r"[ _-]", "_", subject)
    return None, None
