"""The no-image floor: what is scored without ever looking at a frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from surgery_r1 import vocab
from surgery_r1.codec import Prediction
from surgery_r1.geometry import Box, scale
from surgery_r1.records import Sample


@dataclass(frozen=True, slots=True)
class Guess:
    """What is guessed for a question: the majority answer, and the mean box in units of the frame's size."""

    answer: str
    box_unit: Box


@dataclass(frozen=True, slots=True)
class NoImageFloor:
    """Guesses by question text, by kind where the text is new, and one for everything else.

    Attributes:
        n: training questions it was computed from.
    """

    n: int
    by_question: dict[str, Guess]
    by_kind: dict[str, Guess]
    overall: Guess

    @classmethod
    def fit(cls, training: Iterable[Sample]) -> NoImageFloor | None:
        """Majority answers and mean boxes of training samples, or None where there are none.

        Boxes are averaged in units of the frame, so that frames of different sizes can be mixed. Ties go to the
        class that comes first in the vocabulary.
        """
        questions: dict[str, list[Sample]] = {}
        kinds: dict[str, list[Sample]] = {}
        everything = list(training)
        for sample in everything:
            questions.setdefault(sample.question.strip(), []).append(sample)
            kinds.setdefault(sample.kind, []).append(sample)
        if not everything:
            return None
        return cls(
            len(everything),
            {question: _guess(samples) for question, samples in questions.items()},
            {kind: _guess(samples) for kind, samples in kinds.items()},
            _guess(everything),
        )

    def __call__(self, sample: Sample) -> Prediction:
        """The guess for a question, its box in the pixels of that question's frame."""
        guess = self.by_question.get(sample.question.strip()) or self.by_kind.get(sample.kind) or self.overall
        return Prediction(None, guess.answer, scale(guess.box_unit, sample.width, sample.height))


def _guess(samples: list[Sample]) -> Guess:
    answers: Counter[str] = Counter()
    total, boxes = [0.0] * 4, 0
    for sample in samples:
        for answer, box_px in sample.accepted:
            answers[answer] += 1
            boxes += 1
            for i, value in enumerate(scale(box_px, 1 / sample.width, 1 / sample.height)):
                total[i] += value
    order = {name: i for i, name in enumerate(vocab.ANSWERS_EXTENDED)}
    best = min(answers, key=lambda name: (-answers[name], order.get(name, len(order)), name))
    x1, y1, x2, y2 = (value / boxes for value in total)
    return Guess(best, (x1, y1, x2, y2))
