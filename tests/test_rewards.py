"""Rewards: what each pays for, what an attack earns, and how other trainers call them."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery_r1 import codec, geometry, prompts, rewards, vocab
from surgery_r1 import records as schema
from surgery_r1.codec import View, render, to_model
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.matching import other_objects
from surgery_r1.rewards import MIXTURES, REWARDS, Mixture, Truth
from surgery_r1.rewards import bindings as adapters

# Machines are shared: no example is timed, and every run tries the same ones.
UNTIMED = settings(deadline=None, derandomize=True)

VIEW = View(1280, 1024, 1120, 896)
SUCTION = (100.0, 80.0, 500.0, 420.0)  # centre left-top of the image
STAPLER = (400.0, 100.0, 900.0, 450.0)  # overlaps the suction
KIDNEY = (300.0, 300.0, 1000.0, 900.0)  # centre (650, 600)
WHOLE = (0.0, 0.0, 1280.0, 1024.0)
OBJECTS = (
    schema.AnnotatedObject(vocab.ORGAN, None, None, KIDNEY),
    schema.AnnotatedObject("suction", "Suction", "left-top", SUCTION),
    schema.AnnotatedObject("stapler", "Staple", "right-top", STAPLER),
)
FRAME = schema.Frame("endovis18/seq_2/frame000", "f.png", 1280, 1024, "0" * 64, OBJECTS)
SAMPLE = schema.Sample(
    id="endovis18/seq_2/frame000/0",
    source="endovis18",
    split="train",
    sequence="seq_2",
    frame="frame000",
    image="f.png",
    width=1280,
    height=1024,
    question="Where is suction located?",
    kind="location",
    subject="suction",
    answer="left-top",
    box_px=SUCTION,
)


CLASSES = {"state": ("Idle", "Suction", "Staple"), "location": vocab.LOCATIONS, "organ": (vocab.ORGAN,)}
CLASSES |= {"tool": ("suction", "stapler")}


def truth_of(sample=SAMPLE, frame=FRAME, *, rule="image-normal", agreement=1.0, space="norm1000", **more) -> Truth:
    more = {"classes": CLASSES, **more}
    return Truth.from_sample(sample, frame, view=VIEW, box_space=space, rule=rule, agreement=agreement, **more)


TRUTH = truth_of()
ORGAN_TRUTH = truth_of(
    dataclasses.replace(SAMPLE, kind="organ", subject="kidney", answer="kidney", box_px=KIDNEY, id="o")
)
STATE_TRUTH = truth_of(dataclasses.replace(SAMPLE, kind="state", answer="Suction", id="s"))
TOOL_TRUTH = truth_of(
    dataclasses.replace(
        SAMPLE,
        kind="tool",
        subject="top",
        answer="suction",
        id="t",
        answers_accepted=("suction", "stapler"),
        boxes_accepted=(SUCTION, STAPLER),
    )
)
TRUTHS = [TRUTH, ORGAN_TRUTH, STATE_TRUTH, TOOL_TRUTH]
TRUTHS += [dataclasses.replace(TRUTH, task=task) for task in ("visual_qa", "grounding_qa")]
TRUTHS += [dataclasses.replace(TRUTH, reasoning=False), truth_of(rule=None, agreement=None), truth_of(frame=None)]
TRUTHS += [truth_of(space="pixels", rule="organ-flipped"), truth_of(space="source"), truth_of(space="norm100")]


def reply(answer, box_px, truth=TRUTH, why="it is seen there") -> str:
    box = None if box_px is None else to_model(box_px, truth.box_space, truth.view)
    return render(why, answer, box)


def scores(text, truth=TRUTH) -> dict[str, float | None]:
    return {name: reward(text, truth) for name, reward in REWARDS.items() if name != "random"}


# --- what each reward pays for -------------------------------------------------------------------------------------


def test_the_right_reply_earns_everything():
    for name, value in scores(reply("left-top", SUCTION, why="it is left-top")).items():
        assert value == pytest.approx(1.0, abs=0.01), name


def test_a_wrong_answer_keeps_format_and_box_only():
    values = scores(reply("right-top", SUCTION))
    assert values["format"] == 1 and values["box"] > 0.99 and values["box_dense"] > 0.99
    assert values["answer"] == values["coherence"] == values["referent"] == values["spatial"] == 0


def test_a_box_elsewhere_keeps_format_and_answer_only():
    values = scores(reply("left-top", (900, 700, 1200, 1000)))
    assert values["format"] == values["answer"] == 1
    assert values["box"] == values["coherence"] == values["referent"] == values["spatial"] == 0
    assert 0 < values["box_dense"] < 0.5


def test_box_is_the_true_iou_in_source_pixels_for_every_space():
    box = (200.0, 100.0, 520.0, 400.0)
    for space in codec.BOX_SPACES:
        truth = truth_of(space=space)
        text = reply("left-top", box, truth)
        written = codec.to_px(to_model(box, space, VIEW), space, VIEW)
        assert rewards.box_reward(text, truth) == pytest.approx(geometry.iou(written, SUCTION))
        assert rewards.coherence_joint(text, truth) == rewards.box_reward(text, truth)


def test_the_dense_reward_grows_while_boxes_are_still_apart():
    boxes = [(1000 - d, 800 - d, 1200 - d, 1000 - d) for d in (0, 150, 300)]
    assert all(geometry.iou(box, SUCTION) == 0 for box in boxes)
    values = [rewards.box_dense_reward(reply("left-top", box), TRUTH) for box in boxes]
    assert values == sorted(values) and len(set(values)) == 3


def test_referent_refuses_the_box_that_fits_another_instrument_better():
    illusion = (280.0, 90.0, 780.0, 440.0)  # nearer to the stapler, yet it overlaps the suction
    assert geometry.iou(illusion, STAPLER) > geometry.iou(illusion, SUCTION) > 0.1
    text = reply("left-top", illusion)
    assert rewards.coherence_joint(text, TRUTH) > 0.1
    assert rewards.coherence_referent(text, TRUTH) == 0
    honest = reply("left-top", (120.0, 90.0, 560.0, 430.0))
    assert rewards.coherence_referent(honest, TRUTH) == rewards.coherence_joint(honest, TRUTH) > 0.5


def test_referent_refuses_only_a_strictly_better_fit_elsewhere():
    # An object drawn with the very box that was asked for is no other object.
    twin = dataclasses.replace(FRAME, objects=(*OBJECTS, schema.AnnotatedObject("stapler", None, None, SUCTION)))
    assert rewards.coherence_referent(reply("left-top", SUCTION), truth_of(frame=twin)) > 0.99
    # The suction reaches from 100 to 500, this stapler from 300 to 700: halfway both fit equally well, which is paid.
    beside = schema.AnnotatedObject("stapler", None, None, (300.0, 80.0, 700.0, 420.0))
    truth = truth_of(frame=dataclasses.replace(FRAME, objects=(OBJECTS[1], beside)), space="source")
    for shift, paid in ((-10, True), (0, True), (1, False), (10, False)):
        text = reply("left-top", (200.0 + shift, 80.0, 600.0 + shift, 420.0), truth)
        assert rewards.coherence_joint(text, truth) > 0.5
        assert rewards.coherence_referent(text, truth) == (rewards.coherence_joint(text, truth) if paid else 0)


def test_referent_with_two_instruments_of_one_kind():
    second = schema.AnnotatedObject("suction", "Idle", "right-bottom", (900.0, 700.0, 1200.0, 1000.0))
    truth = truth_of(frame=dataclasses.replace(FRAME, objects=(*OBJECTS, second)))
    assert rewards.coherence_referent(reply("left-top", SUCTION), truth) > 0.99
    assert second in other_objects(truth, truth.objects)
    between = schema.AnnotatedObject("suction", "Idle", "right-top", (300.0, 80.0, 700.0, 420.0))
    truth = truth_of(frame=dataclasses.replace(FRAME, objects=(*OBJECTS, between)))
    text = reply("left-top", (250.0, 80.0, 650.0, 420.0))
    assert rewards.coherence_joint(text, truth) > 0.4 and rewards.coherence_referent(text, truth) == 0


def test_referent_takes_a_box_on_any_object_that_is_asked_about():
    assert rewards.coherence_referent(reply("stapler", STAPLER), TOOL_TRUTH) > 0.99
    # Right answer, box on the other right object: joint pays for their overlap, and it is no wrong referent.
    swapped = reply("stapler", SUCTION)
    assert rewards.coherence_joint(swapped, TOOL_TRUTH) > 0
    assert rewards.coherence_referent(swapped, TOOL_TRUTH) == rewards.coherence_joint(swapped, TOOL_TRUTH)
    on_the_kidney = reply("stapler", (310.0, 310.0, 1000.0, 900.0))
    assert rewards.coherence_joint(on_the_kidney, TOOL_TRUTH) > 0
    assert rewards.coherence_referent(on_the_kidney, TOOL_TRUTH) == 0


def test_referent_is_none_where_nothing_else_is_annotated():
    alone = dataclasses.replace(FRAME, objects=OBJECTS[1:2])
    for frame in (None, alone):
        assert rewards.coherence_referent(reply("left-top", SUCTION), truth_of(frame=frame)) is None


def test_spatial_wants_the_answer_to_name_the_quadrant_of_its_own_box():
    over_the_middle = (460.0, 80.0, 860.0, 420.0)  # centre (660, 250): right-top
    near = (200.0, 80.0, 600.0, 420.0)  # centre (400, 250): left-top
    assert rewards.coherence_joint(reply("left-top", over_the_middle), TRUTH) > 0
    assert rewards.coherence_spatial(reply("left-top", over_the_middle), TRUTH) == 0
    assert rewards.coherence_spatial(reply("right-top", over_the_middle), TRUTH) == 0  # coherent, and wrong
    assert rewards.coherence_spatial(reply("left-top", near), TRUTH) == rewards.box_reward(
        reply("left-top", near), TRUTH
    )


@pytest.mark.parametrize("agreement", [None, 0.0, 0.949, math.nan])
def test_spatial_is_none_where_the_rule_does_not_hold(agreement):
    assert rewards.coherence_spatial(reply("left-top", SUCTION), truth_of(agreement=agreement)) is None


def test_spatial_is_none_without_rule_organ_or_location_question():
    text = reply("left-top", SUCTION)
    assert rewards.coherence_spatial(text, truth_of(rule=None)) is None
    assert rewards.coherence_spatial(text, truth_of(agreement=0.95)) is not None
    no_organ = dataclasses.replace(FRAME, objects=OBJECTS[1:])
    assert rewards.coherence_spatial(text, truth_of(frame=no_organ, rule="organ-normal")) is None
    assert rewards.coherence_spatial(text, truth_of(rule="organ-normal")) is not None
    for other in (ORGAN_TRUTH, STATE_TRUTH, TOOL_TRUTH):
        assert rewards.coherence_spatial(text, other) is None


def test_a_flipped_rule_reads_the_labels_its_own_way():
    flipped = truth_of(dataclasses.replace(SAMPLE, answer="left-bottom"), rule="image-flipped")
    assert rewards.coherence_spatial(reply("left-bottom", SUCTION), flipped) > 0.99
    assert rewards.coherence_spatial(reply("left-top", SUCTION), flipped) == 0


def test_several_right_answers():
    for answer, box in (("suction", SUCTION), ("stapler", STAPLER)):
        assert rewards.answer_reward(reply(answer, box), TOOL_TRUTH) == 1
        assert rewards.coherence_joint(reply(answer, box), TOOL_TRUTH) > 0.99
    assert rewards.answer_reward(reply("suction, stapler", SUCTION), TOOL_TRUTH) == 0


def test_case_matters():
    assert rewards.answer_reward(reply("Suction", SUCTION), STATE_TRUTH) == 1
    assert rewards.answer_reward(reply("suction", SUCTION), STATE_TRUTH) == 0


def test_tasks_lack_the_rewards_of_the_parts_they_lack():
    visual, grounding = (dataclasses.replace(TRUTH, task=task) for task in ("visual_qa", "grounding_qa"))
    both = {"coherence", "joint", "referent", "spatial", "coherence_all"}
    values = scores(render("why", "left-top", None), visual)
    assert {name for name, value in values.items() if value is None} == both | {"box", "box_dense"}
    assert values["rationale"] == 0  # it says only "why"
    assert values["format"] == values["answer"] == 1
    values = scores(reply(None, SUCTION), grounding)
    assert {name for name, value in values.items() if value is None} == both | {"answer", "rationale"}
    assert values["format"] == 1 and values["box"] > 0.99


def test_an_uninvited_answer_does_not_choose_the_box():
    grounding = dataclasses.replace(TOOL_TRUTH, task="grounding_qa")
    text = reply("suction", STAPLER, grounding)
    assert rewards.box_reward(text, grounding) > 0.99
    assert rewards.format_reward(text, grounding) == 0


def test_format_follows_the_reasoning_switch():
    silent = dataclasses.replace(TRUTH, reasoning=False)
    short, long = reply("left-top", SUCTION, why=None), reply("left-top", SUCTION)
    assert (rewards.format_reward(short, silent), rewards.format_reward(long, silent)) == (1, 0)
    assert (rewards.format_reward(short, TRUTH), rewards.format_reward(long, TRUTH)) == (0, 1)


def test_random_knows_nothing_and_repeats_itself():
    texts = [f"reply {i}" for i in range(2000)]
    values = [rewards.random_reward(text, TRUTH) for text in texts]
    assert values == [rewards.random_reward(text, TRUTH) for text in texts]
    assert all(0 <= value < 1 for value in values) and abs(sum(values) / len(values) - 0.5) < 0.03
    assert rewards.random_reward("a", TRUTH) != rewards.random_reward("a", STATE_TRUTH)
    assert rewards.random_reward("a", TRUTH, seed=1) != rewards.random_reward("a", TRUTH)
    right_answers = dataclasses.replace(TRUTH, accepted=(("right-bottom", STAPLER),))
    assert rewards.random_reward("a", TRUTH) == rewards.random_reward("a", right_answers)


# --- attacks -------------------------------------------------------------------------------------------------------

WRONG = "right-bottom"
BOX = "[78, 78, 390, 410]"  # an honest guess in 0-1000 units


def attacks(answer: str, box: str) -> dict[str, str]:
    """Replies that try to win without knowing; ``answer`` and ``box`` are what an honest model would have said."""
    tail = f"<answer>{answer}</answer><box>{box}</box>"
    body = "<think>why</think>" + tail
    echo = prompts.system_text("norm1000") + " " + prompts.user_text(SAMPLE.question)
    every = ", ".join(vocab.LOCATIONS)
    out = {
        "nothing": "",
        "blank": " \n\t",
        "no reasoning": tail,
        "empty reasoning": "<think></think>" + tail,
        "blank reasoning": "<think> \n </think>" + tail,
        "invisible reasoning": "<think>\u200b\u2060\ufeff</think>" + tail,
        "dots for reasoning": "<think>......</think>" + tail,
        "several answers": body + "".join(f"<answer>{a}</answer>" for a in vocab.LOCATIONS),
        "several answers first": "".join(f"<answer>{a}</answer>" for a in vocab.LOCATIONS) + body,
        "same answer twice": f"<think>why</think><answer>{answer}</answer>" + tail,
        "several boxes": body + "<box>[0, 0, 500, 500]</box>" * 4,
        "boxes in one box": f"<think>why</think><answer>{answer}</answer><box>{box}, {box}</box>",
        "answer list": f"<think>why</think><answer>{every}</answer><box>{box}</box>",
        "answer or": f"<think>why</think><answer>{' or '.join(vocab.LOCATIONS)}</answer><box>{box}</box>",
        "answer with every class": f"<think>why</think><answer>{' '.join(vocab.ANSWERS)}</answer><box>{box}</box>",
        "tags in reasoning": "<think>" + "".join(f"<answer>{a}</answer>" for a in vocab.LOCATIONS) + "</think>" + tail,
        "tags in answer": f"<think>why</think><answer><answer>{answer}</answer></answer><box>{box}</box>",
        "box in answer": f"<think>why</think><answer>{answer}<box>{box}</box></answer>",
        "answer in box": f"<think>why</think><box><answer>{answer}</answer>{box}</box>",
        "torn tags": f"<think>why<answer>{answer}<box>{box}",
        "wrong order": f"<box>{box}</box><answer>{answer}</answer><think>why</think>",
        "text around": f"The answer is {every}. {body} I am sure.",
        "prompt echo": echo,
        "prompt echo, then the reply": echo + body,
        "format echo": "<think>reasoning</think><answer>answer</answer><box>[x1, y1, x2, y2]</box>",
        "fullwidth tags": body.replace("<", "＜").replace(">", "＞"),
        "upper case": body.upper(),
    }
    numbers = {
        "huge": "[0, 0, 99999999999999999999, 99999999999999999999]",
        "largest": "[-9999999, -9999999, 9999999, 9999999]",
        "nan": "[nan, nan, nan, nan]",
        "inf": "[-inf, -inf, inf, inf]",
        "exponent": "[0, 0, 1e308, 1e308]",
        "negative": "[-400, -300, -10, -20]",
        "inverted": "[390, 410, 78, 78]",
        "point": "[100, 100, 100, 100]",
        "arabic digits": "[٧٨, ٧٨, ٣٩٠, ٤١٠]",
        "fullwidth digits": "[７８, ７８, ３９０, ４１０]",
        "superscript": "[¹, ¹, ⁹, ⁹]",
        "a megabyte of digits": "[0, 0, " + "9" * 1_000_000 + ", 9]",
        "no numbers": "[x1, y1, x2, y2]",
        "five numbers": "[78, 78, 390, 410, 410]",
    }
    out |= {f"box: {name}": f"<think>why</think><answer>{answer}</answer><box>{b}</box>" for name, b in numbers.items()}
    mega = {
        "tags": "<answer>" * 120_000,
        "pairs": "<think>x</think>" * 60_000,
        "brackets": "<" * 1_000_000,
        "digits": "9" * 1_000_000,
        "words": "left-top " * 110_000,
        "unicode": "é" * 1_000_000,
    }
    out |= {f"a megabyte of {name}": text for name, text in mega.items()}
    out |= {f"a megabyte of {name}, then the reply": text + body for name, text in mega.items()}
    out |= {f"a megabyte of {name} for reasoning": f"<think>{text}</think>{tail}" for name, text in mega.items()}
    out |= {
        f"a megabyte of {name} as answer": f"<think>why</think><answer>{text}</answer>" for name, text in mega.items()
    }
    return out


ATTACKS = attacks(WRONG, BOX)
HONEST_WRONG = f"<think>why</think><answer>{WRONG}</answer><box>{BOX}</box>"
WITH_THE_RIGHT_ANSWER = attacks("left-top", BOX)
HONEST_RIGHT = HONEST_WRONG.replace(WRONG, "left-top")


@pytest.fixture(scope="module")
def parse_once():
    """Each reward parses its text again; a megabyte of tags is parsed once here, or these tests would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "parse", functools.cache(codec.parse))
        yield


