"""Exported folders: what other engines read of them, and what their card says, run without this package."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_models import COUNTS, meta_model, published_names
from safetensors import safe_open
from safetensors.numpy import save_file

from surgery_r1 import codec, prompts
from surgery_r1.cli import main
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
from surgery_r1.models import from_pretrained
from surgery_r1.models.card import model_card
from surgery_r1.models.encode import Prompt
from surgery_r1.models.export import export
from surgery_r1.models.processor import view_of
from surgery_r1.models.save import save_model
from surgery_r1.models.tiny.architecture import TINY_BASE

#: Makes this package one that cannot be imported.
BLOCKER = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "surgery_r1":
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Blocker())
try:
    import surgery_r1
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("surgery_r1 can be imported")
"""


def without_us(code: str, folder: Path) -> str:
    """What ``code`` prints, run in ``folder`` where this package cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER + code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """A LoRA adapter on the tiny base that changes what it says."""
    from peft import LoraConfig, get_peft_model

    bundle = from_pretrained("tiny", device="cpu")
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=r".*(language_model).*\.(q_proj|v_proj|gate_proj)", init_lora_weights=False)
    model = get_peft_model(bundle.model, lora)
    info = replace(bundle.info, stage="sft", rationales=True, direct_answers=False)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_model(model, bundle.processor, info, folder)
    return folder


@pytest.fixture(scope="module")
def desk(adapter, tmp_path_factory) -> Path:
    """A folder with a frame and the exported model under the names that the card uses; ``alone``: the adapter."""
    desk = tmp_path_factory.mktemp("desk")
    pixels = np.random.default_rng(3).integers(0, 255, (128, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(desk / "frame.png")
    assert main(["export", str(adapter), str(desk / "THIS_FOLDER")]) == 0
    (desk / "alone").mkdir()
    shutil.copyfile(desk / "frame.png", desk / "alone/frame.png")
    assert main(["export", str(adapter), str(desk / "alone/THIS_FOLDER"), "--adapter-only"]) == 0
    return desk


def blocks(folder: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)


# ------------------------------------------------------------------------------------------------------- settings


def test_a_server_decodes_greedily_without_being_told(desk):
    settings = json.loads((desk / "THIS_FOLDER/generation_config.json").read_text())
    assert (settings["temperature"], settings["do_sample"]) == (0.0, False) and settings["eos_token_id"] == 921
    # For us nothing changes: the token ids are all that is read.
    loaded = from_pretrained(desk / "THIS_FOLDER", device="cpu").model.generation_config
    assert (loaded.temperature, loaded.do_sample) == (None, None)


def test_no_file_names_a_class_of_ours(desk, adapter):
    for folder in (desk / "THIS_FOLDER", desk / "alone/THIS_FOLDER", adapter):
        named = {path.name for path in folder.glob("*.json") if re.search("ImageOnly|Deduplicating", path.read_text())}
        assert not named
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        assert settings["processor_class"] == "Qwen2_5_VLProcessor" and "local_files_only" not in settings


def test_transformers_own_loader_finds_the_stock_processor(desk):
    """Up to the class: building it needs torchvision."""
    code = """
