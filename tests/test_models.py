"""The tiny base, processors, prompts, and loading of every supported family and of adapters."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import surgery_r1
from surgery_r1 import geometry, prompts
from surgery_r1._util.files import sha256_file
from surgery_r1.codec import View
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models import ModelInfo, from_pretrained
from surgery_r1.models.encode import ImageCache, Prompt, PromptEncoder, load_image
from surgery_r1.models.export import export
from surgery_r1.models.load import resolve, weights_sha256
from surgery_r1.models.processor import as_read, view_of
from surgery_r1.models.save import recover, save_model
from surgery_r1.models.tiny.architecture import NUMBER_TOKENS, SPECIAL_TOKENS, TAG_TOKENS, TINY_BASE, TINY_RFT

SIZES = [(1280, 1024), (320, 256), (160, 128), (1920, 1080), (300, 700), (57, 41)]


def picture(width: int = 160, height: int = 128, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def base_copy(tmp_path) -> Path:
    """A copy of the tiny base, to damage."""
    return shutil.copytree(TINY_BASE, tmp_path / "copy")


def logits(bundle, image: Image.Image) -> torch.Tensor:
    inputs = encode(bundle, image)
    with torch.inference_mode():
        return bundle.model(**inputs).logits


def encode(bundle, image: Image.Image) -> dict:
    """Encoded with the real encoder, through a file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.png"
        image.save(path)
        prompt = Prompt((path,), prompts.user_text("Where is suction located?"))
        return PromptEncoder(bundle.processor, bundle.info.box_space)([prompt])


# ------------------------------------------------------------------------------------------------ the tiny base


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_tokenizer_loses_no_text(tiny, text):
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tiny.tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text", ["  two  spaces , here .", "\t\r\n\u00a0\u3000", "١٢٣ 漢字 🩺", "\x00\u200b", "a" * 5000]
)
def test_tokenizer_loses_no_odd_text(tiny, text):
    assert tiny.tokenizer.decode(tiny.tokenizer(text)["input_ids"]) == text


def test_numbers_and_tags_are_single_tokens(tiny):
    for token in (*NUMBER_TOKENS, *TAG_TOKENS, *SPECIAL_TOKENS):
        assert len(tiny.tokenizer(token)["input_ids"]) == 1, token
    assert tiny.tokenizer.eos_token == "<|im_end|>" and tiny.tokenizer.pad_token == "<|endoftext|>"
    ids = tiny.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == sorted(ids) and len(set(ids)) == 8 and set(SPECIAL_TOKENS) <= set(tiny.tokenizer.all_special_tokens)


def test_size_of_the_base(tiny):
    assert sum(p.numel() for p in tiny.model.parameters()) <= 2_000_000
    assert (TINY_BASE / "model.safetensors").stat().st_size <= 8_000_000
    assert tiny.model.config.model_type == "qwen2_5_vl"
    assert tiny.info.box_space == "norm100" and tiny.info.stage == "base" and tiny.info.base_model == "tiny"


def test_base_has_thirty_image_tokens(tiny):
    inputs = encode(tiny, picture(320, 256))
    assert int((inputs["input_ids"] == tiny.processor.image_token_id).sum()) == 30


def test_limits_of_the_base_are_whole_image_tokens(tiny):
    """Engines that round limits to image tokens see what we see, and frames keep the size of earlier versions."""
    assert tiny.info.min_pixels % 784 == 0 and tiny.info.max_pixels % 784 == 0
    assert tiny.processor.image_processor.size == {"shortest_edge": 784, "longest_edge": tiny.info.max_pixels}
    earlier = copy.deepcopy(tiny.processor)
    earlier.image_processor.size = {"shortest_edge": 784, "longest_edge": 24_600}
    # From the smallest frame that is drawn to the largest.
    for width in range(160, 1285, 5):
        size = width, round(width * 0.8)
        assert view_of(tiny.processor, *size) == view_of(earlier, *size) == View(*size, 168, 140)


@pytest.mark.parametrize(("folder", "notes"), [(TINY_BASE, "tiny_base"), (TINY_RFT, "tiny_rft")])
def test_the_record_of_a_shipped_model_is_that_of_its_files(folder, notes):
    record = (Path(__file__).parents[1] / "docs" / notes / "SHA256SUMS").read_text()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    assert record == "".join(f"{sha256_file(path)}  {path.name}\n" for path in files)


