"""The tiny config with batches and step counts that a test can afford; dev chooses, as by default."""

from __future__ import annotations

from dataclasses import replace

from surgery_r1.train.config import TrainConfig, load_config


def small(**changes) -> TrainConfig:
    """``small(sft_max_steps=3)`` sets ``sft.max_steps``."""
    config = load_config("tiny")
    base = {
        "sft": {"batch_size": 4, "max_steps": 4, "eval_every": 2, "patience": 0, "warmup_steps": 0},
        "rft": {"prompts": 2, "generations": 4, "max_steps": 4, "eval_every": 2, "warmup_steps": 0},
        "eval": {"dev_samples": 4, "batch_size": 4, "max_new_tokens": 24, "choose": "best"},
        "lora": {"rank": 4},
        "ranks": {},
        "model": {},
    }
    base["rft"] |= {"max_completion": 24, "learning_rate": 1e-3, "rollouts_every": 1}
    for name, value in changes.items():
        table, _, key = name.partition("_")
        base[table][key] = value
    return replace(config, **{table: replace(getattr(config, table), **values) for table, values in base.items()})
