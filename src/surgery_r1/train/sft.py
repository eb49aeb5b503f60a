"""Stage one: supervised fine-tuning (SFT) with TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1.config import TrainConfig
from surgery_r1.files import read_jsonl
from surgery_r1.train.callbacks import DevCallback, Metrics, Recorder, StopOnSignal, finish
from surgery_r1.train.common import Permissions, freeze, last_checkpoint, lora_of, tracker, trl_options

if TYPE_CHECKING:
    from datasets import Dataset as HFDataset


def train_sft(
    config: TrainConfig,
    model: Any,
    processor: Any,
    rows: HFDataset,
    out: Path,
    *,
    evaluate: Callable[[Any], Metrics],
    keep: Callable[[Any], None],
    write: Callable[[dict[str, Any]], None],
    allowed: Permissions,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train on ``rows`` until dev no longer improves or ``sft.max_steps`` is reached.

    Args:
        rows: from :func:`surgery_r1.train.data.sft_dataset`.
        out: run folder; trainer checkpoints go to ``out/checkpoints``.
        evaluate, keep, write: see :class:`surgery_r1.train.callbacks.DevCallback`.

    Returns:
        Where the best model lies, its step and its value on dev.
    """
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    sft = config.sft
    options, held = trl_options(
        SFTConfig,
        {
            "output_dir": str(out / "checkpoints"),
            "per_device_train_batch_size": sft.batch_size,
            "learning_rate": sft.learning_rate,
            "warmup_steps": sft.warmup_steps,
            "max_steps": sft.max_steps,
            "logging_steps": 5,
            "save_strategy": "steps",
            "save_steps": sft.eval_every,
            "save_total_limit": 2,
            "seed": config.seed,
            # Truncation would cut image tokens; rows are short.
            "max_length": None,
            "report_to": tracker(config, allowed),
        },
        sft.trl,
        allowed,
        "sft.trl",
    )
    freeze(model, config)
    dev = DevCallback("sft", evaluate, keep, write, every=sft.eval_every, patience=sft.patience)
    stop = StopOnSignal()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**options),
        train_dataset=rows,
        processing_class=processor,
        peft_config=lora_of(config),
        # Dev goes first, so that the checkpoint of a step holds what was decided there.
        callbacks=[dev, stop, Recorder("sft", write, quiet=quiet)],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(out / "checkpoints") if resume else None
    if checkpoint is not None:
        dev.restore([record for _, record in read_jsonl(out / "metrics.jsonl")], int(checkpoint.name.split("-")[1]))
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return {**finish(out, dev, stop.asked), "steps": trainer.state.global_step, "held_off": held}
