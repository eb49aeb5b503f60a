"""DeepSpeed's ways to spread a model, ZeRO-2 and ZeRO-3: what :mod:`surgery_r1.train.shards` does for them.

DeepSpeed is no requirement of this package: ``pip install deepspeed``. Nothing here imports it before it is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
import transformers.generation.utils
from accelerate.utils import DeepSpeedPlugin, parse_flag_from_env

from surgery_r1._util import launcher
from surgery_r1._util.overriding import overriding
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.train import ranks

#: What this project's config owns: rows of a pass, passes of a step, clipping.
_OURS = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")


def launched_stage() -> int:
    """The stage that ``accelerate launch --use_deepspeed`` asks for, 0 where it was not used."""
    if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return 0
    _installed()
    return int(DeepSpeedPlugin().zero_stage)


def _installed() -> None:
    if find_spec("deepspeed") is None:
        raise SurgeryR1Error(
            "ZeRO needs DeepSpeed, which is not installed", fix="pip install deepspeed, or set ranks.shard = 'fsdp2'"
        )


def plugin_for(stage: int, arguments: Any) -> Any:
    """accelerate's plugin for a trainer made with ``arguments``: the launcher's settings, or plain ones.

    Raises:
        SurgeryR1Error: without DeepSpeed.
    """
    _installed()
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    settings: dict[str, Any] = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": "auto"}}
    if arguments.deepspeed_plugin is not None:
        settings = arguments.deepspeed_plugin.deepspeed_config
    settings |= {**dict.fromkeys(_OURS, "auto"), "zero_allow_untested_optimizer": True}
    # The optimiser is the one that the config names.
    settings["zero_force_ds_cpu_optimizer"] = False
    arguments.hf_deepspeed_config = HfTrainerDeepSpeedConfig(settings)
    arguments.hf_deepspeed_config.trainer_config_process(arguments)
    if hasattr(arguments, "ds3_gather_for_generation"):
        # Done by :func:`whole`, of dev questions too.
        arguments.ds3_gather_for_generation = False
    launcher.tell(ACCELERATE_USE_DEEPSPEED="true")
    return DeepSpeedPlugin(hf_ds_config=arguments.hf_deepspeed_config)


def forget_settings() -> None:
    """Have transformers load models whole: it would spread them at once where it knows of ZeRO-3."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def spread(model: Any) -> bool:
    """Whether ZeRO-3 has spread the weights."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def to_parts(model: Any, plugin: Any) -> None:
    """Spread the weights of the first rank, for ZeRO-3, one by one; DeepSpeed itself moves them all to a GPU first."""
    import deepspeed

    settings = dict(plugin.deepspeed_config)
    # Not known yet, and of no effect here.
    settings |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 0.0}
    settings.pop("train_batch_size", None)
    deepspeed.zero.Init(module=model, config_dict_or_path=settings)


@contextlib.contextmanager
def whole(model: Any) -> Iterator[None]:
    """As :func:`surgery_r1.train.shards.whole`, for ZeRO-3."""
    import deepspeed

    with contextlib.ExitStack() as stack:
        # transformers' generate would wait for the other ranks after every token.
        asks = (transformers.generation.utils, "is_deepspeed_zero3_enabled", lambda: False)
        stack.enter_context(overriding(*asks))
        stack.enter_context(deepspeed.zero.GatheredParameters(list(model.parameters())))
        stack.enter_context(_without_hooks(model))
        yield


@contextlib.contextmanager
def _without_hooks(model: Any) -> Iterator[None]:
    """DeepSpeed's fetch weights before a layer, let them go after it, and wait for the other ranks in every pass."""
    taken = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            taken.append((hooks, dict(hooks)))
            hooks.clear()
    try:
        yield
    finally:
        for hooks, own in taken:
            hooks.update(own)


def whole_state(model: Any) -> dict[str, torch.Tensor]:
    """As :func:`surgery_r1.train.shards.whole_state`, for ZeRO-3; one tensor at a time is whole on the GPUs."""
    import deepspeed

    trained_only = hasattr(model, "peft_config")
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trained_only:
            with deepspeed.zero.GatheredParameters([parameter]):
                if ranks.index() == 0:
                    state[name] = parameter.detach().cpu().clone()
    return state
