"""The doctor: a sound run passes, each planted fault fails its own line and no other, receipts show no more than they say.

Faults are planted for real: in a model's folder, in a dataset, in a config, or in a library's function.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import peft.tuners.lora.layer
import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from served import only_this_machine, serving
from small import small
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from surgery_r1.cli import main
from surgery_r1.data.assemble import build_dataset
from surgery_r1.data.dataset import open_dataset
from surgery_r1.doctor import machine
from surgery_r1.doctor.check import examine
from surgery_r1.doctor.patient import Patient
from surgery_r1.doctor.receipt import read_receipt
from surgery_r1.doctor.registry import CHECKS, chosen
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate import generation
from surgery_r1.models import encode
from surgery_r1.models.tiny.architecture import TINY_BASE
from surgery_r1.train import fit
from surgery_r1.train.planning.plan import GIB
from surgery_r1.train.planning.stage import this_machine
from surgery_r1.train.sharing import grpo

ROOT = Path(__file__).resolve().parents[1]
#: They train a model, or count the memory of one: quick tests make them once.
SLOWEST = ("resume", "plan")


def patient_of(dataset, tmp_path, **changes) -> Patient:
    config = small(rft_max_completion=48, eval_max_new_tokens=48, lora_enabled=True, **changes)
    here = replace(this_machine(gpu=False, memory=8 * GIB), libraries=GIB)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Patient(config, dataset, "tiny", scratch, tmp_path / "runs", here)


def wrong_lines(patient: Patient, checks) -> dict[str, str]:
    return {result.name: result.line() for result in examine(patient, checks) if result.status == "wrong"}


def edited(folder: Path, name: str, **values) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def own_base(tmp_path) -> Path:
    """A copy of the tiny base that can be broken."""
    shutil.copytree(TINY_BASE, tmp_path / "base")
    return tmp_path / "base"


def test_a_sound_run_has_no_fault(dataset, tmp_path):
    results = examine(patient_of(dataset, tmp_path), CHECKS)
    assert {result.name: result.said for result in results if result.status != "ok"} == {}
    assert [result.name for result in results] == [check.name for check in CHECKS]
    assert all(check.proves and check.fix for check in CHECKS)
    found = {result.name: result.figures for result in results}
    assert found["resume"]["apart"] == 0 and found["resume"]["step"] > 0
    assert found["sampler"]["gap_mean"] < 1e-5 and found["sampler"]["tokens"] > 20
    assert len(set(found["image_tokens"]["image_tokens"])) > 1, "a ragged batch"


# ----------------------------------------------------------------------------------------------- faults, one a line


def old_transformers(patient, patch, base):
    plain = importlib.metadata.version
    patch.setattr(importlib.metadata, "version", lambda name: "5.4.0" if name == "transformers" else plain(name))


def full_memory(patient, patch, base):
    known = psutil.virtual_memory()
    patch.setattr(psutil, "virtual_memory", lambda: known._replace(available=2**20))


def changed_label(patient, patch, base):
    (scenes,) = (Path(patient.dataset.manifest["label_root"]),)
    folder = base.parent / "labels"
    shutil.copytree(scenes, folder)
    build_dataset([folder], base.parent / "dataset")
    label = next(folder.rglob("*.txt"))
    label.write_text(label.read_text().replace("|", " |", 1))
    patient.dataset = open_dataset(base.parent / "dataset")


def changed_image(patient, patch, base):
    changed_label(patient, patch, base)
    folder = base.parent / "labels"
    for image in folder.rglob("frame*.png"):
        image.write_bytes(image.read_bytes() + b" ")


def questions_for_two(patient, patch, base):
    patient.config = replace(patient.config, rft=replace(patient.config.rft, prompts=3))
    patient.machine = replace(patient.machine, processes=2)


def option_that_trl_lacks(patient, patch, base):
    patient.config = replace(patient.config, sft=replace(patient.config.sft, trl={"max_lenght": 5}))


def torn_weights(patient, patch, base):
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    patient.base = base


def gpu_without_a_build(patient, patch, base):
    (base / "version").write_text("NVRM version")
    patch.setattr(machine, "DRIVER", base / "version")


def half_precision(patient, patch, base):
    patient.config = replace(patient.config, model=replace(patient.config.model, dtype="float16"))


def template_without_an_end(patient, patch, base):
    path = base / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>", "{% if message.role != 'assistant' %}<|im_end|>{% endif %}"))
    (base / "surgery_r1.json").unlink()
    patient.base = base
    patient.config = replace(patient.config, model=replace(patient.config.model, box_space="norm100"))


def tags_that_are_special(patient, patch, base):
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = token["special"] or token["content"] == "<box>"
    number = tokenizer["model"]["vocab"].get("<box>")
    if number is not None and all(token["content"] != "<box>" for token in tokenizer["added_tokens"]):
        known = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        tokenizer["added_tokens"].append({"id": number, "content": "<box>", **known})
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    patient.base = base


def other_merge_size(patient, patch, base):
    edited(base, "preprocessor_config.json", merge_size=1)
    patient.base = base


def types_padded_at_the_wrong_side(patient, patch, base):
    from surgery_r1.models.processor import ImageOnlyQwen25VLProcessor as Processor

    plain = Processor.__call__

    def call(self, *args, **kwargs):
        batch = plain(self, *args, **kwargs)
        batch["mm_token_type_ids"] = batch["mm_token_type_ids"].flip(-1)
        return batch

    patch.setattr(Processor, "__call__", call)


def scaled_positions(patient, patch, base):
    kind = modeling_qwen2_5_vl.Qwen2_5_VLModel
    plain = kind.get_rope_index

    def scaled(self, *args, **kwargs):
        positions, deltas = plain(self, *args, **kwargs)
        positions = positions.clone()
        positions[1] = positions[0] + 2 * (positions[1] - positions[0])
        return positions, deltas

    patch.setattr(kind, "get_rope_index", scaled)


def predictor_with_other_limits(patient, patch, base):
    plain = encode.view_of
    patch.setattr(encode, "view_of", lambda processor, width, height: plain(processor, width // 2, height))


def swapped_scales(patient, patch, base):
    from surgery_r1 import codec

    plain = codec.to_px

    def swapped(box, space, view):
        return plain(box, space, codec.View(view.height, view.width, view.input_width, view.input_height))

    patch.setattr(codec, "to_px", swapped)


def picture_shifted(patient, patch, base):
    from surgery_r1.models.processor import DeduplicatingImageProcessor as Images

    plain = Images._preprocess

    def shifted(self, images, **settings):
        moved = [torch.as_tensor(image).roll(20, dims=-1).numpy() for image in images]
        return plain(self, moved, **settings)

    patch.setattr(Images, "_preprocess", shifted)


def short_replies(patient, patch, base):
    patient.config = replace(patient.config, rft=replace(patient.config.rft, max_completion=12))


def rows_that_are_cut(patient, patch, base):
    patient.config = replace(patient.config, sft=replace(patient.config.sft, trl={"max_length": 64}))


def unmerging_half(patient, patch, base):
    kind = peft.tuners.lora.layer.Linear
    plain = kind.get_delta_weight

    def unmerge(self):
        for name in self.merged_adapters:
            self.get_base_layer().weight.data -= 0.5 * plain(self, name)
        self.merged_adapters = []

    patch.setattr(kind, "unmerge", unmerge)


def sampler_one_place_off(patient, patch, base):
    plain = grpo.prefill

    def prefill(model, *args, **kwargs):
        found = plain(model, *args, **kwargs)
        grpo.core(model).model.rope_deltas += 3
        return found

    patch.setattr(grpo, "prefill", prefill)


def predictions_of_any_token(patient, patch, base):
    patch.setattr(generation, "banned_tokens", lambda *_: ())


def rollouts_of_any_token(patient, patch, base):
    patch.setattr(grpo, "banned_tokens", lambda *_: ())


def constant_reward(patient, patch, base):
    path = base / "mine.py"
    path.write_text("def pleased(text, truth):\n    return 0.5\n")
    weights = {"format": 1.0, f"{path}:pleased": 1.0}
    patient.config = replace(patient.config, rft=replace(patient.config.rft, rewards=weights))


def optimiser_left_behind(patient, patch, base):
    patch.setattr(transformers.Trainer, "_load_optimizer_and_scheduler", lambda *_: None)


def base_changed_on_the_way(patient, patch, base):
    """As where an adapter is merged into its base before a run goes on with the adapter."""
    plain = fit.run_trainer

    def run(trainer, dev, checkpoint):
        if checkpoint:
            trainer.model.get_input_embeddings().weight.data *= 1.01
        return plain(trainer, dev, checkpoint)

    patch.setattr(fit, "run_trainer", run)


def little_memory(patient, patch, base):
    patient.machine = replace(patient.machine, memory=2**20)


def full_disk(patient, patch, base):
    usage = namedtuple("usage", "total used free")
    patch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**20))


PLANTS = [
    ("versions", old_transformers, "transformers 5.4.0 scales the positions"),
    ("memory", full_memory, "GiB of main memory are free"),
    ("labels", changed_label, "label file changed"),
    ("labels", changed_image, "image changed"),
    ("options", questions_for_two, "rft.prompts = 3 questions a step cannot be divided by 2"),
    ("options", option_that_trl_lacks, "did you mean 'max_length'"),
    ("model", torn_weights, "down_proj"),
    ("device", gpu_without_a_build, "has a GPU, which torch"),
    ("device", half_precision, "float16"),
    ("chat_template", template_without_an_end, "never learns to stop"),
    ("chat_template", tags_that_are_special, "is read back as"),
    ("image_tokens", other_merge_size, "tokens"),
    ("image_tokens", types_padded_at_the_wrong_side, "mm_token_type_ids"),
    ("positions", scaled_positions, "stands at"),
    ("limits", predictor_with_other_limits, "as counted"),
    ("box", swapped_scales, "units from where it was"),
    ("box", picture_shifted, "is seen at"),
    ("longest", short_replies, "rft.max_completion is 12"),
    ("longest", rows_that_are_cut, "sft.trl.max_length is 64"),
    ("lora", unmerging_half, "from where they were"),
    ("sampler", sampler_one_place_off, "nats a token"),
    ("reply_tokens", predictions_of_any_token, "a reply can hold"),
    ("reply_tokens", rollouts_of_any_token, "RFT does not leave out"),
    ("rewards", constant_reward, "right and wrong replies alike"),
    ("resume", optimiser_left_behind, "apart, a step moves them"),
    ("resume", base_changed_on_the_way, "apart, a step moves them"),
    ("plan", little_memory, "needs"),
    ("disk", full_disk, "both stages need"),
]
planted = pytest.mark.parametrize(("line", "plant", "says"), PLANTS, ids=[plant.__name__ for _, plant, _ in PLANTS])


def test_each_check_has_a_plant():
    assert {line for line, _, _ in PLANTS} == {check.name for check in CHECKS}


@planted
def test_a_fault_fails_its_line(dataset, tmp_path, own_base, monkeypatch, line, plant, says):
    """And none of those that it needs."""
    if line in SLOWEST:
        pytest.skip("made with all others, by the slow tests")
    patient = patient_of(dataset, tmp_path)
    plant(patient, monkeypatch, own_base)
    found = wrong_lines(patient, chosen((line,)))
    assert list(found) == [line], found
    assert says in found[line] and "\n           -> " in found[line], found


@pytest.mark.slow
@planted
def test_a_fault_fails_no_other_line(dataset, tmp_path, own_base, monkeypatch, line, plant, says):
    patient = patient_of(dataset, tmp_path)
    plant(patient, monkeypatch, own_base)
    found = wrong_lines(patient, CHECKS)
    assert list(found) == [line] and says in found[line], found