def test_one_line_in_a_fresh_process(tmp_path):
    """Model, tokenizer and working processor, from any folder, without a warning that something went wrong."""
    code = (
        "import sys; from surgery_r1.models import from_pretrained; b = from_pretrained('tiny');"
        "from PIL import Image; out = b.processor(text=['<|vision_start|><|image_pad|><|vision_end|>hello'],"
        "images=[Image.new('RGB', (64, 48))], return_tensors='pt'); print(b.model(**out).logits.shape[-1]);"
        "print(b.tokenizer.decode(b.tokenizer('hello')['input_ids'])); assert 'trl' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    vocabulary, text = done.stdout.split()
    assert int(vocabulary) > 300 and text == "hello"


def test_save_and_load_gives_the_same_logits(tiny, tmp_path):
    save_model(tiny.model, tiny.processor, replace(tiny.info, stage="sft"), tmp_path / "again")
    again = from_pretrained(tmp_path / "again", device="cpu")
    assert again.info == replace(tiny.info, stage="sft")
    assert torch.equal(logits(tiny, picture()), logits(again, picture()))
    settings = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    # Under the stock names, so that every engine reads the folder.
    assert settings["image_processor_type"] == "Qwen2VLImageProcessor"
    assert settings["processor_class"] == "Qwen2_5_VLProcessor" and "_kept" not in settings
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "again").iterdir()} == {0o644}


# ----------------------------------------------------------------------------------------------------- processor


def test_deduplicating_processor_equals_the_stock_one(tiny):
    from transformers import Qwen2VLImageProcessorPil

    stock = Qwen2VLImageProcessorPil.from_pretrained(tiny.folder)
    ours = tiny.processor.image_processor
    images = [picture(320, 256), picture(320, 256, 1), picture(320, 256), picture(90, 200), picture(320, 256)]
    for _ in range(2):
        expected, got = (p(images=images, return_tensors="pt") for p in (stock, ours))
        assert set(expected) == set(got)
        for name in expected:
            assert expected[name].dtype == got[name].dtype and torch.equal(expected[name], got[name])
    alone = ours(images=images[:1], return_tensors="pt")
    assert torch.equal(alone["pixel_values"], stock(images=images[:1], return_tensors="pt")["pixel_values"])


def test_deduplicating_processor_forgets_and_minds_its_settings(tiny):
    bundle = from_pretrained("tiny", with_model=False)
    ours = bundle.processor.image_processor
    one = ours(images=[picture(seed=3)], return_tensors="pt")["pixel_values"].nbytes
    ours.__dict__.pop("_kept")
    ours.keep_bytes = one
    first = ours(images=[picture(seed=1), picture(seed=2)], return_tensors="pt")
    assert len(ours._kept) == 1
    larger = ours(images=[picture(seed=2)], size={"shortest_edge": 56 * 56, "longest_edge": 56 * 56})
    assert larger["image_grid_thw"].tolist() != first["image_grid_thw"][1:].tolist()
    assert not copy.deepcopy(ours)._kept and not pickle.loads(pickle.dumps(ours))._kept


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_view_is_what_the_processor_makes(tiny, width, height):
    grid = tiny.processor.image_processor(images=[picture(width, height)], return_tensors="pt")["image_grid_thw"][0]
    assert view_of(tiny.processor, width, height) == View(width, height, int(grid[2]) * 14, int(grid[1]) * 14)


@pytest.mark.parametrize("size", SIZES)
def test_an_image_as_read_is_resized_no_more(tiny, size):
    """Sent to another engine, it gives the patches of our own, with whatever library that engine resizes."""
    image, process = picture(*size), tiny.processor.image_processor
    read = as_read(image, tiny.processor)
    view = view_of(tiny.processor, *size)
    assert read.size == (view.input_width, view.input_height)
    assert view_of(tiny.processor, *read.size) == View(*read.size, *read.size)
    ours, theirs = (process(images=[shown], return_tensors="pt")["pixel_values"] for shown in (image, read))
    assert torch.equal(ours, theirs)


