"""Checks of every reasoning, whoever wrote it: it says what the annotations say, and gives nothing away (ours)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from surgery_r1 import vocab
from surgery_r1.data.rationales.phrases import Names, clauses, corners, halves, place_classes
from surgery_r1.data.rationales.writer import Draft
from surgery_r1.data.recipe import ReasoningConfig
from surgery_r1.geometry import LocationRule, quadrant
from surgery_r1.records import AnnotatedObject, Frame, Sample

_TAG = re.compile(r"</?[A-Za-z_]+>|<\|")
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_FOUR = re.compile(r"\s*[,;\s]\s*".join([f"({_NUMBER})"] * 4))
#: Anything that gives a place in numbers: four of them, a pair in brackets, or one with a name.
_COORDINATES = re.compile(
    rf"{_FOUR.pattern}|[\[(]\s*{_NUMBER}\s*[,;]\s*{_NUMBER}\s*[\])]|\b[xy][12]?\s*[=:]\s*{_NUMBER}|\bpixels?\b", re.I
)
_THING = r"(?:answer|label|question|region|box|facts?|information|description|data|object\s+list|list)s?"
_GIVEN = r"(?:given|provided|known|supplied|stated|told|specified|listed)"
#: Words that only somebody who was told the answer would write.
_LEAK = re.compile(
    r"ground[\s-]*truth|gold(?:en)?\s+(?:answer|label)|annotat(?:ion|ed|ions)\b|\blabell?(?:s|ed)?\s+(?:say|state|show|as)"
    rf"|(?:{_GIVEN}|reference|expected|correct)\s+{_THING}|given\s+(?:that\s+)?(?:the|this|its)\s+answer"
    rf"|{_THING}\s+(?:that\s+)?(?:is|are|was|were|has\s+been|have\s+been)\s+{_GIVEN}"
    r"|\b(?:question|description|list|prompt|facts?)\s+(?:says?|states?|tells?|shows?|lists?)\b"
    rf"|\bas\s+{_GIVEN}\b|\b(?:is|are)\s+listed\b|\btold\s+(?:me|us|that)\b|\b(?:i|we)\s+(?:was|were|am|are)\s+told\b"
    r"|according\s+to\s+the\s+(?:prompt|facts|question|list|description)"
    r"|\b(?:the|this|your)\s+(?:prompt|instructions?|metadata|scene\s+facts|hint)\b",
    re.I,
)
#: What English sentences are held together by, and those of it that no other language has.
_COMMON = frozenset(
    ["the", "a", "an", "is", "are", "of", "in", "on", "and", "so", "it", "its", "at", "to", "with", "that", "by", "as"]
)
_ENGLISH = frozenset(["the", "and", "with", "that", "this", "its", "which", "where"])
#: Organs and instruments that a reasoning may name by mistake.
_ORGANS = ("liver", "spleen", "stomach", "bowel", "colon", "gallbladder", "bladder", "uterus", "prostate", "lung")
_INSTRUMENTS = ("grasper", "scalpel", "hook", "trocar", "retractor", "dissector", "cautery", "camera", "scissor")
#: How a clause begins that is about what was asked.
_IT = re.compile(r"(?:it|its|they|their|this|the\s+(?:tool|instrument|place|position|location))\b", re.I)
_PLACE_WORDS = {"left", "right", "top", "bottom", "upper", "lower"}
_SHARE_OF_LATIN = 0.9
_SHARE_OF_COMMON = 0.15
_WORDS_PER_ENGLISH = 20
_IMAGE = LocationRule("image", "normal")


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
        nouns = {name.split("_")[-1] for name in tools}
        self.tools = Names(tools, exact=shared)
        self.nouns = Names((nouns | set(_INSTRUMENTS)) - set(tools))
        self.states = Names(states, exact=states)
        # Kinds of other sets are looked for by the names of their classes.
        self.answers = {
            **{kind: Names(names) for kind, names in classes.items()},
            "organ": Names(dict.fromkeys((*classes.get("organ", ()), *_ORGANS))),
            "state": Names(states),
            "location": Names(classes.get("location", ())),
            "tool": self.tools,
        }
        #: Whether places are the quadrants of EndoVis; others are only looked for by their names.
        self.quadrants = set(classes.get("location", ())) <= set(vocab.LOCATIONS)


@dataclass(frozen=True)
class CheckContext:
    """What a reasoning is checked against.

    Attributes:
        rule: the location rule of the sample's source, None where its labels follow none.
        limits: length, from the recipe.
        neighbours: rationales of the frame that have been accepted, see :func:`plain`.
    """

    sample: Sample
    frame: Frame
    words: SourceWords
    rule: LocationRule | None = None
    limits: ReasoningConfig = field(default_factory=ReasoningConfig)
    neighbours: set[str] = field(default_factory=set)

    def places_of(self, objects: Iterable[AnnotatedObject]) -> set[str]:
        """Classes that places of objects have, by label and, where a rule is trusted, by box."""
        objects = list(objects)
        labels = {seen.location for seen in objects if seen.location}
        return labels | (self.quadrants_of(objects, self.rule) if self.rule is not None else set())

    def quadrants_of(self, objects: Iterable[AnnotatedObject], rule: LocationRule = _IMAGE) -> set[str]:
        """Quadrants that the boxes of objects lie in; by default those of the picture, as one sees them."""
        size, organ = (self.frame.width, self.frame.height), self.frame.organ_box
        found = (quadrant(seen.box_px, rule, *size, organ) for seen in objects)
        return {place for place in found if place}


def rejections(draft: Draft, context: CheckContext) -> list[str]:
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


def _language(draft: Draft, _: CheckContext) -> bool:
    """Not English: few Latin letters, or few of the words that English sentences are held together by."""
    letters = [c for c in draft.text if c.isalpha()]
    latin = sum(c.isascii() for c in letters)
    words = re.findall(r"[a-z_]+", draft.text.lower())
    common = sum(word in _COMMON for word in words)
    english = sum(word in _ENGLISH for word in words)
    few = common < _SHARE_OF_COMMON * len(words) or english * _WORDS_PER_ENGLISH < len(words)
    return latin < _SHARE_OF_LATIN * len(letters) or few


def _length(draft: Draft, context: CheckContext) -> bool:
    return not context.limits.min_words <= len(draft.text.split()) <= context.limits.max_words


def _markup(draft: Draft, _: CheckContext) -> bool:
    return _TAG.search(draft.text) is not None


def _box_outside(draft: Draft, context: CheckContext) -> bool:
    width, height = context.frame.width, context.frame.height
    boxes = [tuple(map(float, match.groups())) for match in _FOUR.finditer(draft.text)]
    return any(min(b) < 0 or max(b[0], b[2]) > width or max(b[1], b[3]) > height for b in boxes)


def _coordinates(draft: Draft, _: CheckContext) -> bool:
    """A place in numbers, even inside the frame: models count in units of their own, which a dataset does not know."""
    return _COORDINATES.search(draft.text) is not None


def _leak(draft: Draft, _: CheckContext) -> bool:
    return _LEAK.search(draft.text) is not None


def _named(text: str, kind: str, words: SourceWords, rule: LocationRule | None) -> list[str]:
    """Answers of a question's kind that a text names, in order; as they are written if any is, else in any case."""
    if kind == "location" and words.quadrants:
        # Words say what is seen: they are an answer where labels mean the same by it.
        same = rule is None or rule == _IMAGE
        return place_classes(text) or (corners(text) if same else [])
    if kind == "state":
        exact = list(words.states.find(text))
        if exact:
            return exact
    return list(words.answers[kind].find(text))


