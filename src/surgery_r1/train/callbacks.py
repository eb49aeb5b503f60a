"""Callbacks of both stages: progress, metrics.jsonl, evaluation on dev, early stop, and a checkpoint on SIGTERM."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from transformers import TrainerCallback

from surgery_r1._util.progress import progress_bar
from surgery_r1.train import ranks
from surgery_r1.train.dev import Metrics

logger = logging.getLogger(__name__)

#: Of TRL's logs, what the progress bar shows.
_SHOWN = ("loss", "reward", "rewards/answer/mean", "rewards/box/mean", "rewards/coherence/mean")


class Recorder(TrainerCallback):
    """Writes every log of the trainer to ``metrics.jsonl`` and shows a progress bar."""

    def __init__(self, stage: str, write: Callable[[dict[str, Any]], None], *, quiet: bool = False) -> None:
        self.stage, self.write, self.quiet = stage, write, quiet
        self.bar: Any = None
        self._since, self._spent, self._steps = time.perf_counter(), 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = time.perf_counter()
        if state.is_world_process_zero:
            self.bar = progress_bar(state.max_steps, self.stage, "steps", initial=state.global_step, quiet=self.quiet)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._spent += time.perf_counter() - self._since
        self._steps += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Last of the callbacks: what dev took does not count.
        self._since = time.perf_counter()
        if self.bar is not None:
            self.bar.update(1)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Metrics | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        # JSON has no NaN: a reward that applied to nothing in this step is left out.
        numbers = {k: v for k, v in logs.items() if isinstance(v, int | float) and math.isfinite(v)}
        if self._steps:
            # Seconds of a step with its reading of frames; TRL says the same of RFT.
            numbers.setdefault("step_time", self._spent / self._steps)
            self._spent, self._steps = 0.0, 0
        self.write({"stage": self.stage, "step": state.global_step, **numbers})
        if self.bar is not None:
            shown = {k.split("/")[1] if "/" in k else k: f"{logs[k]:.3f}" for k in _SHOWN if k in numbers}
            # The bar is drawn when it is due: in a log file not for every step.
            self.bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        """End the bar's line, also where training ends with an error that is told below it."""
        if self.bar is not None:
            self.bar.close()


class DevCallback(TrainerCallback):
    """Evaluates on dev every ``every`` steps, keeps the best model, and stops when dev no longer improves.

    A model is kept after the trainer's checkpoint of the same step is whole, so that after a kill ``best`` is never
    newer than what training resumes from.

    Args:
        evaluate: model -> metrics on dev, all in [0, 1].
        keep: called with the model and its step when dev is better than ever.
        metric: what is chosen by.
        patience: evaluations without improvement after which training stops; 0 never stops early.
        baseline: evaluate before the first step too, so that the start counts as a candidate.
        last: keep the last evaluated model instead of the best one, and never stop early.
    """

    def __init__(
        self,
        stage: str,
        evaluate: Callable[[Any], Metrics],
        keep: Callable[[Any, int], None],
        write: Callable[[dict[str, Any]], None],
        *,
        every: int,
        patience: int = 0,
        metric: str = "joint",
        baseline: bool = False,
        last: bool = False,
    ) -> None:
        self.stage, self.evaluate, self.keep, self.write = stage, evaluate, keep, write
        self.every, self.patience, self.metric, self.baseline, self.last = every, patience, metric, baseline, last
        self.best = -1.0
        self.best_step = -1
        self.since = 0
        self.kept_step: int | None = None

    def restore(self, records: list[dict[str, Any]], kept_step: int | None) -> None:
        """Take up the choice of an interrupted run.

        Args:
            records: its ``metrics.jsonl`` up to the checkpoint.
            kept_step: step of the model in ``best``, None where there is none.
        """
        for record in records:
            value = record.get(f"dev/{self.metric}")
            if value is not None:
                self._count(value, record["step"])
        self.kept_step = kept_step

    def _count(self, value: float, step: int) -> None:
        if value > self.best or self.last:
            self.best, self.best_step, self.since = value, step, 0
        else:
            self.since += 1

    @property
    def out_of_patience(self) -> bool:
        """Whether dev has not improved for too long."""
        return 0 < self.patience <= self.since and not self.last

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.baseline and state.global_step == 0:
            self._evaluate(state, model)
        # Also where a kill came between a checkpoint and keeping its model.
        self._keep(state, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._evaluate(state, model)
            if self.out_of_patience:
                control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._keep(state, model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._keep(state, model)

    def _evaluate(self, state: Any, model: Any) -> None:
        # Every rank gets the metrics of all questions, so that all take the same decision.
        metrics = self.evaluate(model)
        self._count(metrics[self.metric], state.global_step)
        if state.is_world_process_zero:
            self.write({"stage": self.stage, "step": state.global_step, **{f"dev/{k}": v for k, v in metrics.items()}})

    def _keep(self, state: Any, model: Any) -> None:
        if self.best_step == state.global_step and self.kept_step != self.best_step:
            # A call of all ranks: each has a part of a model that is spread.
            self.keep(model, self.best_step)
            self.kept_step = self.best_step


class StopOnSignal(TrainerCallback):
    """On SIGTERM to any process: finish the step, save where training can really resume, and stop all.

    Args:
        cycle: optimiser steps between places where the trainer can resume. TRL does not save buffered rollouts, so
            RFT can resume only where a generation cycle ends.

    Attributes:
        asked: whether SIGTERM came.
        stopped: whether it ended training early.
    """

    def __init__(self, cycle: int = 1) -> None:
        self.cycle = cycle
        self.asked = False
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        asked = ranks.anywhere(self.asked)
        if asked and not self.asked and ranks.index() == 0:
            logger.warning("another process got SIGTERM: saving a checkpoint")
        self.asked = asked
        # Training that ends by itself at this step is finished, not stopped.
        if self.asked and state.global_step % self.cycle == 0 and not control.should_training_stop:
            control.should_save = True
            control.should_training_stop = True
            self.stopped = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM inside the block. Signals reach the main thread only; elsewhere nothing is installed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(*_: Any) -> None:
            if not self.asked and ranks.index() == 0:
                logger.warning("SIGTERM: saving a checkpoint at the end of the step")
            self.asked = True

        previous = signal.signal(signal.SIGTERM, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
