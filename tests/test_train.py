"""Both stages on the tiny base for a few steps: that they train what they should, stop, and go on where they were."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small import small
from transformers import TrainerCallback

from surgery_r1.data.dataset import open_dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models import from_pretrained
from surgery_r1.models.tiny.architecture import TINY_BASE
from surgery_r1.train import callbacks
from surgery_r1.train import stage as stage_module
from surgery_r1.train.checkpoints import last_checkpoint
from surgery_r1.train.options import Permissions
from surgery_r1.train.rft import generation_cycle, rft_arguments
from surgery_r1.train.rollouts.files import read_rollouts, rollout_files
from surgery_r1.train.sft import sft_arguments

ALLOWED = Permissions(upload=True)


def fit(stage, config, dataset, out, **more):
    return stage_module.train(stage, config, dataset, out, quiet=True, **more).to_json()


def weights(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def records(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def story(run) -> list[dict]:
    """All of metrics.jsonl but times."""
    timed = ("time", "per_second")
    return [{k: v for k, v in record.items() if not any(word in k for word in timed)} for record in records(run)]


def assert_same(run, other) -> None:
    """Equal last checkpoints, best models and recorded groups, bit for bit, the same metrics.jsonl, times aside."""
    for path in (run / "best", *(run / "checkpoints").glob("checkpoint-*")):
        ours, theirs = weights(path), weights(other / path.relative_to(run))
        assert ours and ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), path
    assert story(run) == story(other)
    recorded = [{path.name: path.read_bytes() for path in (r / "rollouts").glob("*")} for r in (run, other)]
    assert recorded[0] == recorded[1]
    results = [json.loads((r / "result.json").read_text()) for r in (run, other)]
    assert {k: v for k, v in results[0].items() if k != "best"} == {k: v for k, v in results[1].items() if k != "best"}


class Interrupted(Exception):
    """Stands for a kill: nothing of ours runs after it."""


@pytest.fixture
def kill_after(monkeypatch):
    """A function that makes training die at the end of a step, or in the middle of saving its checkpoint."""

    def arm(step: int, *, while_saving: bool = False):
        class Killer(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                if state.global_step == step and not while_saving:
                    raise Interrupted

            def on_save(self, args, state, control, **_):
                # Before this project's callbacks are told of the save: the model has not been kept yet.
                if state.global_step == step and while_saving:
                    raise Interrupted

        _add_callback(monkeypatch, Killer())

    return arm


def _add_callback(monkeypatch, callback) -> None:
    """Every trainer gets ``callback``, told of things before this project's own."""
    from surgery_r1.train import fit
    from surgery_r1.train.checkpoints import resumable

    def patched(kind):
        class Patched(resumable(kind)):
            def __init__(self, *args, callbacks, **kwargs):
                super().__init__(*args, callbacks=[callback, *callbacks], **kwargs)

        return Patched

    monkeypatch.setattr(fit, "resumable", patched)


# ---------------------------------------------------------------------------------------------------------- SFT


