"""Mixed precision and gradient checkpointing over two processes, as the configs of real models have them; 4 bit too.

The bound is bfloat16's own error: two processes lie no further from one process than that one lies from float32.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache

import pytest
import torch
from launching import SGD, apart, losses, records, trained, uneven, weights

pytestmark = pytest.mark.slow

#: As on a GPU: a base in bfloat16, adapters in float32, passes in bfloat16 whose activations are computed again.
MIXED = {"bf16": True, "gradient_checkpointing": True}
FEW = {"sft": {"sft_max_steps": 4, "sft_eval_every": 4, "sft_rows_per_frame": 0}}
FEW |= {"rft": {"rft_max_steps": 4, "rft_eval_every": 4}}


@pytest.fixture(scope="module")
def of_one_process(dataset_folder, tmp_path_factory):
    """A function that makes the run of one process, in float32 or mixed, each once: the run and its first gradients."""
    folder = tmp_path_factory.mktemp("one")

    @cache
    def run(stage_name, lora, mixed):
        name = f"{stage_name}_{lora}_{mixed}"
        return uneven(folder, name, 1, stage_name, dataset_folder, lora=lora, **_changes(stage_name, lora, mixed))

    return run


def _changes(stage_name, lora, mixed):
    trl = {f"{stage_name}_trl": {**SGD, **MIXED}} if mixed else {}
    # Full weights are held in float32 and cast for each pass.
    dtype = {"model_dtype": "bfloat16"} if mixed and lora else {}
    return {**FEW[stage_name], **trl, **dtype}


@pytest.mark.parametrize("way", ["none"])
@pytest.mark.parametrize(("stage_name", "lora"), [("sft", True)])
def test_two_processes_learn_what_one_does(of_one_process, dataset_folder, tmp_path, stage_name, lora, way):
    exact, exact_gradients = of_one_process(stage_name, lora, False)
    one, one_gradients = of_one_process(stage_name, lora, True)
    changes = {**_changes(stage_name, lora, True), "ranks_shard": way}
    changes[f"{stage_name}_micro_batch"] = 1 if stage_name == "sft" else 2
    two, gradients = uneven(tmp_path, "two", 2, stage_name, dataset_folder, lora=lora, **changes)
    assert len(losses(two)) == 4 and all(map(math.isfinite, losses(two)))
    assert all(tensor.isfinite().all() for tensor in [*gradients.values(), *weights(two / "best").values()])
    assert weights(two / "best").keys() == weights(one / "best").keys()

    own_error = whole(one_gradients, exact_gradients)
    assert 0 < own_error < 0.1
    assert whole(gradients, one_gradients) <= own_error
    scale = max(map(abs, losses(exact)))
    in_loss = max(abs(a - b) for a, b in zip(losses(one), losses(exact), strict=True)) / scale
    between = max(abs(a - b) for a, b in zip(losses(two), losses(one), strict=True)) / scale
    assert between <= max(in_loss, 2**-8), (between, in_loss)


def whole(ours: dict, theirs: dict) -> float:
    """Difference of all gradients together, by the size of theirs."""
    assert ours and ours.keys() == theirs.keys()
    apart = math.sqrt(sum((ours[n].float() - theirs[n].float()).norm().item() ** 2 for n in theirs))
    return apart / math.sqrt(sum(theirs[n].float().norm().item() ** 2 for n in theirs))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes: surgery-r1[qlora]")
def test_a_base_in_4_bit_on_two_processes(dataset_folder, tmp_path):
    """RFT on an adapter of SFT: its base is merged once, and rounded by both. In float32, so that they must agree."""
    changes = {"model_load_in_4bit": True, "eval_dev_samples": 2, "eval_choose": "last"}
    sft = {**changes, "sft_max_steps": 3, "sft_eval_every": 3, "sft_trl": {"logging_steps": 1}}
    job = {"data": dataset_folder, "lora": True}
    one = trained(tmp_path, 1, stage="sft", out=tmp_path / "one", changes=sft, **job)
    two = trained(tmp_path, 2, stage="sft", out=tmp_path / "two", changes=sft, **job)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4) and len(losses(two)) == 3
    assert apart(weights(two / "best"), weights(one / "best")) < 1e-2
    rft = {**changes, "rft_max_steps": 1, "rft_eval_every": 1, "rft_rewards": {"random": 1.0}}
    run = trained(tmp_path, 2, stage="rft", base=two, out=tmp_path / "rft", changes=rft, **job)
    assert [record["step"] for record in records(run) if "reward" in record] == [1]
    assert {"model.safetensors", "surgery_r1.json"} <= {path.name for path in (run / "base").iterdir()}
    moved = [tensor for name, tensor in weights(run / "best").items() if "lora_B" in name]
    assert moved and all(tensor.abs().max() > 0 and tensor.dtype == torch.float32 for tensor in moved)
