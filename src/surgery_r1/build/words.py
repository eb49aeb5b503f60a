"""What a reasoning says, read off its words: tools, states and places that it names, clause by clause (ours).

Tool names may be written with spaces or hyphens. Places may be written as a class (``left-top``) or in other words
("upper left"), which say what is seen: where labels call the lower half "top", such words are turned round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_CLAUSE = re.compile(r"[.;:!?]\s+|[,;]\s*|\n+|\s+(?:and|but|while|whereas|so|because|since|although)\s+", re.I)
_SIDE = r"(?P<side>left|right)"
_LEVEL = r"(?P<level>top|upper|bottom|lower)"
_BETWEEN = r"(?:[\s-]+(?:most\s+)?|\s+of\s+the\s+)"
#: A class is matched before words, so that ``left-top`` is what the labels call so.
_CLASS = re.compile(r"(?<![\w-])(left|right)-(top|bottom)(?![\w-])")
_PLACE = (
    re.compile(rf"\b{_LEVEL}{_BETWEEN}{_SIDE}\b", re.I),
    re.compile(rf"\b{_SIDE}{_BETWEEN}{_LEVEL}\b", re.I),
)
_UP = {"top", "upper", "above"}
_MIDDLE = r"the\s+(?:\w+\s+)?(?:cent(?:er|re)|middle)"
_PART = r"(?:half|side|part|edge|third|corner|portion)"
#: Words that say one half of the picture. "Left of the stapler" says nothing about the picture, and is not read.
_HALF = (
    re.compile(rf"\b(?P<half>left|right)\s+of\s+(?:and\s+(?P<also>above|below)\s+)?{_MIDDLE}\b", re.I),
    re.compile(rf"\b(?P<half>above|below)\s+{_MIDDLE}\b", re.I),
    re.compile(rf"\b(?P<half>left|right|top|upper|bottom|lower)\s+{_PART}\b", re.I),
    re.compile(r"\b(?:on|at|to|in)\s+the\s+(?P<half>left|right|top|bottom)\b(?!\s+of\s+the\b)(?!\s+\w*hand)", re.I),
)


def places(text: str, flipped: bool = False) -> list[str]:
    """Location classes that a text names, in order.

    Args:
        flipped: labels call the lower half of the picture "top".

    >>> places("it is left-top, in the upper left; the other is at the bottom right")
    ['left-top', 'left-top', 'right-bottom']
    >>> places("in the upper left", flipped=True)
    ['left-bottom']
    """
    found = [(m.start(), f"{m[1]}-{m[2]}") for m in _CLASS.finditer(text)]
    rest = _CLASS.sub(lambda m: " " * len(m[0]), text)
    for pattern in _PLACE:
        for match in pattern.finditer(rest):
            up = (match["level"].lower() in _UP) != flipped
            found.append((match.start(), f"{match['side'].lower()}-{'top' if up else 'bottom'}"))
        rest = pattern.sub(lambda m: " " * len(m[0]), rest)
    return [place for _, place in sorted(found)]


def halves(text: str, flipped: bool = False) -> list[str]:
    """Halves of the picture that a text names, beside its :func:`places`: left, right, top and bottom as labels say.

    >>> halves("left of and above the center"), halves("left of the stapler"), halves("in the upper part", True)
    (['left', 'top'], [], ['bottom'])
    """
    rest = _CLASS.sub(lambda m: " " * len(m[0]), text)
    for pattern in _PLACE:
        rest = pattern.sub(lambda m: " " * len(m[0]), rest)
    found = [word.lower() for pattern in _HALF for m in pattern.finditer(rest) for word in m.groups() if word]
    labels = [w if w in ("left", "right") else ("top" if (w in _UP) != flipped else "bottom") for w in found]
    return list(dict.fromkeys(labels))


def clauses(text: str) -> list[str]:
    """Parts of a text that speak of one thing, as far as punctuation and connectives tell.

    >>> clauses("the stapler is left, and the suction is right. So it is Idle")
    ['the stapler is left', 'the suction is right', 'So it is Idle']
    """
    parts = (re.sub(r"^(?:and|but|so|while|whereas)\s+(?=\w+\s+\w)", "", p.strip()) for p in _CLAUSE.split(text))
    return [re.sub(r"[.!?]$", "", part) for part in parts if part]


class Names:
    """Class names that can be found in a text, written with spaces, hyphens or underscores and in any case.

    Args:
        names: such as ``bipolar_forceps``.
        exact: names of which case counts, as ``suction`` the tool and ``Suction`` the action.

    >>> list(Names(["bipolar_forceps", "suction"], exact=["suction"]).find("Bipolar forceps at work: Suction"))
    ['bipolar_forceps']
    """

    def __init__(self, names: Iterable[str], exact: Iterable[str] = ()) -> None:
        self.names = tuple(names)
        self._exact = set(exact)
        self._by_word = {_plain(name): name for name in self.names}
        forms = sorted((r"[\s_-]+".join(map(re.escape, _plain(name).split())) for name in self.names), key=len)
        # Nothing matches where there are no names; of several the longest does.
        self._pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(reversed(forms)) or '(?!)'})(?![\w-])", re.I)

    def find(self, text: str) -> Iterator[str]:
        """Names in a text, in order."""
        for match in self._pattern.finditer(text):
            name = self._by_word[_plain(match[0])]
            if name not in self._exact or match[0] == name:
                yield name

    def without(self, text: str) -> str:
        """The text with its names blanked out."""
        return self._pattern.sub(lambda match: " " * len(match[0]), text)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).lower()
