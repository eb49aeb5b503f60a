"""A mirrored frame: image, boxes, places, questions, rewards and reasoning all tell of the same picture."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from surgery_r1 import codec, geometry, vocab
from surgery_r1.data.mirroring import flip_frame, flip_image, flip_places, flip_sample
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import FLIPS, LOCATION_RULES, flip_box, quadrant
from surgery_r1.models.processor import view_of
from surgery_r1.rewards import REWARDS, Truth, reward_named
from surgery_r1.train.config import parse_config
from surgery_r1.train.datasets import rft_dataset, sft_dataset
from surgery_r1.train.sharing.sft_packing import fill_packs, pack_rows

ALL = tuple(FLIPS)
WAYS = ALL[1:]
WIDTH, HEIGHT = 320, 256


@st.composite
def boxes(draw):
    x1, x2 = sorted(draw(st.lists(st.integers(0, WIDTH), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(draw(st.lists(st.integers(0, HEIGHT), min_size=2, max_size=2, unique=True)))
    return (x1, y1, x2, y2)


@given(boxes(), boxes(), st.sampled_from(ALL))
def test_boxes_keep_their_overlap_and_come_back(a, b, flip):
    there = [flip_box(box, flip, WIDTH, HEIGHT) for box in (a, b)]
    assert all(geometry.is_box(box) and geometry.clip(box, WIDTH, HEIGHT) == box for box in there)
    assert geometry.iou(*there) == pytest.approx(geometry.iou(a, b))
    assert flip_box(there[0], flip, WIDTH, HEIGHT) == a


@given(boxes(), boxes(), st.sampled_from(ALL), st.sampled_from(LOCATION_RULES))
def test_places_follow_boxes_under_every_rule(box, organ, flip, rule):
    reference = geometry.center(organ) if rule.reference == "organ" else (WIDTH / 2, HEIGHT / 2)
    # On the line itself a rule must say one of the two.
    assume(all(mine != its for mine, its in zip(geometry.center(box), reference, strict=True)))
    flipped = (flip_box(each, flip, WIDTH, HEIGHT) for each in (box, organ))
    mirrored, organ_there = flipped
    place = quadrant(box, rule, WIDTH, HEIGHT, organ)
    assert quadrant(mirrored, rule, WIDTH, HEIGHT, organ_there) == flip_places(place, flip)


def test_only_places_are_renamed():
    assert flip_places("left of the left-top, a top_right tool; suction", "both") == (
        "left of the right-bottom, a top_right tool; suction"
    )
    assert flip_places("Left-top or Right Bottom", "horizontal") == "Right-top or Left Bottom"
    for name in (*vocab.TOOLS, *vocab.STATES, vocab.ORGAN):
        assert flip_places(name, "both") == name
    assert {flip_places(place, "vertical") for place in vocab.LOCATIONS} == set(vocab.LOCATIONS)


@pytest.mark.parametrize("flip", ALL)
def test_what_a_box_shows_is_in_the_flipped_box(flip):
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    x1, y1, x2, y2 = 30, 10, 70, 90
    pixels[y1:y2, x1:x2] = 255
    image = Image.fromarray(pixels)
    shown = np.asarray(flip_image(image, flip))
    x1, y1, x2, y2 = flip_box((x1, y1, x2, y2), flip, WIDTH, HEIGHT)
    assert shown[y1:y2, x1:x2].min() == 255
    assert shown.sum() == pixels.sum()
    if flip == "none":
        assert flip_image(image, flip) is image


def test_questions_name_the_mirrored_place(dataset):
    sample = dataset.split("train")[0]
    tool = dataclasses.replace(
        sample,
        question="What tool is in the left-top of the frame?",
        kind="tool",
        subject="left-top",
        answer="suction",
        answers_accepted=("suction", "stapler"),
        boxes_accepted=((0, 0, 10, 10), (5, 5, 20, 30)),
    )
    there = flip_sample(tool, "horizontal")
    assert vocab.classify_question(there.question) == ("tool", there.subject) == ("tool", "right-top")
    assert there.accepted == (("suction", (150, 0, 160, 10)), ("stapler", (140, 5, 155, 30)))
    assert flip_sample(there, "horizontal") == tool


def test_places_of_other_sets_are_not_guessed_at(dataset):
    sample = next(sample for sample in dataset.split("train") if sample.kind == "location")
    theirs = dataclasses.replace(sample, answer="upper left")
    assert flip_sample(theirs, "none") is theirs
    with pytest.raises(SurgeryR1Error, match=f"{sample.id}: 'upper left' cannot be flipped"):
        flip_sample(theirs, "horizontal")
    for change in (
        {"subject": "left_grasper"},
        {"answer": "left_kidney"},
        {"question": "Where is the upper tool?"},
        {"question": "What is in the upper left (left-top)?"},
    ):
        with pytest.raises(SurgeryR1Error, match="cannot be flipped: it names a side"):
            flip_sample(dataclasses.replace(sample, **change), "horizontal")


def test_a_perfect_reply_about_the_mirrored_frame_earns_everything(tiny, dataset):
    """And the perfect reply about the frame as it is does not."""
    space = tiny.info.box_space
    plain = rft_dataset(dataset, tiny.processor, space).with_format(None)
    flipped = rft_dataset(dataset, tiny.processor, space, flips=WAYS).with_format(None)
    assert len(flipped) == len(ALL) * len(plain)
    names = [name for name in REWARDS if name not in ("random",)]
    wrong_referents = spatial = 0
    for row in flipped:
        (flip,) = row["flips"]
        truth = Truth.from_json(row["truth"])
        sample = dataset.samples[row["id"]]
        there = flip_sample(sample, flip)
        assert truth.objects == flip_frame(dataset.frame_of(sample), flip).objects
        for told, fits in ((there, True), (sample, flip == "none")):
            box = codec.to_model(told.box_px, space, truth.view)
            reply = codec.render(f"what is seen is {told.answer}", told.answer, box)
            earned = {name: reward_named(name)(reply, truth) for name in names}
            if fits:
                assert all(value is None or value > 0.8 for value in earned.values()), (row["id"], flip, earned)
            elif there.answer != told.answer:
                assert earned["answer"] == earned["coherence"] == 0
                wrong_referents += 1
            spatial += earned["spatial"] is not None
    assert wrong_referents > 30 and spatial > 30


def test_images_are_mirrored_when_a_row_is_fetched(tiny, dataset):
    rows = rft_dataset(dataset, tiny.processor, tiny.info.box_space, flips=("both",))
    half = len(rows) // 2
    as_is, mirrored = (np.asarray(rows[i]["images"][0]) for i in (0, half))
    assert (mirrored == as_is[::-1, ::-1]).all() and not (mirrored == as_is).all()
    assert set(rows[0]) == {"id", "prompt", "images", "truth", "shown"}


def test_rows_of_sft_tell_of_the_mirrored_frame(tiny, dataset):
    """Those without reasoning once more, the others about the frame that somebody looked at alone."""
    space = tiny.info.box_space
    tasks = ("visual_qa", "grounding_qa", "cot")
    told = sft_dataset(dataset, tiny.processor, space, tasks=tasks, flips=WAYS).with_format(None)
    expected = [row for row in dataset.train_rows() for _ in range(1 if row.reasoning else 2)]
    assert len(told) == len(expected) == 106 * (2 * 2 + 1)
    drawn = {}
    for there, row in zip(told, expected, strict=True):
        (flip,) = there["flips"]
        if flip != "none":
            drawn.setdefault(there["images"][0], set()).add(flip)
        sample = dataset.samples[row.sample_id]
        view = view_of(tiny.processor, sample.width, sample.height)
        reading = codec.read_reply(there["completion"][0]["content"], space, view)
        assert reading.rationale == row.reasoning
        assert reading.answer == (row.answer and flip_places(row.answer, flip))
        if row.box_px is not None:
            assert geometry.iou(reading.box_px, flip_box(row.box_px, flip, sample.width, sample.height)) > 0.7
        assert flip == "none" or row.reasoning is None
    # One way for each frame, so that its rows share it; all ways among the frames.
    assert all(len(ways) == 1 for ways in drawn.values()) and set.union(*drawn.values()) == set(WAYS)


def test_packs_hold_rows_of_one_frame_shown_one_way(tiny, dataset):
    """Also where packs are joined: the pixels that a row is shown are those that its labels speak of."""
    rows = sft_dataset(dataset, tiny.processor, tiny.info.box_space, tasks=("grounding_qa",), flips=("both",))
    packs = pack_rows(rows, per_frame=20)
    told = {(row["images"][0], row["flips"][0]): set() for row in rows.with_format(None)}
    for row in rows.with_format(None):
        told[row["images"][0], row["flips"][0]].add(row["completion"][0]["content"])
    joined = fill_packs(packs, [1] * len(packs), 4)
    assert len(joined) < len(packs) == len(told)
    both = 0
    for fetched, pack in zip(joined, joined.with_format(None), strict=True):
        both += len(set(pack["flips"])) > 1
        pixels = [np.asarray(image) for image in fetched["images"]]
        for image, path, flip in zip(pixels, pack["images"], pack["flips"], strict=True):
            as_is = np.asarray(Image.open(path).convert("RGB"))
            assert (image == (as_is[::-1, ::-1] if flip == "both" else as_is)).all()
        for completion, (shown,) in zip(pack["completion"], pack["shown"], strict=True):
            assert completion in told[pack["images"][shown], pack["flips"][shown]]
    assert both > 5


def test_direct_answers_are_shown_in_the_mirror_too(tiny, dataset):
    settings = {"tasks": ("cot",), "direct_answers": True, "flips": ("horizontal",)}
    rows = sft_dataset(dataset, tiny.processor, tiny.info.box_space, **settings).with_format(None)
    shown = [(row["flips"][0], "<think>" in row["completion"][0]["content"]) for row in rows]
    assert Counter(shown) == {("none", True): 106, ("none", False): 106, ("horizontal", False): 106}


@pytest.mark.parametrize("stage", ["sft", "rft"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["horizontal", "diagonal"], "holds 'diagonal', not one of"),
        (["none"], "holds 'none', not one of"),
        (["both", "both"], "names one way twice"),
    ],
)
def test_wrong_flips_are_refused(stage, value, message):
    with pytest.raises(SurgeryR1Error, match=message):
        parse_config({stage: {"flips": value}})
