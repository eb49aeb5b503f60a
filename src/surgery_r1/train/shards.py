"""A model whose weights, gradients or optimiser states are spread over the processes that train it.

Three ways, all through accelerate: FSDP2 (torch), ZeRO-2 and ZeRO-3 (DeepSpeed). Every function here is called by all
ranks in the same order, and leaves a model that is whole as it is.

Ranks write replies of different length, so a model in parts could not be asked: a rank would wait for weights that
another, which has finished, no longer sends. Weights are therefore gathered once, for all replies of a batch
(:func:`whole`): a GPU must hold them while replies are written, beside its part of the optimiser's states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from torch.distributed.fsdp import MixedPrecisionPolicy

from surgery_r1._util import launcher
from surgery_r1._util.overriding import overriding
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.train import ranks, zero
from surgery_r1.train.config import Shard

#: Ways that leave no rank with all weights.
SPREAD_WEIGHTS = ("fsdp2", "zero3")


def asked_for(configured: Shard) -> Shard:
    """The way that the config asks for, or the launcher (``accelerate launch --use_fsdp --fsdp_version 2``).

    Raises:
        SurgeryR1Error: when they differ, for FSDP's first version, or in one process alone.
    """
    launched: Shard = "none"
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        if launcher.told("FSDP_VERSION", "1") != "2":
            raise SurgeryR1Error(
                "FSDP's first version is not supported",
                fix="launch with --fsdp_version 2, or set ranks.shard = 'fsdp2'",
            )
        launched = "fsdp2"
    stage = zero.launched_stage()
    if stage not in (0, 2, 3):
        raise SurgeryR1Error(f"ZeRO-{stage} is not supported", fix="launch with --zero_stage 2 or 3")
    launched = {0: launched, 2: "zero2", 3: "zero3"}[stage]
    if "none" not in (configured, launched) and configured != launched:
        raise SurgeryR1Error(
            f"the config says ranks.shard = {configured!r}, the launcher {launched!r}", fix="say it in one place"
        )
    way = configured if launched == "none" else launched
    if way != "none" and ranks.count() == 1:
        raise SurgeryR1Error(
            f"{way} spreads a model over several processes, and this is one alone",
            fix="start one for each GPU: torchrun --nproc_per_node 2 -m surgery_r1 train ..., or leave it out",
        )
    return way


@contextlib.contextmanager
def first_loads(way: Shard) -> Iterator[None]:
    """A model loaded inside the block has its weights on the first rank of a machine alone, if it is to be spread.

    It is transformers' own switch for FSDP; the others get them when the model is spread.
    """
    if way == "none":
        yield
        return
    zero.forget_settings()
    with launcher.environment(ACCELERATE_USE_FSDP="true", FSDP_CPU_RAM_EFFICIENT_LOADING="true"):
        yield


@contextlib.contextmanager
def arranged(way: Shard, arguments: Any) -> Iterator[None]:
    """A trainer made with ``arguments`` inside the block spreads its model."""
    with launcher.environment():
        if way == "fsdp2":
            arguments.fsdp_plugin_args = {
                "fsdp_version": 2,
                "auto_wrap_policy": "transformer_based_wrap",
                "state_dict_type": "FULL_STATE_DICT",
                "cpu_ram_efficient_loading": True,
                "mixed_precision_policy": _passes_in(arguments.mixed_precision),
            }
            if arguments.device.type == "cpu":
                plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
                _on_a_cpu(DistributedType.FSDP, arguments.mixed_precision, fsdp_plugin=plugin)
        elif way != "none":
            plugin = zero.plugin_for(2 if way == "zero2" else 3, arguments)
            arguments.deepspeed_plugin = None if arguments.device.type == "cpu" else plugin
            if arguments.device.type == "cpu":
                _on_a_cpu(DistributedType.DEEPSPEED, "no", deepspeed_plugin=plugin)
        try:
            yield
        finally:
            AcceleratorState._reset_state()
            if way not in ("none", "fsdp2"):
                zero.forget_settings()


def _passes_in(precision: str) -> Any:
    """FSDP2's policy for passes in bfloat16; None, accelerate's own choice, for others.

    accelerate's own would round what the model returns: a loss of 7.04 would be 7.03, log-probabilities of RFT lose as
    much. It would also add up gradients in bfloat16, over passes and over ranks.
    """
    if precision != "bf16":
        return None
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def _on_a_cpu(kind: DistributedType, precision: str, **plugins: Any) -> None:
    """accelerate ignores plugins on a CPU; what it does with them does not depend on the device.

    Args:
        precision: of passes, as accelerate calls it; DeepSpeed reads its own settings instead.
    """
    Accelerator(cpu=True, mixed_precision=precision, **plugins)
    for state in (PartialState._shared_state, AcceleratorState._shared_state):
        state["distributed_type"] = kind
    if kind == DistributedType.DEEPSPEED:
        plugin = plugins["deepspeed_plugin"]
        plugin.set_mixed_precision("no")
        plugin.select(_from_accelerator_state=True)
        plugins = {"deepspeed_plugins": AcceleratorState._shared_state.get("deepspeed_plugins") or plugin}
    elif precision != "no":
        # Keeps the policy that it was given.
        plugins["fsdp_plugin"].set_mixed_precision(precision)
    AcceleratorState._shared_state |= plugins


def _units(model: Any) -> list[Any]:
    """Modules whose weights FSDP2 gathers and lets go together."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextlib.contextmanager
