"""Mixed precision and gradient checkpointing over two processes, as the configs of real models have them; 4 bit too.

Two processes are compared with one that makes the same passes, in micro batches of the same size and sharded in the
same way, so that bfloat16 rounds in the same places; and that one with float32, by bfloat16's own error.
"""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from launching import SGD, apart, losses, names, records, trained, uneven_job, uneven_together, weights

from surgery_r1.models.save import refuse_empty
from surgery_r1.models.tiny.architecture import TINY_BASE

pytestmark = pytest.mark.slow

#: As on a GPU: a base in bfloat16, adapters in float32, passes in bfloat16 whose activations are computed again.
MIXED = {"bf16": True, "gradient_checkpointing": True}
FEW = {"sft": {"sft_max_steps": 4, "sft_eval_every": 4, "sft_rows_per_frame": 0}}
FEW |= {"rft": {"rft_max_steps": 4, "rft_eval_every": 4}}


#: Stage, LoRA, way.
CASES = [(stage_name, lora, way) for stage_name in FEW for lora in (True, False) for way in ("none", "fsdp2")]


@pytest.fixture(scope="module")
def exact(dataset_folder, tmp_path_factory):
    """Runs of one process in float32, and their first gradients, by stage and LoRA."""
    folder = tmp_path_factory.mktemp("exact")
    cases = {case[:2]: None for case in CASES}
    jobs = [uneven_job(folder, f"{name}_{lora}", name, dataset_folder, lora=lora, **FEW[name]) for name, lora in cases]
    return uneven_together(folder, 1, jobs)


@pytest.fixture(scope="module")
def of_one_process(dataset_folder, tmp_path_factory):
    found = {}
    for way in ("none", "fsdp2"):
        folder = tmp_path_factory.mktemp(f"one_{way}")
        jobs = [_mixed(folder, *case, dataset_folder) for case in CASES if case[2] == way]
        found |= uneven_together(folder, 1, jobs, spread_alone=way == "fsdp2")
    return found


@pytest.fixture(scope="module")
def of_two_processes(dataset_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return uneven_together(folder, 2, [_mixed(folder, *case, dataset_folder) for case in CASES])


def _mixed(folder, stage_name, lora, way, data):
    changes = {f"{stage_name}_trl": {**SGD, **MIXED}, f"{stage_name}_micro_batch": 1 if stage_name == "sft" else 2}
    if lora:
        # Full weights are held in float32 and cast for each pass.
        changes["model_dtype"] = "bfloat16"
    changes |= {**FEW[stage_name], "ranks_shard": way}
    return uneven_job(folder, f"{stage_name}_{lora}_{way}", stage_name, data, lora=lora, **changes)


@pytest.mark.parametrize(("stage_name", "lora", "way"), CASES, ids=lambda v: {True: "lora", False: "full"}.get(v, v))
def test_two_processes_learn_what_one_does(exact, of_one_process, of_two_processes, stage_name, lora, way):
    in_float32, exact_gradients = exact[f"{stage_name}_{lora}"]
    one, one_gradients = of_one_process[f"{stage_name}_{lora}_{way}"]
    two, gradients = of_two_processes[f"{stage_name}_{lora}_{way}"]
    assert len(losses(two)) == 4 and all(map(math.isfinite, losses(two)))
    assert all(tensor.isfinite().all() for tensor in [*gradients.values(), *weights(two / "best").values()])
    assert names(two) == names(one)
    refuse_empty(two / "best")
    shapes = [{name: (t.shape, t.dtype) for name, t in weights(run / "best").items()} for run in (two, one)]
    assert shapes[0] == shapes[1]

    # Rows are added up in another order, in float32. (A rank that is lost, or counted twice, would be half of it.)
    assert whole(gradients, one_gradients) < 1e-6
    assert 0 < whole(one_gradients, exact_gradients) < 0.1
    # Weights that differ in their last bit may be cast to neighbours: steps to come have a tenth of bfloat16's error.
    scale = max(map(abs, losses(in_float32)))
    assert losses(one) == pytest.approx(losses(in_float32), abs=scale * 2**-7)
    assert losses(two) == pytest.approx(losses(one), abs=scale * 2**-7 / 10)
    # The loss of RFT says nothing of what is learned.
    own_error = whole(learned(one), learned(in_float32))
    assert 0 < own_error < 0.1
    assert whole(learned(two), learned(one)) <= own_error / 10


def learned(run) -> dict:
    """What a run has added to its base: the matrices of an adapter that begin with nothing, or all weights."""
    start, found = weights(TINY_BASE), weights(run / "best")
    if any("lora_B" in name for name in found):
        return {name: tensor for name, tensor in found.items() if "lora_B" in name}
    return {name: tensor.float() - start[name].float() for name, tensor in found.items()}


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