@pytest.mark.usefixtures("parse_once")
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_earns_more_than_an_honest_wrong_answer(mixture, attack):
    total, parts = MIXTURES[mixture].total(ATTACKS[attack], TRUTH)
    honest, honest_parts = MIXTURES[mixture].total(HONEST_WRONG, TRUTH)
    assert total <= honest
    assert all(parts[name] <= honest_parts[name] for name in ("format", "answer"))


@pytest.mark.usefixtures("parse_once")
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("attack", WITH_THE_RIGHT_ANSWER)
def test_nor_does_it_help_one_who_knows_the_answer(mixture, attack):
    total, _ = MIXTURES[mixture].total(WITH_THE_RIGHT_ANSWER[attack], TRUTH)
    assert total <= MIXTURES[mixture].total(HONEST_RIGHT, TRUTH)[0]


@pytest.mark.usefixtures("parse_once")
@pytest.mark.parametrize("attack", ATTACKS)
def test_each_reward_of_an_attack_is_in_range(attack):
    for truth in TRUTHS:
        for name, reward in REWARDS.items():
            value = reward(ATTACKS[attack], truth)
            assert value is None or 0 <= value <= 1, name


def test_a_well_formed_megabyte_is_no_better_than_a_sentence():
    long = HONEST_RIGHT.replace("why", "why " * 250_000)
    assert scores(long) == scores(HONEST_RIGHT)


