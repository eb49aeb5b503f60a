"""What SFT shows beside rows as they are: rationales in the mirror, detections, more of what is rare, colours."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from surgery_r1 import codec, geometry
from surgery_r1.data.colours import change_colours, look, seen_as
from surgery_r1.data.mirrored_rationales import MirroredRationales
from surgery_r1.data.mirroring import flip_frame, flip_sample
from surgery_r1.data.oversampling import TANGLED_OVERLAP, is_tangled, rare_answers, times_shown
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import flip_box
from surgery_r1.models.processor import view_of
from surgery_r1.records import AnnotatedObject, Frame, Sample
from surgery_r1.rewards import Truth, reward_named
from surgery_r1.train.config import Oversample, parse_config
from surgery_r1.train.datasets import rft_dataset, sft_dataset

WAYS = ("horizontal", "vertical", "both")


def rows_shown(tiny, dataset, **settings):
    shown = sft_dataset(dataset, tiny.processor, tiny.info.box_space, **{"tasks": ("cot",), "flips": WAYS, **settings})
    return shown.with_format(None)


def test_mirrored_rationales_are_true_of_the_mirrored_frame(tiny, dataset):
    rows = rows_shown(tiny, dataset, flip_rationales=True)
    samples = [dataset.samples[row.sample_id] for row in dataset.train_rows(("cot",)) for _ in range(2)]
    assert len(rows) == len(samples) == 2 * 106
    told = 0
    for row, sample in zip(rows, samples, strict=True):
        (flip,) = row["flips"]
        seen = flip_sample(sample, flip)
        truth = Truth.from_sample(
            seen,
            flip_frame(dataset.frame_of(sample), flip),
            view=view_of(tiny.processor, seen.width, seen.height),
            box_space=tiny.info.box_space,
            rule="image-normal",
            agreement=1.0,
            classes=dataset.answers[sample.source],
        )
        reply = row["completion"][0]["content"]
        assert [reward_named(name)(reply, truth) for name in ("format", "answer", "rationale")] == [1, 1, 1], reply
        told += flip != "none" and any(side in reply for side in ("left", "right"))
    assert told > 50


def test_frames_as_they_are_keep_their_rationale(dataset):
    """The writer is asked for the same sentence when nothing is turned over."""
    told = MirroredRationales(dataset)
    rows = dataset.train_rows(("cot",))
    assert [told(row, "none") for row in rows] == [row.reasoning for row in rows]
    assert told.left == 0


def test_a_teachers_rationale_stays_with_its_frame(tiny, dataset, caplog):
    rows = [
        dataclasses.replace(row, writer="teacher:m") if row.reasoning and i % 2 else row
        for i, row in enumerate(dataset.rows)
    ]
    mixed = dataclasses.replace(dataset)
    mixed.__dict__["rows"] = rows
    teachers = sum(row.writer == "teacher:m" for row in mixed.train_rows(("cot",)))
    assert 20 < teachers < 106
    with caplog.at_level(logging.WARNING):
        shown = rows_shown(tiny, mixed, flip_rationales=True)
    assert len(shown) == 2 * 106 - teachers
    assert f"{teachers} rationales are not shown in a mirror" in caplog.text

    mixed.__dict__["rows"] = [dataclasses.replace(row, writer="teacher:m") for row in dataset.rows]
    mixed.__dict__.pop("rows_of", None)
    with pytest.raises(SurgeryR1Error, match=r"no rationale here is by template-1.*sft.flip_rationales = false"):
        rows_shown(tiny, mixed, flip_rationales=True)
    # Where no row has one, nobody need have written it.
    assert len(rows_shown(tiny, mixed, tasks=("visual_qa",), flip_rationales=True)) == 2 * 106


def test_detection_rows_ask_for_objects_by_name(tiny, dataset):
    rows = rows_shown(tiny, dataset, tasks=("visual_qa",), detection_rows=2, flips=("both",))
    asked = [row for row in rows if "<box>" in row["completion"][0]["content"]]
    frames = {sample.frame_id for sample in dataset.split("train")}
    expected = sum(min(2, len(dataset.frames[frame].objects)) for frame in frames)
    assert len(asked) == 2 * expected
    for row in asked:
        sample = next(s for s in dataset.samples.values() if str(dataset.image_path(s)) == row["images"][0])
        reading = codec.read_reply(
            row["completion"][0]["content"],
            tiny.info.box_space,
            view_of(tiny.processor, sample.width, sample.height),
        )
        boxes = {
            item.name: flip_box(item.box_px, row["flips"][0], sample.width, sample.height)
            for item in dataset.frame_of(sample).objects
        }
        named = [name for name in boxes if name in row["prompt"][-1]["content"]]
        assert any(geometry.iou(reading.box_px, boxes[name]) > 0.7 for name in named)
        assert reading.answer is None and row["prompt"][-1]["content"].endswith("Reply with box.")


def test_two_of_a_name_are_no_detection_row(dataset):
    from surgery_r1.train.sft_rows import detections

    sample = dataset.split("train")[0]
    frame = dataset.frame_of(sample)
    twice = dataclasses.replace(frame, objects=(*frame.objects, dataclasses.replace(frame.objects[0])))
    crowded = dataclasses.replace(dataset, frames={**dataset.frames, frame.frame_id: twice})
    names = [row.id for row in detections(crowded, [sample], 9, 0)]
    assert len(names) == len(frame.objects) - 1
    assert not any(name.endswith(f"/{frame.objects[0].name}") for name in names)


def asked(box, name="suction", answer="Idle"):
    return Sample("a/f/1", "a", "train", "q", "f", "f.png", 100, 100, "?", "state", name, answer, box)


@pytest.mark.parametrize(("shift", "tangled"), [(0.53, True), (0.55, False), (2.0, False)])
def test_tangled_is_an_overlap_of_boxes(shift, tangled):
    """Two unit boxes that are shifted by d overlap by (1 - d) / (1 + d): .30 at d = .538."""
    box, other = (0, 0, 20, 20), (20 * shift, 0, 20 + 20 * shift, 20)
    objects = (AnnotatedObject("suction", "Idle", None, box), AnnotatedObject("stapler", "Idle", None, other))
    assert (geometry.iou(box, other) >= TANGLED_OVERLAP) == tangled
    assert is_tangled(asked(box), Frame("a/f", "f.png", 100, 100, "0" * 64, objects)) == tangled
    assert not is_tangled(asked(None), Frame("a/f", "f.png", 100, 100, "0" * 64, objects))


def test_rare_answers_are_counted_within_their_kind():
    samples = [
        asked((0, 0, 9, 9), answer=name) for name, n in (("Idle", 90), ("Cutting", 8), ("Staple", 2)) for _ in range(n)
    ]
    # A third each would be 33; half of that is 16.7.
    assert rare_answers(samples) == {("a", "state", "Cutting"), ("a", "state", "Staple")}


def test_oversampled_questions_are_shown_in_more_mirrors(tiny, dataset):
    samples = dataset.train_samples()
    times = times_shown(dataset, samples, tangled=3, rare=2)
    rare = rare_answers(samples)
    for sample in samples:
        expected = 2 if (sample.source, sample.kind, sample.answer) in rare else 1
        assert times[sample.id] == (3 if is_tangled(sample, dataset.frame_of(sample)) else expected)
    assert set(times.values()) == {1, 2, 3}

    settings = {"tasks": ("visual_qa",), "oversample": Oversample(tangled=3, rare=2)}
    rows = rows_shown(tiny, dataset, **settings)
    assert len(rows) == sum(1 + times[sample.id] for sample in samples)
    # A question is never shown twice alike, and the first mirror of a frame is that of all of its rows.
    keys = Counter((row["images"][0], row["flips"][0], row["prompt"][-1]["content"]) for row in rows)
    alike = rows_shown(tiny, dataset, tasks=("visual_qa",))
    assert max(keys.values()) == 1
    assert set(keys) > {(row["images"][0], row["flips"][0], row["prompt"][-1]["content"]) for row in alike}

    prompts = rft_dataset(dataset, tiny.processor, tiny.info.box_space, oversample=Oversample(tangled=3, rare=2))
    assert Counter(prompts.with_format(None)["id"]) == times


def test_colours_change_mirrored_frames_alone(tiny, dataset):
    rows = rows_shown(tiny, dataset, colour=0.5)
    flips = [row["flips"][0] for row in rows]
    assert "none" in flips and not any(flip in WAYS for flip in flips)
    again = rows_shown(tiny, dataset, colour=0.5)
    assert flips == [row["flips"][0] for row in again]
    fetched = sft_dataset(
        dataset, tiny.processor, tiny.info.box_space, tasks=("visual_qa",), flips=("both",), colour=1.0
    )
    as_is, mirrored = (np.asarray(fetched[i]["images"][0], float) for i in (0, 1))
    moved = np.abs(mirrored[::-1, ::-1] - as_is).mean()
    assert 1 < moved < 60


def test_colours_are_drawn_by_their_seed():
    grey = Image.new("RGB", (32, 32), (120, 120, 120))
    first, same, other = (np.asarray(change_colours(grey, 1.0, seed), float) for seed in ("a", "a", "b"))
    assert (first == same).all() and not np.allclose(first.mean((0, 1)), other.mean((0, 1)), atol=0.5)
    assert (np.asarray(change_colours(grey, 0.0, "a")) == np.asarray(grey)).all()
    means = np.array([np.asarray(change_colours(grey, 1.0, str(i)), float).mean((0, 1)) for i in range(200)])
    # Gains of .72 to 1.32 and gammas of .8 to 1.25, on 120: from 50 to 170.
    assert 50 < means.min() < 95 < 145 < means.max() < 170
    assert seen_as(look("none"), grey) is grey


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"flip_rationales": True}, "sft.flip_rationales needs sft.flips"),
        ({"colour": 0.5}, "sft.colour needs sft.flips"),
        ({"oversample": {"tangled": 3}, "flips": ["both"]}, "sft.oversample wants 3 mirrors, .* has 1"),
        ({"oversample": {"scarce": 3}}, "scarce"),
        ({"oversample": {"rare": 0}}, "rare"),
        ({"detection_rows": -1}, "detection_rows"),
    ],
)
def test_what_does_not_fit_is_refused(table, message):
    with pytest.raises(SurgeryR1Error, match=message):
        parse_config({"sft": table})