from transformers import AutoProcessor, Qwen2_5_VLProcessor
Qwen2_5_VLProcessor.from_pretrained = classmethod(lambda cls, folder, **_: cls)
print(AutoProcessor.from_pretrained("THIS_FOLDER") is Qwen2_5_VLProcessor)
"""
    assert without_us(code, desk).split() == ["True"]


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_tensors_are_named_as_the_published_ones(name, tiny, tmp_path, monkeypatch):
    """At the published sizes, through the writing that exports take, without the weights themselves."""
    import transformers.modeling_utils

    written: list[str] = []

    def note(tensors, path, metadata=None):
        written.extend(tensors)
        # Weights of one number each: what is written is looked at again.
        save_file({name: np.zeros(1) for name in tensors}, path)

    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", note)
    save_model(meta_model(name), tiny.processor, tiny.info, tmp_path / "model")
    assert len(written) == len(set(written)) == COUNTS[name]
    assert set(written) == published_names(name)


# ------------------------------------------------------------------------------------------------------- the card


@pytest.mark.parametrize("where", [".", "alone"])
def test_twelve_lines_of_the_card_reply_as_we_do(desk, where, tiny):
    folder = desk / where / "THIS_FOLDER"
    (code,) = blocks(folder, "python")
    assert len([line for line in code.splitlines() if line]) <= 12 and "surgery_r1" not in code
    theirs = without_us(code, folder.parent)
    bundle = from_pretrained(folder, device="cpu")
    engine = TransformersEngine(bundle.model, bundle.processor, bundle.info.box_space, GenerationOptions(1, 256))
    prompt = Prompt((folder.parent / "frame.png",), prompts.user_text("What organ is being operated?"))
    ((ours,),) = engine.generate([prompt])
    assert ours and theirs == f"{ours}\n"
    base = TransformersEngine(tiny.model, tiny.processor, "norm100", GenerationOptions(1, 256))
    assert next(base.generate([prompt])) != [ours], "the adapter changes nothing: this test shows nothing"


def test_the_cards_request_is_our_prompt(desk):
    """The shell line as it stands, with curl replaced by something that shows what it is given."""
    line = blocks(desk / "THIS_FOLDER", "sh")[-1]
    assert line.count("\n") == 1 and "| curl " in line
    done = subprocess.run(["bash", "-c", f"curl() {{ cat; }}\n{line}"], cwd=desk, capture_output=True, check=True)
    body = json.loads(done.stdout)
    assert (body["model"], body["temperature"]) == ("surgery-r1", 0)
    system, user = body["messages"]
    text = prompts.user_text("What organ is being operated?")
    expected_system, expected_user = prompts.messages(text, "norm100")
    assert system == {"role": "system", "content": expected_system["content"][0]["text"]}
    image, question = user["content"]
    assert [image["type"], question] == ["image_url", expected_user["content"][1]]
    sent = image["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(sent, validate=True) == (desk / "frame.png").read_bytes()


def test_the_card_has_the_texts_the_limits_and_how_to_serve(desk):
    card = (desk / "THIS_FOLDER/README.md").read_text()
    for text in (
        f"```text\n{prompts.system_text('norm100')}\n```",
        "```text\nReply with think, answer and box.\nReply with answer and box.\n```",
        "**the image first**",
        "trained on the first alone: do not ask it for a reply without a rationale",
        "vllm serve THIS_FOLDER --served-model-name surgery-r1",
        '{"min_pixels": 784, "max_pixels": 25088, "use_fast": false}',
        'from_pretrained(folder, backend="pil")',
        "left_px = left * W / 100",
    ):
        assert text in card
    alone = (desk / "alone/THIS_FOLDER/README.md").read_text()
    serve = f"vllm serve {TINY_BASE} --enable-lora --max-lora-rank 4 --lora-modules surgery-r1=THIS_FOLDER"
    assert serve in alone and "--override-generation-config '{\"temperature\": 0.0}'" in alone


@pytest.mark.parametrize("space", sorted(codec.BOX_SPACES))
@pytest.mark.parametrize("rationales, direct", [(True, True), (True, False), (False, True)])
def test_the_formula_of_the_card_gives_its_example(tiny, tmp_path, space, rationales, direct):
    info = replace(tiny.info, box_space=space, stage="sft", rationales=rationales, direct_answers=direct)
    card = model_card(info, tiny.processor, tmp_path)
    example = re.search(r"the reply's box (\[.*?\]) is (\[.*?\]) in its pixels", card)
    formulas = re.findall(r"^    left_px = left \* (.*?) {2,}.*\n    top_px  = top  \* (.*?) {2,}", card, re.MULTILINE)
    view = view_of(tiny.processor, 1280, 1024)
    sizes = {"W": 1280, "H": 1024, "w": view.input_width, "h": view.input_height}
    scales = [eval(f"1 * {formula}", {}, sizes) for formula in formulas[0]]
    box, pixels = (json.loads(part) for part in example.groups())
    assert pixels == pytest.approx([value * scale for value, scale in zip(box, scales * 2, strict=True)], abs=0.01)
    assert f"a frame of 1280 x 1024 is resized to {view.input_width} x {view.input_height}" in card
    assert (prompts.user_text("", "cot", rationales).strip() + '"}]') in card


# --------------------------------------------------------------------------------------------------- adapters alone


def test_an_adapter_alone_is_one_that_other_engines_take(desk, adapter):
    folder = desk / "alone/THIS_FOLDER"
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(TINY_BASE) and settings["r"] == 4
    modules = settings["target_modules"]
    assert len(modules) == 4 * 3 and modules[0] == "model.language_model.layers.0.mlp.gate_proj"
    assert (folder / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    with safe_open(folder / "adapter_model.safetensors", framework="np") as tensors:
        names = set(tensors.keys())
    assert names == {f"base_model.model.{module}.lora_{side}.weight" for module in modules for side in "AB"}
    assert not (folder / "model.safetensors").exists() and not (folder / "config.json").exists()
    assert from_pretrained(folder, with_model=False).info == from_pretrained(adapter, with_model=False).info


def test_an_adapter_of_the_vision_tower_says_so(tmp_path):
    from peft import LoraConfig, get_peft_model

    bundle = from_pretrained("tiny", device="cpu")
    model = get_peft_model(bundle.model, LoraConfig(r=2, target_modules=r".*visual.*\.qkv"))
    save_model(model, bundle.processor, bundle.info, tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "out", adapter_only=True)
    assert "--enable-tower-connector-lora" in (tmp_path / "out/README.md").read_text()


def test_what_cannot_be_exported(desk, tmp_path, capsys):
    with pytest.raises(SurgeryR1Error, match=r"holds no adapter.*leave out --adapter-only"):
        export(desk / "THIS_FOLDER", tmp_path / "out", adapter_only=True)
    assert not (tmp_path / "out").exists()
    assert main(["export", str(tmp_path / "gone"), str(tmp_path / "out")]) == 2
    assert "no model at" in capsys.readouterr().err and not (tmp_path / "out").exists()
