"""Checks of every reasoning, whoever wrote it: it says what the annotations say, and gives nothing away (ours)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from surgery_r1 import vocab
from surgery_r1.build.cot import Draft
from surgery_r1.build.recipe import ReasoningConfig
from surgery_r1.build.words import Names, clauses, halves, places
from surgery_r1.geometry import LocationRule, quadrant
from surgery_r1.schema import Frame, Sample, SceneObject

_TAG = re.compile(r"</?[A-Za-z_]+>|<\|")
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_APART = r"\s*[,;\s]\s*"
_CORNERS = re.compile(rf"[\[(]\s*{_APART.join([f'({_NUMBER})'] * 4)}\s*[\])]")
#: Words that only somebody who was told the answer would write.
_LEAK = re.compile(
    r"ground[\s-]*truth|gold(?:en)?\s+(?:answer|label)|annotat(?:ion|ed|ions)\b|\blabell?(?:s|ed)?\s+(?:say|state|show|as)"
    r"|(?:given|provided|stated|reference|known|expected|correct|supplied)\s+(?:answer|label|box|solution)"
    r"|(?:answer|label|question|region|box|facts?|information)\s+(?:that\s+)?(?:is|are|was|were|has\s+been|have\s+been)\s+"
    r"(?:given|provided|known|supplied|stated|told|specified)"
    r"|\bas\s+(?:told|provided|specified|given)\b|according\s+to\s+the\s+(?:given|provided|prompt|facts|question)"
    r"|\b(?:the|this|your)\s+(?:prompt|instructions?|metadata|scene\s+facts|hint)\b|\b(?:i|we)\s+(?:was|were|am|are)\s+told\b",
    re.I,
)
#: What English sentences are held together by.
_ENGLISH = frozenset(
    ["the", "a", "an", "is", "are", "of", "in", "on", "and", "so", "it", "its", "at", "to", "with", "that", "by", "as"]
)
#: Organs that a reasoning may name by mistake.
_ORGANS = ("liver", "spleen", "stomach", "bowel", "colon", "gallbladder", "bladder", "uterus", "prostate", "lung")
#: How a clause begins that is about what was asked.
_IT = re.compile(r"(?:it|its|they|their|this|the\s+(?:tool|instrument|place|position|location))\b", re.I)
_SHARE_OF_LATIN = 0.9
_SHARE_OF_ENGLISH = 0.15


class SourceWords:
    """The class names of one source, ready to be found in texts.

    Args:
        classes: the answers that a question of each kind can have.
    """

    def __init__(self, classes: Mapping[str, Sequence[str]]) -> None:
        states = classes.get("state", ())
        # Tools of EndoVis are known everywhere, so that a stranger is noticed.
        tools = tuple(dict.fromkeys((*vocab.TOOLS, *classes.get("tool", ()))))
        shared = {name for name in tools if name.lower() in {state.lower() for state in states}}
        self.tools = Names(tools, exact=shared)
        self.nouns = Names({name.split("_")[-1] for name in tools} - set(tools))
        self.states = Names(states, exact=states)
        self.answers = {
            "organ": Names((*classes.get("organ", ()), *_ORGANS)),
            "state": Names(states),
            "location": Names(classes.get("location", ())),
            "tool": self.tools,
        }


@dataclass(frozen=True)
class Context:
    """What a reasoning is checked against.

    Attributes:
        rule: the location rule of the sample's source, None where its labels follow none.
        limits: length, from the recipe.
        neighbours: reasonings of the frame that have been accepted, see :func:`plain`.
    """

    sample: Sample
    frame: Frame
    words: SourceWords
    rule: LocationRule | None = None
    limits: ReasoningConfig = field(default_factory=ReasoningConfig)
    neighbours: frozenset[str] | set[str] = frozenset()

    @property
    def flipped(self) -> bool:
        """Whether labels call the lower half of the picture "top"."""
        return self.rule is not None and self.rule.y == "flipped"

    def places_of(self, objects: Iterable[SceneObject]) -> set[str]:
        """Places of objects, by label and, where a rule is trusted, by box."""
        found = set()
        for seen in objects:
            box = None
            if self.rule is not None:
                box = quadrant(seen.box_px, self.rule, self.frame.width, self.frame.height, self.frame.organ_box)
            found |= {place for place in (seen.location, box) if place}
        return found


def rejections(draft: Draft, context: Context) -> list[str]:
    """Why a reasoning cannot be used: names of :data:`CHECKS` that it fails; empty when it can."""
    if draft.fault:
        return [draft.fault]
    if not draft.text.strip():
        return ["empty"]
    return [name for name, fails in CHECKS if fails(draft, context)]


def plain(text: str) -> str:
    """A text for comparisons: case, spaces and punctuation set aside.

    >>> plain("It is  Idle.") == plain("it is idle")
    True
    """
    return " ".join(re.findall(r"\w+", text.lower()))


def _language(draft: Draft, _: Context) -> bool:
    """Not English: few Latin letters, or few of the words that English sentences are held together by."""
    letters = [c for c in draft.text if c.isalpha()]
    latin = sum(c.isascii() for c in letters)
    words = re.findall(r"[a-z_]+", draft.text.lower())
    common = sum(word in _ENGLISH for word in words)
    return latin < _SHARE_OF_LATIN * len(letters) or common < _SHARE_OF_ENGLISH * len(words)


def _length(draft: Draft, context: Context) -> bool:
    return not context.limits.min_words <= len(draft.text.split()) <= context.limits.max_words


def _markup(draft: Draft, _: Context) -> bool:
    return _TAG.search(draft.text) is not None


def _boxes(draft: Draft) -> list[tuple[float, ...]]:
    return [tuple(map(float, match.groups())) for match in _CORNERS.finditer(draft.text)]


def _box_outside(draft: Draft, context: Context) -> bool:
    width, height = context.frame.width, context.frame.height
    return any(min(b) < 0 or max(b[0], b[2]) > width or max(b[1], b[3]) > height for b in _boxes(draft))


def _coordinates(draft: Draft, _: Context) -> bool:
    """A box even inside the frame: models count in units of their own, which a dataset does not know."""
    return bool(_boxes(draft))


def _leak(draft: Draft, _: Context) -> bool:
    return _LEAK.search(draft.text) is not None


def _named(text: str, context: Context) -> list[str]:
    """Answers of the question's kind that a text names, in order; as they are written if any is, else in any case."""
    sample = context.sample
    if sample.kind == "location" and sample.answer in vocab.LOCATIONS:
        return places(text, context.flipped)
    if sample.kind == "state":
        exact = list(context.words.states.find(text))
        if exact:
            return exact
    names = context.words.answers.get(sample.kind)
    return list(names.find(text)) if names else []