def output_layer_with_the_rest(model: Any) -> Iterator[None]:
    """FSDP2, set up inside the block, treats an output layer with weights of its own as part of the whole model.

    accelerate would make it a unit, gathered when the layer is called. TRL multiplies by its weights without calling
    it, and gathers them by itself in a way that adds up no gradients over ranks: each would learn from its own rows,
    with twice the weight on two ranks.
    """
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    with contextlib.ExitStack() as stack:
        if outer is not None and outer.weight is not inner.weight:
            stack.enter_context(overriding(model, "get_output_embeddings", lambda: None))
        yield


def spread(model: Any) -> bool:
    """Whether this rank has only a part of the model's weights."""
    return bool(_units(model)) or zero.spread(model)


@contextlib.contextmanager
def whole(model: Any) -> Iterator[None]:
    """Every rank has all weights inside the block, for forward passes without gradients; it need not do as many."""
    if zero.spread(model):
        with zero.whole(model):
            yield
    else:
        with _fsdp_whole(model):
            yield


@contextlib.contextmanager
def _fsdp_whole(model: Any) -> Iterator[None]:
    units = _units(model)
    groups = [group for unit in units for group in unit._get_fsdp_state()._fsdp_param_groups]
    before = [group.post_forward_mesh_info for group in groups]
    if units:
        # Else done in the first pass, which a rank without a question never makes.
        model._get_fsdp_state()._lazy_init()
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        with contextlib.ExitStack() as stack:
            # transformers' generate asks it, and would wait for the other ranks after every token.
            mark = "_is_fsdp_managed_module"
            for module in [module for module in model.modules() if mark in vars(module)]:
                stack.enter_context(overriding(module, mark, False))
            yield
    finally:
        for group, mesh in zip(groups, before, strict=True):
            group.post_forward_mesh_info = mesh
        if units:
            # Also forgets the passes that were made: ranks that made fewer would foresee other ones.
            model.reset_iter_state()


def whole_state(model: Any) -> dict[str, torch.Tensor] | None:
    """All weights in the main memory of the first rank, none on the others; None for a model that is whole.

    Of a model with an adapter, the weights that are trained.
    """
    if not spread(model):
        return None
    if zero.spread(model):
        return zero.whole_state(model)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=hasattr(model, "peft_config")
    )
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    # Gathered twice, where one tensor has two names.
    return {name: tensor for name, tensor in state.items() if name not in model.all_tied_weights_keys}


def load_whole_state(model: Any, state: dict[str, Any]) -> None:
    """Give a model of FSDP2 the weights that :func:`whole_state` had, known to the first rank alone."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(
        full_state_dict=True, broadcast_from_rank0=True, strict=not hasattr(model, "peft_config")
    )
    set_model_state_dict(model, state, options=options)
