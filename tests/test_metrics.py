"""Metrics on examples small enough to count by hand, and against sklearn where sklearn defines them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery_r1 import vocab
from surgery_r1.codec import Prediction
from surgery_r1.evaluate.floor import NoImageFloor
from surgery_r1.evaluate.metrics import published, summarise
from surgery_r1.evaluate.referents import wrong_referent
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.evaluate.summary import by_answer, confusions
from surgery_r1.evaluate.tables import markdown_table, number, signed, text_table
from surgery_r1.records import Sample


def line(true="kidney", answer="kidney", iou=1.0, frame="frame000", sequence="seq_1", identity="x", **more):
    """A score record with only what the metrics read."""
    right = answer == true
    return ScoreRecord(
        **{
            "id": identity,
            "source": "endovis18",
            "sequence": sequence,
            "frame": frame,
            "kind": "organ",
            "answer_true": true,
            "answer": answer,
            "answer_right": right,
            "iou": iou,
            "iou_published": iou,
            "joint": iou if right else 0.0,
            "joint_at_iou50": right and iou >= 0.5,
            "box_px": (0, 0, 1, 1),
        }
        | more
    )


def sample(identity="s", question="What organ is being operated?", answer="kidney", box=(0, 0, 10, 10), **more):
    kind, subject = vocab.classify_question(question)
    return Sample(
        **{
            "id": identity,
            "source": "endovis18",
            "split": "train",
            "sequence": "seq_2",
            "frame": "frame000",
            "image": "a.png",
            "width": 100,
            "height": 100,
            "question": question,
            "kind": kind or "organ",
            "subject": subject or "kidney",
            "answer": answer,
            "box_px": tuple(box),
        }
        | more
    )


def test_every_metric_by_hand():
    lines = [
        line("kidney", "kidney", 0.8),
        line("Idle", "Idle", 0.2),
        line("Idle", "Cutting", 0.6),
        line("Cutting", None, 0.0, box_px=None),
    ]
    result = summarise(lines)
    assert result["n"] == 4
    assert result["acc"] == 0.5
    assert result["miou"] == pytest.approx(1.6 / 4)
    assert result["acc_at_iou50"] == 0.5
    assert result["joint"] == pytest.approx(1.0 / 4)
    assert result["joint_at_iou50"] == 0.25
    assert result["parse_failure_rate"] == 0.25
    # kidney 1; Idle: TP 1, FN 1 -> 2/3; Cutting: FP 1, FN 1 -> 0.
    assert result["f_score"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert result["f_score_18"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_an_unreadable_answer_is_a_miss_and_no_class():
    lines = [line("kidney", "kidney"), line("kidney", None), line("Idle", None)]
    # kidney: TP 1, FN 1 -> 2/3; Idle: FN 1 -> 0; two classes, not three.
    assert summarise(lines)["f_score"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_class_that_is_only_predicted_lowers_f_but_not_f_18():
    lines = [line("kidney", "kidney"), line("kidney", "Idle")]
    result = summarise(lines)
    assert result["f_score"] == pytest.approx((2 / 3 + 0) / 2)
    assert result["f_score_18"] == pytest.approx(2 / 3)


def test_wrong_answers_in_other_words_are_one_and_the_same_miss():
    right = [line("kidney", "kidney")] * 3
    for words in (["banana"] * 4, ["banana", "apple", "pear", "plum"], [None] * 4):
        lines = right + [line("kidney", word, outside_classes=word is not None) for word in words]
        result = summarise(lines)
        # kidney: TP 3, FN 4 -> 6/10, however the misses are worded.
        assert [result[name] for name in ("f_score", "f_score_18", "f_balanced")] == pytest.approx([0.6] * 3)


def test_class_balanced_f1_does_not_depend_on_how_frequent_a_class_is():
    def system(kidneys):
        # Both classes are half right, and what is wrong is called the other one.
        answers = [("kidney", "kidney"), ("kidney", "Idle")] * kidneys + [("Idle", "Idle"), ("Idle", "kidney")]
        return summarise([line(true, answer) for true, answer in answers])

    assert system(1)["f_balanced"] == system(100)["f_balanced"] == pytest.approx(0.5)
    assert system(100)["f_score_18"] < 0.35


def test_acc_of_the_rare_half_counts_those_questions_alone():
    lines = [line("kidney", "kidney")] * 9 + [line("Staple", "Idle", rare=True), line("Staple", "Staple", rare=True)]
    assert summarise(lines)["acc_rare"] == 0.5 and summarise(lines[:9])["acc_rare"] is None


def test_questions_without_a_true_box_are_scored_on_answers():
    boxless = {"iou": None, "iou_published": None, "joint": None, "joint_at_iou50": None, "box_px": None}
    lines = [dataclasses.replace(line("kidney", answer), **boxless) for answer in ("kidney", "Idle")]
    result = summarise(lines)
    assert (result["acc"], result["miou"], result["joint_at_iou50"]) == (0.5, None, None)
    assert result["parse_failure_rate"] == 0.0
    assert summarise([*lines, line("kidney", "kidney", 0.5)])["miou"] == 0.5


def test_f_knows_the_action_from_the_tool():
    result = summarise([line("Suction", "suction"), line("suction", "suction")])
    assert result["acc"] == 0.5
    assert result["f_score_18"] == pytest.approx((0 + 2 / 3) / 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from(vocab.ANSWERS_EXTENDED[:6])] * 2), min_size=1, max_size=40))
def test_f_is_that_of_sklearn(pairs):
    from sklearn.metrics import f1_score

    truth, predicted = zip(*pairs, strict=True)
    expected = f1_score(truth, predicted, average="macro", zero_division=1)
    assert summarise([line(t, p) for t, p in pairs])["f_score"] == pytest.approx(expected)


def test_f_with_misses_is_that_of_sklearn_over_real_classes():
    from sklearn.metrics import f1_score

    truth = ["kidney", "Idle", "Idle", "Cutting", "left-top"]
    predicted = ["kidney", None, "Cutting", None, "banana"]
    expected = f1_score(
        truth, [p or "" for p in predicted], labels=sorted(set(truth)), average="macro", zero_division=1
    )
    lines = [line(t, p, outside_classes=p == "banana") for t, p in zip(truth, predicted, strict=True)]
    assert summarise(lines)["f_score"] == pytest.approx(expected)


def test_by_answer_counts():
    result = by_answer(
        [line("Idle", "Idle"), line("Idle", "Cutting"), line("Cutting", "Idle"), line("kidney", None)], vocab.ANSWERS
    )
    assert list(result) == ["kidney", "Idle", "Cutting"]
    assert (result["Idle"]["n"], result["Idle"]["predicted"], result["Idle"]["acc"]) == (2, 2, 0.5)
    assert result["Idle"]["f1"] == 0.5
    assert result["kidney"]["f1"] == 0.0


def test_confusions_are_ordered():
    lines = [line("Idle", "Cutting"), line("Idle", "Cutting"), line("Idle", None), line("Idle", "Idle")]
    assert confusions(lines) == [
        {"true": "Idle", "predicted": "Cutting", "n": 2},
        {"true": "Idle", "predicted": None, "n": 1},
    ]


def test_no_reply_leaves_the_denominator_of_wrong_referents():
    kinds = ["own", "other", "other_clearly", "nothing", None]
    lines = [line(referent=value, kind="state", frame=f"f{i}") for i, value in enumerate(kinds)]
    found = wrong_referent([*lines, line(referent="own", kind="organ", frame="f0")])
    assert (found["strict"], found["broad"], found["failed"], found["n"]) == (0.2, 0.4, 0.2, 5)
    assert (found["tools"]["broad"], found["tools"]["n"]) == (0.5, 4) and found["organs"]["broad"] == 0.0
    for rate in ("strict", "broad", "failed"):
        low, high = found["ci95"][rate]
        assert low <= found[rate] <= high
    nothing = wrong_referent([line()])
    assert (nothing["broad"], nothing["n"], nothing["ci95"]) == (None, 0, {})


def test_published_iou_by_hand():
    # Unit boxes (0,0,.5,.5) and (.5,.5,1,1): inter (0+1)*(0+1)=1; areas 2.25 each; 1/3.5.
    assert published((0, 0, 50, 50), (50, 50, 100, 100), 100, 100) == pytest.approx(1 / 3.5, abs=1e-6)
    assert published((0, 0, 50, 50), (0, 0, 50, 50), 100, 100) == 1.0
    assert published(None, (0, 0, 50, 50), 100, 100) == 0.0


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[st.floats(-1e12, 1e300)] * 4))
def test_published_iou_is_a_rate_wherever_the_box_is(box):
    assert 0.0 <= published(box, (10, 10, 60, 60), 100, 100) <= 1.0


def test_the_floor_is_the_training_majority_and_mean_box():
    where = "Where is suction located?"
    training = [
        sample("1", where, "left-top", (0, 0, 10, 10)),
        sample("2", where, "left-top", (0, 0, 30, 10)),
        sample("3", where, "right-top", (40, 40, 160, 80), width=200, height=200),
        sample("4", "Where is stapler located?", "right-bottom", (50, 50, 100, 100)),
    ]
    floor = NoImageFloor.fit(training)
    assert floor is not None and floor.n == 4
    guess = floor(sample("v", where, "right-top", (0, 0, 9, 9), width=1000, height=500))
    assert guess.answer == "left-top"
    # In units of the frame: x1 (0 + 0 + .2)/3, y1 the same, x2 (.1 + .3 + .8)/3 = .4, y2 (.1 + .1 + .4)/3 = .2.
    assert guess.box_px == pytest.approx((0.2 / 3 * 1000, 0.2 / 3 * 500, 400, 100))
    # A text that training never asked falls back on its kind (2 left-top, 1 right-top, 1 right-bottom), then on all.
    assert floor(sample("w", "Where is clip_applier located?", "left-top")).answer == "left-top"
    assert floor(sample("x")).answer == "left-top"
    assert NoImageFloor.fit([]) is None


def test_ties_of_the_floor_go_to_the_first_class():
    training = [sample("1", answer="Cutting"), sample("2", answer="Idle")]
    floor = NoImageFloor.fit(training)
    assert floor is not None and floor(sample("v")) == Prediction(None, "Idle", (0, 0, 10, 10))


def test_tables_print_floor_intervals_n_and_differences():
    metrics = {
        "n": 2769,
        "acc": 0.7,
        "f_score": 0.4,
        "miou": 0.5,
        "miou_published": 0.8,
        "joint_at_iou50": 0.3,
        "parse_failure_rate": 0.01,
        "ci95": {"acc": [0.65, 0.75]},
        "intervals": {"method": "jackknife", "blocks": 45, "frames_per_block": 10},
        "no_image_floor": {"n": 2769, "acc": 0.5, "f_score": 0.3, "miou": 0.2, "miou_published": 0.65},
    }
    gain = ("rft - sft", "joint", {"difference": 0.045, "ci95": [0.01, 0.08], "n": 2769, "blocks": 45})
    text = text_table([("sft", metrics), ("rft", metrics)], [gain])
    rows = text.splitlines()
    assert rows[2].startswith("no-image floor  .500") and rows[3].startswith("sft") and ".700 [.650, .750]" in rows[3]
    assert "rft - sft, joint: +.045 [+.010, +.080]  n=2769, 45 blocks" in text
    assert len({row.index("2769") for row in rows[2:5]}) == 1
    markdown = markdown_table([("a|b", metrics)], [gain])
    assert "| a\\|b | .700 [.650, .750] |" in markdown and markdown.startswith("|  | Acc |")
    assert (number(None), signed(-0.5)) == ("-", "-.500")