@pytest.fixture(scope="module")
def sft_run(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("sft") / "run"
    fit("sft", small(), dataset, out)
    return out


def test_agreement_on_dev_is_what_scoring_says(dataset, tmp_path):
    """Where rationale, answer and box agree is logged at every evaluation, by the measures of the tables."""
    from surgery_r1.evaluate.generation import GenerationOptions
    from surgery_r1.evaluate.run import predict_and_score
    from surgery_r1.train.dev import AGREEMENT

    run = tmp_path / "run"
    config = small(
        sft_max_steps=6, sft_eval_every=6, sft_learning_rate=3e-3, eval_dev_samples=0, eval_max_new_tokens=48
    )
    fit("sft", config, dataset, run)
    (logged,) = [r for r in records(run) if "dev/acc" in r]
    scored = predict_and_score(run, dataset, "dev", tmp_path / "score", GenerationOptions(4, 48))
    told = [name for name in AGREEMENT if scored[name] is not None]
    assert {"answer_box", "wrong_referent_broad"} <= set(told)
    for name in ("acc", "miou", "joint", *told):
        assert logged[f"dev/{name}"] == pytest.approx(scored[name]), name


def test_sft_files(sft_run, dataset):
    result = json.loads((sft_run / "result.json").read_text())
    assert result["steps"] == 4 and not result["stopped"] and result["held_off"] == []
    dev = [r for r in records(sft_run) if "dev/acc" in r]
    assert [r["step"] for r in dev] == [2, 4]
    for record in dev:
        for name in ("acc", "miou", "joint", "joint_at_iou50", "parse_failure_rate"):
            assert 0 <= record[f"dev/{name}"] <= 1
    info = from_pretrained(sft_run, with_model=False).info
    assert info.stage == "sft" and info.base_model == "tiny" and info.dataset_sha256 == dataset.hash
    assert info.step == result["best_step"] == max(dev, key=lambda r: (r["dev/joint"], -r["step"]))["step"]
    assert not list(sft_run.glob("*.partial")) and not list(sft_run.glob("*.old"))
    assert json.loads((sft_run / "config.json").read_text())["sft"]["batch_size"] == 4
    assert json.loads((sft_run / "run.json").read_text())["base_sha256"]


def test_sft_trains_everything_but_the_vision_tower(sft_run):
    before, after = weights(TINY_BASE), weights(last_checkpoint(sft_run / "checkpoints"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "visual." not in name}


def test_sft_loss_falls_on_a_few_rows(dataset, tmp_path, monkeypatch):
    some = [row for row in dataset.train_rows() if row.task == "cot"][:4]
    few = open_dataset(dataset.root)
    monkeypatch.setattr(few, "train_rows", lambda *_: some)
    config = small(sft_max_steps=15, sft_eval_every=15, sft_trl={"logging_steps": 1})
    fit("sft", config, few, tmp_path / "run")
    losses = [r["loss"] for r in records(tmp_path / "run") if "loss" in r]
    assert len(losses) == 15 and losses[-1] < losses[0] / 2 and max(losses[-3:]) < min(losses[:3])


def test_sft_with_the_vision_tower(dataset, tmp_path):
    config = small(sft_max_steps=1, sft_eval_every=1, eval_dev_samples=1)
    config = replace(config, model=replace(config.model, freeze_vision=False))
    fit("sft", config, dataset, tmp_path / "run")
    before, after = weights(TINY_BASE), weights(tmp_path / "run" / "best")
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_sft_stops_when_dev_no_longer_improves(dataset, tmp_path, monkeypatch):
    values = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    monkeypatch.setattr(stage_module, "dev_evaluator", lambda *_: lambda model: {"joint": next(values)})
    config = small(sft_max_steps=10, sft_eval_every=1, sft_patience=2)
    result = fit("sft", config, dataset, tmp_path / "run")
    assert (result["steps"], result["best_step"], result["dev/joint"], result["stopped"]) == (4, 2, 0.3, False)
    assert from_pretrained(tmp_path / "run", with_model=False).info.step == 2


def test_training_on_dev_keeps_the_last_model(dataset, tmp_path, monkeypatch):
    values = iter([0.3, 0.2, 0.1])
    monkeypatch.setattr(stage_module, "dev_evaluator", lambda *_: lambda model: {"joint": next(values)})
    config = small(sft_max_steps=3, sft_eval_every=1, sft_patience=1, sft_flips=(), sft_direct_answers=False)
    result = fit("sft", config, dataset, tmp_path / "run", include_dev=True)
    assert (result["steps"], result["best_step"]) == (3, 3)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    tasks = config.sft.tasks
    assert run["rows"] == len(dataset.train_rows(tasks, include_dev=True)) > len(dataset.train_rows(tasks))


@pytest.mark.parametrize("moment", ["between", "saving"])
def test_sft_resumed_equals_uninterrupted(sft_run, dataset, tmp_path, kill_after, monkeypatch, moment):
    out = tmp_path / "run"
    kill_after(3 if moment == "between" else 2, while_saving=moment == "saving")
    with pytest.raises(Interrupted):
        fit("sft", small(), dataset, out)
    monkeypatch.undo()
    assert not (out / "result.json").exists()
    with pytest.raises(SurgeryR1Error, match="--resume"):
        fit("sft", small(), dataset, out)
    fit("sft", small(), dataset, out, resume=True)
    assert_same(out, sft_run)


@pytest.mark.parametrize(
    "logging_steps", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_log_windows_across_a_checkpoint(dataset, tmp_path, kill_after, monkeypatch, logging_steps):
    """Checkpoints after 2, 4 and 6 steps: a window of logs is open at one of them, or at all."""
    config = small(sft_max_steps=6, sft_trl={"logging_steps": logging_steps}, eval_dev_samples=1)
    fit("sft", config, dataset, tmp_path / "whole")
    kill_after(5)
    with pytest.raises(Interrupted):
        fit("sft", config, dataset, tmp_path / "run")
    monkeypatch.undo()
    fit("sft", config, dataset, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")
    logged = [record for record in story(tmp_path / "run") if "loss" in record]
    assert [record["step"] for record in logged] == [step for step in range(1, 7) if step % logging_steps == 0]
    assert all(record["num_tokens"] > 0 and record["entropy"] > 0 for record in logged)


def test_sft_resumes_from_the_checkpoint_before_a_torn_one(sft_run, dataset, tmp_path, caplog):
    out = tmp_path / "run"
    shutil.copytree(sft_run, out)
    (out / "result.json").unlink()
    state = out / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    (out / "best").rename(out / "best.old")
    with (out / "metrics.jsonl").open("a") as handle:
        handle.write('{"stage": "sft", "st')
    fit("sft", small(), dataset, out, resume=True)
    assert "checkpoint-4 is incomplete and is passed over" in caplog.text
    assert_same(out, sft_run)


@pytest.mark.parametrize("lora", [False, True])
def test_resume_of_a_run_that_lacks_only_its_end(dataset, tmp_path, monkeypatch, lora):
    """No step is added to what max_steps or patience have ended, and the model that was not kept yet is."""
    values = iter([0.1, 0.3, 0.2])
    monkeypatch.setattr(stage_module, "dev_evaluator", lambda *_: lambda model: {"joint": next(values)})
    config = small(sft_max_steps=2, sft_eval_every=1)
    config = replace(config, lora=replace(config.lora, enabled=lora))
    out = tmp_path / "run"
    result = fit("sft", config, dataset, out)
    best, told = weights(out / "best"), story(out)
    (out / "result.json").unlink()
    # A kill before the summary of the whole was written.
    assert "train_loss" in told[-1]
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:-1]))
    shutil.rmtree(out / "best")
    assert fit("sft", config, dataset, out, resume=True) == result
    assert story(out) == told
    again = weights(out / "best")
    assert best.keys() == again.keys() and all(torch.equal(best[name], again[name]) for name in best)
    # Longer, and out of patience after the third step: resumed again, it does not go on either.
    longer = replace(config, sft=replace(config.sft, max_steps=9, patience=1))
    result = fit("sft", longer, dataset, out, resume=True)
    assert (result["steps"], result["best_step"]) == (3, 2)
    assert fit("sft", longer, dataset, out, resume=True) == result


def test_resume_refuses_what_would_mix_two_runs(sft_run, dataset, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(sft_run, out)
    begun_with = small().sft.learning_rate
    with pytest.raises(SurgeryR1Error, match=re.escape(f"sft.learning_rate was {begun_with}, now 0.1")):
        fit("sft", small(sft_learning_rate=0.1), dataset, out, resume=True)
    with pytest.raises(SurgeryR1Error, match="include_dev was False, now True"):
        fit("sft", small(), dataset, out, resume=True, include_dev=True)
    with pytest.raises(SurgeryR1Error, match="stage was 'sft', now 'rft'"):
        fit("rft", small(), dataset, out, resume=True)
    with pytest.raises(SurgeryR1Error, match="base_sha256"):
        fit("sft", small(), dataset, out, resume=True, base=sft_run)


def test_sigterm_saves_and_resume_goes_on(sft_run, dataset, tmp_path, monkeypatch):
    class Terminate(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    out, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        _add_callback(patch, Terminate())
        result = fit("sft", small(), dataset, out)
    assert result["stopped"] and result["steps"] == 3
    assert signal.getsignal(signal.SIGTERM) == before
    assert last_checkpoint(out / "checkpoints").name == "checkpoint-3"
    result = fit("sft", small(), dataset, out, resume=True)
    assert not result["stopped"] and result["steps"] == 4
    ours, theirs = (weights(run / "checkpoints" / "checkpoint-4") for run in (out, sft_run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert story(out) == story(sft_run), "the summary of the stopped run is not left in the middle"


def test_a_signal_at_the_last_step_is_not_a_stop():
    stop, control = callbacks.StopOnSignal(2), type("Control", (), {"should_training_stop": False})()
    stop.asked, args = True, type("Args", (), {"device": "cpu"})()
    state = type("State", (), {"global_step": 3})()
    stop.on_step_end(args, state, control)
    assert not control.should_training_stop, "inside a cycle training cannot be resumed"
    state.global_step, control.should_training_stop = 4, True
    stop.on_step_end(args, state, control)
    assert not stop.stopped
    control.should_training_stop = False
    stop.on_step_end(args, state, control)
    assert stop.stopped and control.should_save and control.should_training_stop


def test_sft_with_an_adapter(dataset, tmp_path):
    config = small(sft_max_steps=2, eval_dev_samples=1)
    config = replace(config, lora=replace(config.lora, enabled=True))
    fit("sft", config, dataset, tmp_path / "run")
    best = weights(tmp_path / "run" / "best")
    assert best and all("lora_" in name for name in best)
    assert not any("visual" in name for name in best), "the vision tower is frozen"
    modules = {name.split(".")[-3] for name in best}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    # B starts at zero: every adapter has moved when every B has.
    assert all(tensor.abs().max() > 0 for name, tensor in best.items() if "lora_B" in name)
    # The next stage starts from the adapter merged into its base, which it keeps.
    fit("rft", small(rft_max_steps=2, eval_dev_samples=1), dataset, tmp_path / "full", base=tmp_path / "run")
    config = replace(config, rft=small(rft_max_steps=2).rft)
    fit("rft", config, dataset, tmp_path / "adapter", base=tmp_path / "run")
    assert from_pretrained(tmp_path / "adapter" / "base", with_model=False).info.stage == "sft"
    (tmp_path / "adapter").rename(tmp_path / "moved")
    assert from_pretrained(tmp_path / "moved").info.stage == "rft"


def test_an_adapter_resumed_equals_uninterrupted(dataset, tmp_path, kill_after, monkeypatch):
    config = small(eval_dev_samples=1)
    config = replace(config, lora=replace(config.lora, enabled=True))
    fit("sft", config, dataset, tmp_path / "whole")
    kill_after(3)
    with pytest.raises(Interrupted):
        fit("sft", config, dataset, tmp_path / "run")
    monkeypatch.undo()
    fit("sft", config, dataset, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------- RFT


@pytest.fixture(scope="module")
def rft_run(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("rft") / "run"
    fit("rft", small(), dataset, out)
    return out


def test_rft_files(rft_run):
    story = records(rft_run)
    assert [r["step"] for r in story if "dev/joint" in r] == [0, 2, 4], "the start counts as a candidate"
    rewards = [r for r in story if "reward" in r]
    assert len(rewards) == 4
    for name in ("format", "answer", "box", "coherence"):
        assert all(0 <= r[f"rewards/{name}/mean"] <= 1 for r in rewards)
    assert from_pretrained(rft_run, with_model=False).info.stage == "rft"


@pytest.mark.parametrize("changes", [{}, {"rft_share_frames": False}, {"rft_questions_per_frame": 2}])
def test_recorded_groups_are_what_the_step_was_paid_for(rft_run, dataset, tmp_path, changes):
    run = rft_run
    if changes:
        run = tmp_path / "run"
        fit("rft", small(rft_max_steps=2, eval_dev_samples=1, **changes), dataset, run)
    logged = {record["step"]: record for record in records(run) if "reward" in record}
    assert [*rollout_files(run)] == [*logged]
    for step, path in rollout_files(run).items():
        groups = read_rollouts(path)
        replies = [reply for group in groups for reply in group["replies"]]
        assert (len(groups), len(replies)) == (2, 8)
        for name in ("format", "answer", "box", "coherence"):
            paid = [reply["rewards"][name] for reply in replies]
            assert sum(paid) / 8 == pytest.approx(logged[step][f"rewards/{name}/mean"], abs=1e-3)
        # Advantages of a step have mean 0, and follow the rewards of a group.
        assert sum(reply["advantage"] for reply in replies) == pytest.approx(0, abs=1e-2)
        for group in groups:
            sample = dataset.samples[group["id"]]
            assert group["frame"] == sample.frame_id and group["kind"] == sample.kind
            if group["flip"] == "none":
                assert group["question"] == sample.question and group["true"][0]["answer"] == sample.answer


def test_rft_rewards_vary_within_a_group_and_move_every_weight(dataset, tmp_path, monkeypatch):
    """The random reward varies whatever the base can do, so that this holds for any base."""
    config = small(rft_max_steps=2, eval_dev_samples=1, rft_rewards={"random": 1.0})
    config = replace(config, eval=replace(config.eval, choose="last"))
    result = stage_module.train("rft", config, dataset, tmp_path / "run", quiet=True)
    assert result.to_json()["choose"] == "last"
    assert result.summary == f"last step, on dev: joint {result.dev_joint:.4f} at step 2"
    story = [r for r in records(tmp_path / "run") if "reward" in r]
    assert all(r["frac_reward_zero_std"] == 0 for r in story)
    before, after = weights(TINY_BASE), weights(tmp_path / "run" / "best")
    assert {n for n in before if not torch.equal(before[n], after[n])} == {n for n in before if "visual." not in n}
    assert from_pretrained(tmp_path / "run", with_model=False).info.step == 2


def test_rft_resumed_equals_uninterrupted(rft_run, dataset, tmp_path, kill_after, monkeypatch):
    kill_after(3)
    with pytest.raises(Interrupted):
        fit("rft", small(), dataset, tmp_path / "run")
    monkeypatch.undo()
    fit("rft", small(), dataset, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", rft_run)


@pytest.mark.parametrize(("logging_steps", "iterations"), [(3, 1), (3, 2)])
def test_rft_log_windows_across_a_checkpoint(dataset, tmp_path, kill_after, monkeypatch, logging_steps, iterations):
    trl = {"logging_steps": logging_steps, "num_iterations": iterations}
    config = small(rft_max_steps=6, rft_trl=trl, eval_dev_samples=1)
    fit("rft", config, dataset, tmp_path / "whole")
    kill_after(5)
    with pytest.raises(Interrupted):
        fit("rft", config, dataset, tmp_path / "run")
    monkeypatch.undo()
    fit("rft", config, dataset, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert [record["step"] for record in story(tmp_path / "run") if "loss" in record] == [3, 6]


def test_rft_resumes_only_where_a_cycle_ends(rft_run, tmp_path, caplog):
    shutil.copytree(rft_run / "checkpoints", tmp_path / "checkpoints")
    for step in (2, 4):
        (tmp_path / "checkpoints" / f"checkpoint-{step}").rename(tmp_path / f"checkpoint-{step}")
    assert last_checkpoint(tmp_path, cycle=3) is None
    assert "inside a generation cycle" in caplog.text
    assert last_checkpoint(tmp_path, cycle=4).name == "checkpoint-4"


@pytest.mark.parametrize(
    ("trl", "micro", "cycle"),
    [({}, 0, 1), ({}, 4, 1), ({"num_iterations": 2}, 0, 2), ({"steps_per_generation": 4}, 0, 4)],
)
def test_generation_cycle(tmp_path, trl, micro, cycle):
    config = small(rft_trl=trl, rft_micro_batch=micro, rft_eval_every=cycle)
    assert generation_cycle(rft_arguments(config, tmp_path, ALLOWED)[0]) == cycle
    if cycle > 1:
        with pytest.raises(SurgeryR1Error, match=f"generation cycle of {cycle} steps"):
            rft_arguments(small(rft_trl=trl, rft_eval_every=cycle + 1), tmp_path, ALLOWED)


def test_rft_never_reads_val(dataset, tmp_path, monkeypatch):
    from surgery_r1.models import encode

    seen, plain = set(), encode.load_image
    monkeypatch.setattr(encode, "load_image", lambda path: seen.add(str(path)) or plain(path))
    fit("rft", small(rft_max_steps=2, eval_dev_samples=0), dataset, tmp_path / "run")
    paths = {split: {str(dataset.image_path(s)) for s in dataset.split(split)} for split in ("train", "dev", "val")}
    assert paths["dev"] <= seen and paths["train"] & seen and not paths["val"] & seen


# ---------------------------------------------------------------------------------------------------- pass-through


@pytest.mark.parametrize(
    ("stage", "option", "value", "message"),
    [
        ("sft", "lr_sheduler_type", "linear", "did you mean 'lr_scheduler_type'"),
        ("sft", "zzzz", 1, "see the options of TRL's SFTConfig"),
        ("sft", "learning_rate", 1, "set learning_rate instead"),
        ("sft", "output_dir", "x", "set --out instead"),
        ("sft", "lr_scheduler_type", "zigzag", r"\[sft.trl\] TRL refuses: .*zigzag"),
        ("rft", "num_generations", 3, "set generations instead"),
        ("rft", "reward_weights", [1], "set rewards instead"),
        ("rft", "save_steps", 7, "set eval_every instead"),
        ("rft", "epsilon_hihg", 0.3, "did you mean 'epsilon_high'"),
    ],
)
def test_pass_through_errors_leave_no_run_folder(dataset, tmp_path, stage, option, value, message):
    config = small(**{f"{stage}_trl": {option: value}})
    with pytest.raises(SurgeryR1Error, match=message):
        fit(stage, config, dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_reward_leaves_no_run_folder(dataset, tmp_path):
    with pytest.raises(SurgeryR1Error, match="unknown reward 'anser'"):
        fit("rft", small(rft_rewards={"anser": 1.0}), dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "option", "value"),
    [
        ("sft", "push_to_hub", True),
        ("sft", "report_to", "wandb"),
        ("sft", "hub_token", "abc"),
        ("rft", "push_to_hub", True),
        ("rft", "report_to", ["wandb"]),
        ("rft", "log_multimodal", True),
        ("rft", "trackio_space_id", "me/space"),
        ("rft", "hub_strategy", "all_checkpoints"),
    ],
)
def test_what_would_send_data_away_is_held_off(tmp_path, caplog, stage, option, value):
    config = small(**{f"{stage}_trl": {option: value}})
    arguments = sft_arguments if stage == "sft" else rft_arguments
    args, held = arguments(config, tmp_path, Permissions(hub=True))
    assert held == [option]
    assert f"{option} = {value!r} is not set: it may send data" in caplog.text
    assert getattr(args, option) in (False, None, [], "none", "every_save")
    caplog.clear()
    args, held = arguments(config, tmp_path, ALLOWED)
    assert held == [] and getattr(args, option) == ([value] if value == "wandb" else value)
    assert caplog.text == ""


def test_every_option_of_trl_that_names_a_hub_or_tracker_is_held_off():
    """A new TRL may bring new ones: this fails then."""
    from dataclasses import fields

    from trl import GRPOConfig, SFTConfig

    from surgery_r1.train.options import _PRIVATE

    words = ("hub", "trackio", "report_to", "wandb", "multimodal", "remote")
    names = {f.name for kind in (SFTConfig, GRPOConfig) for f in fields(kind)}
    assert {name for name in names if any(word in name for word in words)} <= set(_PRIVATE)


def test_trackers(tmp_path):
    config = replace(small(), tracker="wandb")
    with pytest.raises(SurgeryR1Error, match=r"tracker 'wandb' may send metrics.*--allow-upload"):
        sft_arguments(config, tmp_path, Permissions(hub=True))
    assert sft_arguments(config, tmp_path, ALLOWED)[0].report_to == ["wandb"]
    assert sft_arguments(small(), tmp_path, Permissions())[0].report_to == []
