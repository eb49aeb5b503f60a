"""Trainer checkpoints are models of their own: with box space, pixel limits, stage and step, or refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import pytest
from small import small

import surgery_r1
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models import from_pretrained
from surgery_r1.models.export import export
from surgery_r1.models.info import ModelInfo
from surgery_r1.train.stage import train

PIXELS = 12_544


@pytest.fixture(scope="module", params=[False, True], ids=["full", "lora"])
def run(request, dataset, tmp_path_factory):
    """SFT of four steps with a checkpoint after two, and pixel limits that are not those of the base."""
    config = small(eval_dev_samples=1, sft_learning_rate=3e-3)
    config = replace(
        config, model=replace(config.model, max_pixels=PIXELS), lora=replace(config.lora, enabled=request.param)
    )
    out = tmp_path_factory.mktemp("checkpoints") / "run"
    train("sft", config, dataset, out, quiet=True)
    return out


def said(folder) -> dict:
    return json.loads((folder / "surgery_r1.json").read_text())


@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_says_what_it_is(run, dataset, step):
    info = said(run / "checkpoints" / f"checkpoint-{step}")
    assert (info["stage"], info["step"], info["box_space"]) == ("sft", step, "norm100")
    assert info["max_pixels"] == PIXELS and info["dataset_sha256"] == dataset.hash
    assert {**info, "step": None} == {**said(run / "best"), "step": None}


def test_an_export_replies_as_its_checkpoint(run, dataset, tmp_path):
    checkpoint = run / "checkpoints" / "checkpoint-2"
    out = export(checkpoint, tmp_path / "model")
    assert said(out) == said(checkpoint)
    pairs = [(dataset.image_path(s), s.question) for s in dataset.split("dev")[:4]]
    ours, theirs = (surgery_r1.load(m, device="cpu").ask_many(pairs, max_new_tokens=24) for m in (out, checkpoint))
    assert [(r.text, r.box_px) for r in ours] == [(r.text, r.box_px) for r in theirs]
    assert not (out / "processor_config.json").exists() and not (checkpoint / "processor_config.json").exists()


def test_one_that_says_nothing_is_known_from_its_run_or_refused(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    before = from_pretrained(checkpoint, with_model=False).info
    (checkpoint / "surgery_r1.json").unlink()
    assert asdict(from_pretrained(checkpoint, with_model=False).info) == asdict(before)
    monkeypatch.chdir(checkpoint.parent)
    assert from_pretrained("checkpoint-2", with_model=False).info == before, "by a relative path too"
    (tmp_path / "run" / "best" / "surgery_r1.json").unlink()
    for folder, fix in ((checkpoint, "go on with --resume"), (tmp_path / "run" / "best", "train again")):
        with pytest.raises(SurgeryR1Error, match=rf"{folder.name}: has no surgery_r1.json, and its run .*; {fix}"):
            export(folder, tmp_path / "out")
    # Away from its run, a trainer's checkpoint is known by what the trainer left there.
    shutil.copytree(checkpoint, tmp_path / "foreign")
    with pytest.raises(SurgeryR1Error, match=r"foreign: a trainer's checkpoint without surgery_r1\.json"):
        export(tmp_path / "foreign", tmp_path / "out")
    # A plain folder that is in no run stays what it is: one of its family, of which nothing is known.
    (tmp_path / "foreign" / "trainer_state.json").unlink()
    foreign = from_pretrained(tmp_path / "foreign", with_model=False).info
    assert (foreign.stage, foreign.box_space) == ("base", "pixels")


def test_an_adapter_of_a_moved_run_finds_its_base(dataset, tmp_path):
    config = small(sft_max_steps=1, sft_eval_every=1, rft_max_steps=2, eval_dev_samples=1)
    config = replace(config, lora=replace(config.lora, enabled=True))
    train("sft", config, dataset, tmp_path / "sft", quiet=True)
    train("rft", config, dataset, tmp_path / "rft", base=tmp_path / "sft", quiet=True)
    (tmp_path / "rft").rename(tmp_path / "moved")
    bundle = from_pretrained(tmp_path / "moved" / "checkpoints" / "checkpoint-2", device="cpu")
    assert (bundle.info.stage, bundle.info.step) == ("rft", 2)
    assert ModelInfo.read(tmp_path / "moved" / "base").stage == "sft"