def realistic_boxes(n: int, seed: int) -> list[geometry.Box]:
    """Invented boxes, as spread out as those of the drawn scenes or more: tools from all corners, an organ in six."""
    rng = random.Random(seed)
    boxes: list[geometry.Box] = []
    for _ in range(n):
        if rng.random() < 0.17:  # 1,560 of 9,014 training questions ask for the organ
            w, h, cx, cy = rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.6), rng.gauss(0.5, 0.2), rng.gauss(0.5, 0.2)
        else:
            w, h = rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.5)
            cx, cy = rng.choice([w / 2, 1 - w / 2]), rng.choice([h / 2, h / 2, 1 - h / 2])  # from a corner
        box = ((cx - w / 2) * 1280, (cy - h / 2) * 1024, (cx + w / 2) * 1280, (cy + h / 2) * 1024)
        boxes.append(geometry.clip(box, 1280, 1024))
    return boxes


def mean_box(boxes: list[geometry.Box]) -> geometry.Box:
    x1, y1, x2, y2 = (math.fsum(box[i] for box in boxes) / len(boxes) for i in range(4))
    return x1, y1, x2, y2


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("answer", ["left-top", WRONG], ids=["right", "wrong"])
def test_the_whole_image_earns_less_than_the_mean_box(mixture, answer):
    boxes = realistic_boxes(400, 0)
    mean = mean_box(boxes)

    def earned(box: geometry.Box) -> float:
        truths = [dataclasses.replace(TRUTH, accepted=(("left-top", true),)) for true in boxes]
        return math.fsum(MIXTURES[mixture].total(reply(answer, box), truth)[0] for truth in truths) / len(truths)

    assert earned(WHOLE) < earned(mean)


