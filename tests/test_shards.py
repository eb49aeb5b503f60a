"""A model in parts learns what a whole one does, and is asked, saved and resumed as a whole.

Two processes on the CPU (gloo). The ways of DeepSpeed are tested where it is installed: ``make test-engines``.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from launching import apart, launch, losses, names, records, seconds_since_event, trained, uneven, weights
from safetensors.torch import save_file
from small import small

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models import from_pretrained
from surgery_r1.models.export import export
from surgery_r1.models.save import refuse_empty, save_model
from surgery_r1.train import ranks, shards, stage

deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed: make test-engines")
WAYS = ["fsdp2", *(pytest.param(way, marks=deepspeed) for way in ("zero2", "zero3"))]


# ------------------------------------------------------------------------------------------------ in one process


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: 2)


def test_the_launcher_may_say_how_a_model_is_spread(two, monkeypatch):
    assert shards.asked_for("none") == "none"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SurgeryR1Error, match=r"FSDP's first version is not supported; launch with --fsdp_version 2"):
        shards.asked_for("none")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert shards.asked_for("none") == shards.asked_for("fsdp2") == "fsdp2"
    with pytest.raises(SurgeryR1Error, match=r"ranks.shard = 'zero2', the launcher 'fsdp2'; say it in one place"):
        shards.asked_for("zero2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ranks_shard": "fsdp2"},
            r"fsdp2 spreads a model over several processes, .*; start one for each GPU: torchrun",
        ),
        ({"sft_trl": {"fsdp": True}}, r"\[sft.trl\] sets 'fsdp'; set ranks.shard instead"),
    ],
)
def test_what_cannot_be_spread_is_refused(dataset, tmp_path, changes, message):
    with pytest.raises(SurgeryR1Error, match=message):
        stage.train("sft", small(**changes), dataset, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stage_name", "changes", "message"),
    [
        ("sft", {"model_vision_cache": "features"}, r"need a whole vision tower; fsdp2 spreads it"),
        ("rft", {"rft_trl": {"beta": 0.1}}, r"rft.trl.beta = 0.1 needs a second model, which is not spread; set it to"),
    ],
)
def test_what_spread_weights_do_not_go_with_is_refused(tmp_path, two, stage_name, changes, message):
    config = small(ranks_shard="fsdp2", **changes)
    config = replace(config, lora=replace(config.lora, enabled=False))
    made = stage.sft_arguments if stage_name == "sft" else stage.rft_arguments
    with pytest.raises(SurgeryR1Error, match=message):
        stage._refuse_layout(config, made(config, tmp_path / "run", stage.Permissions())[0])


def test_no_empty_tensor_is_written(tmp_path):
    save_file({"a": torch.ones(2), "b.c": torch.ones(0)}, tmp_path / "model.safetensors")
    with pytest.raises(SurgeryR1Error, match=r"model.safetensors: 1 tensors would be saved empty, such as b.c"):
        refuse_empty(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    refuse_empty(tmp_path)


def test_a_whole_model_stays_as_it_is(tiny):
    assert not shards.spread(tiny.model) and shards.whole_state(tiny.model) is None
    with shards.whole(tiny.model):
        pass


# ------------------------------------------------------------------------------------------------- two processes


UNEVEN = {"sft": {"sft_rows_per_frame": 0}, "rft": {}}
SHORT = {"eval_dev_samples": 3, "sft_max_steps": 3, "sft_eval_every": 1, "sft_trl": {"logging_steps": 1}}
SHORT |= {"rft_max_steps": 2, "rft_eval_every": 1}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The tiny base, and one whose output layer has weights of its own, as that of the 7B model."""
    bundle = from_pretrained("tiny")
    model, folder = bundle.model, tmp_path_factory.mktemp("base") / "untied"
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.01)
    model.all_tied_weights_keys = {}
    save_model(model, bundle.processor, bundle.info, folder)
    assert {*weights(folder)} - {*weights(bundle.folder)} == {"lm_head.weight"}
    return {"tied": bundle.folder, "untied": folder}


def learned(run, base):
    """What a run has added to each tensor of its base."""
    start = weights(base)
    return {
        name: tensor - start[name] for name, tensor in weights(run / "best").items() if ".visual." not in f".{name}"
    }


