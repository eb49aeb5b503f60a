"""Stage one: supervised fine-tuning (SFT) with TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import SFTConfig

from surgery_r1.models.sharing import attention
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.fit import FitOptions, TrainResult, fit
from surgery_r1.train.options import Permissions, freeze, lora_of, trl_arguments
from surgery_r1.train.sharing.sft_packing import FramePackCollator, PlainPackCollator, packed
from surgery_r1.train.step_shares import TokenMeanSFTTrainer, passes

if TYPE_CHECKING:
    from datasets import Dataset as HFDataset


def sft_arguments(config: TrainConfig, out: Path, allowed: Permissions) -> tuple[Any, list[str]]:
    """TRL's SFTConfig, and the names of pass-through options that were held off.

    Raises:
        SurgeryR1Error: for options that TRL does not know or refuses, a tracker that is not allowed, or a batch that
            the processes do not divide.
    """
    sft = config.sft
    micro, accumulation = passes(
        "sft.batch_size", sft.batch_size, sft.micro_batch, "packs" if sft.rows_per_frame else "rows"
    )
    ours = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "logging_steps": 5,
        # Truncation would cut image tokens; rows are short.
        "max_length": None,
        "remove_unused_columns": False,
    }
    return trl_arguments(SFTConfig, "sft", ours, config, out, allowed)


def train_sft(
    config: TrainConfig, arguments: Any, model: Any, processor: Any, rows: HFDataset, options: FitOptions
) -> TrainResult:
    """Train on ``rows`` until dev no longer improves or ``sft.max_steps`` is reached.

    Args:
        arguments: from :func:`sft_arguments`.
        rows: from :func:`surgery_r1.train.datasets.sft_dataset`.
    """
    freeze(model, config)
    collator = None
    if config.sft.rows_per_frame:
        system = rows[0]["prompt"][0]["content"]
        kind = FramePackCollator if attention.enable(model) else PlainPackCollator
        collator = kind(processor, system, model.model.get_rope_index)
        rows = packed(rows, collator, config)

    trainer = {"model": model, "args": arguments, "train_dataset": rows, "processing_class": processor}
    trainer |= {"data_collator": collator, "peft_config": lora_of(config)}
    return fit("sft", TokenMeanSFTTrainer, trainer, options, every=config.sft.eval_every, patience=config.sft.patience)