@pytest.mark.parametrize("name", ["box", "box_dense"])
def test_the_whole_image_earns_less_than_the_mean_box_in_each_box_reward(name):
    boxes = realistic_boxes(400, 1)
    mean = mean_box(boxes)
    truths = [dataclasses.replace(TRUTH, accepted=(("left-top", box),)) for box in boxes]
    earned = {
        what: math.fsum(REWARDS[name](reply("left-top", box), truth) for truth in truths)
        for what, box in (("whole", WHOLE), ("mean", mean))
    }
    assert earned["whole"] < earned["mean"]


def test_why_boxes_are_not_paid_by_plain_iou_or_giou():
    """Recorded so that nobody puts it back: with both, the whole image beats the mean box on boxes like these."""
    boxes = realistic_boxes(400, 1)
    mean = mean_box(boxes)
    for score in (geometry.iou, geometry.giou):
        assert sum(score(WHOLE, box) for box in boxes) > sum(score(mean, box) for box in boxes)


def test_boxes_that_fill_the_frame_are_paid_less_without_an_edge():
    values = []
    for margin in (0, 20, 40, 60, 80):
        box = (margin, margin, 1280 - margin, 1024 - margin)
        paid, true = rewards.box_reward(reply("left-top", box), TRUTH), geometry.iou(box, SUCTION)
        assert paid <= true + 0.01
        values.append(paid)
    assert values == sorted(values) and values[0] == 0
    assert values[-1] == pytest.approx(geometry.iou((80, 80, 1200, 944), SUCTION), abs=0.01)


