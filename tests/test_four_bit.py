"""QLoRA: a base in 4 bit, on which an adapter is trained, and which stays as it is."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from launching import records, weights
from small import small

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models import four_bit, from_pretrained
from surgery_r1.models.export import export
from surgery_r1.models.load import merged
from surgery_r1.models.tiny.architecture import TINY_BASE
from surgery_r1.train import stage
from surgery_r1.train.config import load_config

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes: pip install 'surgery-r1[qlora]'"
)


def qlora(**changes):
    config = small(model_load_in_4bit=True, **changes)
    return replace(config, lora=replace(config.lora, enabled=True, rank=8))


def packed(model):
    """Weights in 4 bit by name, as memory holds them."""
    return {name: p.data.clone() for name, p in model.named_parameters() if type(p).__name__ == "Params4bit"}


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """SFT of the tiny base in 4 bit, and RFT that starts from it."""
    folder = tmp_path_factory.mktemp("qlora")
    longer = {"sft_max_steps": 8, "sft_eval_every": 4, "sft_learning_rate": 3e-3, "sft_trl": {"logging_steps": 1}}
    stage.train("sft", qlora(**longer), dataset, folder / "sft", quiet=True)
    rft = qlora(rft_max_steps=2, rft_eval_every=1, rft_rewards={"random": 1.0}, eval_choose="last")
    stage.train("rft", rft, dataset, folder / "rft", base=folder / "sft", quiet=True)
    return folder


@needs_bitsandbytes
def test_only_the_language_model_is_rounded(tiny):
    model = from_pretrained("tiny", device="cpu", load_in_4bit=True).model
    assert four_bit.in_4bit(model) and len(packed(model)) == 4 * 7
    assert all(
        ".language_model.layers." in name and value.dtype == torch.uint8 for name, value in packed(model).items()
    )
    own = dict(tiny.model.named_parameters())
    rest = {name: p for name, p in model.named_parameters() if name not in packed(model)}
    assert all(torch.equal(p, own[name]) for name, p in rest.items()), "tower, embeddings, norms, output layer"
    linear = model.model.language_model.layers[0].mlp.up_proj
    assert linear.weight.quant_state.quant_type == "nf4" and linear.weight.quant_state.nested
    assert linear.compute_dtype == torch.float32
    lower = from_pretrained("tiny", device="cpu", dtype="bfloat16", load_in_4bit=True).model
    assert lower.model.language_model.layers[0].mlp.up_proj.compute_dtype == lower.dtype == torch.bfloat16


@needs_bitsandbytes
def test_a_layer_learns_after_it_was_asked():
    """On CPUs with AVX-512 for bfloat16, bitsandbytes would pack it so that it gives no gradient."""
    model = from_pretrained("tiny", device="cpu", load_in_4bit=True).model
    linear = model.model.language_model.layers[0].mlp.up_proj
    given = torch.randn(3, 128, requires_grad=True)
    linear.train()
    (before,) = torch.autograd.grad(linear(given).sum(), given)
    linear.eval()
    with torch.no_grad():
        asked = linear(given.detach())
    linear.train()
    again = linear(given)
    assert torch.equal(torch.autograd.grad(again.sum(), given)[0], before) and before.abs().max() > 0
    assert torch.allclose(asked, again, atol=1e-5)


@needs_bitsandbytes
def test_shared_frames_and_kept_features(dataset):
    """Rows of a frame packed behind one copy of it have the loss and gradients of the same rows one by one."""
    from peft import get_peft_model

    from surgery_r1.models.sharing import attention
    from surgery_r1.models.sharing.vision_features import keep_frozen_features
    from surgery_r1.train.datasets import sft_dataset
    from surgery_r1.train.options import lora_of
    from surgery_r1.train.sharing.sft_packing import FramePackCollator, PlainPackCollator, pack_rows

    def passed(share):
        bundle = from_pretrained("tiny", device="cpu", load_in_4bit=True)
        kept = keep_frozen_features(bundle.model)
        torch.manual_seed(0)
        model = get_peft_model(bundle.model, lora_of(qlora())).train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        assert not share or attention.enable(model)
        tasks = ["visual_qa", "grounding_qa", "cot"]
        rows = sft_dataset(dataset, bundle.processor, bundle.info.box_space, tasks=tasks)
        packs = pack_rows(rows, per_frame=6)
        kind = FramePackCollator if share else PlainPackCollator
        collator = kind(bundle.processor, rows[0]["prompt"][0]["content"], bundle.model.model.get_rope_index)
        batch = collator([packs[0], packs[1]])
        losses = []
        for _ in range(2):
            model.zero_grad()
            losses.append(model(**batch).loss)
            losses[-1].backward()
        assert losses[0] == losses[1] and 0 < kept.computed <= 2 and kept.reused > 0
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert grads and all("lora_" in name for name in grads), "nothing but the adapter is trained"
        return losses[0].item(), grads

    (shared, ours), (plain, theirs) = passed(True), passed(False)
    assert shared == pytest.approx(plain, abs=5e-6)
    largest = max(grad.abs().max() for grad in theirs.values())
    assert ours.keys() == theirs.keys()
    assert all((ours[name] - theirs[name]).abs().max() < 1e-4 * largest for name in theirs)


@needs_bitsandbytes
def test_both_stages(runs, dataset):
    sft, rft = runs / "sft", runs / "rft"
    losses = [record["loss"] for record in records(sft) if "loss" in record]
    assert len(losses) == 8 and sum(losses[-2:]) < 0.9 * sum(losses[:2])
    for run in (sft, rft):
        best = weights(run / "best")
        assert best and all("lora_" in name and value.dtype == torch.float32 for name, value in best.items())
        assert not any("visual" in name for name in best)
        assert all(value.abs().max() > 0 for name, value in best.items() if "lora_B" in name), "every adapter has moved"
        assert json.loads((run / "best" / "surgery_r1.json").read_text())["load_in_4bit"] is True
    named = json.loads((sft / "best" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(TINY_BASE)
    assert [r["step"] for r in records(rft) if "reward" in r] == [1, 2]


@needs_bitsandbytes
def test_the_next_stage_stands_on_what_was_never_rounded(runs, tiny):
    """W + BA of the SFT run, from the base's own weights, as its folder ``base`` has it."""
    base = runs / "rft" / "base"
    assert json.loads((base / "surgery_r1.json").read_text())["load_in_4bit"] is False
    whole = merged(from_pretrained(runs / "sft", device="cpu", load_in_4bit=False).model)
    kept = from_pretrained(base, device="cpu")
    assert not four_bit.in_4bit(kept.model)
    own = dict(tiny.model.named_parameters())
    for name, parameter in kept.model.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name))
        adapted = ".language_model.layers." in name and name.endswith("proj.weight")
        assert torch.equal(parameter, own[name]) != adapted, name
    named = json.loads((runs / "rft" / "best" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(base.resolve())


@needs_bitsandbytes
def test_a_run_is_asked_as_it_was_trained(runs, dataset, tmp_path):
    """The best model of a run has the value on dev that its run has noted, in 4 bit."""
    from surgery_r1.train.dev import dev_evaluator

    bundle = from_pretrained(runs / "sft", device="cpu")
    assert four_bit.in_4bit(bundle.model) and bundle.info.load_in_4bit
    result = json.loads((runs / "sft" / "result.json").read_text())
    noted = next(r for r in records(runs / "sft") if r["step"] == result["best_step"] and "dev/joint" in r)
    measured = dev_evaluator(qlora().eval, dataset, bundle)(bundle.model)
    assert {f"dev/{name}": value for name, value in measured.items()}.items() <= noted.items()


@needs_bitsandbytes
@pytest.mark.parametrize("adapter_only", [False, True])
def test_export(runs, tmp_path, adapter_only):
    out = export(runs / "sft", tmp_path / "out", adapter_only=adapter_only)
    card = (out / "README.md").read_text()
    assert "on a base held in 4 bit (QLoRA, nf4)" in card
    if adapter_only:
        assert weights(out).keys() == weights(runs / "sft" / "best").keys()
        return
    whole = merged(from_pretrained(runs / "sft", device="cpu", load_in_4bit=False).model)
    exported = from_pretrained(out, device="cpu")
    assert not exported.info.load_in_4bit and "quantization" not in (out / "config.json").read_text()
    assert all(torch.equal(p, whole.get_parameter(name)) for name, p in exported.model.named_parameters())


@needs_bitsandbytes
def test_resumed_equals_uninterrupted(runs, dataset, tmp_path):
    """The second half of RFT, from the first one's checkpoint."""
    rft = qlora(rft_max_steps=2, rft_eval_every=1, rft_rewards={"random": 1.0}, eval_choose="last")
    short = replace(rft, rft=replace(rft.rft, max_steps=1))
    stage.train("rft", short, dataset, tmp_path / "run", base=runs / "sft", quiet=True)
    stage.train("rft", rft, dataset, tmp_path / "run", base=runs / "sft", quiet=True, resume=True)
    ours, theirs = weights(tmp_path / "run" / "best"), weights(runs / "rft" / "best")
    assert ours and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_cannot_be_is_refused(dataset, tmp_path, monkeypatch):
    with pytest.raises(SurgeryR1Error, match=r"load_in_4bit needs lora.enabled = true: weights in 4 bit cannot be"):
        load_config("tiny", ("model.load_in_4bit=true",))
    server = ("lora.enabled=true", "model.load_in_4bit=true", 'rft.rollouts="server"')
    with pytest.raises(SurgeryR1Error, match=r"'server' does not go with model.load_in_4bit: vLLM has the base"):
        load_config("tiny", server)
    if importlib.util.find_spec("bitsandbytes"):
        from surgery_r1.train import ranks

        with (
            monkeypatch.context() as two,
            pytest.raises(SurgeryR1Error, match=r"'fsdp2': weights in 4 bit are not spr"),
        ):
            two.setattr(ranks, "count", lambda: 2)
            two.setattr(stage.ranks, "first", lambda work: work())
            stage._refuse_layout(replace(qlora(), ranks=replace(qlora().ranks, shard="fsdp2")), None)
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None)
    missing = r"bitsandbytes, which is not installed; pip install 'surgery-r1\[qlora\]'"
    with pytest.raises(SurgeryR1Error, match=f"model.load_in_4bit needs {missing}"):
        stage.train("sft", qlora(), dataset, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SurgeryR1Error, match=f"whose base is held in 4 bit, needs {missing}"):
        from_pretrained("tiny", device="cpu", load_in_4bit=True)


def test_a_base_that_is_rounded_already_is_refused(tmp_path):
    import shutil

    shutil.copytree(TINY_BASE, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(SurgeryR1Error, match=r"quantised already \(awq\); take the weights that it was made from"):
        from_pretrained(tmp_path / "base", device="cpu")
