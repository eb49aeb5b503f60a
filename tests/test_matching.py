"""What a question is about and what it is not: other objects, wrong referents, and that reward and score agree."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest

from surgery_r1 import vocab
from surgery_r1.codec import View, read_reply, render, to_model
from surgery_r1.evaluate.score import Scorer
from surgery_r1.geometry import Box
from surgery_r1.matching import Referent, other_objects, referent
from surgery_r1.records import AnnotatedObject, Frame, Sample
from surgery_r1.rewards import Truth, coherence_referent

LEFT, RIGHT = (0, 0, 100, 100), (200, 0, 300, 100)
KIDNEY = AnnotatedObject(vocab.ORGAN, None, None, (50, 50, 250, 200))
ASKED = Sample(
    id="s/q/f/0",
    source="s",
    split="val",
    sequence="q",
    frame="f",
    image="f.png",
    width=320,
    height=256,
    question="Where is suction located?",
    kind="location",
    subject="suction",
    answer="left-top",
    box_px=LEFT,
)
WHICH_TOOL = dataclasses.replace(
    ASKED,
    kind="tool",
    subject="top",
    answer="suction",
    answers_accepted=("suction", "stapler"),
    boxes_accepted=(LEFT, RIGHT),
)


def tool(name: str, box: Box) -> AnnotatedObject:
    return AnnotatedObject(name, "Idle", "left-top", box)


def test_a_second_instrument_of_the_same_name_is_another_object():
    first, second = tool("suction", (5, 5, 100, 100)), tool("suction", RIGHT)
    assert other_objects(ASKED, (KIDNEY, second, first)) == (KIDNEY, second)
    assert referent(RIGHT, ASKED, (first, second)) is Referent.OTHER_CLEARLY
    assert referent(LEFT, ASKED, (first, second)) is Referent.OWN


def test_what_no_pair_overlaps_is_another_object_whatever_its_name():
    assert other_objects(ASKED, (tool("suction", RIGHT),)) == (tool("suction", RIGHT),)


def test_an_object_with_an_accepted_box_is_never_another():
    assert other_objects(ASKED, (tool("stapler", LEFT), tool("suction", LEFT), tool("suction", LEFT))) == ()


def test_every_accepted_pair_points_at_the_object_of_its_answer_where_a_tool_is_asked_for():
    suction, stapler = tool("suction", (0, 0, 90, 90)), tool("stapler", (210, 0, 300, 100))
    assert other_objects(WHICH_TOOL, (suction, stapler, KIDNEY)) == (KIDNEY,)
    # The stapler's pair does not point at a suction, however well that fits.
    near = tool("suction", (201, 0, 300, 100))
    assert other_objects(WHICH_TOOL, (suction, stapler, near)) == (near,)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((100, 0, 200, 100), Referent.NOTHING),  # touches both and overlaps neither
        ((50, 0, 250, 100), Referent.OWN),  # overlaps both equally: a tie is no wrong referent
        ((51, 0, 251, 100), Referent.OTHER),
        ((49, 0, 249, 100), Referent.OWN),
        ((200, 0, 300, 51), Referent.OTHER_CLEARLY),
        ((200, 0, 300, 49), Referent.OTHER),  # not half of it: another object, but not beyond doubt
        ((0, 150, 50, 200), Referent.NOTHING),  # on empty tissue
        (None, Referent.NOTHING),
    ],
)
def test_what_a_box_refers_to(box, expected):
    assert referent(box, ASKED, (tool("suction", LEFT), tool("stapler", RIGHT))) is expected


def test_where_it_could_refer_to_nothing_else_nothing_is_said():
    assert referent(RIGHT, ASKED, ()) is None
    assert referent(RIGHT, ASKED, (tool("suction", LEFT),)) is None
    boxless = dataclasses.replace(ASKED, box_px=None)
    assert other_objects(boxless, (tool("stapler", RIGHT),)) == ()
    assert referent(None, boxless, (tool("stapler", RIGHT),)) is None


def drawn_box(rng: random.Random, frame: Frame) -> Box:
    """Any box, or one near an annotated object; never the whole frame, which the reward discounts to nothing."""
    if rng.random() < 0.3:
        x, y = rng.uniform(0, frame.width * 0.8), rng.uniform(0, frame.height * 0.8)
        return (x, y, x + rng.uniform(2, frame.width * 0.5), y + rng.uniform(2, frame.height * 0.5))
    x1, y1, x2, y2 = rng.choice(frame.objects).box_px
    w, h = (x2 - x1) * rng.uniform(-0.7, 0.7), (y2 - y1) * rng.uniform(-0.7, 0.7)
    return (x1 + w, y1 + h, x2 + w, y2 + h)


def test_the_reward_pays_exactly_where_the_score_sees_no_wrong_referent(dataset):
    rng = random.Random(0)
    seen: Counter[tuple[bool, Referent | None]] = Counter()
    frames = dict(dataset.frames)
    scorer = Scorer(dataclasses.replace(dataset, frames=frames))
    for sample in [*dataset.samples.values()] * 12:
        frame = dataset.frame_of(sample)
        assert frame is not None
        if rng.random() < 0.3:  # a second object of a name that is there already
            double = dataclasses.replace(rng.choice(frame.objects), box_px=drawn_box(rng, frame))
            frame = dataclasses.replace(frame, objects=(*frame.objects, double))
        frames[sample.frame_id] = frame
        view = View(sample.width, sample.height, sample.width, sample.height)
        space = rng.choice(["source", "norm1000"])
        truth = Truth.from_sample(sample, frame, view=view, box_space=space, rule=None, agreement=None)
        answer = rng.choice([sample.answer, *sample.answers_accepted, "a wrong answer"])
        box = to_model(drawn_box(rng, frame), space, view) if rng.random() < 0.95 else None
        text = render("it is seen", answer, box)

        reward = coherence_referent(text, truth)
        line = scorer.line(sample, read_reply(text, space, view))
        assert (reward is None) == (line.referent is None) == (not other_objects(sample, frame.objects))
        if reward is None:
            continue
        assert (reward > 0) == (line.answer_right and line.referent == Referent.OWN)
        assert reward in (0.0, pytest.approx(line.joint))
        seen[line.answer_right, Referent(line.referent)] += 1
    assert min(seen[True, meant] for meant in Referent) > 20 and len(seen) == 2 * len(Referent)


def test_without_its_objects_a_reward_says_nothing(dataset):
    sample = next(iter(dataset.samples.values()))
    view = View(sample.width, sample.height, sample.width, sample.height)
    truth = Truth.from_sample(sample, None, view=view, box_space="source", rule=None, agreement=None)
    assert coherence_referent(render("it is seen", sample.answer, sample.box_px), truth) is None
