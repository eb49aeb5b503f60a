"""Ten frames through everything: five steps of SFT and of RFT, prediction, scoring; what a full run will take."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from surgery_r1.data.dataset import Dataset
from surgery_r1.doctor.patient import Patient
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.generation import GenerationOptions
from surgery_r1.evaluate.predict import evenly_spaced
from surgery_r1.evaluate.run import predict_with_model
from surgery_r1.evaluate.score import score_predictions
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.rft import generation_cycle, rft_arguments
from surgery_r1.train.stage import train

STEPS = 5
#: The first steps read frames for the first time, and allocate.
_WARMING = 2
_FRAMES = {"train": 6, "dev": 2, "val": 2}
_DEV_QUESTIONS = 4


def smoke(patient: Patient, told: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run both stages for a few steps with the model's own weights; seconds, memory, and the hours of a full run.

    Args:
        told: called with what begins.

    Raises:
        SurgeryR1Error: where any part fails.
    """
    few = patient.few(**_FRAMES)
    split = "val" if few.split("val") else "dev"
    # RFT can end only where a cycle of its rollouts does.
    cycle = generation_cycle(rft_arguments(patient.config, patient.scratch / "options", patient.allowed)[0])
    config = _few_steps(patient.config, few, -(-STEPS // cycle) * cycle)
    figures: dict[str, Any] = {"frames": len(few.frames), "steps": STEPS}
    base: str | Path = patient.base
    for stage in ("sft", "rft"):
        told(f"{STEPS} steps of {stage} on {len(few.frames)} frames")
        out = patient.scratch / "smoke" / stage
        train(stage, config, few, out, base=base, quiet=True, allowed=patient.allowed)  # type: ignore[arg-type]
        figures[f"{stage}_step_seconds"] = round(_step_seconds(out), 3)
        base = out
    told(f"predicting and scoring {split}")
    predictions, clock = patient.scratch / "smoke" / "predictions.jsonl", _Clock()
    options = GenerationOptions(_DEV_QUESTIONS, config.eval.max_new_tokens, config.eval.reasoning)
    predict_with_model(base, few, split, predictions, options, allow_hub=patient.allowed.hub, progress=clock)
    metrics = score_predictions(predictions, few, split, patient.scratch / "smoke" / "scores")
    figures["reply_seconds"] = round(clock.each(), 3)
    figures["scored"] = metrics["n"]
    figures["peak_memory_bytes"] = _peak()
    return figures | {"hours": _hours(patient, config, figures)}


def _few_steps(config: TrainConfig, few: Dataset, of_rft: int) -> TrainConfig:
    """The config's own stages, cut to a few steps. RFT asks what the frames have, and its time is scaled."""
    sft, rft = config.sft, config.rft
    of_sft: dict[str, Any] = {"max_steps": STEPS, "eval_every": STEPS, "warmup_steps": 1}
    there = len(few.train_samples()) * (1 + len(rft.flips))
    group = max(1, rft.micro_batch // rft.generations)
    prompts = min(rft.prompts, there // group * group)
    if not prompts:
        raise SurgeryR1Error(
            f"{there} questions on ten frames, {group} are asked in a pass", fix="lower rft.micro_batch"
        )
    trl = {**config.sft.trl, "logging_steps": 1}
    if rft.rollouts == "server":
        raise SurgeryR1Error(
            "rollouts from a server are not part of --smoke",
            fix="give --set rft.rollouts=trainer, or train a few steps",
        )
    return replace(
        config,
        sft=replace(sft, **of_sft, patience=0, trl=trl),
        rft=replace(rft, max_steps=of_rft, eval_every=of_rft, warmup_steps=1, prompts=prompts),
        eval=replace(config.eval, dev_samples=_DEV_QUESTIONS, batch_size=_DEV_QUESTIONS, choose="last"),
        model=replace(config.model, vision_cache=""),
        tracker="none",
    )


def _step_seconds(run: Path) -> float:
    """The median step after the first ones, as the run has logged it."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    times = {record["step"]: record["step_time"] for record in records if "step_time" in record}
    return statistics.median([seconds for step, seconds in times.items() if step > _WARMING])


class _Clock:
    """Times how fast replies come, the first batch aside: before it the model was loaded."""

    def __init__(self) -> None:
        self.seen = [(0, time.perf_counter())]

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, time.perf_counter()))

    def each(self) -> float:
        """Seconds a reply; of a single batch the time of loading is counted in."""
        first, last = (self.seen[1] if len(self.seen) > 2 else self.seen[0]), self.seen[-1]
        return (last[1] - first[1]) / max(1, last[0] - first[0])


def _peak() -> int:
    """Most bytes that this process has held: on the GPU where there is one, else in main memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _hours(patient: Patient, short: TrainConfig, figures: dict[str, Any]) -> dict[str, float]:
    """Hours of the whole: steps as measured, evaluations on dev, and a prediction of val."""
    config, reply = patient.config, figures["reply_seconds"]
    asked = len(evenly_spaced(patient.dataset.split("dev"), config.eval.dev_samples))
    scale = {"sft": 1.0, "rft": config.rft.prompts / short.rft.prompts}
    hours = {}
    for stage, share in scale.items():
        settings = getattr(config, stage)
        steps = settings.max_steps * figures[f"{stage}_step_seconds"] * share
        evaluations = -(-settings.max_steps // settings.eval_every) + (stage == "rft")
        hours[stage] = round((steps + evaluations * asked * reply) / 3600, 3)
    hours["predict_val"] = round(len(patient.dataset.split("val")) * reply / 3600, 3)
    hours["total"] = round(sum(hours.values()), 3)
    return hours
