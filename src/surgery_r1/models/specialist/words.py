"""Questions as numbers: the words of the training questions, learned from scratch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

#: Numbers of what is no word of training: nothing, and a word that training does not have.
NOTHING, UNKNOWN = 0, 1
_FIRST = 2
_WORD = re.compile(r"[^\W_]+")


def words_of(question: str) -> list[str]:
    """The words of a question; names are taken apart.

    >>> words_of("Where is bipolar_forceps located?")
    ['where', 'is', 'bipolar', 'forceps', 'located']
    """
    return [word.casefold() for word in _WORD.findall(question)]


def vocabulary(questions: Iterable[str]) -> tuple[str, ...]:
    """Every word of the questions, the most common first."""
    counts = Counter(word for question in questions for word in words_of(question))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word)))


class Words:
    """Turns questions into numbers.

    Args:
        words: see :func:`vocabulary`.
        length: numbers of a question; what is beyond is left out, what is missing is :data:`NOTHING`.

    >>> Words(("where", "is"), 4)("Where was it?")
    [2, 1, 1, 0]
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        self._numbers = {word: number for number, word in enumerate(words, start=_FIRST)}
        self._length = length

    def __len__(self) -> int:
        return len(self._numbers) + _FIRST

    def __call__(self, question: str) -> list[int]:
        numbers = [self._numbers.get(word, UNKNOWN) for word in words_of(question)][: self._length]
        return numbers + [NOTHING] * (self._length - len(numbers))

    def unknown(self, question: str) -> list[str]:
        """Words of a question that training does not have."""
        return [word for word in words_of(question) if word not in self._numbers]