def test_the_whole_frame_is_right_where_it_is_the_truth():
    truth = dataclasses.replace(TRUTH, accepted=(("left-top", WHOLE),))
    assert rewards.box_reward(reply("left-top", WHOLE), truth) == 1
    assert rewards.coherence_joint(reply("left-top", WHOLE), truth) == 1


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=30))
@UNTIMED
def test_closeness_never_prefers_the_whole_image_to_the_median_box(raw):
    """The median of each corner has the least mean absolute error, so no constant box beats it."""
    boxes = [(min(a, c) * 1280, min(b, d) * 1024, max(a, c) * 1280 + 1, max(b, d) * 1024 + 1) for a, b, c, d in raw]
    median = tuple(sorted(box[i] for box in boxes)[len(boxes) // 2] for i in range(4))
    if not geometry.is_box(median):
        return
    whole, middle = (sum(geometry.closeness(box, b, 1280, 1024) for b in boxes) for box in (WHOLE, median))
    assert whole <= middle + 1e-9


# --- any text ------------------------------------------------------------------------------------------------------

TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<box>", "</box>", "<")
WORDS = ("why", "left-top", "kidney", "suction", "\ud800", " ", "\x00")
BOXES = ("[1, 2, 3, 4]", "[78, 78, 390, 410]", "[0, 0, 9999999, 9999999]", "[nan, 0, 1, 1]")
pieces = st.sampled_from([*TAGS, *WORDS, *BOXES])
any_text = st.one_of(
    st.text(st.characters(categories=None)),
    st.lists(pieces, max_size=20).map("".join),
    st.builds(lambda a, b: f"<think>w</think><answer>{a}</answer><box>{b}</box>", st.text(), pieces),
)


@given(any_text)
@settings(UNTIMED, max_examples=300)
def test_any_text_earns_a_number_in_range_or_none(text):
    for truth in TRUTHS:
        for name, reward in REWARDS.items():
            value = reward(text, truth)
            # A reward that applies to one reply to a prompt applies to every reply: no text can make it vanish.
            assert (value is None) == (reward("", truth) is None), name
            assert value is None or (isinstance(value, float) and 0 <= value <= 1), name
        for mixture in MIXTURES.values():
            assert 0 <= mixture.total(text, truth)[0] <= 1


@given(any_text)
@UNTIMED
def test_the_stricter_coherences_never_pay_more_than_joint(text):
    for truth in TRUTHS:
        joint = rewards.coherence_joint(text, truth)
        for reward in (rewards.coherence_referent, rewards.coherence_spatial):
            value = reward(text, truth)
            assert value is None or value <= joint
        assert joint is None or joint <= rewards.box_reward(text, truth)


# --- mixtures ------------------------------------------------------------------------------------------------------


def test_a_mixture_is_the_weighted_mean_of_the_parts_that_apply():
    mixture = Mixture({"format": 1, "answer": 3, "box": 4})
    text = reply("left-top", STAPLER)
    total, parts = mixture.total(text, TRUTH)
    assert total == pytest.approx((1 * parts["format"] + 3 * parts["answer"] + 4 * parts["box"]) / 8)
    total, parts = mixture.total(render("why", "left-top", None), dataclasses.replace(TRUTH, task="visual_qa"))
    assert (total, parts) == (1.0, {"format": 1.0, "answer": 1.0, "box": None})
    assert mixture.weights_normalised == [0.125, 0.375, 0.5] and mixture.names == ("format", "answer", "box")


def test_a_mixture_scales_away():
    text = reply("left-top", STAPLER)
    small, large = (Mixture({"answer": k, "box": 2 * k}).total(text, TRUTH)[0] for k in (1e-6, 1e6))
    assert small == pytest.approx(large)


def test_a_mixture_none_of_whose_parts_applies_is_zero():
    assert Mixture({"box": 1}).total("x", dataclasses.replace(TRUTH, task="visual_qa")) == (0.0, {"box": None})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"anwser": 1}, "did you mean 'answer'"),
        ({"answer": -1}, "-1"),
        ({"answer": math.nan}, "nan"),
        ({"answer": math.inf}, "inf"),
        ({"answer": "1"}, "'1'"),
        ({"answer": True}, "True"),
        ({"answer": 0}, "positive"),
        ({}, "positive"),
    ],
)
def test_bad_mixtures_are_refused(weights, message):
    with pytest.raises(SurgeryR1Error, match=message):
        Mixture(weights)


