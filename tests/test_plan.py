"""``train --plan``: what is counted, against what runs; the same advice when memory runs out."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from surgery_r1.cli import main
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.sharing import attention
from surgery_r1.models.sharing.prefix_tree import TreeLayout
from surgery_r1.train.config import load_config
from surgery_r1.train.planning.passes import Counted, Shape, head_on_gpu
from surgery_r1.train.planning.plan import GIB, advice
from surgery_r1.train.planning.stage import plan_stage, planner, telling_what_fits, this_machine

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import make_model_folder
from published_models import COUNTS, published_names

MACHINE = replace(this_machine(gpu=False), processes=1, memory=4 * GIB, libraries=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of the published sizes, without weights."""
    made = {}
    for name in make_model_folder.MODELS:
        made[name] = tmp_path_factory.mktemp("published") / name
        make_model_folder.write_folder(name, made[name], weights=False)
    return made


# ------------------------------------------------------------------------------------------------- what a pass holds


class Real(TorchDispatchMode):
    """Bytes of what operations on real tensors make, apart from what the plan counts with."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen | given:
                    self.seen.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return out

    def free(self, address: int, size: int) -> None:
        self.now -= size
        self.seen.discard(address)


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes: pip install 'surgery-r1[qlora]'"
)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(
    ("lora", "few_bits"),
    [(True, False), (False, False), pytest.param(True, True, marks=needs_bitsandbytes)],
    ids=["lora", "full", "qlora"],
)
def test_a_pass_holds_what_is_counted(tiny, tmp_path, lora, few_bits, checkpointing):
    """Six layers run for real: the count of one and two layers says what they hold, to the byte."""
    from peft import get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    from surgery_r1.models import from_pretrained
    from surgery_r1.models.save import save_model
    from surgery_r1.models.tiny.architecture import build_model
    from surgery_r1.train.options import lora_of

    config = load_config("tiny")
    config = replace(config, lora=replace(config.lora, enabled=lora))
    shape = Shape(1, 96, 40, True)
    sized = type(tiny.model.config).from_dict(tiny.model.config.to_dict())
    sized.text_config.num_hidden_layers = 6
    sized.text_config.layer_types = ["full_attention"] * 6
    counted = Counted(sized, torch.float32, lora_of(config), checkpointing, False, False, four_bit=few_bits)
    planned = counted.memory(shape)

    model = build_model(sized)
    if few_bits:
        save_model(model, tiny.processor, tiny.info, tmp_path / "six")
        model = from_pretrained(tmp_path / "six", device="cpu", load_in_4bit=True).model.train()
    attention.enable(model)
    add_fused_lm_head(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        model = get_peft_model(model, lora_of(config))
        if checkpointing:
            model.enable_input_require_grads()
    ids = torch.randint(0, 900, (1, 96))
    inputs = {"input_ids": ids, "shift_labels": ids, "position_ids": torch.arange(96).expand(3, 1, 96)}
    real = Real()
    kept = []
    attention.core(model).model.register_forward_hook(lambda *_: kept.append(real.now))
    gc.collect()
    with real:
        output = model(**inputs, tree=TreeLayout(((0, 48, 96), (48, 96, 96))), fused_lm_head=True)
        head = real.peak
        output.loss.backward()
    assert planned.kept == kept[0]
    # The projection's forward pass is part of what its backward pass needs at most.
    assert head - kept[0] <= planned.head and real.peak >= kept[0] + planned.head


def test_checkpointing_and_longer_rows(tiny):
    def memory(length: int, checkpointing: bool):
        return Counted(tiny.model.config, torch.float32, None, checkpointing, gpu=False, mixed=False).memory(
            Shape(1, length, length, True)
        )

    short, long, plain = memory(100, True), memory(200, True), memory(100, False)
    assert short.kept < plain.kept / 3 and short.layer > plain.layer
    assert 1.9 < long.kept / short.kept < 2.1


def test_a_gpu_projects_what_is_scored():
    all_scored, few = (head_on_gpu(Shape(1, 2000, n, True), 2048, 151936, 2, trained=False) for n in (2000, 100))
    # The tile (n, 32768) of two bytes, states and their gradient.
    assert all_scored - few == 1900 * (32768 * 2 + 2048 * 8)
    trained = head_on_gpu(Shape(1, 2000, 100, True), 2048, 151936, 2, trained=True)
    assert trained - few == 151936 * 2048 * 6


# ------------------------------------------------------------------------------------------------ rows of the data


@pytest.mark.parametrize("per_frame", [0, 12])
def test_the_largest_pass_of_sft_is_that_of_the_collator(dataset, per_frame):
    from surgery_r1.train.datasets import training_rows
    from surgery_r1.train.sharing.sft_packing import FramePackCollator, pack_rows

    config = load_config("tiny", (f"sft.rows_per_frame={per_frame}",))
    made = planner("sft", config, dataset, MACHINE)
    rows = training_rows("sft", config, dataset, *_shown(), False)
    processor = _shown()[0]
    if per_frame:
        collator = FramePackCollator(processor, rows[0]["prompt"][0]["content"], _positions())
        packs = pack_rows(rows, per_frame, config.seed)
        lengths = [collator([pack])["input_ids"].shape[1] for pack in packs]
        assert made.rows.largest_pass(1).length == max(lengths)
        two = sorted(range(len(packs)), key=lengths.__getitem__)[-2:]
        assert made.rows.largest_pass(2).length == collator([packs[number] for number in two])["input_ids"].shape[1]
    else:
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

        collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
        lengths = [collator([dict(row)])["input_ids"].shape[1] for row in rows]
        assert made.rows.largest_pass(3) == Shape(3, max(lengths), made.rows.largest_pass(3).scored, False)


def test_the_largest_pass_of_rft_is_that_of_the_tree(dataset):
    """Two questions of a frame with completions of the greatest length."""
    import numpy as np

    from surgery_r1.models.sharing import prefix_tree
    from surgery_r1.train.datasets import training_rows
    from surgery_r1.train.sharing.sft_packing import image_grids

    config = load_config("tiny", ("rft.questions_per_frame=2", "rft.flips=[]", "rft.prompts=2"))
    made = planner("rft", config, dataset, MACHINE)
    processor, space = _shown()
    questions = training_rows("rft", config, dataset, processor, space, False).with_format(None)
    sizes = []
    for pair in zip(range(len(questions)), range(1, len(questions)), strict=False):
        rows = []
        for number in pair:
            row = questions[number]
            grids = image_grids(row["images"], processor)
            prompt = made_ids(processor, row["prompt"], grids)
            for reply in range(config.rft.generations):
                completion = list(np.random.default_rng(number * 100 + reply).integers(0, 900, 40))
                labels = [-100] * (len(prompt) - 1) + completion + [-100]
                rows.append(prefix_tree.TokenSequence(prompt + completion, labels, (row["images"][0],)))
        sizes.append(prefix_tree.build_prefix_tree(rows, processor.image_token_id).layout.size)
    largest = made.rows.largest_pass(2)
    # Questions that begin alike share a few words more.
    assert max(sizes) <= largest.length <= max(sizes) + 40 and largest.scored == 2 * 8 * 40


def made_ids(processor, messages, grids):
    from surgery_r1 import prompts
    from surgery_r1.models.encode import expand_images

    chat = prompts.chat_messages(messages[0]["content"], messages[-1]["content"], 1)
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return processor.tokenizer(expand_images(text, list(grids), processor), add_special_tokens=False)["input_ids"]


def _shown():
    from surgery_r1.models import from_pretrained

    bundle = from_pretrained("tiny", with_model=False)
    return bundle.processor, bundle.info.box_space


def _positions():
    from surgery_r1.models import from_pretrained

    return from_pretrained("tiny", device="cpu").model.model.get_rope_index


# ------------------------------------------------------------------------------------------------- published sizes


def test_parameters_and_weights_of_published_sizes(folders, dataset):
    config = load_config("qwen2_5_vl_7b")
    found = {}
    for name, folder in folders.items():
        made = planner("sft", config, dataset, replace(MACHINE, gpu=True), base=folder)
        found[name] = made.parameters["all"] - made.parameters["trained"]
        assert made.resident()["weights"] == 2 * found[name]
        assert made.resident()["adapter"] == 4 * made.parameters["trained"] == made.resident()["optimiser"] / 2
    # As counted from the published index files (bfloat16, 7.51, 16.58 and 17.53 GB).
    assert found == {"qwen2_5_vl_3b": 3754622976, "qwen2_5_vl_7b": 8292166656, "qwen3_vl_8b": 8767123696}


@needs_bitsandbytes
def test_weights_in_4_bit(folders, dataset, tiny):
    """To the byte those of the tiny model; of the published sizes the language model's layers alone are smaller."""
    from surgery_r1.models import from_pretrained

    config = load_config("tiny", ("model.load_in_4bit=true", "lora.enabled=true"))
    made = planner("sft", config, dataset, MACHINE)
    real = from_pretrained("tiny", device="cpu", load_in_4bit=True).model
    sizes = {True: 0, False: 0}
    for parameter in real.parameters():
        state = getattr(parameter, "quant_state", None)
        parts = [parameter]
        if state is not None:
            parts += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        sizes[state is not None] += sum(part.nbytes for part in parts)
    resident = made.resident()
    assert (resident["weights in 4 bit"], resident["weights"]) == (sizes[True], sizes[False])
    assert (
        made.parameters == planner("sft", replace(config, model=load_config("tiny").model), dataset, MACHINE).parameters
    )

    larger = load_config("qwen2_5_vl_7b_24gb")
    seven = {"machine": replace(MACHINE, gpu=True), "base": folders["qwen2_5_vl_7b"]}
    made = planner("sft", larger, dataset, **seven)
    resident = made.resident()
    layers, rest = 28 * (3584**2 * 2 + 2 * 3584 * 512 + 3 * 3584 * 18944), resident["weights"] // 2
    assert abs(layers + rest - 8292166656) < 1e6, "biases of layers are not rounded"
    # Four bits, 8 a block of 64, 32 a block of 256 of these, and two tables for each matrix.
    assert resident["weights in 4 bit"] == pytest.approx(layers * (1 / 2 + 1 / 64 + 4 / 64 / 256), rel=1e-4)
    # Reading needs what it needs in 16 bit: a layer of each kind computes in the type of its input.
    whole = planner("sft", load_config("qwen2_5_vl_7b"), dataset, **seven)
    assert made.counted.reading(2, 500) == whole.counted.reading(2, 500)


