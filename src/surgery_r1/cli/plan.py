"""``surgery-r1 train ... --plan``: what a run needs, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from surgery_r1._util.files import dump_json
from surgery_r1.cli.output import format_table, say
from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset
    from surgery_r1.train.config import TrainConfig
    from surgery_r1.train.options import Permissions
    from surgery_r1.train.planning.plan import Plan

_GIB = 2**30


def show_plan(
    stage: Literal["sft", "rft"],
    config: TrainConfig,
    dataset: Dataset,
    *,
    base: str | Path | None,
    include_dev: bool,
    allowed: Permissions,
    memory: float | None,
    device: Literal["cpu", "cuda"] | None,
    processes: int | None,
    step_seconds: float | None,
    json: bool,
) -> None:
    """Print the plan of a stage.

    Args:
        memory: GiB that a process may use.
        step_seconds: of a step, as measured.
    """
    from surgery_r1.train.planning.stage import plan_stage, this_machine

    for name, value in (("--memory", memory), ("--processes", processes), ("--step-seconds", step_seconds)):
        if value is not None and value <= 0:
            raise SurgeryR1Error(f"{name} {value}", fix="give a number above 0")
    machine = this_machine(
        gpu=None if device is None else device == "cuda",
        processes=processes,
        memory=None if memory is None else round(memory * _GIB),
    )
    plan = plan_stage(
        stage, config, dataset, machine, base=base, include_dev=include_dev, allowed=allowed, seconds=step_seconds
    )
    say(dump_json(plan.to_json(), indent=2) if json else plan_text(plan))


def plan_text(plan: Plan) -> str:
    """A plan as people read it."""
    from surgery_r1.train.planning.plan import advice

    step, shape, tokens = plan.step, plan.step.shape, plan.image_tokens
    numbers = plan.parameters
    frames = ", ".join(f"{count} ({frames:,} frames)" for count, frames in tokens.items())
    rows = "one packed sequence" if shape.shared else f"{shape.rows} rows"
    lines = [
        f"parameters: {numbers['all']:,} in all, {numbers['trained']:,} trained, {numbers['frozen_tower']:,} in the "
        "frozen vision tower",
        f"image tokens of a frame: {frames}",
        f"a step: {step.units} {step.unit}, divided among {plan.machine.processes} process(es), "
        f"each with {step.passes} pass(es) of {step.micro}",
        f"the largest pass: {rows} of {shape.length:,} tokens, {shape.scored:,} of them with a target",
        "",
        format_table([("memory of a process", "GiB"), *((name, _gib(size)) for name, size in plan.parts.items())]),
        "",
        format_table([("peak of", "GiB"), *((name, _gib(size)) for name, size in plan.peaks.items())]),
        "",
        f"peak of a process: {_gib(plan.peak)} GiB on a {'GPU' if plan.machine.gpu else 'CPU'}",
        advice(plan),
    ]
    if plan.hours is not None:
        lines.append(f"hours at the given seconds a step: {plan.hours:.1f}")
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f}"