def claimed_answers(text: str, kind: str, words: SourceWords, rule: LocationRule | None) -> list[str]:
    """Answers of a question's kind that a text claims, in order; what it denies is left out.

    Args:
        rule: the location rule of the question's source, None where its labels follow none.
    """
    if kind not in vocab.KINDS:
        # "no" may be the answer itself.
        return _named(text, kind, words, rule)
    return _named(". ".join(clauses(text)), kind, words, rule)


def named_facts(text: str, context: CheckContext) -> set[str]:
    """Everything that a text names: objects, states, and places by class, corner or half of the picture."""
    words = context.words
    states = (f"state {name}" for name in words.states.find(text))
    places = (f"place {name}" for name in (*place_classes(text), *corners(text), *halves(text)))
    others = (f"answer {name}" for name in words.answers[context.sample.kind].find(text))
    own_kind = context.sample.kind not in vocab.KINDS
    return {*_mentioned(text, context), *states, *places, *(others if own_kind else ())}


def unsupported_facts(text: str, context: CheckContext) -> tuple[str, ...]:
    """Names of the checks that find a tool, place or state in a text which the annotations of the frame do not say."""
    checks = {"absent_tool": _absent_tool, "wrong_place": _wrong_place, "wrong_state": _wrong_state}
    return tuple(name for name, fails in checks.items() if fails(Draft(text), context))