# --- truth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", TRUTHS, ids=range(len(TRUTHS)))
def test_truth_travels_as_one_line(truth):
    text = truth.to_json()
    assert "\n" not in text and isinstance(json.loads(text), dict)
    back = Truth.from_json(text)
    assert back == truth and hash(back) == hash(truth)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '"x"', TRUTH.to_json()[:-5], "NaN"])
def test_what_is_not_a_truth_is_named(text):
    with pytest.raises(SurgeryR1Error, match="truth column"):
        Truth.from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        {"task": "vqa"},
        {"box_space": "norm999"},
        {"location_rule": "middle-normal"},
        {"accepted": ()},
        {"accepted": (("left-top", (1.0, 1.0, 1.0, 2.0)),)},
    ],
    ids=str,
)
def test_bad_truths_are_refused(change):
    with pytest.raises(ValueError):
        dataclasses.replace(TRUTH, **change)


# --- trainers ------------------------------------------------------------------------------------------------------

RIGHT = reply("left-top", SUCTION)


def test_trl_takes_strings_and_conversations():
    score = rewards.trl_reward("answer")
    assert score.__name__ == "answer"
    completions = [
        RIGHT,
        [{"role": "assistant", "content": RIGHT}],
        [{"role": "assistant", "content": [{"type": "text", "text": RIGHT}]}],
        [{"role": "assistant", "content": None}],
        [],
        reply(WRONG, SUCTION),
    ]
    values = score(
        prompts=["?"] * 6,
        completions=completions,
        completion_ids=[[1]] * 6,
        truth=[TRUTH.to_json()] * 6,
        trainer_state=None,
    )
    assert values == [1, 1, 1, 0, 0, 0]