def _own_answer(draft: Draft, context: Context) -> bool:
    """The answer that the writer gives itself is another one."""
    if draft.answer is None:
        return False
    named = _named(draft.answer, context) or [draft.answer.strip()]
    return named != [context.sample.answer]


def _no_answer(draft: Draft, context: Context) -> bool:
    return draft.answer is None and not _named(draft.text, context)


def _wrong_answer(draft: Draft, context: Context) -> bool:
    """Where a reasoning ends up: the last answer that it names."""
    named = _named(draft.text, context)
    return bool(named) and named[-1] != context.sample.answer


def _absent_tool(draft: Draft, context: Context) -> bool:
    objects = context.frame.objects
    there = {seen.name for seen in objects}
    # "suction" may also be what is being done.
    done = {str(seen.state).lower() for seen in objects}
    if any(name not in there and name.lower() not in done for name in context.words.tools.find(draft.text)):
        return True
    nouns = {name.split("_")[-1] for name in there}
    return any(noun not in nouns for noun in context.words.nouns.find(context.words.tools.without(draft.text)))


def _spoken_of(clause: str, context: Context) -> list[SceneObject]:
    """Objects that a clause is about: the tools that it names, "it" that was asked about, else any tool."""
    names = set(context.words.tools.find(clause))
    if not names and context.sample.kind in ("state", "location") and _IT.match(clause):
        names = {context.sample.subject}
    own = [seen for seen in context.frame.objects if seen.name in names]
    return own or [seen for seen in context.frame.objects if not seen.is_organ]


def _wrong_place(draft: Draft, context: Context) -> bool:
    for clause in clauses(draft.text):
        named, half = places(clause, context.flipped), halves(clause, context.flipped)
        if not named and not half:
            continue
        right = context.places_of(_spoken_of(clause, context))
        if right and any(place not in right for place in named):
            return True
        sides = {side for place in right for side in place.split("-")}
        if right and any(word not in sides for word in half):
            return True
    return False


def _wrong_state(draft: Draft, context: Context) -> bool:
    for clause in clauses(draft.text):
        right = {seen.state for seen in _spoken_of(clause, context)}
        if None not in right and any(state not in right for state in context.words.states.find(clause)):
            return True
    return False


def _copy(draft: Draft, context: Context) -> bool:
    return plain(draft.text) in context.neighbours


#: Name and test of every check; a test says whether a reasoning fails it.
CHECKS: tuple[tuple[str, Callable[[Draft, Context], bool]], ...] = (
    ("language", _language),
    ("length", _length),
    ("markup", _markup),
    ("box_outside", _box_outside),
    ("coordinates", _coordinates),
    ("leak", _leak),
    ("no_answer", _no_answer),
    ("own_answer", _own_answer),
    ("wrong_answer", _wrong_answer),
    ("absent_tool", _absent_tool),
    ("wrong_place", _wrong_place),
    ("wrong_state", _wrong_state),
    ("copy", _copy),
)
