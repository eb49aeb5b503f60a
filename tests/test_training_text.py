"""The floor against the public record text of the training labels, where that text is at hand (it is not shipped)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from surgery_r1 import vocab
from surgery_r1.evaluate.floor import NoImageFloor
from surgery_r1.records import Sample
from surgery_r1.synthetic.statistics import Record, train_records

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT.parent / "shared" / "data" / "endovis18_train_records.txt"

sys.path.insert(0, str(ROOT / "scripts"))
from make_scene_facts import read_text  # noqa: E402


def questions(frames: list[Record], sequence: int) -> list[Sample]:
    """The organ, state and place questions of frames, all with one and the same box."""
    asked = []
    for number, frame in enumerate(frames):
        lines = [("What organ is being operated?", "organ", vocab.ORGAN, vocab.ORGAN)]
        for tool, state, place in frame:
            lines.append((f"What is the state of {tool}?", "state", tool, state))
            lines.append((f"Where is {tool} located?", "location", tool, place))
        for index, (question, kind, subject, answer) in enumerate(lines):
            where = ("endovis18", "train", f"seq_{sequence}", f"frame{number}", "a.png", 100, 100)
            asked.append(Sample(f"{sequence}/{number}/{index}", *where, question, kind, subject, answer, (0, 0, 1, 1)))
    return asked


def guesses(samples: list[Sample]) -> dict[str, str]:
    floor = NoImageFloor.fit(samples)
    assert floor is not None and floor.n == len(samples)
    return {question: guess.answer for question, guess in floor.by_question.items()}


def blocks(frames: list[Record]) -> dict[int, list[Record]]:
    """The text in eleven equal blocks, one for each training sequence."""
    n = len(vocab.TRAIN_SEQUENCES)
    return {s: frames[i * len(frames) // n : (i + 1) * len(frames) // n] for i, s in enumerate(vocab.TRAIN_SEQUENCES)}


@pytest.mark.skipif(not TEXT.is_file(), reason="the public record text is not beside this repository")
def test_the_floor_of_the_text_is_that_of_the_drawn_training_labels():
    text, drawn = blocks(read_text(TEXT)), {s: train_records(s) for s in vocab.TRAIN_SEQUENCES}
    of_text = {s: questions(frames, s) for s, frames in text.items()}
    of_drawn = {s: questions(frames, s) for s, frames in drawn.items()}
    everything = [sample for samples in of_text.values() for sample in samples]
    without_dev = [sample for s, samples in of_text.items() if s not in vocab.DEV_SEQUENCES for sample in samples]
    assert (len(everything), len(without_dev)) == (9014, 7192)
    assert guesses(everything) == guesses([sample for samples in of_drawn.values() for sample in samples])

    # What is always true of the text itself: the majority of each question, counted by hand.
    floor = guesses(everything)
    right = sum(floor[sample.question] == sample.answer for sample in everything)
    majority: dict[str, dict[str, int]] = {}
    for sample in everything:
        counts = majority.setdefault(sample.question, {})
        counts[sample.answer] = counts.get(sample.answer, 0) + 1
    assert right == sum(max(counts.values()) for counts in majority.values())
    assert right / len(everything) > 0.6
    # Dev changes what is guessed: the floor without it is another one.
    assert guesses(without_dev) != floor


def test_the_drawn_training_labels_have_the_official_number_of_questions():
    counts = {s: len(questions(train_records(s), s)) for s in vocab.TRAIN_SEQUENCES}
    assert sum(counts.values()) == 9014
    assert sum(n for s, n in counts.items() if s not in vocab.DEV_SEQUENCES) == 7192
