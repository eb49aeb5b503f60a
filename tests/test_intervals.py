"""Intervals: blocks, one method for every figure, and its coverage on planted cases whose true value is known."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from surgery_r1._util.files import write_jsonl
from surgery_r1._util.sorting import natural_key
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.compare import compare_lines, compare_scores
from surgery_r1.evaluate.intervals import _t_quantiles, block_ids, difference, estimates, intervals, paired
from surgery_r1.evaluate.metrics import MEANS, METRICS, Tally, mean_of_parts, parts, summarise, tally
from tests.test_metrics import line

SETS = 500
#: Training questions of EndoVis-18 by class: how rare the rare ones really are.
FREQUENCIES = np.array([1560, 1641, 59, 381, 707, 128, 483, 13, 60, 123, 6, 41, 13, 72, 1507, 1214, 531, 475], float)
CLASSES = len(FREQUENCIES)


def test_natural_order_of_frames():
    names = ["frame10", "frame9", "frame010", "a", "12"]
    assert sorted(names, key=natural_key) == ["12", "a", "frame9", "frame10", "frame010"]


def test_blocks_are_runs_of_ten_frames_of_one_sequence():
    lines = [line(frame=f"frame{i:03d}", sequence=s) for s in ("seq_1", "seq_5") for i in range(149) for _ in range(3)]
    blocks = block_ids(lines)
    assert len(set(blocks)) == 2 * 15
    counts = np.bincount(blocks)
    assert counts[0] == 30 and counts[14] == 27 and counts[15] == 30
    assert blocks == sorted(blocks)
    # Where the lines stand does not matter to which of them are one block.
    other = block_ids(lines[::-1])[::-1]
    assert len(set(zip(blocks, other, strict=True))) == 30


def test_frames_whose_numbers_are_equal_are_always_in_the_same_blocks():
    names = [f"frame{'0' * zeros}{i}" for i in range(7) for zeros in range(3)]
    expected = [rank // 10 for rank in range(21)]
    ordered = sorted(sorted(names), key=natural_key)
    assert block_ids([line(frame=name) for name in ordered]) == expected


def test_the_same_sequence_name_of_two_sources_is_two_sequences():
    assert block_ids([line(), line(source="endovis17")]) == [0, 1]


def test_quantiles_are_those_of_students_t():
    from scipy import stats

    freedom = np.array([1, 2, 5, 10, 11, 13, 30, 44, 200, 5000])
    assert _t_quantiles(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-3)


def test_blocks_are_what_varies_and_not_questions():
    # Two blocks, one all right and one all wrong: next to nothing is known, however many questions there are.
    lines = [line("Idle", "Idle" if i < 10 else "Cutting", frame=f"f{i}") for i in range(20) for _ in range(10)]
    low, high = intervals(tally(lines, block_ids(lines)))["acc"]
    assert low < 0.02 and high > 0.98
    # Twenty blocks, each half right: no variation between blocks, so that the questions alone count.
    lines = [line("Idle", "Idle" if k % 2 else "Cutting", frame=f"f{i}") for i in range(200) for k in range(2)]
    low, high = intervals(tally(lines, block_ids(lines)))["acc"]
    assert (low + high) / 2 == pytest.approx(0.5) and high - low == pytest.approx(2 * 2.09 * 0.5 / 20, rel=0.05)


def test_for_many_blocks_it_is_the_formula_of_textbooks():
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.5
    lines = [line("Idle", "Idle" if r else "Cutting", frame=f"f{i}") for i, r in enumerate(np.repeat(right, 10))]
    low, high = intervals(tally(lines, block_ids(lines)))["acc"]
    p = right.mean()
    half = 1.96 * math.sqrt(p * (1 - p) / 400)
    assert low == pytest.approx(p - half, abs=0.003) and high == pytest.approx(p + half, abs=0.003)


def test_all_right_is_not_known_to_be_always_right():
    lines = [line(frame=f"f{i}") for i in range(60)]
    low, high = intervals(tally(lines, block_ids(lines)))["acc"]
    assert high == 1.0 and 0.8 < low < 0.95


def test_one_block_says_nothing():
    assert intervals(tally([line()], [0]))["acc"] == [0.0, 1.0]


def test_what_is_left_out_is_what_is_counted_without_that_block():
    rng = np.random.default_rng(1)
    names = ["kidney", "Idle", "Cutting", "left-top"]
    lines = [
        line(str(rng.choice(names)), str(rng.choice(names)), frame=f"f{i // 3}", iou=float(rng.random()))
        for i in range(180)
    ]
    blocks = block_ids(lines)
    found = estimates(tally(lines, blocks))
    for block in range(6):
        rest = summarise([entry for entry, other in zip(lines, blocks, strict=True) if other != block])
        for name, estimate in found.items():
            assert estimate.left_out[block] == pytest.approx(rest[name], abs=1e-6), name


def test_the_interval_holds_its_point_whatever_was_predicted():
    # The same wrong answers in other words: one Acc, and F between next to 0 and .5; each inside its interval.
    rng = np.random.default_rng(0)
    for words in (["Idle"], ["Idle", "Cutting"], [f"nonsense {i}" for i in range(50)]):
        lines = [
            line(true, true if rng.random() < 0.3 else str(rng.choice(words)), frame=f"f{i}")
            for i, true in enumerate(["kidney", "Idle", "Cutting", "Staple"] * 60)
        ]
        sums = tally(lines, block_ids(lines))
        for name, estimate in estimates(sums).items():
            assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0, name


# -- coverage ---------------------------------------------------------------------------------------------------------


def _means(rng: np.random.Generator, rate: float, blocks: int, size: int, alike: float) -> Tally:
    """Yes and no with a rate that varies from block to block (``alike``: correlation inside a block)."""
    counts = rng.integers(size // 2, 2 * size, blocks)
    rates = rng.beta(rate * (1 - alike) / alike, (1 - rate) * (1 - alike) / alike, blocks)
    sums, asked = np.zeros((blocks, len(MEANS))), np.zeros((blocks, len(MEANS)))
    sums[:, 0], asked[:, 0] = rng.binomial(counts, rates), counts
    return Tally(counts.astype(float), sums, sums, asked, np.zeros((blocks, 1, 2)))


@pytest.mark.parametrize(
    ("rate", "blocks", "size", "alike"),
    [
        (0.9, 45, 60, 0.05),
        (0.5, 14, 34, 0.2),
        (0.9, 14, 34, 0.1),
        (0.02, 14, 34, 0.05),
        (0.005, 45, 60, 0.02),
        (0.9, 6, 60, 0.05),
    ],
)
def test_intervals_of_means_cover(rate, blocks, size, alike):
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(SETS):
        low, high = intervals(_means(rng, rate, blocks, size, alike))["acc"]
        held += low <= rate <= high
    assert 0.92 <= held / SETS <= 0.98


class Process:
    """Answers by a known process: classes as rare as in EndoVis, in a mix of its own in every block."""

    def __init__(self, mix: float, alike: float, better: float = 0.0) -> None:
        share = FREQUENCIES / FREQUENCIES.sum()
        recall = np.clip(0.3 + 0.65 * (np.log(FREQUENCIES) / np.log(FREQUENCIES.max())) ** 3 + better, 0, 0.97)
        self.share, self.mix, self.alike, self.recall = share, mix, alike, recall
        others = np.tile(share, (CLASSES, 1))
        np.fill_diagonal(others, 0)
        # One error in twenty is no answer at all.
        self.wrong = np.hstack([0.95 * others / others.sum(1, keepdims=True), np.full((CLASSES, 1), 0.05)])

    def draw(self, rng: np.random.Generator, blocks: int, size: int) -> Tally:
        """One set: confusion counts of each block."""
        confusion = np.zeros((blocks, CLASSES, CLASSES + 1))
        for block in confusion:
            mix = rng.dirichlet(self.share * self.mix + 1e-6)
            for true, count in enumerate(rng.multinomial(rng.integers(size // 2, 3 * size // 2), mix)):
                block[true] += self.answers(rng, true, count)
        return _with_confusion(confusion)

    def answers(self, rng: np.random.Generator, true: int, count: int) -> np.ndarray:
        """Answers to ``count`` questions of one class in one block."""
        right = rng.beta(self.recall[true] * self.alike + 1e-6, (1 - self.recall[true]) * self.alike + 1e-6)
        chances = (1 - right) * self.wrong[true]
        chances[true] += right
        return rng.multinomial(count, chances / chances.sum())

    def redraw(self, rng: np.random.Generator, sums: Tally, kept: float) -> Tally:
        """A second system on the same questions, which gives ``kept`` of the answers of the first."""
        confusion = np.zeros_like(sums.confusion)
        for block, before in zip(confusion, sums.confusion, strict=True):
            for true in np.nonzero(before.sum(1))[0]:
                same = rng.binomial(before[true].astype(int), kept)
                block[true] += same + self.answers(rng, true, int(before[true].sum() - same.sum()))
        return _with_confusion(confusion)


def _with_confusion(confusion: np.ndarray) -> Tally:
    n = confusion.sum(axis=(1, 2))
    empty = np.zeros((len(n), len(MEANS)))
    return Tally(n, empty, empty, empty, confusion)


def _value(sums: Tally, metric: str) -> float:
    whole = parts(Tally(*(part.sum(axis=0, keepdims=True) for part in sums)))
    return float(mean_of_parts(whole[metric])[0])


def _covered(metric: str, process: Process, blocks: int, size: int) -> float:
    """Share of sets whose interval holds what the metric is on average over sets of that size."""
    truth = np.mean(
        [_value(process.draw(np.random.default_rng(10_000 + i), blocks, size), metric) for i in range(2 * SETS)]
    )
    held = 0
    for i in range(SETS):
        low, high = intervals(process.draw(np.random.default_rng(i), blocks, size))[metric]
        held += low <= truth <= high
    return held / SETS


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["f_score", "f_score_18", "f_balanced"])
@pytest.mark.parametrize(("blocks", "size", "mix"), [(45, 60, 6.0), (14, 34, 4.0)])
def test_intervals_of_f_scores_cover_although_rare_classes_come_and_go(metric, blocks, size, mix):
    assert 0.92 <= _covered(metric, Process(mix, 20.0), blocks, size) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["f_score", "f_score_18", "f_balanced"])
def test_intervals_of_differences_of_f_cover(metric):
    first, second = Process(6.0, 20.0), Process(6.0, 20.0, better=0.1)
    pairs = []
    for i in range(3 * SETS):
        rng = np.random.default_rng(i)
        a = first.draw(rng, 45, 60)
        pairs.append((a, second.redraw(rng, a, 0.85)))
    truth = np.mean([_value(b, metric) - _value(a, metric) for a, b in pairs[SETS:]])
    held = 0
    for a, b in pairs[:SETS]:
        low, high = paired(b, a, metric).ci95
        held += low <= truth <= high
    assert 0.92 <= held / SETS <= 0.98


# -- paired comparison ------------------------------------------------------------------------------------------------


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
    assert 0.02 < result["ci95"][0] < 0.03 < result["ci95"][1] < 0.04
    assert (result["n"], result["blocks"]) == (300, 30)
    assert compare_scores(tmp_path / "b.jsonl", tmp_path / "a.jsonl")["difference"] == pytest.approx(-0.03)


def test_paired_comparison_is_by_block():
    # Ten blocks of ten frames; the gain sits in one block: an interval over frames would exclude 0, over blocks not.
    b = [line(iou=0.0, frame=f"f{i:03d}", identity=str(i)) for i in range(100)]
    a = [dataclasses.replace(entry, iou=1.0, joint=1.0) if i < 10 else entry for i, entry in enumerate(b)]
    result = compare_lines(a, b, "joint")
    assert result.difference == pytest.approx(0.1)
    assert result.ci95[0] < 0.0 < 0.1 < result.ci95[1]
    assert result == compare_lines(a, b, "joint")
    assert list(result.to_json()) == ["difference", "ci95", "n", "blocks"]


def test_a_system_does_not_differ_from_itself():
    a, _ = _pair(0.0)
    for metric in METRICS:
        result = compare_lines(a, a, metric)
        assert result.difference is None or (result.difference, result.ci95) == (0.0, (0.0, 0.0)), metric
    assert difference(None, None, 3).ci95 == (-1.0, 1.0)


def test_comparing_needs_the_same_questions_and_a_known_metric(tmp_path: Path):
    a, b = _pair(0.1)
    with pytest.raises(SurgeryR1Error, match="same questions: 300 and 299, 1 in only one of them, for example '299'"):
        compare_lines(a, b[:-1], "joint")
    with pytest.raises(SurgeryR1Error, match="unknown metric 'jiont'"):
        compare_scores(tmp_path, tmp_path, "jiont")
    with pytest.raises(SurgeryR1Error, match="no such file"):
        compare_scores(tmp_path, tmp_path)
