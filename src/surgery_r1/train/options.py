"""What both stages share: pass-through options with privacy switched on, adapters, and what is trained."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from surgery_r1._util.files import read_json
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.load import INFO_FILE, ModelInfo
from surgery_r1.models.save import recover
from surgery_r1.train.callbacks import DevCallback
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.run_folder import LOCAL_TRACKERS, prune_metrics

#: Options that send weights, metrics, completions or frames elsewhere, and what they are held at.
_PRIVATE: dict[str, Any] = {
    "push_to_hub": False,
    "hub_model_id": None,
    "hub_token": None,
    "hub_strategy": "every_save",
    "hub_private_repo": None,
    "hub_always_push": False,
    "hub_revision": None,
    "log_completions_hub_repo": None,
    "log_multimodal": False,
    "trackio_space_id": None,
    "trackio_bucket_id": None,
    "trackio_static_space_id": None,
    "report_to": "none",
    "trust_remote_code": False,
}

#: Options that the config sets by names of its own.
_OWNED: dict[str, str] = {
    "output_dir": "--out",
    "learning_rate": "learning_rate",
    "max_steps": "max_steps",
    "warmup_steps": "warmup_steps",
    "per_device_train_batch_size": "batch_size or micro_batch",
    "gradient_accumulation_steps": "micro_batch",
    "num_generations": "generations",
    "temperature": "temperature",
    "max_completion_length": "max_completion",
    "reward_weights": "rewards",
    "seed": "seed",
    "save_steps": "eval_every",
    "save_strategy": "eval_every",
    "shuffle_dataset": "questions_per_frame",
}


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


def trl_options(
    kind: type, ours: dict[str, Any], passed: dict[str, Any], allowed: Permissions, table: str
) -> tuple[dict[str, Any], list[str]]:
    """Options for TRL's config class: defaults for this machine, ours, then the pass-through table.

    Options that would send data elsewhere are held off unless ``--allow-upload`` was given; each one held off is
    reported on standard error and returned.

    Args:
        kind: TRL's config dataclass.
        ours: options set by this project's own config keys.
        passed: the ``[table]`` of the config file.

    Returns:
        The options, and the names that were held off.

    Raises:
        SurgeryR1Error: for a name that TRL does not know, or that the config sets under another name.
    """
    import difflib

    import torch

    known = {f.name for f in fields(kind)}
    held: list[str] = []
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {"use_cpu": not cuda, "bf16": cuda, "gradient_checkpointing": cuda, "disable_tqdm": True}
    options |= {name: value for name, value in _PRIVATE.items() if name in known} | ours
    for name, value in passed.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"see the options of TRL's {kind.__name__}"
            raise SurgeryR1Error(f"[{table}] unknown option {name!r}", fix=hint)
        if name in _OWNED and name in ours:
            raise SurgeryR1Error(f"[{table}] sets {name!r}", fix=f"set {_OWNED[name]} instead")
        if name in _PRIVATE and value != _PRIVATE[name] and not allowed.upload:
            held.append(name)
            sys.stderr.write(
                f"warning: [{table}] {name} = {value!r} is held off: it may send data away; --allow-upload\n"
            )
            continue
        options[name] = value
    return options, held


def lora_of(config: TrainConfig) -> Any:
    """PEFT's configuration for the language model's linear layers, or None to train all weights."""
    if not config.lora.enabled:
        return None
    from peft import LoraConfig

    tower = "" if config.model.freeze_vision else "|visual.*"
    return LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        # Projections of attention and MLP; the vision tower's have the same names and stay out while it is frozen.
        target_modules=rf".*(language_model{tower}).*\.(q_proj|k_proj|v_proj|o_proj|qkv|gate_proj|up_proj|down_proj)",
        task_type="CAUSAL_LM",
    )


def freeze(model: Any, config: TrainConfig) -> None:
    """Without LoRA: train everything but, if asked, the vision tower. PEFT freezes by itself."""
    if config.lora.enabled:
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (config.model.freeze_vision and ".visual." in f".{name}"))


def trl_config(kind: type, options: dict[str, Any], table: str) -> Any:
    """TRL's config object.

    Raises:
        SurgeryR1Error: for values that TRL refuses.
    """
    try:
        return kind(**options)
    except (ValueError, TypeError, NotImplementedError) as error:
        what = " ".join(str(error).split())
        raise SurgeryR1Error(f"[{table}] TRL refuses: {what}", fix="correct the option") from error


def resume_point(out: Path, dev: DevCallback, *, resume: bool, cycle: int = 1) -> str | None:
    """The checkpoint to resume from, None to begin; brings ``metrics.jsonl``, ``best`` and ``dev`` back to it."""
    if not resume:
        return None
    checkpoint = last_checkpoint(out / "checkpoints", cycle)
    step = _step_of(checkpoint) if checkpoint else -1
    recover(out / "best")
    info = ModelInfo.read(out / "best") if (out / "best" / INFO_FILE).is_file() else None
    dev.restore(prune_metrics(out, step), info.step if info else None)
    return str(checkpoint) if checkpoint else None


def run_trainer(trainer: Any, dev: DevCallback, checkpoint: str | None) -> int:
    """Train to the end; the steps done in all.

    A run whose last checkpoint already is the end of training is only finished: the trainer would take another step.
    """
    done = _step_of(Path(checkpoint)) if checkpoint else 0
    if done >= trainer.args.max_steps or dev.out_of_patience:
        trainer._load_from_checkpoint(checkpoint)
        trainer.state.global_step = done
        dev.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    return int(trainer.state.global_step)


def resumable(kind: type) -> type:
    """A trainer class whose full-weight checkpoints load.

    transformers saves Qwen-VL models under the published tensor names but loads a trainer checkpoint by the names in
    memory, finds none of them, and goes on with the weights of the base after a mere warning.
    """

    class Resumable(kind):  # type: ignore[misc, valid-type]
        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            from transformers import AutoModelForImageTextToText

            target = model or self.model
            if hasattr(target, "peft_config"):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
                return
            loaded = AutoModelForImageTextToText.from_pretrained(
                resume_from_checkpoint, dtype=target.dtype, use_safetensors=True, local_files_only=True
            )
            target.load_state_dict(loaded.state_dict())

    Resumable.__name__ = Resumable.__qualname__ = kind.__name__
    return Resumable


def last_checkpoint(folder: Path, cycle: int = 1) -> Path | None:
    """The newest whole trainer checkpoint below ``folder``; a torn one is passed over with a warning.

    Args:
        cycle: steps between places where training can resume; a checkpoint in between is passed over.
    """
    for path in sorted(folder.glob("checkpoint-[0-9]*"), key=_step_of, reverse=True):
        if not _whole(path):
            sys.stderr.write(f"warning: {path} is incomplete and is passed over\n")
        elif _step_of(path) % cycle:
            sys.stderr.write(f"warning: {path} lies inside a generation cycle and is passed over\n")
        else:
            return path
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _whole(checkpoint: Path) -> bool:
    """Whether the save came to its end: the trainer writes its state last."""
    try:
        state = read_json(checkpoint / "trainer_state.json")
    except SurgeryR1Error:
        return False
    return state.get("global_step") == _step_of(checkpoint) and any(checkpoint.glob("rng_state*.pth"))
