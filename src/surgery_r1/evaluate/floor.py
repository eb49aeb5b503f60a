"""The no-image floor: what is scored without ever looking at a frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from surgery_r1 import vocab
from surgery_r1.codec import Prediction
from surgery_r1.geometry import Box, scale
from surgery_r1.records import Sample


@dataclass(frozen=True, slots=True)
class Guess:
    """What is guessed for a question: the majority answer, and the mean box in units of the frame's size.

    ``box_unit`` is None where no training question has a box.
    """

    answer: str
    box_unit: Box | None


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
    def fit(cls, training: Iterable[Sample], classes: Sequence[str] = vocab.ANSWERS_EXTENDED) -> NoImageFloor | None:
        """Majority answers and mean boxes of training samples, or None where there are none.

        Boxes are averaged in units of the frame, so that frames of different sizes can be mixed. Ties go to the
        class that comes first.

        Args:
            classes: the set's own classes in order.
        """
        order = {name: i for i, name in enumerate(classes)}
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
            {question: _guess(samples, order) for question, samples in questions.items()},
            {kind: _guess(samples, order) for kind, samples in kinds.items()},
            _guess(everything, order),
        )

    def __call__(self, sample: Sample) -> Prediction:
        """The guess for a question, its box in the pixels of that question's frame."""
        guess = self.by_question.get(sample.question.strip()) or self.by_kind.get(sample.kind) or self.overall
        box = guess.box_unit and scale(guess.box_unit, sample.width, sample.height)
        return Prediction(None, guess.answer, box)


def _guess(samples: list[Sample], order: Mapping[str, int]) -> Guess:
    answers: Counter[str] = Counter()
    boxes: list[Box] = []
    for sample in samples:
        for answer, box_px in sample.accepted:
            answers[answer] += 1
            if box_px is not None:
                boxes.append(scale(box_px, 1 / sample.width, 1 / sample.height))
    best = min(answers, key=lambda name: (-answers[name], order.get(name, len(order)), name))
    if not boxes:
        return Guess(best, None)
    x1, y1, x2, y2 = (sum(corner) / len(boxes) for corner in zip(*boxes, strict=True))
    return Guess(best, (x1, y1, x2, y2))