def test_an_image_that_would_be_resized_again_is_left_as_it_is():
    """Limits so close together that the resized size, 1316 x 728, lies below them."""
    close = from_pretrained("tiny", with_model=False, min_pixels=1_003_520, max_pixels=1_003_520)
    image = picture(1920, 1080)
    view = view_of(close.processor, *image.size)
    assert (view.input_width, view.input_height) == (1316, 728)
    assert as_read(image, close.processor) is image


def test_pixel_limits(tmp_path):
    small, large = (from_pretrained("tiny", with_model=False, max_pixels=limit) for limit in (56 * 56, 224 * 224))
    for bundle, limit in ((small, 56 * 56), (large, 224 * 224)):
        view = view_of(bundle.processor, 1280, 1024)
        assert limit / 3 < view.input_width * view.input_height <= limit
        assert bundle.info.max_pixels == limit


# ------------------------------------------------------------------------------------------------------- prompts


def test_training_and_prediction_give_the_same_tokens(tiny, dataset):
    """TRL's way to a prompt and ours, for SFT and RFT rows; all rows of a frame are alike up to the image's end."""
    from trl.data_utils import prepare_multimodal_messages

    from surgery_r1.train.datasets import rft_dataset, sft_dataset

    processor, space = tiny.processor, tiny.info.box_space
    encoder = PromptEncoder(processor, space)
    end = processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")
    rft = rft_dataset(dataset, processor, space)
    for rows in (rft, sft_dataset(dataset, processor, space, tasks=("visual_qa", "grounding_qa", "cot"))):
        heads: dict[str, set] = {}
        raw = rows.with_format(None)
        for index in range(0, len(rows), 17):
            paths, prompt = raw[index]["images"], rows[index]["prompt"]
            conversation = prepare_multimodal_messages(prompt, images=rows[index]["images"])
            theirs = processor.apply_chat_template(
                conversation, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
            text = prompt[-1]["content"]
            text = text if isinstance(text, str) else text[-1]["text"]
            ours = encoder([Prompt(tuple(map(Path, paths)), text)])
            assert torch.equal(ours["input_ids"], theirs["input_ids"])
            assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
            assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
            ids = ours["input_ids"][0].tolist()
            heads.setdefault(paths[0], set()).add(tuple(ids[: ids.index(end) + 1]))
        assert heads and all(len(head) == 1 for head in heads.values())


def test_prompts_of_a_batch_are_padded_on_the_left(tiny, dataset):
    encoder = PromptEncoder(tiny.processor, tiny.info.box_space)
    path = dataset.image_path(dataset.split("val")[0])
    short, long = Prompt((path,), "Why?"), Prompt((path,), "Why " * 20)
    batch = encoder([short, long])
    alone = encoder([short])
    length = alone["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][0, -length:], alone["input_ids"][0])
    assert batch["attention_mask"][0].tolist() == [0] * (batch["input_ids"].shape[1] - length) + [1] * length
    assert batch["pixel_values"].shape[0] == 2 * alone["pixel_values"].shape[0]


def test_two_images_in_a_prompt(tiny, dataset):
    encoder = PromptEncoder(tiny.processor, tiny.info.box_space)
    paths = tuple(dataset.image_path(s) for s in (dataset.split("val")[0], dataset.split("val")[-1]))
    batch = encoder([Prompt(paths, "Why?"), Prompt(paths[:1], "Why?")])
    assert batch["image_grid_thw"].shape == (3, 3)
    assert int(batch["mm_token_type_ids"].sum()) == 3 * 30


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|vision_start|>"])
def test_control_tokens_in_a_question_are_refused(tiny, dataset, token):
    encoder = PromptEncoder(tiny.processor, tiny.info.box_space)
    with pytest.raises(SurgeryR1Error, match="control token"):
        encoder([Prompt((dataset.image_path(dataset.split("val")[0]),), f"Where{token}?")])


def test_images_that_cannot_be_read(tmp_path):
    whole = tmp_path / "whole.png"
    picture().save(whole)
    with pytest.raises(SurgeryR1Error, match="no such image"):
        load_image(tmp_path / "none.png")
    for keep in (0, 7, 40, 1000, whole.stat().st_size - 30):
        (tmp_path / "torn.png").write_bytes(whole.read_bytes()[:keep])
        with pytest.raises(SurgeryR1Error, match=r"torn\.png: the image cannot be decoded"):
            load_image(tmp_path / "torn.png")


def test_image_cache_drops_what_was_used_longest_ago(tmp_path, monkeypatch):
    for name in "abc":
        picture(10, 10).save(tmp_path / f"{name}.png")
    cache, loads = ImageCache(limit=2 * 300), []
    monkeypatch.setattr("surgery_r1.models.encode.load_image", lambda path: loads.append(path.stem) or load_image(path))
    for name in "abacab":
        cache(tmp_path / f"{name}.png")
    assert "".join(loads) == "abcb"


# ------------------------------------------------------------------------------------------------------ families


def model_of(family: str, tokenizer):
    """A model of a family with random weights: two layers, 32 wide."""
    import transformers

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    }
    vision = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 14}
    elif family == "qwen2_5_vl":
        vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "patch_size": 14}
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "patch_size": 16}
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
        text["head_dim"] = 8
    ids = tokenizer.convert_tokens_to_ids
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForConditionalGeneration")._from_config(config).eval()


