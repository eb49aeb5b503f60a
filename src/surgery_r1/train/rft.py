"""Stage two: reinforcement fine-tuning (RFT), GRPO with rule-based rewards, with TRL's GRPOTrainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1.config import TrainConfig
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.files import read_jsonl
from surgery_r1.rewards import Mixture, trl_rewards
from surgery_r1.train.callbacks import DevCallback, Metrics, Recorder, StopOnSignal, finish
from surgery_r1.train.common import Permissions, freeze, last_checkpoint, lora_of, tracker, trl_options

if TYPE_CHECKING:
    from datasets import Dataset as HFDataset


def train_rft(
    config: TrainConfig,
    model: Any,
    processor: Any,
    prompts: HFDataset,
    out: Path,
    *,
    evaluate: Callable[[Any], Metrics],
    keep: Callable[[Any], None],
    write: Callable[[dict[str, Any]], None],
    allowed: Permissions,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """GRPO on ``prompts`` for ``rft.max_steps`` steps; dev chooses the checkpoint, the starting model included.

    Args:
        prompts: from :func:`surgery_r1.train.data.rft_dataset`.
        out, evaluate, keep, write: see :func:`surgery_r1.train.sft.train_sft`.

    Returns:
        Where the best model lies, its step and its value on dev.

    Raises:
        SurgeryR1Error: for unknown rewards or options that do not fit together.
    """
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    rft = config.rft
    mixture = Mixture(rft.rewards)
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
            "reward_weights": mixture.weights_normalised,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_total_limit": 2,
            "seed": config.seed,
            "report_to": tracker(config, allowed),
        },
        {"multi_objective_aggregation": "normalize_then_sum", **rft.trl},
        allowed,
        "rft.trl",
    )
    args = GRPOConfig(**options)
    cycle = generation_cycle(args)
    if rft.eval_every % cycle:
        raise SurgeryR1Error(
            f"rft.eval_every = {rft.eval_every} is no multiple of the generation cycle of {cycle} steps",
            fix="TRL can resume only where a cycle ends: make it a multiple",
        )
    args.save_steps = rft.eval_every
    freeze(model, config)
    dev = DevCallback("rft", evaluate, keep, write, every=rft.eval_every, baseline=True)
    stop = StopOnSignal(cycle)
    trainer = GRPOTrainer(
        model=model,
        args=args,
        reward_funcs=trl_rewards(mixture.names, seed=config.seed),
        train_dataset=prompts,
        processing_class=processor,
        peft_config=lora_of(config),
        callbacks=[dev, stop, Recorder("rft", write, quiet=quiet)],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(out / "checkpoints") if resume else None
    if checkpoint is not None:
        dev.restore([record for _, record in read_jsonl(out / "metrics.jsonl")], int(checkpoint.name.split("-")[1]))
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return {**finish(out, dev, stop.asked), "steps": trainer.state.global_step, "held_off": held}


def generation_cycle(args: Any) -> int:
    """Optimiser steps between two generations of rollouts, at which alone TRL can resume."""
    per_generation = args.steps_per_generation * args.num_iterations
    return max(1, per_generation // args.gradient_accumulation_steps)