@pytest.mark.slow
@needs_bitsandbytes
def test_the_config_for_24_gb_fits(folders, dataset):
    """Frames of this dataset are small: those of 1,280 tokens are in the config's own head and in docs/recipes.md."""
    config = load_config("qwen2_5_vl_7b_24gb")
    machine = replace(MACHINE, gpu=True, memory=22 * GIB)
    for stage in ("sft", "rft"):
        plan = plan_stage(stage, config, dataset, machine, base=folders["qwen2_5_vl_7b"])
        assert plan.peak < 14 * GIB and plan.largest_micro_batch > 0
        assert plan.parts["adapter"] == plan.parts["gradients"] == 4 * plan.parameters["trained"]


def test_the_largest_micro_batch_follows_memory(dataset):
    config = load_config("tiny", ("sft.batch_size=4", "eval.batch_size=1"))
    made = planner("sft", config, dataset, MACHINE)
    needs = {micro: made.plan(micro).peak for micro in (1, 2, 4)}
    assert needs[1] < needs[2] < needs[4]
    for room, best in ((needs[1] - 1, 0), (needs[1], 1), (needs[4] - 1, 2), (needs[4], 4)):
        plan = replace(made, machine=replace(MACHINE, memory=room)).plan(2)
        assert plan.largest_micro_batch == best and plan.largest_peak == needs.get(best) and plan.peak == needs[2]
        fits = f"sft.micro_batch = {best} fits" if best else "not even the smallest sft.micro_batch fits"
        assert advice(plan).startswith(fits)
    assert made.plan(4, failed=True).largest_micro_batch == 2 and made.plan(1, failed=True).largest_micro_batch == 0


