"""What a trainer has counted for its logs and not yet written: kept with a checkpoint, so that a resumed run logs on.

transformers and TRL begin these counts anew when a run is resumed: the window of steps that a loss is averaged over,
the sum of all losses, the tokens seen, and TRL's metrics since the last log. All names are private to them;
``tests/test_train.py`` fails when they change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from surgery_r1._util.files import read_json
from surgery_r1.train import ranks


def _log_file(checkpoint: Path) -> Path:
    """Beside the trainer's own state; a rank counts its own losses."""
    return checkpoint / (f"log_state_{ranks.index()}.json" if ranks.count() > 1 else "log_state.json")


def save_logs(trainer: Any, checkpoint: Path) -> None:
    """Write the counts of ``trainer`` into a checkpoint folder."""
    state = {
        "loss_since_log": trainer._tr_loss.item(),
        "loss_before": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        "tokens": trainer._total_train_tokens,
        "metrics": trainer._metrics["train"],
    }
    # A reward that applies to nothing in a step is NaN in TRL's metrics.
    checkpoint.mkdir(parents=True, exist_ok=True)
    _log_file(checkpoint).write_text(json.dumps(state, allow_nan=True), encoding="utf-8")


def restore_logs(trainer: Any, checkpoint: Path) -> None:
    """Give ``trainer`` the counts that :func:`save_logs` wrote."""
    state = read_json(_log_file(checkpoint))
    trainer._tr_loss = torch.tensor(state["loss_since_log"], device=trainer.args.device)
    trainer._total_loss_scalar = state["loss_before"]
    trainer._globalstep_last_logged = state["last_logged"]
    trainer._total_train_tokens = state["tokens"]
    trainer._metrics["train"].update(state["metrics"])


class RestoreLogs(TrainerCallback):
    """Restores the counts of a checkpoint after the trainer has set its own to zero.

    Args:
        checkpoint: the one that the run resumes from, if any.
    """

    def __init__(self, trainer: Any, checkpoint: str | None) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.checkpoint is not None:
            restore_logs(self.trainer, Path(self.checkpoint))
