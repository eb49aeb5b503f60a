"""Mixed precision and gradient checkpointing over two processes, as the configs of real models have them; 4 bit too.

The bound is bfloat16's own error: two processes lie no further from one process than that one lies from float32, or
twice as far where they round in other places.
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


#: Of two processes: stage, LoRA, way.
CASES = [(stage_name, lora, way) for stage_name in FEW for lora in (True, False) for way in ("none", "fsdp2")]


@pytest.fixture(scope="module")
def of_one_process(dataset_folder, tmp_path_factory):
    """Runs of one process and their first gradients, by stage, LoRA and precision.

    ``exact`` is in float32, ``mixed`` as the configs are; ``cast`` has full weights in bfloat16 too.
    """
    folder = tmp_path_factory.mktemp("one")
    jobs = []
    for stage_name, lora in {case[:2]: None for case in CASES}:
        for name in ("exact", "mixed", *(() if lora else ("cast",))):
            changes = _changes(stage_name, lora, name != "exact")
            changes |= {"model_dtype": "bfloat16"} if name == "cast" else {}
            told = f"{stage_name}_{lora}_{name}"
            jobs.append(uneven_job(folder, told, stage_name, dataset_folder, lora=lora, **changes))
    return uneven_together(folder, 1, jobs)


@pytest.fixture(scope="module")
def of_two_processes(dataset_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    jobs = []
    for stage_name, lora, way in CASES:
        changes = {**_changes(stage_name, lora, True), "ranks_shard": way}
        changes[f"{stage_name}_micro_batch"] = 1 if stage_name == "sft" else 2
        told = f"{stage_name}_{lora}_{way}"
        jobs.append(uneven_job(folder, told, stage_name, dataset_folder, lora=lora, **changes))
    return uneven_together(folder, 2, jobs)


def _changes(stage_name, lora, mixed):
    trl = {f"{stage_name}_trl": {**SGD, **MIXED}} if mixed else {}
    # Full weights are held in float32 and cast for each pass.
    dtype = {"model_dtype": "bfloat16"} if mixed and lora else {}
    return {**FEW[stage_name], **trl, **dtype}


@pytest.mark.parametrize(("stage_name", "lora", "way"), CASES, ids=lambda v: {True: "lora", False: "full"}.get(v, v))
def test_two_processes_learn_what_one_does(of_one_process, of_two_processes, stage_name, lora, way):
    exact, exact_gradients = of_one_process[f"{stage_name}_{lora}_exact"]
    one, one_gradients = of_one_process[f"{stage_name}_{lora}_mixed"]
    two, gradients = of_two_processes[f"{stage_name}_{lora}_{way}"]
    assert len(losses(two)) == 4 and all(map(math.isfinite, losses(two)))
    assert all(tensor.isfinite().all() for tensor in [*gradients.values(), *weights(two / "best").values()])
    assert names(two) == names(one)
    refuse_empty(two / "best")
    shapes = [{name: (t.shape, t.dtype) for name, t in weights(run / "best").items()} for run in (two, one)]
    assert shapes[0] == shapes[1]

    # FSDP2 rounds what goes into each layer and one process does not: both errors can add up. (A rank that is lost, or
    # counted twice, would be half of a gradient, or all of it.)
    times = 2 if way == "fsdp2" else 1
    # FSDP2 gathers weights in bfloat16, and so makes passes as a model does that has them so; autocast keeps more.
    alike = of_one_process[f"{stage_name}_{lora}_cast"][1] if way == "fsdp2" and not lora else one_gradients
    own_error = whole(alike, exact_gradients)
    assert 0 < own_error < 0.1
    assert whole(gradients, alike) <= times * own_error
    scale = max(map(abs, losses(exact)))
    in_loss = max(abs(a - b) for a, b in zip(losses(one), losses(exact), strict=True)) / scale
    between = max(abs(a - b) for a, b in zip(losses(two), losses(one), strict=True)) / scale
    assert between <= times * max(in_loss, 2**-8), (between, in_loss)
    # The loss of RFT says nothing of what is learned.
    assert whole(learned(two), learned(one)) <= times * whole(learned(one), learned(exact))


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
