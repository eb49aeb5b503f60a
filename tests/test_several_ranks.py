"""Several processes learn what one does, write one run folder, and end together. Two processes on the CPU (gloo)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from launching import (
    DEV,
    UNEVEN_RFT,
    apart,
    launch,
    losses,
    names,
    records,
    seconds_since_event,
    trained,
    uneven,
    weights,
)

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.export import export
from surgery_r1.models.tiny.architecture import TINY_BASE
from surgery_r1.train import ranks, stage
from surgery_r1.train.rollouts.files import read_rollouts, rollout_files
from surgery_r1.train.step_shares import StandIns, StepBatches, passes, without_targets

# ------------------------------------------------------------------------------------------------ in one process


@pytest.fixture
def as_rank(monkeypatch):
    """A function that makes this process believe to be one of several."""

    def believe(index: int, count: int) -> None:
        monkeypatch.setattr(ranks, "count", lambda: count)
        monkeypatch.setattr(ranks, "index", lambda: index)

    return believe


def test_a_step_is_divided_or_refused(as_rank):
    as_rank(0, 2)
    assert passes("sft.batch_size", 8, 0, "rows") == (4, 1)
    assert passes("sft.batch_size", 8, 1, "rows") == (1, 4)
    assert passes("rft.prompts", 16 * 8, 16, "questions", 8) == (16, 4)
    with pytest.raises(SurgeryR1Error, match=r"rft\.prompts = 3 questions a step cannot .* 2 processes; start 1 or 3"):
        passes("rft.prompts", 3 * 4, 0, "questions", 4)
    with pytest.raises(SurgeryR1Error, match=r"sft\.micro_batch = 8 does not divide the 4 .*; take 1 or 2 or 4, or 0"):
        passes("sft.batch_size", 8, 8, "rows")


@pytest.mark.parametrize("rows", [5, 6, 8, 13])
@pytest.mark.parametrize(("count", "micro"), [(2, 2), (2, 1), (4, 1)])
def test_the_rows_of_a_step_are_those_of_one_process(as_rank, rows, count, micro):
    """Every step's rows, over all ranks, are the next four of the order; stand-ins fill what is missing."""
    of_rank = []
    for index in range(count):
        as_rank(index, count)
        batches = StepBatches(range(rows), 4, micro)
        of_rank.append(list(batches))
        assert len(of_rank[-1]) == len(batches)
    each = 4 // micro // count
    for step in range(len(of_rank[0]) // each):
        mine = [row for passed in of_rank for batch in passed[step * each : (step + 1) * each] for row in batch]
        assert sorted(row for row in mine if row >= 0) == list(range(rows))[step * 4 : step * 4 + 4]
    assert all(batch for passed in of_rank for batch in passed), "no pass is empty"


def test_nothing_is_learned_from_a_stand_in():
    class Rows(list):
        def __getitems__(self, numbers):
            return [self[number] for number in numbers]

    rows = StandIns(Rows([{"text": "a"}, {"text": "b"}]))
    assert rows.__getitems__([-2]) == [{"text": "b", "stand_in": True}]
    collate = without_targets(lambda rows: {"labels": torch.ones(len(rows), 3), "input_ids": torch.ones(len(rows), 3)})
    batch = collate(rows.__getitems__([-1]))
    assert batch["labels"].unique().tolist() == [-100] and batch["input_ids"].unique().tolist() == [1]
    assert collate(rows.__getitems__([0, 1]))["labels"].unique().tolist() == [1]


@pytest.mark.parametrize("number", [0, 1, 5, 8])
def test_shares_are_the_whole(as_rank, number):
    parts = []
    for index in range(3):
        as_rank(index, 3)
        parts.append(list(ranks.share(list(range(number)))))
    assert [item for part in parts for item in part] == list(range(number))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_gpus_that_would_idle_are_refused(dataset, tmp_path, monkeypatch):
    from small import small

    several = type("Arguments", (), {"n_gpu": 2, "fsdp": False, "deepspeed": None})
    monkeypatch.setattr(stage, "sft_arguments", lambda *_: (several, []))

    with pytest.raises(SurgeryR1Error, match=r"2 GPUs are visible .*; start one for each: torchrun --nproc_per_node 2"):
        stage.train("sft", small(), dataset, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_what_nobody_has_caught_holds_no_model_when_the_group_ends(monkeypatch):
    """Freed after the group, under the interpreter's lock, it could wait for the group's threads for ever."""

    class Model:
        pass

    def fail():
        model = Model()
        held.append(weakref.ref(model))
        raise KeyError("a mistake")

    held, at_the_end = [], []
    try:
        fail()
    except KeyError as error:
        sys.last_value, sys.last_traceback = error, error.__traceback__
    assert held[0]() is not None
    monkeypatch.setattr(ranks, "several", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: at_the_end.append(held[0]()))
    ranks._hang_up()
    assert at_the_end == [None]


def test_a_file_that_never_comes_is_an_error(tmp_path, as_rank):
    as_rank(1, 2)
    path = tmp_path / "run.json"
    with pytest.raises(SurgeryR1Error, match=r"run.json: process 1 does not see it 0.1 seconds after"):
        ranks.wait_for(path, 0.1)
    late = threading.Timer(0.3, path.touch)
    late.start()
    ranks.wait_for(path, 30)
    late.join()


def test_a_port_in_use_is_an_error(monkeypatch):
    def refuse(*_, **__):
        raise torch.distributed.DistNetworkError("The server socket has failed to listen\nsecond line")

    monkeypatch.setattr("accelerate.PartialState", refuse)
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(SurgeryR1Error, match=r"cannot meet at 127.0.0.1:29500 \(.*listen\); another run"):
        ranks.join()


def test_questions_that_fill_no_step_are_an_error(dataset, tmp_path):
    from small import small

    with pytest.raises(SurgeryR1Error, match=r"472 training questions, but 500 are asked at a time; set rft.prompts"):
        stage.train("rft", small(rft_prompts=500), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_weighs_tokens_by_process_is_refused(tmp_path):
    from small import small

    from surgery_r1.train.options import Permissions
    from surgery_r1.train.rft import rft_arguments

    config = small(rft_micro_batch=4, rft_trl={"loss_type": "bnpo"})
    with pytest.raises(SurgeryR1Error, match="'bnpo' averages each pass"):
        rft_arguments(config, tmp_path, Permissions())
    config = small(rft_trl={"ddp_timeout": 60})
    with pytest.raises(SurgeryR1Error, match=r"\[rft.trl\] sets 'ddp_timeout'; leave it out"):
        rft_arguments(config, tmp_path, Permissions())


# ------------------------------------------------------------------------------------------------- two processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage_name", "changes", "divided"),
    [
        # The last step of an epoch has two rows: one of two passes of each process is a stand-in.
        ("sft", {"sft_rows_per_frame": 0}, [(1, {"sft_micro_batch": 1}), (2, {"sft_micro_batch": 1})]),
        ("sft", {"sft_rows_per_frame": 12}, [(2, {"sft_micro_batch": 1})]),
        ("rft", {}, [(1, {"rft_micro_batch": 2}), (2, {"rft_micro_batch": 2})]),
    ],
    ids=["rows", "packs", "rft"],
)
def test_every_token_weighs_the_same(dataset_folder, tmp_path, stage_name, changes, divided):
    whole, expected = uneven(tmp_path, "whole", 1, stage_name, dataset_folder, **changes)
    for number, (count, division) in enumerate(divided):
        run, gradients = uneven(tmp_path, f"run{number}", count, stage_name, dataset_folder, **changes, **division)
        assert apart(gradients, expected) < 1e-5
        assert losses(run) == pytest.approx(losses(whole), rel=1e-5, abs=1e-6)
        assert len(losses(run)) == 20
        assert apart(weights(run / "best"), weights(whole / "best")) < 1e-4


WHOLE = {"sft_max_steps": 3, "sft_eval_every": 1, "eval_dev_samples": 5, "sft_trl": {"logging_steps": 1}}


@pytest.fixture(scope="module")
def two_ranks(dataset_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return trained(folder, 2, stage="sft", data=dataset_folder, out=folder / "run", changes=WHOLE)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(two_ranks, dataset_folder, tmp_path):
    one = trained(tmp_path, 1, stage="sft", data=dataset_folder, out=tmp_path / "run", changes=WHOLE)
    assert names(one) == names(two_ranks)
    mine, theirs = records(two_ranks), records(one)
    assert [record.keys() for record in mine] == [record.keys() for record in theirs]
    for record, other in zip(mine, theirs, strict=True):
        assert record.pop("stage") == other.pop("stage")
        for name in ("num_tokens", "total_flos"):
            # What was computed: packs that meet on one rank share their system text.
            assert record.pop(name, 0) >= other.pop(name, 0)
        assert record == pytest.approx(other, rel=1e-3, abs=1e-5)
    assert apart(weights(two_ranks / "best"), weights(one / "best")) < 1e-2
    assert not list(two_ranks.glob("*.partial")) and not list(two_ranks.parent.glob(".*.lock"))
    assert json.loads((two_ranks / "run.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_sigterm_to_one_stops_all_and_resume_is_exact(two_ranks, dataset_folder, tmp_path):
    job = {"stage": "sft", "data": dataset_folder, "out": tmp_path / "run", "changes": WHOLE}
    run = trained(tmp_path, 2, **job, signal=["SIGTERM", 1, 1])
    result = json.loads((run / "result.json").read_text())
    assert (result["stopped"], result["steps"]) == (True, 2)
    done = launch(tmp_path, 1, **job, resume=True)
    assert done.returncode == 2
    assert re.search(r"was started with 2 processes, now with 1; resume it with 2, such as torchrun", done.stderr)
    trained(tmp_path, 2, **job, resume=True)
    assert records(run) == records(two_ranks)
    for folder in ("best", "checkpoints/checkpoint-3"):
        mine, theirs = weights(run / folder), weights(two_ranks / folder)
        assert mine and all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_rft_samples_the_same_however_a_step_is_divided(dataset_folder, tmp_path):
    """Whole runs whose rewards tell every reply apart, on their own replies."""
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def told_apart(text, truth):\n    return sum(map(ord, text)) % 101 / 101\n")
    changes = {**UNEVEN_RFT, "rft_prompts": 4, "rft_generations": 4, "rft_max_steps": 4, "rft_eval_every": 4, **DEV}
    changes |= {"rft_learning_rate": 0.02, "rft_max_completion": 24, "rft_rewards": {f"{rewards}:told_apart": 1.0}}
    job = {"stage": "rft", "data": dataset_folder, "base": "tiny"}
    whole = trained(tmp_path, 1, out=tmp_path / "whole", changes=changes, **job)
    divisions = [(2, {}), (2, {"rft_micro_batch": 4}), (1, {"rft_micro_batch": 8, "rft_share_frames": False})]
    told = ("reward", "reward_std", "completions/mean_length", "completions/max_length", "loss")
    for number, (count, division) in enumerate(divisions):
        run = trained(tmp_path, count, out=tmp_path / f"run{number}", changes={**changes, **division}, **job)
        mine, theirs = (
            [{name: record[name] for name in told} for record in records(of) if "reward" in record]
            for of in (run, whole)
        )
        assert len(mine) == 4
        for record, other in zip(mine, theirs, strict=True):
            assert record == pytest.approx(other, rel=1e-5, abs=1e-6)
        between = apart(weights(run / "best"), weights(whole / "best"))
        # Far less than what was learned: runs that hardly move are alike whatever they sample.
        assert between < 1e-4
        assert 10 * between < apart(weights(whole / "best"), weights(TINY_BASE))


@pytest.mark.slow
def test_rft_on_an_adapter_of_two_processes(dataset_folder, tmp_path):
    changes = {"sft_max_steps": 1, "sft_eval_every": 1, "rft_max_steps": 2, "eval_dev_samples": 1}
    job = {"data": dataset_folder, "changes": changes, "lora": True}
    sft = trained(tmp_path, 2, stage="sft", out=tmp_path / "sft", **job)
    job |= {"stage": "rft", "base": sft}
    run = trained(tmp_path, 2, out=tmp_path / "rft", **job)
    assert weights(run / "base") and not list(run.glob("*.partial"))
    assert all(tensor.numel() for tensor in weights(run / "best").values())
    assert [record["step"] for record in records(run) if "dev/joint" in record] == [0, 2]
    # Both ranks' groups, each once.
    asked = [[group["id"] for group in read_rollouts(path)] for path in rollout_files(run).values()]
    assert [len({*ids}) for ids in asked] == [2, 2] == [len(ids) for ids in asked]
    merged = weights(export(run, tmp_path / "model"))
    assert merged.keys() == weights(run / "base").keys()
    # Rollouts, rewards and steps after a stop are those of the run that was not stopped.
    stopped = trained(tmp_path, 2, out=tmp_path / "stopped", signal=["SIGTERM", 0, 0], **job)
    assert json.loads((stopped / "result.json").read_text())["steps"] == 1
    trained(tmp_path, 2, out=stopped, resume=True, **job)
    assert records(stopped) == records(run)
    assert [p.read_bytes() for p in rollout_files(stopped).values()] == [
        p.read_bytes() for p in rollout_files(run).values()
    ]
    ours, theirs = (weights(path / "checkpoints" / "checkpoint-2") for path in (stopped, run))
    assert ours and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "event",
    [{"signal": ["SIGKILL", 1, 1]}, {"fail": [1, 1]}, {"crash": [1, 1]}],
    ids=["killed", "failed", "crashed"],
)
def test_one_that_ends_ends_all(dataset_folder, tmp_path, event):
    job = {"stage": "sft", "data": dataset_folder, "out": tmp_path / "run", "changes": WHOLE}
    done = launch(tmp_path, 2, **job, **event)
    assert done.returncode != 0 and seconds_since_event(job["out"]) < 60
    said = [line for line in done.stderr.splitlines() if line.startswith(("error:", "told:"))]
    if "fail" in event:
        assert said[0] == "error: frame003.png: a frame cannot be read; copy it again"
    assert said[-1].startswith("told: another process of this run has ended")
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_what_all_refuse_is_said_once(two_ranks, dataset_folder, tmp_path):
    job = {"stage": "sft", "data": dataset_folder, "out": two_ranks}
    done = launch(tmp_path, 2, **job, changes={**WHOLE, "sft_batch_size": 3})
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        "error: sft.batch_size = 3 packs a step cannot be divided by 2 processes; start 1 or 3 processes, or make it "
        "a multiple of 2"
    ]
    done = launch(tmp_path, 2, **job, changes=WHOLE)
    said = [line for line in done.stderr.splitlines() if line.startswith(("error:", "told:"))]
    assert len(said) == 1 and "already holds a run" in said[0]
    # The same of what the command itself reads.
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "surgery_r1",
        "train",
        "sft",
    ]
    command += ["--config", "tiny", "--data", str(dataset_folder), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command += ["--set", "sft.max_step=3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0 and done.stderr.count("unknown key 'sft.max_step'") == 1
    assert not (tmp_path / "run").exists()
