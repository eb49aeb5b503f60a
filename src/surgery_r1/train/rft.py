"""Stage two: reinforcement fine-tuning (RFT), GRPO with rule-based rewards, with TRL's GRPOTrainer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.rewards import Mixture, trl_rewards
from surgery_r1.train.callbacks import DevCallback, Metrics, Recorder, StopOnSignal, finish
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.options import (
    Permissions,
    freeze,
    lora_of,
    resumable,
    resume_point,
    run_trainer,
    tracker,
    trl_config,
    trl_options,
)

if TYPE_CHECKING:
    from datasets import Dataset as HFDataset


def rft_arguments(config: TrainConfig, out: Path, allowed: Permissions) -> tuple[Any, list[str]]:
    """TRL's GRPOConfig, and the names of pass-through options that were held off.

    Raises:
        SurgeryR1Error: for unknown rewards, options that TRL does not know or refuses, options that do not fit
            together, or a tracker that is not allowed.
    """
    from trl import GRPOConfig

    rft = config.rft
    completions = rft.prompts * rft.generations
    micro = rft.micro_batch or completions
    options, held = trl_options(
        GRPOConfig,
        {
            "output_dir": str(out / "checkpoints"),
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": completions // micro,
            "num_generations": rft.generations,
            "learning_rate": rft.learning_rate,
            "warmup_steps": rft.warmup_steps,
            "max_steps": rft.max_steps,
            "temperature": rft.temperature,
            "max_completion_length": rft.max_completion,
            "reward_weights": Mixture(rft.rewards).weights_normalised,
            # Questions of one frame stay one after the other.
            **({"shuffle_dataset": False} if rft.questions_per_frame > 1 else {}),
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": rft.eval_every,
            "save_total_limit": 2,
            "seed": config.seed,
            "report_to": tracker(config, allowed),
        },
        {"multi_objective_aggregation": "normalize_then_sum", **rft.trl},
        allowed,
        "rft.trl",
    )
    args = trl_config(GRPOConfig, options, "rft.trl")
    cycle = generation_cycle(args)
    if rft.eval_every % cycle:
        raise SurgeryR1Error(
            f"rft.eval_every = {rft.eval_every} is no multiple of the generation cycle of {cycle} steps",
            fix="TRL can resume only where a cycle ends: make it a multiple",
        )
    return args, held


def train_rft(
    config: TrainConfig,
    arguments: Any,
    model: Any,
    processor: Any,
    prompts: HFDataset,
    out: Path,
    *,
    evaluate: Callable[[Any], Metrics],
    keep: Callable[[Any, int], None],
    write: Callable[[dict[str, Any]], None],
    resume: bool = False,
    quiet: bool = False,
    last: bool = False,
) -> dict[str, Any]:
    """GRPO on ``prompts`` for ``rft.max_steps`` steps; dev chooses the checkpoint, the starting model included.

    Args:
        arguments: from :func:`rft_arguments`.
        prompts: from :func:`surgery_r1.train.datasets.rft_dataset`.
        out, evaluate, keep, write, last: see :func:`surgery_r1.train.sft.train_sft`.

    Returns:
        Where the best model lies, its step and its value on dev.
    """
    from transformers import PrinterCallback
    from trl import GRPOTrainer

    from surgery_r1.models.sharing import attention as tree_attention
    from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer

    cycle = generation_cycle(arguments)
    freeze(model, config)
    dev = DevCallback("rft", evaluate, keep, write, every=config.rft.eval_every, baseline=True, last=last)
    stop = StopOnSignal(cycle)
    recorder = Recorder("rft", write, quiet=quiet)
    share = config.rft.share_frames and tree_attention.enable(model)
    kind = SharedFrameGRPOTrainer if share else GRPOTrainer
    trainer = resumable(kind)(
        model=model,
        args=arguments,
        reward_funcs=[*trl_rewards(config.rft.rewards, seed=config.seed)],
        train_dataset=prompts,
        processing_class=processor,
        peft_config=lora_of(config),
        callbacks=[dev, stop, recorder],
        **({"keep_order": config.rft.questions_per_frame > 1} if share else {}),
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = resume_point(out, dev, resume=resume, cycle=cycle)
    with stop.listening(), contextlib.closing(recorder):
        steps = run_trainer(trainer, dev, checkpoint)
    return {**finish(out, dev, stop.stopped), "steps": steps}


def generation_cycle(args: Any) -> int:
    """Optimiser steps between two generations of rollouts, at whose ends alone TRL can resume."""
    micro_steps = math.lcm(args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps)
    return micro_steps // args.gradient_accumulation_steps