@pytest.mark.parametrize("frozen", [True, False])
def test_a_trained_tower_is_told(dataset, frozen):
    config = load_config("tiny", (f"model.freeze_vision={str(frozen).lower()}", "sft.batch_size=1"))
    plan = plan_stage("sft", config, dataset, MACHINE)
    numbers = plan.parameters
    assert numbers["all"] - numbers["trained"] == numbers["frozen_tower"] and (numbers["frozen_tower"] > 0) == frozen
    assert plan.parts["gradients"] == 4 * numbers["trained"] and ("features" in plan.parts) == frozen
    assert plan.notes == (
        () if frozen else ("activations of the vision tower, which is trained here, are not counted",)
    )


def test_every_part_is_in_a_peak(dataset):
    config = load_config("tiny", ("rft.prompts=4", "rft.micro_batch=8", "lora.enabled=true"))
    made = planner("rft", config, dataset, replace(MACHINE, gpu=True, processes=2))
    plan = made.plan(1)
    parts = plan.parts
    always = sum(parts[name] for name in ("weights", "adapter", "optimiser", "buckets", "features", "pixels"))
    assert parts["buckets"] == parts["gradients"] == parts["adapter"] and "libraries" not in parts
    update = parts["gradients"] + parts["activations"] + max(parts["layer"], parts["logits"])
    assert plan.step.passes == 2 and plan.peaks["update"] == always + update
    assert plan.peaks["rollouts"] == always + parts["rollouts"] and plan.peak == max(plan.peaks.values())
    # 4 layers and one that is copied, keys and values of 4 heads of 32, float32; a vocabulary of 1,024.
    assert made.cache(16, 100, 40) == 5 * 2 * 4 * 32 * 4 * 16 * 140 + 16 * 1024 * 16


