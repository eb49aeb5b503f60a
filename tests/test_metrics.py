"""Metrics on examples small enough to count by hand, and against sklearn where sklearn defines them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery_r1 import vocab
from surgery_r1._util.files import write_jsonl
from surgery_r1.codec import Prediction
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.bootstrap import block_ids, draws, intervals, natural_key
from surgery_r1.evaluate.compare import compare_lines, compare_scores
from surgery_r1.evaluate.floor import NoImageFloor
from surgery_r1.evaluate.metrics import METRICS, by_answer, confusions, published, summarise, tally, wrong_referents
from surgery_r1.evaluate.score_record import ScoreRecord
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
    lines = [line("kidney", "kidney"), line("kidney", "banana")]
    assert summarise(lines)["f_score"] == pytest.approx(1 / 3)
    assert summarise(lines)["f_score_18"] == pytest.approx(2 / 3)


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
    labels = sorted(set(truth) | {p for p in predicted if p})
    expected = f1_score(truth, [p or "" for p in predicted], labels=labels, average="macro", zero_division=1)
    assert summarise([line(t, p) for t, p in zip(truth, predicted, strict=True)])["f_score"] == pytest.approx(expected)


def test_by_answer_counts():
    result = by_answer([line("Idle", "Idle"), line("Idle", "Cutting"), line("Cutting", "Idle"), line("kidney", None)])
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


def test_illusion_rate_counts_only_where_it_can_be_told():
    lines = [line(referent_illusion=value) for value in (True, False, None)]
    assert wrong_referents(lines) == {"illusion_rate": 0.5, "illusion_n": 2}
    assert wrong_referents([line()]) == {"illusion_rate": None, "illusion_n": 0}


def test_published_iou_by_hand():
    # Unit boxes (0,0,.5,.5) and (.5,.5,1,1): inter (0+1)*(0+1)=1; areas 2.25 each; 1/3.5.
    assert published((0, 0, 50, 50), (50, 50, 100, 100), 100, 100) == pytest.approx(1 / 3.5, abs=1e-6)
    assert published((0, 0, 50, 50), (0, 0, 50, 50), 100, 100) == 1.0
    assert published(None, (0, 0, 50, 50), 100, 100) == 0.0


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[st.floats(-1e12, 1e300)] * 4))
def test_published_iou_is_a_rate_wherever_the_box_is(box):
    assert 0.0 <= published(box, (10, 10, 60, 60), 100, 100) <= 1.0


def test_natural_order_of_frames():
    assert sorted(["frame10", "frame9", "frame010", "a", "12"], key=natural_key) == [
        "12",
        "a",
        "frame9",
        "frame10",
        "frame010",
    ]


def test_blocks_are_runs_of_ten_frames_of_one_sequence():
    lines = [line(frame=f"frame{i:03d}", sequence=s) for s in ("seq_1", "seq_5") for i in range(149) for _ in range(3)]
    blocks = block_ids(lines)
    assert len(set(blocks)) == 2 * 15
    counts = np.bincount(blocks)
    assert counts[0] == 30 and counts[14] == 27 and counts[15] == 30
    assert blocks == sorted(blocks)
    # Where the lines stand does not matter to which of them are drawn together.
    other = block_ids(lines[::-1])[::-1]
    assert len(set(zip(blocks, other, strict=True))) == 30


def test_frames_whose_numbers_are_equal_are_always_in_the_same_blocks():
    names = [f"frame{'0' * zeros}{i}" for i in range(7) for zeros in range(3)]
    expected = [rank // 10 for rank in range(21)]
    ordered = sorted(sorted(names), key=natural_key)
    assert block_ids([line(frame=name) for name in ordered]) == expected


def test_the_same_sequence_name_of_two_sources_is_two_sequences():
    lines = [line(), line(source="endovis17")]
    assert block_ids(lines) == [0, 1]


def test_draws_are_seeded_and_whole():
    a = draws(7, 50, seed=3)
    assert a.shape == (50, 7) and (a.sum(axis=1) == 7).all()
    assert (a == draws(7, 50, seed=3)).all() and (a != draws(7, 50, seed=4)).any()


def test_bootstrap_draws_blocks_and_not_questions():
    # Two blocks, one all right and one all wrong: a resample is right by 0, 1/2 or 1 and by nothing between, so the
    # 95 % interval is all of [0, 1]; resampling 200 questions instead would give about [.43, .57].
    lines = [line("Idle", "Idle" if i < 10 else "Cutting", frame=f"f{i}") for i in range(20) for _ in range(10)]
    ci95 = intervals(tally(lines, block_ids(lines)), 1000, 0)
    assert ci95["acc"] == [0.0, 1.0]
    # Twenty blocks, each half right: no variation between blocks, no width.
    lines = [line("Idle", "Idle" if k % 2 else "Cutting", frame=f"f{i}") for i in range(200) for k in range(2)]
    assert intervals(tally(lines, block_ids(lines)), 1000, 0)["acc"] == [0.5, 0.5]


def test_bootstrap_matches_the_formula_for_many_blocks():
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.5
    lines = [line("Idle", "Idle" if r else "Cutting", frame=f"f{i}") for i, r in enumerate(np.repeat(right, 10))]
    low, high = intervals(tally(lines, block_ids(lines)), 4000, 0)["acc"]
    p = right.mean()
    half = 1.96 * math.sqrt(p * (1 - p) / 400)
    assert low == pytest.approx(p - half, abs=0.01) and high == pytest.approx(p + half, abs=0.01)


def test_resampled_f_is_that_of_the_resampled_questions():
    from surgery_r1.evaluate.metrics import rates

    rng = np.random.default_rng(1)
    classes = vocab.ANSWERS[:5]
    lines = [
        line(str(rng.choice(classes)), str(rng.choice(classes)), frame=f"f{i // 3}", iou=float(rng.random()))
        for i in range(180)
    ]
    blocks = block_ids(lines)
    weights = draws(6, 5, seed=0)
    result = rates(tally(lines, blocks), weights)
    for row, weight in enumerate(weights):
        drawn = [entry for entry, block in zip(lines, blocks, strict=True) for _ in range(int(weight[block]))]
        expected = summarise(drawn)
        for name in METRICS:
            assert result[name][row] == pytest.approx(expected[name]), name


def test_one_block_says_nothing():
    assert intervals(tally([line()], [0]), 1000, 0)["acc"] == [0.0, 1.0]


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


def _pair(gain: float):
    rng = np.random.default_rng(2)
    a, b = [], []
    for i in range(300):
        base = float(rng.random() * 0.5)
        b.append(line(iou=base, frame=f"f{i:03d}", identity=str(i)))
        a.append(line(iou=base + gain, frame=f"f{i:03d}", identity=str(i)))
    return a, b


def test_paired_comparison_sees_a_gain_that_two_intervals_hide(tmp_path: Path):
    a, b = _pair(0.03)
    write_jsonl(tmp_path / "a.jsonl", [record.to_json() for record in a])
    write_jsonl(tmp_path / "b.jsonl", [record.to_json() for record in b[::-1]])
    result = compare_scores(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert result["difference"] == pytest.approx(0.03)
    assert result["ci95"] == pytest.approx([0.03, 0.03])
    assert (result["n"], result["blocks"]) == (300, 30)
    assert compare_scores(tmp_path / "b.jsonl", tmp_path / "a.jsonl")["difference"] == pytest.approx(-0.03)


def test_paired_comparison_is_by_block():
    # Ten blocks of ten frames; the gain sits in one block: an interval over frames would exclude 0, over blocks not.
    b = [line(iou=0.0, frame=f"f{i:03d}", identity=str(i)) for i in range(100)]
    a = [dataclasses.replace(entry, iou=1.0, joint=1.0) if i < 10 else entry for i, entry in enumerate(b)]
    result = compare_lines(a, b, "joint")
    assert result.difference == pytest.approx(0.1)
    assert result.ci95[0] == 0.0
    assert result == compare_lines(a, b, "joint")
    assert result.to_json() == {"difference": result.difference, "ci95": [0.0, result.ci95[1]], "n": 100, "blocks": 10}


def test_comparing_needs_the_same_questions_and_a_known_metric(tmp_path: Path):
    a, b = _pair(0.1)
    with pytest.raises(SurgeryR1Error, match="same questions: 300 and 299, 1 in only one of them, for example '299'"):
        compare_lines(a, b[:-1], "joint")
    with pytest.raises(SurgeryR1Error, match="unknown metric 'jiont'"):
        compare_scores(tmp_path, tmp_path, "jiont")
    with pytest.raises(SurgeryR1Error, match="no such file"):
        compare_scores(tmp_path, tmp_path)


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
        "bootstrap": {"resamples": 1000, "seed": 0, "blocks": 45, "frames_per_block": 10},
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