@pytest.fixture(scope="module")
def of_one_process(dataset_folder, tmp_path_factory):
    """Functions that make the runs of one process, each once: on uneven rows, and a short whole one."""
    folder = tmp_path_factory.mktemp("one")

    @cache
    def on_uneven_rows(stage_name, base):
        name = f"uneven_{stage_name}_{base.name}"
        return uneven(folder, name, 1, stage_name, dataset_folder, base, **UNEVEN[stage_name])

    @cache
    def short(stage_name, lora):
        out = folder / f"{stage_name}_{lora}"
        return trained(folder, 1, stage=stage_name, data=dataset_folder, lora=lora, out=out, changes=SHORT)

    return on_uneven_rows, short


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("stage_name", "head"), [("sft", "tied"), ("sft", "untied"), ("rft", "untied")])
def test_parts_learn_what_a_whole_model_does(of_one_process, bases, dataset_folder, tmp_path, way, stage_name, head):
    """Rows and completions of 20 and 200 tokens, two passes of each of two processes, plain SGD."""
    whole, expected = of_one_process[0](stage_name, bases[head])
    micro = {f"{stage_name}_micro_batch": 1 if stage_name == "sft" else 2}
    changes = {**UNEVEN[stage_name], **micro, "ranks_shard": way}
    run, gradients = uneven(tmp_path, "parts", 2, stage_name, dataset_folder, bases[head], **changes)
    # DeepSpeed has used and dropped them when the trainer tells of a step; weights after plain SGD are their sum.
    if way == "fsdp2":
        assert apart(gradients, expected) < 1e-5
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5, abs=1e-6)
    assert len(losses(run)) == 20
    assert apart(weights(run / "best"), weights(whole / "best")) < 1e-4
    ours, theirs = (learned(folder, bases[head]) for folder in (run, whole))
    largest = max(change.norm() for change in theirs.values())
    assert largest > 0
    for name, change in theirs.items():
        # Rounding of weights hides small changes.
        assert (ours[name] - change).norm() < 1e-2 * change.norm() + 1e-4 * largest, name


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("stage_name", ["sft", "rft"])
def test_whole_runs(of_one_process, dataset_folder, tmp_path, way, lora, stage_name):
    """Files, tensors and export of one process; after a stop and ``--resume``, the run that was not stopped."""
    one = of_one_process[1](stage_name, lora)
    job = {"stage": stage_name, "data": dataset_folder, "lora": lora, "changes": {**SHORT, "ranks_shard": way}}
    run = trained(tmp_path, 2, out=tmp_path / "run", **job)
    refuse_empty(run / "best")
    assert names(one) == names(run)
    assert {n: (t.shape, t.dtype) for n, t in weights(run / "best").items()} == {
        n: (t.shape, t.dtype) for n, t in weights(one / "best").items()
    }
    if stage_name == "sft":
        assert losses(run) == pytest.approx(losses(one), rel=1e-3)
        assert apart(weights(run / "best"), weights(one / "best")) < 1e-2
    exported = export(run, tmp_path / "model")
    assert not list(run.glob("*.partial")) and from_pretrained(exported).model is not None

    stopped = trained(tmp_path, 2, out=tmp_path / "stopped", signal=["SIGTERM", 1, 0], **job)
    result = json.loads((stopped / "result.json").read_text())
    assert (result["stopped"], result["steps"]) == (True, 1)
    trained(tmp_path, 2, out=stopped, resume=True, **job)
    assert records(stopped) == records(run)
    last = f"checkpoints/checkpoint-{SHORT[f'{stage_name}_max_steps']}"
    for folder in ("best", last):
        mine, theirs = weights(stopped / folder), weights(run / folder)
        assert mine and all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("event", [{"signal": ["SIGKILL", 1, 1]}, {"fail": [1, 1]}], ids=["killed", "failed"])
def test_one_that_ends_ends_all(dataset_folder, tmp_path, way, event):
    job = {"stage": "sft", "data": dataset_folder, "out": tmp_path / "run"}
    done = launch(tmp_path, 2, **job, changes={**SHORT, "ranks_shard": way}, **event)
    assert done.returncode != 0 and seconds_since_event(job["out"]) < 60
    said = [line for line in done.stderr.splitlines() if line.startswith(("error:", "told:"))]
    if "fail" in event:
        assert said[0] == "error: frame003.png: a frame cannot be read; copy it again"
    # When one is killed, the launcher may end the other before it has said why.
    if "fail" in event or said:
        assert said[-1].startswith("told: another process of this run has ended")
