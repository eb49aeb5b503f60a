"""Callbacks of both stages: progress, metrics.jsonl, evaluation on dev, early stop, and a checkpoint on SIGTERM."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

#: Of TRL's logs, what the progress bar shows.
_SHOWN = ("loss", "reward", "rewards/answer/mean", "rewards/box/mean", "rewards/coherence/mean")

Metrics = dict[str, float]


class Recorder(TrainerCallback):
    """Writes every log of the trainer to ``metrics.jsonl`` and shows a progress bar."""

    def __init__(self, stage: str, write: Callable[[dict[str, Any]], None], *, quiet: bool = False) -> None:
        self.stage, self.write, self.quiet = stage, write, quiet
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            shown = not self.quiet
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.stage, disable=not shown)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Metrics | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        # JSON has no NaN: a reward that applied to nothing in this step is left out.
        numbers = {k: v for k, v in logs.items() if isinstance(v, int | float) and math.isfinite(v)}
        self.write({"stage": self.stage, "step": state.global_step, **numbers})
        if self.bar is not None:
            self.bar.set_postfix({k.split("/")[1] if "/" in k else k: f"{logs[k]:.3f}" for k in _SHOWN if k in numbers})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class DevCallback(TrainerCallback):
    """Evaluates on dev every ``every`` steps, keeps the best model, and stops when dev no longer improves.

    Args:
        evaluate: model -> metrics on dev, all in [0, 1].
        keep: called with the model when dev is better than ever.
        metric: what is chosen by.
        patience: evaluations without improvement after which training stops; 0 never stops early.
        baseline: evaluate before the first step too, so that the start counts as a candidate.
    """

    def __init__(
        self,
        stage: str,
        evaluate: Callable[[Any], Metrics],
        keep: Callable[[Any], None],
        write: Callable[[dict[str, Any]], None],
        *,
        every: int,
        patience: int = 0,
        metric: str = "joint",
        baseline: bool = False,
    ) -> None:
        self.stage, self.evaluate, self.keep, self.write = stage, evaluate, keep, write
        self.every, self.patience, self.metric, self.baseline = every, patience, metric, baseline
        self.best = -1.0
        self.best_step = -1
        self.since = 0

    def restore(self, records: list[dict[str, Any]], step: int) -> None:
        """Take up the choice of an interrupted run from its ``metrics.jsonl``, up to ``step``."""
        for record in records:
            value = record.get(f"dev/{self.metric}")
            if value is not None and record.get("stage") == self.stage and record["step"] <= step:
                self._count(value, record["step"])

    def _count(self, value: float, step: int) -> bool:
        better = value > self.best
        if better:
            self.best, self.best_step, self.since = value, step, 0
        else:
            self.since += 1
        return better

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.baseline and state.global_step == 0:
            self._run(state, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._run(state, model)
            if self.patience and self.since >= self.patience:
                control.should_training_stop = True

    def _run(self, state: Any, model: Any) -> None:
        # Every rank evaluates the same questions: no rank waits, and all take the same decision.
        metrics = self.evaluate(model)
        better = self._count(metrics[self.metric], state.global_step)
        if state.is_world_process_zero:
            self.write({"stage": self.stage, "step": state.global_step, **{f"dev/{k}": v for k, v in metrics.items()}})
            if better:
                self.keep(model)


class StopOnSignal(TrainerCallback):
    """On SIGTERM: finish the step, save where training can really resume, and stop.

    Args:
        cycle: optimiser steps between places where the trainer can resume. TRL does not save buffered rollouts, so
            RFT can resume only where a generation cycle ends.
    """

    def __init__(self, cycle: int = 1) -> None:
        self.cycle = cycle
        self.asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.asked and state.global_step % self.cycle == 0:
            control.should_save = True
            control.should_training_stop = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM inside the block. Signals reach the main thread only; elsewhere nothing is installed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(*_: Any) -> None:
            sys.stderr.write("SIGTERM: saving a checkpoint at the end of the step\n")
            self.asked = True

        previous = signal.signal(signal.SIGTERM, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


def finish(folder: Path, dev: DevCallback, stopped: bool) -> dict[str, Any]:
    """What a stage reports when it ends."""
    return {"best": str(folder / "best"), "best_step": dev.best_step, f"dev/{dev.metric}": dev.best, "stopped": stopped}
