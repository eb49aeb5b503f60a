"""Forests go through DDP, FSDP and gradient checkpointing: gradients are those of one process."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch

from surgery_r1.models.sharing import attention as tree_attention
from surgery_r1.models.sharing import prefix_tree
from surgery_r1.models.tiny import architecture as tiny
from surgery_r1.models.tiny import text as tiny_text
from surgery_r1.train import ranks

WORLD = 2


def small_model():
    tokenizer = tiny.build_tokenizer(tiny_text.corpus())
    model = tiny.build_model(tiny.build_config(tokenizer), seed=3)
    assert tree_attention.enable(model)
    return model.train(), tokenizer


def tree_batch(model, tokenizer, seed):
    """Forward arguments of six rows on one frame, drawn by ``seed``."""
    rng = np.random.default_rng(seed)
    ids = tokenizer.convert_tokens_to_ids
    head = [5, 6, ids("<|vision_start|>"), *[ids("<|image_pad|>")] * 4, ids("<|vision_end|>")]
    rows = []
    for k in range(6):
        text, reply = [300 + k // 3] * 9, rng.integers(300, 900, 4).tolist()
        labels = [-100] * (len(head) + len(text) - 1) + reply + [-100]
        rows.append(prefix_tree.TokenSequence(head + text + reply, labels, (0,)))
    grid = torch.tensor([[1, 4, 4]])
    positions = prefix_tree.SequencePositions(model.model.get_rope_index, ids("<|image_pad|>"), 2)
    built = prefix_tree.build_prefix_tree(rows, ids("<|image_pad|>"))
    inputs = prefix_tree.tree_inputs(built, rows, [positions(row, grid) for row in rows])
    pixels = torch.from_numpy(rng.normal(size=(16, 1176)).astype(np.float32))
    return {**inputs, "labels": inputs["shift_labels"], "pixel_values": pixels, "image_grid_thw": grid}


def gradients(model):
    grads = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            grads[name.removeprefix("module.")] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return grads


def alone(seeds):
    """Mean over ``seeds`` of the gradients of one process."""
    total = {}
    for seed in seeds:
        model, tokenizer = small_model()
        model(**tree_batch(model, tokenizer, seed), use_cache=False).loss.backward()
        for name, grad in gradients(model).items():
            total[name] = total.get(name, 0) + grad / len(seeds)
    return total


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    largest = max(grad.abs().max() for grad in expected.values())
    assert largest > 0
    for name, grad in expected.items():
        assert (got[name] - grad).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model, tokenizer = small_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model(**tree_batch(model, tokenizer, 0), use_cache=False).loss.backward()
    assert_equal(gradients(model), alone([0]))


def gradients_of_rank(rank, kind):
    model, tokenizer = small_model()
    if kind == "ddp":
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (WORLD,))
        for layer in model.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    wrapped(**tree_batch(model, tokenizer, rank), use_cache=False).loss.backward()
    return gradients(wrapped)


def worker(rank, port, kind, out):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    grads = gradients_of_rank(rank, kind)
    if rank == 0:
        torch.save(grads, out)
    # The wrapped model is gone by now: the last holder of a group must not be one that is freed under the GIL, which
    # the group's threads wait for (torch 2.13: c10d::Reducer; both would wait for ever).
    ranks.leave()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes(kind, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, kind, tmp_path / "grads.pt"), nprocs=WORLD, daemon=True)
    assert_equal(torch.load(tmp_path / "grads.pt"), alone(range(WORLD)))
