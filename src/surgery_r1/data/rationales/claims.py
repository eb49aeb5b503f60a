"""What a rationale claims, whoever wrote it: the answer it ends at, the facts it names, and those that are not there.

The checks that a training rationale must pass are applied here to what a model wrote (ours).
"""

from __future__ import annotations

from dataclasses import dataclass

from surgery_r1.data.rationales.checks import (
    CheckContext,
    SourceWords,
    claimed_answers,
    named_facts,
    unsupported_facts,
)
from surgery_r1.geometry import LocationRule


@dataclass(frozen=True, slots=True)
class Claims:
    """What a rationale says.

    Attributes:
        conclusion: the last answer of the question's kind that it claims; None where it claims none.
        facts: how many objects, states and places it names, each counted once.
        unsupported: names of the checks that find something in it which the annotations do not say.
    """

    conclusion: str | None
    facts: int
    unsupported: tuple[str, ...]


#: Longer texts are read up to here: no model of this task writes as much, and the patterns take time.
_LONGEST = 4000


def conclusion(rationale: str, kind: str, words: SourceWords, rule: LocationRule | None) -> str | None:
    """The last answer of a question's kind that a rationale claims, None where it claims none.

    Args:
        kind: of the question.
        words: the class names of its source.
        rule: the location rule of its source, None where its labels follow none.

    >>> words = SourceWords({"state": ("Idle", "Cutting")})
    >>> conclusion("the jaws are closed, it is not Idle, so its state is Cutting", "state", words, None)
    'Cutting'
    """
    answers = claimed_answers(rationale[:_LONGEST], kind, words, rule)
    return answers[-1] if answers else None


def read_claims(rationale: str, context: CheckContext) -> Claims:
    """The claims of a rationale about one question.

    Args:
        context: question, frame, class names and location rule that it is read against.
    """
    text = rationale[:_LONGEST]
    ends_at = conclusion(text, context.sample.kind, context.words, context.rule)
    return Claims(ends_at, len(named_facts(text, context)), unsupported_facts(text, context))
