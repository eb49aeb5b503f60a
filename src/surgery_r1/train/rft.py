"""Stage two: reinforcement fine-tuning (RFT), GRPO with rule-based rewards, with TRL's GRPOTrainer."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import GRPOConfig, GRPOTrainer

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.sharing import attention
from surgery_r1.rewards import Mixture, trl_rewards
from surgery_r1.train import ranks
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.fit import FitOptions, TrainResult, fit
from surgery_r1.train.options import Permissions, freeze, lora_of, trl_arguments
from surgery_r1.train.rollouts.recorder import RolloutRecorder
from surgery_r1.train.rollouts.trainer import ServerGRPOTrainer, SharedFrameServerGRPOTrainer
from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer, WholeModelGRPOTrainer
from surgery_r1.train.step_shares import passes

if TYPE_CHECKING:
    from datasets import Dataset as HFDataset


def rft_arguments(config: TrainConfig, out: Path, allowed: Permissions) -> tuple[Any, list[str]]:
    """TRL's GRPOConfig, and the names of pass-through options that were held off.

    Raises:
        SurgeryR1Error: for unknown rewards, options that TRL does not know or refuses, options that do not fit
            together, questions that the processes do not divide, or a tracker that is not allowed.
    """
    rft = config.rft
    completions = rft.prompts * rft.generations
    micro, accumulation = passes("rft.prompts", completions, rft.micro_batch, "questions", rft.generations)
    ours = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "num_generations": rft.generations,
        "temperature": rft.temperature,
        "max_completion_length": rft.max_completion,
        "reward_weights": Mixture(rft.rewards).weights_normalised,
        "multi_objective_aggregation": "normalize_then_sum",
        # Questions of one frame stay one after the other.
        **({"shuffle_dataset": False} if rft.questions_per_frame > 1 else {}),
        "logging_steps": 1,
    }
    if rft.trl.get("use_vllm"):
        raise SurgeryR1Error(
            "rft.trl.use_vllm: TRL gives vLLM prompts whose image tokens are expanded, and vLLM expands them again",
            fix="let this project start vLLM (--set rft.rollouts=colocate), or name a server (rft.rollouts=server and "
            "--endpoint URL)",
        )
    args, held = trl_arguments(GRPOConfig, "rft", ours, config, out, allowed)
    if args.loss_type == "bnpo" and accumulation * ranks.count() > 1:
        raise SurgeryR1Error(
            "rft.trl.loss_type = 'bnpo' averages each pass of each process alone, so that tokens weigh unequally",
            fix="take 'dapo', which is the same over the whole step",
        )
    cycle = generation_cycle(args)
    if rft.eval_every % cycle:
        raise SurgeryR1Error(
            f"rft.eval_every = {rft.eval_every} is no multiple of the generation cycle of {cycle} steps",
            fix="TRL can resume only where a cycle ends: make it a multiple",
        )
    return args, held


def train_rft(
    config: TrainConfig, arguments: Any, model: Any, processor: Any, prompts: HFDataset, options: FitOptions
) -> TrainResult:
    """GRPO on ``prompts`` for ``rft.max_steps`` steps; where dev chooses the model, the start is a candidate too.

    Args:
        arguments: from :func:`rft_arguments`.
        prompts: from :func:`surgery_r1.train.datasets.rft_dataset`.
    """
    freeze(model, config)
    sampling = options.sampling
    share = config.rft.share_frames and attention.enable(model)
    trainer = {"model": model, "args": arguments, "train_dataset": prompts, "processing_class": processor}
    trainer |= {"reward_funcs": trl_rewards(config.rft.rewards, seed=config.seed), "peft_config": lora_of(config)}
    cycle = generation_cycle(arguments)
    trainer["recorder"] = RolloutRecorder(options.out, config.rft.rollouts_every, config.rft.generations, cycle)
    if share:
        trainer["keep_order"] = config.rft.questions_per_frame > 1
    kind: type[GRPOTrainer] = SharedFrameGRPOTrainer if share else WholeModelGRPOTrainer
    if sampling is not None:
        trainer["sampling"] = sampling
        kind = SharedFrameServerGRPOTrainer if share else ServerGRPOTrainer
    with contextlib.closing(sampling) if sampling is not None else contextlib.nullcontext():
        if sampling is not None:
            sampling.start(model, options.describe, bf16=arguments.bf16)
        return fit("rft", kind, trainer, options, cycle, every=config.rft.eval_every, baseline=True)


def refuse_too_few(arguments: Any, questions: int) -> None:
    """TRL takes whole steps only, and would end without one.

    Args:
        arguments: from :func:`rft_arguments`.
        questions: to train on.

    Raises:
        SurgeryR1Error: when they do not fill what is generated at a time.
    """
    needed = arguments.generation_batch_size // arguments.num_generations
    if questions < needed:
        raise SurgeryR1Error(
            f"{questions} training questions, but {needed} are asked at a time",
            fix=f"set rft.prompts to {questions} or less, or build a larger dataset",
        )


def generation_cycle(args: Any) -> int:
    """Optimiser steps between two generations of rollouts, at whose ends alone TRL can resume."""
    micro_steps = math.lcm(args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps)
    return micro_steps // args.gradient_accumulation_steps
