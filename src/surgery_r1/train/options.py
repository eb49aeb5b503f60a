"""What both stages hand to TRL: pass-through options with privacy switched on, LoRA, and what is trained."""

from __future__ import annotations

import difflib
import logging
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.run_folder import LOCAL_TRACKERS

logger = logging.getLogger(__name__)

#: Options that send weights, metrics, completions or frames elsewhere, and what they are held at.
_PRIVATE: dict[str, Any] = {
    **dict.fromkeys(("push_to_hub", "log_multimodal", "trust_remote_code"), False),
    **dict.fromkeys(("hub_model_id", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision")),
    **dict.fromkeys(("log_completions_hub_repo", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")),
    "hub_strategy": "every_save",
    "report_to": "none",
}

#: Options that the config sets by names of its own.
_OWNED: dict[str, str] = {
    **{name: name for name in ("learning_rate", "max_steps", "warmup_steps", "temperature", "seed")},
    "output_dir": "--out",
    "per_device_train_batch_size": "batch_size or micro_batch",
    "gradient_accumulation_steps": "micro_batch",
    "num_generations": "generations",
    "max_completion_length": "max_completion",
    "reward_weights": "rewards",
    "save_steps": "eval_every",
    "save_strategy": "eval_every",
    "shuffle_dataset": "questions_per_frame",
}


#: Options that come too late: the processes of a run join before a config is read (:mod:`surgery_r1.train.ranks`).
_FIXED = ("ddp_backend", "ddp_timeout")

#: Ways to spread a model that ``ranks.shard`` sets up, with what this project needs of them.
_SPREAD = ("fsdp", "fsdp_config", "deepspeed")


@dataclass(frozen=True, slots=True)
class Permissions:
    """What the user allowed by flags."""

    hub: bool = False
    upload: bool = False


def tracker(config: TrainConfig, allowed: Permissions) -> str:
    """The tracker to report to.

    Raises:
        SurgeryR1Error: for one that uploads, without --allow-upload.
    """
    if config.tracker not in LOCAL_TRACKERS and not allowed.upload:
        raise SurgeryR1Error(
            f"tracker {config.tracker!r} may send metrics to another machine",
            fix=f"use one of {list(LOCAL_TRACKERS)}, or give --allow-upload",
        )
    return config.tracker


def trl_arguments(
    kind: type, stage: str, ours: dict[str, Any], config: TrainConfig, out: Path, allowed: Permissions
) -> tuple[Any, list[str]]:
    """TRL's config object: defaults for this machine, what both stages set, ours, then the pass-through table.

    Options that would send data elsewhere are held off unless ``--allow-upload`` was given; each one held off is
    logged and returned.

    Args:
        kind: TRL's config dataclass.
        stage: the table of the config that is read, ``sft`` or ``rft``.
        ours: options that this stage alone sets.
        out: the run folder.

    Returns:
        The config object, and the names that were held off.

    Raises:
        SurgeryR1Error: for a name that TRL does not know, or that the config sets under another name, for values that
            TRL refuses, or a tracker that is not allowed.
    """
    settings, table = getattr(config, stage), f"{stage}.trl"
    known = {f.name for f in fields(kind)}
    cuda = torch.cuda.is_available()
    ours = {
        "output_dir": str(out / "checkpoints"),
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "max_steps": settings.max_steps,
        "save_strategy": "steps",
        "save_steps": settings.eval_every,
        "save_total_limit": 2,
        "seed": config.seed,
        "report_to": tracker(config, allowed),
        **ours,
    }
    # Every weight that is trained has a part in every pass.
    options: dict[str, Any] = {"ddp_find_unused_parameters": False}
    options |= {"use_cpu": not cuda, **precision_of({}, cuda), "disable_tqdm": True}
    options |= {name: value for name, value in _PRIVATE.items() if name in known} | ours
    held: list[str] = []
    for name, value in settings.trl.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"see the options of TRL's {kind.__name__}"
            raise SurgeryR1Error(f"[{table}] unknown option {name!r}", fix=hint)
        if name in _OWNED and name in ours:
            raise SurgeryR1Error(f"[{table}] sets {name!r}", fix=f"set {_OWNED[name]} instead")
        if name in _FIXED:
            raise SurgeryR1Error(f"[{table}] sets {name!r}", fix="leave it out: the processes have joined already")
        if name in _SPREAD:
            raise SurgeryR1Error(f"[{table}] sets {name!r}", fix="set ranks.shard instead")
        if name in _PRIVATE and value != _PRIVATE[name] and not allowed.upload:
            held.append(name)
            warning = "[%s] %s = %r is not set: it may send data to another machine; give --allow-upload to set it"
            logger.warning(warning, table, name, value)
        else:
            options[name] = value
    return _refusable(kind, options, table), held


def precision_of(table: dict[str, Any], gpu: bool) -> dict[str, bool]:
    """Mixed precision and checkpointing: on with a GPU, off without, unless the pass-through table says otherwise."""
    checkpointing = table.get("activation_checkpointing", table.get("gradient_checkpointing", gpu))
    return {"bf16": bool(table.get("bf16", gpu)), "gradient_checkpointing": bool(checkpointing)}


def _refusable(kind: type, options: dict[str, Any], table: str) -> Any:
    try:
        return kind(**options)
    except (ValueError, TypeError, NotImplementedError) as error:
        what = " ".join(str(error).split())
        raise SurgeryR1Error(f"[{table}] TRL refuses: {what}", fix="correct the option") from error


#: Projections of attention and MLP, and of the tower's attention.
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv", "gate_proj", "up_proj", "down_proj")


def lora_of(config: TrainConfig) -> Any:
    """PEFT's configuration for the language model's linear layers, or None to train all weights."""
    if not config.lora.enabled:
        return None
    from peft import LoraConfig

    names = "|".join(re.escape(name) for name in config.lora.targets or _TARGETS)
    return LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        # The vision tower's layers have the same names and stay out while it is frozen.
        target_modules=rf".*({_where(config)}).*\.({names})",
        task_type="CAUSAL_LM",
    )


def _where(config: TrainConfig) -> str:
    """Which parts of a model may get adapters, as a pattern of module names."""
    return "language_model" if config.model.freeze_vision else "language_model|visual.*"


def check_lora_targets(model: Any, config: TrainConfig) -> None:
    """Raises SurgeryR1Error for ``lora.targets`` that no linear layer of the model is called."""
    if not (config.lora.enabled and config.lora.targets):
        return
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    there = sorted({name.rpartition(".")[2] for name in linear if re.match(rf".*({_where(config)})", name)})
    if wrong := [name for name in config.lora.targets if name not in there]:
        raise SurgeryR1Error(
            f"lora.targets names {', '.join(map(repr, wrong))}, which no layer that may get an adapter is called",
            fix=f"use some of {', '.join(there)}",
        )


def freeze(model: Any, config: TrainConfig) -> None:
    """Without LoRA: train everything but, if asked, the vision tower. PEFT freezes by itself."""
    if config.lora.enabled:
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (config.model.freeze_vision and ".visual." in f".{name}"))