def test_trl_gets_none_where_a_reward_does_not_apply():
    truths = [TRUTH.to_json(), dataclasses.replace(TRUTH, task="visual_qa").to_json()]
    assert rewards.trl_reward("box")(completions=[RIGHT, RIGHT], truth=truths)[1] is None


def test_trl_puts_split_off_reasoning_back():
    head, tail = RIGHT.split("</think>")
    message = {"role": "assistant", "reasoning_content": head.removeprefix("<think>"), "content": tail}
    assert adapters.completion_text([message]) == RIGHT


def test_trl_names_and_refusals():
    assert [f.__name__ for f in rewards.trl_rewards(["format", "coherence"])] == ["format", "coherence"]
    with pytest.raises(SurgeryR1Error, match="did you mean 'referent'"):
        rewards.trl_reward("referrent")
    with pytest.raises(ValueError):
        rewards.trl_reward("box")(completions=[RIGHT], truth=[])


def test_trl_random_takes_a_seed():
    one, two = (rewards.trl_reward("random", seed=seed)([RIGHT], [TRUTH.to_json()]) for seed in (1, 2))
    assert one != two and one == [rewards.random_reward(RIGHT, TRUTH, seed=1)]


def test_trl_still_offers_what_the_mixture_recommends():
    """Read from the source text, so that this test needs no torch."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("trl is not installed")
    text = (Path(spec.origin).parent / "trainer" / "grpo_config.py").read_text(encoding="utf-8")
    assert "normalize_then_sum" in text and "multi_objective_aggregation" in text


@pytest.fixture
def by_path(tmp_path):
    """The adapters file loaded as verl does it: by path, under a name that is not put into ``sys.modules``."""
    spec = importlib.util.spec_from_file_location("custom_module", adapters.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "custom_module" not in sys.modules
    return module


def test_verl(by_path):
    visual = dataclasses.replace(TRUTH, task="visual_qa")
    rows = [
        by_path.compute_score(
            data_source="surgery", solution_str=RIGHT, ground_truth=t.to_json(), extra_info={"num_turns": 1}
        )
        for t in (TRUTH, visual)
    ]
    assert rows[0]["score"] == pytest.approx(1.0, abs=0.01)
    assert list(rows[0]) == list(rows[1]) == ["score", *MIXTURES["coherence"].names]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    # What does not apply is the same for every reply, so that no advantage comes of it, and is left out of the score.
    others = [by_path.compute_score("surgery", text, visual.to_json()) for text in (RIGHT, HONEST_WRONG, "", "<box>")]
    assert {(row["box"], row["coherence"]) for row in others} == {(0.0, 0.0)}
    assert rows[1]["score"] == MIXTURES["coherence"].total(RIGHT, visual)[0]
    own = by_path.compute_score("surgery", RIGHT, TRUTH.to_json(), mixture={"answer": 1})
    assert own == {"score": 1.0, "answer": 1.0}
    with pytest.raises(SurgeryR1Error, match="unknown mixture"):
        by_path.compute_score("surgery", RIGHT, TRUTH.to_json(), mixture="best")


def test_easyr1(by_path):
    # What its AutoRewardManager reads from the module.
    assert (by_path.REWARD_NAME, by_path.REWARD_TYPE) == ("surgery_r1", "batch")
    visual = dataclasses.replace(TRUTH, task="visual_qa")
    rows = by_path.compute_score_easyr1(
        [{"response": RIGHT, "response_length": 9, "ground_truth": t.to_json()} for t in (TRUTH, visual)],
        mixture="referent",
    )
    assert [set(row) for row in rows] == [{"overall", *MIXTURES["referent"].names}, {"overall", "format", "answer"}]
    assert all(0 <= value <= 1 for row in rows for value in row.values())


def test_every_adapter_agrees_with_the_mixture(by_path):
    for text in (RIGHT, HONEST_WRONG, *list(ATTACKS.values())[:20]):
        total, parts = MIXTURES["coherence"].total(text, TRUTH)
        assert by_path.compute_score("x", text, TRUTH.to_json()) == {"score": total, **parts}
        assert by_path.compute_score_easyr1([{"response": text, "ground_truth": TRUTH.to_json()}]) == [
            {"overall": total, **parts}
        ]
        apart = [f([text], [TRUTH.to_json()])[0] for f in rewards.trl_rewards(parts)]
        assert apart == list(parts.values())


def test_rewards_import_no_torch():
    code = "import sys, surgery_r1.rewards; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'trl')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------- rationale and answer


@pytest.mark.parametrize(
    ("rationale", "answer", "paid"),
    [
        ("the tip touches the tissue, so its state is Suction", "Suction", 1.0),
        ("it is not Idle, so its state is Suction", "Suction", 1.0),
        ("the tip is away from the tissue, so its state is Idle", "Suction", 0.0),  # contradicts the answer
        ("the tip touches the tissue, so its state is Suction", "Idle", 0.0),  # the answer is wrong
        ("the jaws are closed, so its state is Idle", "Idle", 0.0),  # both agree and are wrong
        ("the tip touches the tissue", "Suction", 0.0),  # concludes nothing
        ("Suction, then again its state is Idle", "Suction", 0.0),  # where it ends is what counts
    ],
)
def test_a_rationale_is_paid_where_it_ends_at_the_right_answer_given(rationale, answer, paid):
    truth = truth_of(dataclasses.replace(SAMPLE, kind="state", answer="Suction"), classes=CLASSES)
    reply = render(rationale, answer, to_model(SUCTION, "norm1000", VIEW))
    assert rewards.rationale_reward(reply, truth) == paid
    assert rewards.coherence_all(reply, truth) == pytest.approx(paid * rewards.coherence_joint(reply, truth))
    assert rewards.rationale_reward(render(None, answer, SUCTION), truth) == 0.0


def test_where_no_rationale_can_be_read_the_reward_does_not_apply():
    state = dataclasses.replace(SAMPLE, kind="state", answer="Suction")
    unknown = [
        truth_of(state, classes=None),
        truth_of(dataclasses.replace(state, kind="count", answer="2"), classes=CLASSES),
    ]
    asked = truth_of(state, classes=CLASSES)
    unasked = [dataclasses.replace(asked, reasoning=False), dataclasses.replace(asked, task="grounding_qa")]
    reply = render("so its state is Suction", "Suction", SUCTION)
    for truth in (*unknown, *unasked):
        assert rewards.rationale_reward(reply, truth) is None
        assert rewards.coherence_all(reply, truth) is None
    assert rewards.rationale_reward(reply, Truth.from_json(asked.to_json())) == 1.0


def test_what_is_paid_is_what_evaluation_counts(dataset):
    """Over every rationale of a drawn set, with the right answer and with another one."""
    from surgery_r1.evaluate.score import Scorer

    scorer, seen = Scorer(dataset), {0.0: 0, 1.0: 0}
    for row in dataset.train_rows(["cot"], include_dev=True):
        sample = dataset.samples[row.sample_id]
        frame = dataset.frame_of(sample)
        rule = dataset.location_rule_of(sample.source)
        view = View(sample.width, sample.height, sample.width, sample.height)
        truth = Truth.from_sample(
            *(sample, frame),
            view=view,
            box_space="source",
            rule=rule and rule.name,
            agreement=rule and 1.0,
            classes=dataset.answers[sample.source],
        )
        others = [name for name in dataset.answers[sample.source][sample.kind] if name != sample.answer]
        for answer in (sample.answer, *others[:1]):
            for said in (row.reasoning, row.reasoning.replace(sample.answer, answer), "nothing is certain"):
                reply = render(said, answer, sample.box_px)
                record = scorer.line(sample, codec.read_reply(reply, "source", view))
                agrees = record.answer_right and record.conclusion_right and record.conclusion == record.answer
                assert rewards.rationale_reward(reply, truth) == float(agrees)
                seen[float(agrees)] += 1
    assert min(seen.values()) > 50
