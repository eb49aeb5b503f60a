"""Class names, question kinds and official splits of EndoVis-VQLA. The only place they are written.

Source: read in the public Surgical-VQLA repository; ``DEV_SEQUENCES`` is ours.
"""

from __future__ import annotations

import re

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

_QUESTION_FORMS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("organ", re.compile(r"what organ is being operated\s*\?", re.I)),
    ("state", re.compile(r"what is the state of (?P<subject>[a-z_ ]+?)\s*\?", re.I)),
    ("location", re.compile(r"where is (?P<subject>[a-z_ ]+?) located\s*\?", re.I)),
    # The extended set asks "What tool is in {location}": its exact words are second hand.
    (
        "tool",
        re.compile(
            r"(?:what|which) (?:tool|instrument) is (?:located |present |seen )?(?:in|at|on) (?:the )?"
            r"(?P<subject>(?:left|right)[ _-](?:top|bottom))(?: .*?)?\s*\?",
            re.I,
        ),
    ),
)


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


def classify_question(question: str) -> tuple[str | None, str | None]:
    """Kind and subject of a question, or ``(None, None)`` for a form we do not know.

    The subject is the tool asked about (``state``, ``location``), the organ (``organ``) or the place (``tool``).

    >>> classify_question("Where is bipolar_forceps located?")
    ('location', 'bipolar_forceps')
    >>> classify_question("What organ is being operated?")
    ('organ', 'kidney')
    >>> classify_question("What tool is in the left-top of the frame?")
    ('tool', 'left-top')
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
            # Places are written with a hyphen, tools with underscores.
            return kind, re.sub(r"[ _-]", "-" if kind == "tool" else "_", subject)
    return None, None