def _own_answer(draft: Draft, context: CheckContext) -> bool:
    """The answer that the writer gives itself is another one."""
    if draft.answer is None:
        return False
    own, gold = plain(draft.answer).removeprefix("the "), context.sample.answer
    if context.sample.kind == "location" and set(own.split()) <= _PLACE_WORDS and corners(own) == [gold]:
        return False
    return own != plain(gold)


def _no_answer(draft: Draft, context: CheckContext) -> bool:
    """It is about something else: it claims neither the answer nor, where that is given after it, names the subject."""
    if context.sample.answer in _claimed(draft.text, context):
        return False
    tools = [context.sample.subject, context.sample.answer]
    return draft.answer is None or not any(name in tools for name in _mentioned(draft.text, context))


def _claimed(text: str, context: CheckContext) -> list[str]:
    return claimed_answers(text, context.sample.kind, context.words, context.rule)


def _wrong_answer(draft: Draft, context: CheckContext) -> bool:
    """Where a reasoning ends up: the last answer that it claims, unless the right one is given after it."""
    named = _claimed(draft.text, context)
    given = draft.answer is not None and context.sample.answer in named
    return bool(named) and named[-1] != context.sample.answer and not given


def _mentioned(text: str, context: CheckContext) -> list[str]:
    """Tools and organ of the frame that a text names, also by their last word alone."""
    names = list(context.words.tools.find(text))
    nouns = list(context.words.nouns.find(text))
    short = [seen.name for seen in context.frame.objects if seen.name.split("_")[-1] in nouns]
    organs = [seen.name for seen in context.frame.objects if seen.is_organ and seen.name in text.lower()]
    return names + short + organs


def _absent_tool(draft: Draft, context: CheckContext) -> bool:
    objects, words = context.frame.objects, context.words
    sample = context.sample
    # What is asked about or answered is there by its label; in sets without boxes no object is.
    there = {seen.name for seen in objects} | {sample.subject, sample.answer}
    # "suction" may also be what is being done.
    done = {str(seen.state).lower() for seen in objects}
    nouns = {name.split("_")[-1] for name in there} | ({"scissor"} if "scissors" in "".join(there) else set())
    if sample.kind not in vocab.KINDS:
        nouns |= set(words.nouns.find(f"{sample.question} {sample.answer}"))
    for clause in clauses(draft.text):
        if any(name not in there and name.lower() not in done for name in words.tools.find(clause)):
            return True
        if any(noun not in nouns for noun in words.nouns.find(words.tools.without(clause))):
            return True
    return False


def _spoken_of(clause: str, context: CheckContext) -> list[AnnotatedObject]:
    """Objects that a clause is about: the tools that it names, "it" that was asked about, else any tool."""
    names = set(_mentioned(clause, context))
    if not names and context.sample.kind in ("state", "location") and _IT.match(clause):
        names = {context.sample.subject}
    own = [seen for seen in context.frame.objects if seen.name in names and not seen.is_organ]
    return own or [seen for seen in context.frame.objects if not seen.is_organ]


def _wrong_place(draft: Draft, context: CheckContext) -> bool:
    """A class that the object of its clause does not have, or words for where it is not to be seen."""
    if not context.words.quadrants:
        return False
    for clause in clauses(draft.text):
        objects = _spoken_of(clause, context)
        right, seen = context.places_of(objects), context.quadrants_of(objects)
        sides = {side for place in seen for side in place.split("-")}
        if right and any(place not in right for place in place_classes(clause)):
            return True
        if seen and (any(c not in seen for c in corners(clause)) or any(h not in sides for h in halves(clause))):
            return True
    return False


def _wrong_state(draft: Draft, context: CheckContext) -> bool:
    for clause in clauses(draft.text):
        right = {seen.state for seen in _spoken_of(clause, context)}
        if None not in right and any(state not in right for state in context.words.states.find(clause)):
            return True
    return False


def _copy(draft: Draft, context: CheckContext) -> bool:
    return plain(draft.text) in context.neighbours


#: Name and test of every check; a test says whether a reasoning fails it.
CHECKS: tuple[tuple[str, Callable[[Draft, CheckContext], bool]], ...] = (
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