# ----------------------------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize("stage", ["sft", "rft"])
def test_the_command_takes_no_run_folder(dataset_folder, tmp_path, capsys, stage):
    out = tmp_path / "run"
    command = ["train", stage, "--config", "tiny", "--data", str(dataset_folder), "--out", str(out), "--plan"]
    assert main([*command, "--json", "--memory", "2", "--step-seconds", "3.6", "--processes", "2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["machine"]["memory"] == 2 * GIB and plan["step"]["passes"] == 1
    assert plan["hours"] == pytest.approx({"sft": 840, "rft": 130}[stage] / 1000)
    assert plan["peak"] == max(plan["peaks"].values()) and plan["largest_micro_batch"] > 0
    assert plan["image_tokens"] == {"30": sum(plan["image_tokens"].values())}
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "peak of a process" in text and f"{plan['parameters']['all']:,} in all" in text and "hours" not in text
    assert not out.exists() and not list(tmp_path.iterdir())


def test_options_of_a_plan_need_one(dataset_folder, tmp_path, capsys):
    command = ["train", "sft", "--config", "tiny", "--data", str(dataset_folder), "--out", str(tmp_path / "run")]
    assert main([*command, "--memory", "24"]) == 2
    assert "--memory is for a plan; add --plan" in capsys.readouterr().err
    assert main([*command, "--plan", "--memory", "0"]) == 2
    assert "--memory 0.0; give a number above 0" in capsys.readouterr().err
    assert main([*command, "--plan", "--processes", "3"]) == 2
    assert "8 packs a step cannot be divided by 3 processes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_running_out_of_memory_is_told_with_what_fits(dataset):
    plan = plan_stage("sft", load_config("tiny"), dataset, MACHINE, failed=True)
    wrong = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
    for error in (wrong, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")):
        told = "ran out of memory; sft.micro_batch = 4 fits 4.0 GiB: it needs"
        with pytest.raises(SurgeryR1Error, match=told), telling_what_fits(lambda: plan):
            raise error
    with pytest.raises(RuntimeError, match="another"), telling_what_fits(lambda: plan):
        raise RuntimeError("another")


@pytest.mark.slow
def test_a_run_that_really_runs_out_of_memory(dataset_folder, tmp_path):
    """The real allocator, in a process that may have no more."""
    import resource
    import subprocess

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (3 * GIB, 3 * GIB))

    command = [sys.executable, "-m", "surgery_r1", "train", "sft", "--config", "tiny", "--data", str(dataset_folder)]
    command += ["--out", str(tmp_path / "run"), "--set", "sft.batch_size=4096", "sft.rows_per_frame=0"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, check=False)
    assert done.returncode == 2 and "ran out of memory" in done.stderr and "sft.micro_batch" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------------- LoRA targets


def test_lora_targets(dataset, dataset_folder, tmp_path, capsys):
    """Named layers alone get an adapter; a name that no layer has is told before a run folder is taken."""
    import re

    from surgery_r1.train.options import lora_of

    chosen = ("lora.enabled=true", 'lora.targets=["q_proj", "v_proj"]')
    made = planner("sft", load_config("tiny", chosen), dataset, MACHINE)
    adapted = {name.split(".lora_")[0] for name, p in made.whole.named_parameters() if p.requires_grad}
    assert len(adapted) == 8 and {name.rpartition(".")[2] for name in adapted} == {"q_proj", "v_proj"}
    assert not any("visual" in name for name in adapted)
    usual = lora_of(load_config("tiny", ("lora.enabled=true",))).target_modules
    assert usual == r".*(language_model).*\.(q_proj|k_proj|v_proj|o_proj|qkv|gate_proj|up_proj|down_proj)"
    assert re.fullmatch(usual, "model.language_model.layers.0.mlp.up_proj")
    wrong = ["--set", *chosen[:1], 'lora.targets=["q_proj", "query"]', "model.freeze_vision=true"]
    command = ["train", "sft", "--config", "tiny", "--data", str(dataset_folder), "--out", str(tmp_path / "run")]
    for plan in ([], ["--plan"]):
        assert main([*command, *wrong, *plan]) == 2
        told = capsys.readouterr().err
        assert "lora.targets names 'query', which no layer that may get an adapter is called" in told
        assert "use some of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj\n" in told
    assert not (tmp_path / "run" / "run.json").exists()


# --------------------------------------------------------------------------------------------------- model folders


@pytest.mark.parametrize("name", ["qwen2_5_vl_3b", "qwen3_vl_8b"])
def test_folders_are_written_as_published_ones(tiny, name, tmp_path, monkeypatch):
    """All tensors, in shards, under published names; a model of this layout with narrow layers is really loaded."""
    from surgery_r1.models import from_pretrained

    whole = make_model_folder.config_of(name, tiny.tokenizer)

    def narrow(name, tokenizer):
        config = type(whole).from_dict(whole.to_dict())
        text, tower = config.text_config, config.vision_config
        text.hidden_size = tower.out_hidden_size = 64
        text.intermediate_size, text.num_attention_heads, text.num_key_value_heads = 32, 2, 1
        text.vocab_size, text.rope_parameters["mrope_section"] = 1024, [8, 4, 4]
        if hasattr(text, "head_dim"):
            text.head_dim = 32
        tower.hidden_size, tower.intermediate_size, tower.num_heads = 32, 16, 2
        return config

    monkeypatch.setattr(make_model_folder, "config_of", narrow)
    monkeypatch.setattr(make_model_folder, "SHARD", 200_000)
    for number in (1, 2):
        make_model_folder.write_folder(name, tmp_path / str(number), seed=5)
    names = {}
    for file in sorted((tmp_path / "1").glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names |= dict.fromkeys(tensors.keys(), file.name)
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes()
    assert len(names) == COUNTS[name] and set(names) == published_names(name) and len(set(names.values())) > 3
    index = json.loads((tmp_path / "1" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == names
    bundle = from_pretrained(tmp_path / "1", device="cpu")
    assert bundle.model.dtype == torch.bfloat16 and bundle.model.get_input_embeddings().weight.std() > 0.01
    with pytest.raises(SystemExit, match="is not empty"):
        make_model_folder.write_folder(name, tmp_path / "1")
