"""The doctor: a sound run passes, each planted fault fails its own line and no other, receipts keep what is private.

Faults are planted for real: in a model's folder, in a dataset, in a config, or in a library's function.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
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
from surgery_r1.doctor.receipt import read_receipt, write_receipt
from surgery_r1.doctor.registry import CHECKS, chosen
from surgery_r1.doctor.rollouts import roll_out
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate import generation
from surgery_r1.evaluate.predict import prompt_of
from surgery_r1.models import encode
from surgery_r1.models.reply_tokens import banned_tokens
from surgery_r1.models.tiny.architecture import TINY_BASE
from surgery_r1.train import fit
from surgery_r1.train.draws import InverseDraw
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


def planted(faults):
    return pytest.mark.parametrize(("line", "plant", "says"), faults, ids=[plant.__name__ for _, plant, _ in faults])


def test_each_check_has_a_plant():
    assert {line for line, _, _ in PLANTS} == {check.name for check in CHECKS}


@planted([entry for entry in PLANTS if entry[0] not in SLOWEST])
def test_a_fault_fails_its_line(dataset, tmp_path, own_base, monkeypatch, line, plant, says):
    """And none of those that it needs."""
    patient = patient_of(dataset, tmp_path)
    plant(patient, monkeypatch, own_base)
    found = wrong_lines(patient, chosen((line,)))
    assert list(found) == [line], found
    assert says in found[line] and "\n           -> " in found[line], found


@pytest.mark.slow
@planted(PLANTS)
def test_a_fault_fails_no_other_line(dataset, tmp_path, own_base, monkeypatch, line, plant, says):
    patient = patient_of(dataset, tmp_path)
    plant(patient, monkeypatch, own_base)
    found = wrong_lines(patient, CHECKS)
    assert list(found) == [line] and says in found[line], found


def test_groups_of_a_trained_model_must_differ(dataset, tmp_path):
    """The base stands for one: its replies earn nothing, and differ in length."""
    (tmp_path / "mine.py").write_text("def length(text, truth):\n    return len(text) % 97 / 97\n")
    mine = f"{tmp_path / 'mine.py'}:length"
    patient = patient_of(dataset, tmp_path, rft_rewards={"format": 1.0})
    bundle = patient.load()
    bundle.info = replace(bundle.info, stage="sft")
    (check,) = (check for check in CHECKS if check.name == "rewards")
    (result,) = examine(patient, [check])
    assert result.status == "wrong" and "earn the same in 3 of 3 groups" in result.said and "SFT" in result.fix
    del patient.rollouts
    patient.config = replace(patient.config, rft=replace(patient.config.rft, rewards={mine: 1.0}))
    (result,) = examine(patient, [check])
    assert result.status == "ok" and result.figures["groups_that_differ"] == 3


# --------------------------------------------------------------------------------------------- tokens of no reply


def test_banning_moves_only_the_draws_that_it_must(dataset, tmp_path, monkeypatch):
    """As long as two replies are alike, so are their distributions, but for the mass of the banned tokens.

    Sharing that mass out among the others moves no edge between two tokens by more than the mass: a number that lies
    further from the edges of its token draws the same token.
    """
    draw, drawn = InverseDraw.__call__, []

    def noting(self, input_ids, scores):
        number = self._numbers[:, self._next]
        bent = draw(self, input_ids, scores)
        drawn[-1].append((number, scores.double().softmax(-1), bent.argmax(-1)))
        return bent

    monkeypatch.setattr(InverseDraw, "__call__", noting)
    rolled = []
    for name in ("banned", "free"):
        (tmp_path / name).mkdir()
        patient = patient_of(dataset, tmp_path / name)
        patient.load()
        drawn.append([])
        rolled.append(roll_out(patient))
        monkeypatch.setattr(grpo, "banned_tokens", lambda *_: ())
    left_out = torch.tensor(sorted(rolled[0].suppressed - rolled[1].suppressed))
    far = near = 0
    for row, used in enumerate(rolled[0].mask.sum(-1).tolist()):
        for (number, kept, token), (same, every, other) in zip(*(steps[:used] for steps in drawn), strict=True):
            assert number[row] == same[row]
            mass = every[row, left_out].sum().item()
            assert kept[row, left_out].sum() == 0 < mass < 0.01
            shared_out = every[row].index_fill(0, left_out, 0.0) / (1 - mass)
            torch.testing.assert_close(kept[row], shared_out, rtol=1e-3, atol=1e-6)
            above = every[row].cumsum(-1)[other[row]] - number[row]
            # And the rounding of float32 logits.
            if min(abs(above), abs(every[row, other[row]] - above)) > mass + 1e-6:
                assert token[row] == other[row], (row, number[row])
                far += 1
            elif token[row] != other[row]:
                break
            else:
                near += 1
    assert far > 100 and near < 20, "next to nothing of what is sampled depends on the ban"


def test_padding_that_ends_a_reply_is_not_banned(tiny):
    pad, end = tiny.tokenizer.pad_token_id, tiny.tokenizer.eos_token_id
    assert pad in banned_tokens(tiny.tokenizer, end) and pad not in banned_tokens(tiny.tokenizer, [end, pad])
    assert end not in banned_tokens(tiny.tokenizer, None)


# ------------------------------------------------------------------------------------------------------- command


def doctor(dataset_folder, tmp_path, *args) -> int:
    common = ["doctor", "tiny", "--data", str(dataset_folder), "--out", str(tmp_path / "runs")]
    return main([*common, *map(str, args)])


def test_lines_and_exit_status(dataset_folder, tmp_path, capsys):
    assert doctor(dataset_folder, tmp_path, "--only", "limits", "box") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        ["ok", f"{n}:"] for n in ("model", "image_tokens", "limits", "box")
    ]
    assert lines[-1].endswith("0 wrong, 0 skipped") and "no server named" in lines[2]
    assert doctor(dataset_folder, tmp_path, "--only", "longest", "--set", "rft.max_completion=7", "--smoke") == 1
    said = capsys.readouterr()
    assert (
        "wrong    longest: rft.max_completion is 7" in said.out
        and "           -> set rft.max_completion to" in said.out
    )
    assert "--smoke is left out: see to longest first" in said.err
    assert doctor(dataset_folder, tmp_path, "--only", "colour") == 2
    assert "no check is called 'colour'" in capsys.readouterr().err
    assert doctor(dataset_folder, tmp_path, "--served-model", "x") == 2


def test_what_needs_something_wrong_is_skipped(dataset_folder, tmp_path, capsys):
    assert doctor(dataset_folder, tmp_path, "--model", tmp_path / "nowhere", "--only", "box", "--json") == 1
    checks = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["model"]["status"] == "wrong" and "no model at" in checks["model"]["said"] and checks["model"]["fix"]
    assert checks["box"]["status"] == "skipped" and checks["box"]["said"] == "needs model, which is wrong"


def test_a_receipt_is_what_it_says(dataset_folder, dataset, tmp_path, capsys):
    receipts = tmp_path / "receipts"
    config = tmp_path / "secret_name.toml"
    config.write_text('extends = "tiny"\n')
    common = ["doctor", str(config), "--data", str(dataset_folder), "--only", "labels", "limits", "lora", "--json"]
    assert main([*common, "--receipt", str(receipts)]) == 0
    shown = json.loads(capsys.readouterr().out)
    (file,) = receipts.iterdir()
    found = read_receipt(file)
    assert shown["receipt"] == str(file) and file.name == f"{found['sha256'][:16]}.json"
    assert found["receipt"].startswith("self-reported") and found["examined"]["config"] == "own"
    assert found["examined"]["dataset_sha256"] == dataset.hash and len(found["examined"]["model_sha256"]) == 64
    assert {entry["name"]: entry["status"] for entry in found["checks"]}["lora"] == "skipped"
    text = file.read_text()
    private = (str(tmp_path), str(dataset.root), socket.gethostname(), "secret_name", dataset.split("train")[0].image)
    assert not [word for word in private if word in text] and "/" not in text
    with pytest.raises(SurgeryR1Error, match="another file"):
        write_receipt({**found, "format": 2}, file)
    file.write_text(text.replace('"ok"', '"no"', 1))
    with pytest.raises(SurgeryR1Error, match="its content has"):
        read_receipt(file)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "receipts").glob("*.json")), ids=lambda path: path.stem)
def test_receipts_of_the_repository_are_as_they_were_written(path):
    found = read_receipt(path)
    assert found["sha256"].startswith(path.stem) and found["receipt"].startswith("self-reported")
    assert path.stem in (ROOT / "docs" / "receipts" / "README.md").read_text(encoding="utf-8")


def test_the_page_explains_every_check():
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert [check.name for check in CHECKS if f"| `{check.name}` |" not in page] == []


class TestServer:
    """A chat server that reads prompts as the trainer does, and one that does not."""

    @pytest.fixture(autouse=True)
    def no_network(self, monkeypatch):
        yield from only_this_machine(monkeypatch)

    @pytest.fixture
    def serve(self, tmp_path, tiny, dataset):
        pytest.importorskip("openai", reason="pip install 'surgery-r1[teacher]'")
        encoder = encode.PromptEncoder(tiny.processor, "norm100")
        prompts = (prompt_of(sample, dataset) for sample in dataset.split("train"))
        replies = {prompt.text: ("<", encoder.token_count(prompt)) for prompt in prompts}
        (tmp_path / "replies.json").write_text(json.dumps(replies))
        script = Path(__file__).with_name("chat_server.py")
        yield from serving(script, tmp_path, "--replies", str(tmp_path / "replies.json"))

    def test_alike(self, dataset_folder, tmp_path, serve, capsys):
        server = serve("")
        assert doctor(dataset_folder, tmp_path, "--only", "limits", "--endpoint", server.endpoint) == 0
        assert "so is the server" in capsys.readouterr().out and len(server.requests) == 3

    def test_other_pixel_limits(self, dataset_folder, tmp_path, serve, capsys):
        server = serve("more")
        assert doctor(dataset_folder, tmp_path, "--only", "limits", "--endpoint", server.endpoint) == 1
        out = capsys.readouterr().out
        assert "wrong    limits" in out and "chat template or pixel limits" in out and len(server.requests) == 1

    def test_a_row_that_the_server_would_refuse(self, dataset_folder, tmp_path, serve, capsys):
        models = json.dumps([{"id": "tiny", "object": "model", "created": 0, "owned_by": "us", "max_model_len": 64}])
        server = serve("", 0.0, "--models", models)
        assert doctor(dataset_folder, tmp_path, "--only", "longest", "--endpoint", server.endpoint) == 1
        assert "the server's max_model_len is 64" in capsys.readouterr().out


@pytest.mark.slow
def test_smoke_says_what_a_run_will_take(dataset_folder, tmp_path, capsys):
    few = [
        "--set",
        "sft.batch_size=2",
        "rft.prompts=4",
        "rft.generations=4",
        "sft.max_steps=3600",
        "sft.eval_every=3600",
    ]
    receipt = tmp_path / "receipt.json"
    assert doctor(dataset_folder, tmp_path, *few, "--only", "model", "--smoke", "--json", "--receipt", receipt) == 0
    smoke = json.loads(capsys.readouterr().out)["smoke"]
    assert smoke["frames"] == 10 and smoke["steps"] == 5 and smoke["scored"] > 0
    assert read_receipt(receipt)["smoke"] == smoke
    asked = 28 * smoke["reply_seconds"]
    assert smoke["hours"]["sft"] == pytest.approx(smoke["sft_step_seconds"] + asked / 3600, abs=2e-3)
    assert smoke["peak_memory_bytes"] > 2**28 and not (tmp_path / "runs").exists()
