"""Running a TRL trainer to its end: callbacks, resuming, what a stage reports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from surgery_r1.models.four_bit import adapters_in_float32
from surgery_r1.train.callbacks import DevCallback, Recorder, StopOnSignal
from surgery_r1.train.checkpoints import resumable, resume_point, run_trainer
from surgery_r1.train.config import Kept
from surgery_r1.train.dev import Metrics
from surgery_r1.train.rollouts.sampling import Sampling
from surgery_r1.train.run_folder import metrics_writer


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a stage is run, beside its config.

    Attributes:
        out: run folder; trainer checkpoints go to ``out/checkpoints``.
        evaluate: model -> metrics on dev, all in [0, 1].
        keep: called with the model and its step when dev is better than ever.
        describe: adds to the weights in a folder, given their step, what makes them a model folder.
        resume: go on from the last checkpoint.
        quiet: no progress bar.
        choose: keep the best model on dev, or the ``last`` one, and then never stop early.
        sampling: the server that samples rollouts; None where the trainer does.
    """

    out: Path
    evaluate: Callable[[Any], Metrics]
    keep: Callable[[Any, int], None]
    describe: Callable[[Path, int], None]
    resume: bool = False
    quiet: bool = False
    choose: Kept = "best"
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a stage reports when it ends: ``result.json``.

    Attributes:
        best: folder of the model that was kept.
        best_step: optimiser step after which it was saved; -1 when none was.
        dev_joint: its ``joint`` on dev in [0, 1].
        stopped: SIGTERM ended training early; resume to go on.
        steps: optimiser steps done in all.
        choose: whether dev chose that model, or it is the ``last`` one.
        held_off: pass-through options that would have sent data away, and were not set.
    """

    best: Path
    best_step: int
    dev_joint: float
    stopped: bool
    steps: int
    choose: Kept = "best"
    held_off: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The model that was kept, on one line."""
        chosen = "best on dev" if self.choose == "best" else "last step, on dev"
        return f"{chosen}: joint {self.dev_joint:.4f} at step {self.best_step}"

    def to_json(self) -> dict[str, Any]:
        """As ``result.json`` has it."""
        return {
            "best": str(self.best),
            "best_step": self.best_step,
            "dev/joint": self.dev_joint,
            "stopped": self.stopped,
            "steps": self.steps,
            "choose": self.choose,
            "held_off": list(self.held_off),
        }


def fit(
    stage: str, kind: type, trainer_arguments: dict[str, Any], options: FitOptions, cycle: int = 1, **choosing: Any
) -> TrainResult:
    """Train until the trainer's last step, or until dev no longer improves.

    Args:
        kind: TRL's trainer class, and what it is made with beside its callbacks.
        cycle: optimiser steps between places where the trainer can resume.
        choosing: every, patience and baseline of :class:`surgery_r1.train.callbacks.DevCallback`.
    """
    write = metrics_writer(options.out)
    dev = DevCallback(stage, options.evaluate, options.keep, write, last=options.choose == "last", **choosing)
    stop = StopOnSignal(cycle)
    recorder = Recorder(stage, write, quiet=options.quiet)
    # Dev goes first, so that the checkpoint of a step holds what was decided there.
    trainer = resumable(kind)(**trainer_arguments, callbacks=[dev, stop, recorder])
    adapters_in_float32(trainer.model)
    trainer.describe = options.describe
    trainer.remove_callback(PrinterCallback)
    checkpoint = resume_point(options.out, dev, resume=options.resume, cycle=cycle)
    with stop.listening(), contextlib.closing(recorder):
        steps = run_trainer(trainer, dev, checkpoint)
    return TrainResult(options.out / "best", dev.best_step, dev.best, stop.stopped, steps, options.choose)
