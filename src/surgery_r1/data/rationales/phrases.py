"""What a reasoning says, read off its words: tools, states and places that it names, clause by clause (ours).

A place may be named by its class (``left-top``), which means what the labels mean by it, or in words ("upper left"),
which mean what is seen in the picture. The two differ where labels call the lower half "top".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from surgery_r1 import vocab

_CLAUSE = re.compile(
    r"[.;:!?]\s+|[,;]\s*|\n+|\s+(?:and|but|while|whereas|so|because|since|although|opposite|rather\s+than)\s+", re.I
)
_LEADING = re.compile(r"^(?:and|but|so|while|whereas)\s+(?=\w+\s+\w)", re.I)
#: What is denied is not claimed.
_NEGATION = re.compile(
    r"\b(?:not|no|none|nor|neither|never|without|rul(?:es?|ing)\s+out|excludes?|unlike)\b|n't\b", re.I
)
_CLASS = re.compile(r"(?<![\w-])(left|right)-(top|bottom)(?![\w-])")
_SIDE = r"(?P<side>left|right)"
_LEVEL = r"(?P<level>top|upper|bottom|lower)"
_BETWEEN = r"(?:[\s-]+(?:most\s+)?|\s+of\s+the\s+)"
_CORNERS = (
    re.compile(rf"\b{_LEVEL}{_BETWEEN}{_SIDE}\b", re.I),
    re.compile(rf"\b{_SIDE}{_BETWEEN}{_LEVEL}\b", re.I),
)
_UP = {"top", "upper", "above"}
_PICTURE = r"(?:frame|image|picture|view|screen|scene)"
_MIDDLE = rf"the\s+(?:{_PICTURE}\s+)?(?:cent(?:er|re)|middle)"
#: Followed by nothing else that "of the" could be about: "the right side of the fold" says nothing about the picture.
_OF_PICTURE = rf"(?!\s+of\s+(?!the\s+{_PICTURE}))(?!\s*-?hand\b(?!\s+(?:side|part|half)))"
_PART = r"(?:-?\s*hand)?\s*(?:half|side|part|portion|third)"
_HALVES = (
    re.compile(rf"\b(?P<half>left|right)\s+of\s+(?:and\s+(?P<also>above|below)\s+)?{_MIDDLE}\b", re.I),
    re.compile(rf"\b(?P<half>above|below)\s+{_MIDDLE}\b", re.I),
    re.compile(rf"\b(?P<half>left|right|top|upper|bottom|lower){_PART}{_OF_PICTURE}", re.I),
    # Not "to the left", which says where something goes, nor "from the top".
    re.compile(rf"\b(?:on|at|in)\s+the\s+(?P<half>left|right|top|bottom)\b(?!\s+(?:edge|hand\b)){_OF_PICTURE}", re.I),
)


def place_classes(text: str) -> list[str]:
    """Location classes that a text names as such, in order.

    >>> place_classes("it is left-top, in the upper right")
    ['left-top']
    """
    return [f"{match[1]}-{match[2]}" for match in _CLASS.finditer(text)]


def corners(text: str) -> list[str]:
    """Corners of the picture that a text names in words, in order, written like classes.

    >>> corners("it is left-top, in the upper right; the other is at the bottom left")
    ['right-top', 'left-bottom']
    """
    return [*_corners(text)[0]]


def halves(text: str) -> list[str]:
    """Halves of the picture that a text names, beside its corners: left, right, top, bottom.

    >>> halves("left of and above the center"), halves("left of the stapler"), halves("at the bottom of the frame")
    (['left', 'top'], [], ['bottom'])
    """
    rest = _corners(text)[1]
    words = [word.lower() for pattern in _HALVES for match in pattern.finditer(rest) for word in match.groups() if word]
    return list(dict.fromkeys(word if word in ("left", "right") else _level(word) for word in words))


@lru_cache(maxsize=256)
def clauses(text: str) -> tuple[str, ...]:
    """Parts of a text that claim one thing, as far as punctuation and connectives tell; what is denied is left out.

    >>> clauses("the stapler is left, and the suction is right. So it is not Idle")
    ('the stapler is left', 'the suction is right')
    """
    parts = [re.sub(r"[.!?]$", "", _LEADING.sub("", part.strip())) for part in _CLAUSE.split(text)]
    return tuple(part for part in parts if part and not _NEGATION.search(part))


class Names:
    """Class names that can be found in a text, written with spaces, hyphens or underscores and in any case.

    Args:
        names: such as ``bipolar_forceps``; a plural is found too.
        exact: names of which case counts, as ``suction`` the tool and ``Suction`` the action.

    >>> list(Names(["bipolar_forceps", "suction"], exact=["suction"]).find("Bipolar forceps at work: Suction"))
    ['bipolar_forceps']
    """

    def __init__(self, names: Iterable[str], exact: Iterable[str] = ()) -> None:
        self.names = tuple(names)
        self._exact = set(exact)
        self._by_word = {vocab.spoken(name): name for name in self.names}
        forms = sorted((r"[\s_-]+".join(map(re.escape, word.split())) for word in self._by_word), key=len)
        # Nothing matches where there are no names; of several the longest does.
        self._pattern = re.compile(rf"(?<![\w-])({'|'.join(reversed(forms)) or '(?!)'})s?(?![\w-])", re.I)

    def find(self, text: str) -> Iterator[str]:
        """Names in a text, in order."""
        return (name for _, _, name in self.spans(text))

    def spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Names in a text, in order, with where each begins and ends."""
        for match in self._pattern.finditer(text):
            name = self._by_word[vocab.spoken(match[1])]
            if name not in self._exact or match[0] == name:
                yield match.start(), match.end(), name

    def without(self, text: str) -> str:
        """The text with its names blanked out."""
        return _blank(self._pattern, text)


def place_spans(text: str) -> list[tuple[int, int, str, tuple[str, ...]]]:
    """Places that a text names, in order: where each begins and ends, how it is named, and what.

    Returns:
        (start, end, ``class``, (class,)), (start, end, ``corner``, (corner,)) or (start, end, ``half``, halves), of
        which there are two in "left of and above the center".

    >>> place_spans("upper right, so it is left-top")
    [(0, 11, 'corner', ('right-top',)), (22, 30, 'class', ('left-top',))]
    """
    found: list[tuple[int, int, str, tuple[str, ...]]] = [
        (*match.span(), "class", (f"{match[1]}-{match[2]}",)) for match in _CLASS.finditer(text)
    ]
    rest = _blank(_CLASS, text)
    for pattern in _CORNERS:
        for match in pattern.finditer(rest):
            found.append((*match.span(), "corner", (f"{match['side'].lower()}-{_level(match['level'])}",)))
        rest = _blank(pattern, rest)
    for pattern in _HALVES:
        for match in pattern.finditer(rest):
            words = (word.lower() for word in match.groups() if word)
            sides = tuple(word if word in ("left", "right") else _level(word) for word in words)
            found.append((*match.span(), "half", sides))
        rest = _blank(pattern, rest)
    return sorted(found)


@lru_cache(maxsize=256)
def _corners(text: str) -> tuple[list[str], str]:
    """Corners that a text names in words, and the text without them and without classes."""
    rest, found = _blank(_CLASS, text), []
    for pattern in _CORNERS:
        for match in pattern.finditer(rest):
            found.append((match.start(), f"{match['side'].lower()}-{_level(match['level'])}"))
        rest = _blank(pattern, rest)
    return [corner for _, corner in sorted(found)], rest


def _level(word: str) -> str:
    return "top" if word.lower() in _UP else "bottom"


def _blank(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda match: " " * len(match[0]), text)
