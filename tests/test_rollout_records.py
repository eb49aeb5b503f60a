"""Recorded groups: what a record says, which steps are recorded, and that ranks and resumed runs write each once."""

from __future__ import annotations

import gzip
import json
import math

import pytest
from planted_rollouts import FORCEPS, PLANTED, RIGHT, STAPLER, WEIGHTS, WORST, group, reply, truth

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.train import ranks
from surgery_r1.train.rollouts.files import prune_rollouts, read_rollouts, rollout_files, write_rollouts
from surgery_r1.train.rollouts.record import MARKS, group_record
from surgery_r1.train.rollouts.recorder import RolloutRecorder

SHOWN = {"question": "What is the state?", "frame": "endovis18/seq_2/frame000", "flip": "none"}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_group_has_its_mark_and_no_other(name):
    record = group(1, name, PLANTED[name])
    found = {mark for one in record["replies"] for mark in one["marks"]}
    assert found == ({name} & {*MARKS})
    assert record["all_equal"] == (name == "all equal")
    assert [len(one["marks"]) for one in record["replies"]] == [0, 0, int(name in MARKS), 0]


def test_what_a_record_says():
    texts = [RIGHT, reply("Grasping", "Cutting", STAPLER), "torn <box>[1, 2"]
    rewards = {"format": [1.0, 1.0, 0.0], "answer": [1.0, 0.0, 0.0], "spatial": [math.nan] * 3}
    weights = {"format": 0.5, "answer": 1.0, "spatial": 3.0}
    record = group_record(7, SHOWN, truth(), texts, rewards, [1.25, -0.5, -0.75], weights)
    right, wrong, torn = record["replies"]
    assert [right[key] for key in ("answer", "answer_right", "conclusion", "referent")] == ["Idle", True, "Idle", "own"]
    assert right["box_px"] == pytest.approx(list(FORCEPS), abs=1) and right["iou"] > 0.98
    assert (wrong["referent"], wrong["answer_fits_box"], wrong["conclusion"]) == ("other_clearly", True, "Grasping")
    assert wrong["marks"] == ["disagreement", "wrong referent"]
    assert torn["box_px"] is None and torn["marks"] == ["format lost"] and "unclosed_tag" in torn["problems"]
    # A part that does not apply is no 0: it takes no part in the mean.
    assert [one["reward"] for one in record["replies"]] == [1.0, 0.3333, 0.0]
    assert right["rewards"] == {"format": 1.0, "answer": 1.0, "spatial": None}
    assert record["rewards_span"] == [0.0, 0.4444, 1.0] and (record["step"], record["id"]) == (7, truth().sample_id)
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("every", "cycle", "recorded"),
    [(5, 1, [1, 6, 11]), (1, 1, [*range(1, 13)]), (0, 1, []), (5, 2, [1, 5, 11]), (2, 4, [1, 5, 9])],
)
def test_which_steps_are_recorded(tmp_path, every, cycle, recorded):
    recorder = RolloutRecorder(tmp_path, every, 4, cycle)
    assert [step for step in range(1, 13, cycle) if recorder.wants(step)] == recorded


def logged(texts):
    """What TRL has logged of a generation."""
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    numbers = [*map(float, range(len(texts)))]
    return {"completion": completions, "advantages": numbers, "rewards": dict.fromkeys(WEIGHTS, numbers)}


def rows(count):
    return [{"id": "x", "shown": SHOWN, "truth": truth(i // 2).to_json()} for i in range(count)]


def test_a_step_that_is_generated_in_parts_is_one_file(tmp_path):
    recorder = RolloutRecorder(tmp_path, 5, 2)
    for step in (1, 2, 6, 6):
        recorder.take(step, rows(4), logged([RIGHT, *WORST[:3]]), WEIGHTS)
    assert [*rollout_files(tmp_path)] == [1, 6]
    assert [len(read_rollouts(path)) for path in rollout_files(tmp_path).values()] == [2, 4]
    assert len(read_rollouts(rollout_files(tmp_path)[1])[0]["replies"]) == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_record_each_its_own_groups(tmp_path, monkeypatch, rank):
    """TRL's logs are those of all ranks; rows are a rank's own."""
    told = []
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "index", lambda: rank)
    monkeypatch.setattr(ranks, "gathered", lambda mine: told.extend(mine) or [*mine])
    monkeypatch.setattr(ranks, "first", lambda work: None)
    texts = [f"reply {i}" for i in range(8)]
    RolloutRecorder(tmp_path, 1, 2).take(3, rows(4), logged(texts), WEIGHTS)
    groups = [one for one in told if isinstance(one, dict)]
    assert [[one["text"] for one in record["replies"]] for record in groups] == [
        texts[4 * rank : 4 * rank + 2],
        texts[4 * rank + 2 : 4 * rank + 4],
    ]
    assert groups[0]["replies"][0]["advantage"] == 4 * rank and not rollout_files(tmp_path)


def test_a_resumed_run_drops_what_it_does_again(tmp_path):
    for step in (1, 6, 11, 100_001):
        write_rollouts(tmp_path, step, [group(step, "?", [RIGHT, *WORST])])
    before = rollout_files(tmp_path)[6].read_bytes()
    prune_rollouts(tmp_path, 10)
    assert [*rollout_files(tmp_path)] == [1, 6] and rollout_files(tmp_path)[6].read_bytes() == before
    write_rollouts(tmp_path, 6, [group(6, "?", [RIGHT, *WORST])])
    assert rollout_files(tmp_path)[6].read_bytes() == before, "the same groups are the same bytes"
    prune_rollouts(tmp_path, 0)
    assert not rollout_files(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzip.compress(b"{\n", mtime=0), gzip.compress(b'{"step": 1}\n', mtime=0)]
)
def test_a_file_that_is_none_is_named(tmp_path, content):
    write_rollouts(tmp_path, 1, [group(1, "?", WORST)])
    path = rollout_files(tmp_path)[1]
    path.write_bytes(content if content != b"" else path.read_bytes()[:-20])
    with pytest.raises(SurgeryR1Error, match=r"step-00001\.jsonl\.gz"):
        read_rollouts(path)


def test_a_reply_may_hold_any_end_of_line(tmp_path):
    groups = [{"replies": [{"text": "one\u2028two\x85three\x0bfour\r\nfive"}]}, {"replies": []}]
    write_rollouts(tmp_path, 1, groups)
    assert read_rollouts(rollout_files(tmp_path)[1]) == groups