def published(folder: Path, family: str, tokenizer) -> torch.nn.Module:
    """A folder as published ones look: their file names and settings, no surgery_r1.json."""
    model = model_of(family, tokenizer)
    model.generation_config.repetition_penalty = 1.05
    model.generation_config.temperature = 0.1
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    if family == "qwen3_vl":
        limits = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16}
    else:
        limits = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14}
    preprocessor = {
        **limits,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": f"{name}Processor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


@pytest.mark.parametrize(
    ("family", "space", "factor", "least", "most"),
    [
        ("qwen2_vl", "norm1000", 28, 3136, 12845056),
        ("qwen2_5_vl", "pixels", 28, 3136, 12845056),
        ("qwen3_vl", "norm1000", 32, 65536, 16777216),
    ],
)
def test_families(tiny, tmp_path, family, space, factor, least, most):
    from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine

    folder = tmp_path / "model"
    model = published(folder, family, tiny.tokenizer)
    bundle = from_pretrained(folder, device="cpu")
    assert (bundle.info.box_space, bundle.info.min_pixels, bundle.info.max_pixels) == (space, least, most)
    assert bundle.info.base_sha256 == weights_sha256(folder) and bundle.info.stage == "base"
    view = view_of(bundle.processor, 170, 140)
    assert view.input_width % factor == 0 and view.input_height % factor == 0
    assert from_pretrained(folder, with_model=False, box_space="norm1000").info.box_space == "norm1000"

    state, loaded = model.state_dict(), bundle.model.state_dict()
    assert state.keys() == loaded.keys() and all(torch.equal(state[name], loaded[name]) for name in state)
    generation = bundle.model.generation_config
    assert (generation.do_sample, generation.temperature, generation.repetition_penalty) == (None, None, None)

    picture(300, 240).save(tmp_path / "frame.png")
    bundle = from_pretrained(folder, device="cpu", min_pixels=factor**2, max_pixels=16 * factor**2)
    asked = [Prompt((tmp_path / "frame.png",), text) for text in ("Why?", "Where is suction located?", "Who?")]
    one, all_three = (
        [t for batch in TransformersEngine(bundle.model, bundle.processor, space, GenerationOptions(n, 6))
         .generate(asked) for t in batch]
        for n in (1, 3)
    )  # fmt: skip
    assert len(all_three) == 3 and one == all_three

    save_model(bundle.model, bundle.processor, bundle.info, tmp_path / "saved")
    again = from_pretrained(tmp_path / "saved", device="cpu")
    assert again.info == bundle.info
    assert torch.equal(logits(bundle, picture()), logits(again, picture()))


def test_published_tensor_names_load(tiny, tmp_path):
    """The names of the published Qwen2.5-VL checkpoints, whatever transformers calls them in memory."""
    folder = tmp_path / "model"
    model = published(folder, "qwen2_5_vl", tiny.tokenizer)
    tensors = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        tensors[name] = tensor.contiguous()
    assert {name.split(".")[0] for name in tensors} == {"visual", "model", "lm_head"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = from_pretrained(folder, device="cpu").model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    # What is saved here has those names too, so that other engines read it.
    bundle = from_pretrained(folder, device="cpu")
    save_model(bundle.model, bundle.processor, bundle.info, tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == tensors.keys()


# ------------------------------------------------------------------------------------------------------ adapters


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter with random weights on the tiny base."""
    from peft import LoraConfig, get_peft_model

    bundle = from_pretrained("tiny", device="cpu")
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    model = get_peft_model(bundle.model, lora).eval()
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_model(model, bundle.processor, replace(bundle.info, stage="sft"), folder)
    return folder


def test_adapter_loads_and_exports(tiny, adapter, tmp_path):
    bundle = from_pretrained(adapter, device="cpu")
    assert bundle.info.stage == "sft" and not (adapter / "config.json").exists()
    with_adapter = logits(bundle, picture())
    assert not torch.allclose(with_adapter, logits(tiny, picture()), atol=1e-3)
    assert export(adapter, tmp_path / "out") == tmp_path / "out"
    merged = from_pretrained(tmp_path / "out", device="cpu")
    assert type(merged.model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert merged.info == bundle.info
    torch.testing.assert_close(logits(merged, picture()), with_adapter, atol=1e-4, rtol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Research use only" in card and "norm100" in card and "stage: sft" in card
    with pytest.raises(SurgeryR1Error, match="not empty"):
        export(adapter, tmp_path / "out")


def test_an_adapter_that_lacks_tensors_is_refused(adapter, tmp_path):
    torn = shutil.copytree(adapter, tmp_path / "torn")
    tensors = load_file(torn / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, torn / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryR1Error, match="1 tensors are missing"):
        from_pretrained(torn)


def test_an_adapter_without_its_base(adapter, tmp_path):
    lost = shutil.copytree(adapter, tmp_path / "lost")
    settings = json.loads((lost / "adapter_config.json").read_text())
    for name, message in (("/nowhere/base", "no model at '/nowhere/base'"), (None, "names no base_model_name_or_path")):
        (lost / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": name}))
        with pytest.raises(SurgeryR1Error, match=message):
            from_pretrained(lost)


# ----------------------------------------------------------------------------------------------------- bad input


def test_models_that_are_not_there(tmp_path):
    for name in ("nowhere", tmp_path / "none", "some/model"):
        with pytest.raises(SurgeryR1Error, match=r"no model at .*give a folder.*--allow-hub"):
            from_pretrained(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SurgeryR1Error, match="neither a model nor a run"):
        from_pretrained(tmp_path / "empty")
    (tmp_path / "begun").mkdir()
    for name in ("run.json", "config.json"):
        (tmp_path / "begun" / name).write_text("{}")
    with pytest.raises(SurgeryR1Error, match=r"neither a model nor a run with a best one.*--resume"):
        from_pretrained(tmp_path / "begun")
    (tmp_path / "begun" / "config.json").rename(tmp_path / "empty" / "config.json")
    with pytest.raises(SurgeryR1Error, match="unknown model family None"):
        from_pretrained(tmp_path / "empty")


def test_the_hub_is_asked_only_when_allowed(monkeypatch):
    import huggingface_hub

    asked = []

    def download(name):
        asked.append(name)
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(SurgeryR1Error, match="no model at 'some/model'"):
        resolve("some/model")
    assert asked == []
    with pytest.raises(SurgeryR1Error, match=r"some/model: cannot be downloaded from the hub \(OSError: no route\)"):
        resolve("some/model", allow_hub=True)
    assert asked == ["some/model"]


@pytest.mark.parametrize("keep", [0, 4, 1000, 100_000])
def test_truncated_weights(base_copy, keep):
    data = (base_copy / "model.safetensors").read_bytes()
    (base_copy / "model.safetensors").write_bytes(data[:keep])
    with pytest.raises(SurgeryR1Error, match=r"copy: the weights cannot be read .* torn or incomplete"):
        from_pretrained(base_copy)


def test_weights_that_lack_tensors_are_refused(base_copy):
    tensors = load_file(base_copy / "model.safetensors")
    tensors.pop(next(name for name in sorted(tensors) if "mlp" in name))
    save_file(tensors, base_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SurgeryR1Error, match="1 tensors are missing, such as"):
        from_pretrained(base_copy)


def test_pickled_weights_are_not_loaded(base_copy):
    torch.save(load_file(base_copy / "model.safetensors"), base_copy / "pytorch_model.bin")
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(SurgeryR1Error, match="the weights cannot be read"):
        from_pretrained(base_copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json", "surgery_r1.json"])
def test_torn_json(base_copy, name):
    path = base_copy / name
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    with pytest.raises(SurgeryR1Error, match="copy"):
        from_pretrained(base_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec_version": "0"}, "written with codec version 0, this is"),
        ({"prompt_version": "99"}, "written with prompt version 99, this is"),
        ({"template_sha256": "x"}, "chat template is not the one"),
        ({"colour": "red"}, "does not describe a model: .*colour"),
        ({"box_space": "inches"}, "box_space 'inches'"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused(base_copy, change, message):
    info = json.loads((base_copy / "surgery_r1.json").read_text())
    (base_copy / "surgery_r1.json").write_text(json.dumps({**info, **change}))
    with pytest.raises(SurgeryR1Error, match=message):
        from_pretrained(base_copy)


def test_a_changed_template_is_refused(base_copy):
    path = base_copy / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "robot"))
    with pytest.raises(SurgeryR1Error, match="chat template is not the one"):
        from_pretrained(base_copy)


def test_box_space_can_be_set_only_where_none_is_recorded():
    with pytest.raises(SurgeryR1Error, match="reads boxes in 'norm100', not 'pixels'"):
        from_pretrained("tiny", box_space="pixels")
    with pytest.raises(SurgeryR1Error, match="'inches'"):
        from_pretrained("tiny", box_space="inches")
    assert from_pretrained("tiny", box_space="norm100", with_model=False).info.box_space == "norm100"


# -------------------------------------------------------------------------------------------------------- saving


class Failing:
    """A model whose saving fails half-way."""

    def __init__(self, model, error):
        self.model, self.error, self.config = model, error, model.config

    def save_pretrained(self, folder):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise self.error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("torn"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_folder(tiny, base_copy, error):
    before = weights_sha256(base_copy)
    with pytest.raises((SurgeryR1Error, KeyboardInterrupt)) as caught:
        save_model(Failing(tiny.model, error), tiny.processor, tiny.info, base_copy)
    assert weights_sha256(base_copy) == before and [path.name for path in base_copy.parent.iterdir()] == ["copy"]
    if not isinstance(error, KeyboardInterrupt):
        assert "free some disk space and go on with --resume" in str(caught.value)


def test_a_kill_between_the_renames_loses_nothing(tiny, base_copy):
    old = base_copy.with_name("copy.old")
    base_copy.rename(old)
    with pytest.raises(SurgeryR1Error):
        save_model(Failing(tiny.model, RuntimeError()), tiny.processor, tiny.info, base_copy)
    assert from_pretrained(base_copy, with_model=False).info.base_model == "tiny" and not old.exists()
    shutil.copytree(base_copy, old)
    recover(base_copy)
    assert base_copy.exists() and not old.exists()


def test_info_round_trip(tmp_path, tiny):
    info = replace(tiny.info, stage="rft", step=7)
    info.save(tmp_path)
    assert ModelInfo.read(tmp_path) == info


def test_the_shipped_rft_model_can_do_the_task(dataset):
    """On drawn frames of sequences and a size that it was not trained on."""
    model = surgery_r1.load("tiny-rft")
    assert model.stage == "rft"
    samples = dataset.split("val")
    replies = model.ask_many([(dataset.image_path(sample), sample.question) for sample in samples], max_new_tokens=48)
    right = [reply.answer == sample.answer for reply, sample in zip(replies, samples, strict=True)]
    found = [geometry.iou(reply.box_px, sample.box_px) >= 0.5 for reply, sample in zip(replies, samples, strict=True)]
    assert sum(right) / len(right) > 0.8 and sum(found) / len(found) > 0.6
    assert all(reply.rationale and not reply.problems for reply in replies)
