"""The measurements in order, each into a file of its own: what is there already is not measured again."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from surgery_r1._util.files import read_json, write_json
from surgery_r1.bench import compare
from surgery_r1.bench.gpu import exactness, flex, memory
from surgery_r1.bench.gpu.sizes import Shape, work_of
from surgery_r1.bench.gpu.table import MEASUREMENTS, rows
from surgery_r1.bench.shapes import Work
from surgery_r1.errors import SurgeryR1Error

#: Questions on the frame of each step that is timed against stock TRL.
_QUESTIONS = {"rft": 1, "rft-6": 6, "sft": 6}


@dataclass(frozen=True)
class Plan:
    """What to measure, on what.

    Attributes:
        names: some of :data:`surgery_r1.bench.gpu.table.MEASUREMENTS`.
        peak_tflops: dense bfloat16 operations a second of the device, in 10^12; None takes the table's.
        pairs: of timed steps.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    device: str
    peak_tflops: float | None = None
    pairs: int = 5


def run(plan: Plan, out: Path, say: Callable[[str], None]) -> None:
    """Measure what ``out`` lacks. One that fails does not keep the others from being measured.

    Args:
        out: folder with a file ``NAME-SHAPE.json`` for each measurement.
        say: where progress lines go.

    Raises:
        SurgeryR1Error: without the device, for records of another device, an unknown peak, or what failed.
    """
    device = _device(plan)
    peak = _peak(plan, device)
    todo = []
    for name, shape in rows(plan.names, plan.shapes):
        path = out / f"{name}-{shape}.json"
        if not path.is_file():
            todo.append((name, shape, path))
        elif (there := read_json(path)["machine"]["device"]) != device:
            raise SurgeryR1Error(
                f"was measured on {there}, this is {device}", where=path, fix="give another --out, or delete it"
            )
        else:
            say(f"{name} {shape}: measured already, in {path}")
    failed: list[str] = []
    for name, shape, path in todo:
        say(f"{name} {shape} ...")
        try:
            record = _measure(name, cast(Shape, shape), plan, peak, say)
        except Exception as error:
            failed.append(f"{name} {shape}: {error}")
            say(failed[-1])
            continue
        command = f"surgery-r1 gpu {name} --shape {shape} --device {plan.device}"
        write_json(path, {**record, **_described(plan, device), "command": command})
    if failed:
        raise SurgeryR1Error(
            f"{len(failed)} of {len(todo)} measurements failed: {'; '.join(failed)}",
            fix="the others are kept: run the same command again for these",
        )


def _measure(name: str, shape: Shape, plan: Plan, peak: float | None, say: Callable[[str], None]) -> dict[str, Any]:
    if name in _QUESTIONS:
        kind = name.removesuffix("-6")
        # Of RFT whole steps: rollouts, rewards and optimiser too.
        work = work_of(kind, shape, plan.device, questions=_QUESTIONS[name], whole=kind == "rft")
        record = compare.bench(kind, work, plan.pairs, say=say)
        rates = {way: record["rates"][way]["unique_operations_per_second"] for way in ("plain", "ours")}
        mfu = {way: rate / peak for way, rate in rates.items()} if peak else None
        return {**record, "peak_operations_per_second": peak, "mfu_unique": mfu}
    measure = {"exact": exactness.measure, "flex": flex.measure, "memory": memory.measure}[name]
    return measure(shape, plan.device)


def _described(plan: Plan, device: str) -> dict[str, Any]:
    """Where and when it was measured."""
    import torch

    machine = {**compare.machine_of(Work(device=plan.device)), "device": device}
    if plan.device == "cuda":
        machine |= {"cuda": torch.version.cuda, "device_bytes": torch.cuda.get_device_properties(0).total_memory}
    return {"machine": machine, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def _device(plan: Plan) -> str:
    """The name of the device.

    Raises:
        SurgeryR1Error: when it is not here, or for the published shapes on a CPU.
    """
    if plan.device == "cpu":
        if set(plan.shapes) != {"tiny"}:
            raise SurgeryR1Error("a CPU says nothing of a GPU", fix="give --shape tiny, which tries the commands")
        return platform.machine()
    import torch

    if not torch.cuda.is_available():
        raise SurgeryR1Error(
            "no GPU here: torch sees none", fix="run it on a machine with one; --device cpu --shape tiny tries it here"
        )
    return torch.cuda.get_device_name()


def _peak(plan: Plan, device: str) -> float | None:
    """Operations a second; None for a CPU of which nothing is known.

    Raises:
        SurgeryR1Error: for a GPU that is not in the table.
    """
    if plan.peak_tflops is not None:
        return plan.peak_tflops * 1e12
    known = next((rate for part, rate in compare.PEAKS.items() if part in device), None)
    if known is None and plan.device == "cuda" and set(plan.names) & set(_QUESTIONS):
        raise SurgeryR1Error(
            f"the peak of {device} is not known here", fix="give --peak-tflops: dense bfloat16, from its data sheet"
        )
    return known


def records(folder: Path, shapes: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """What ``folder`` holds, by measurement and shape."""
    paths = {(name, shape): folder / f"{name}-{shape}.json" for name in MEASUREMENTS for shape in shapes}
    return {key: read_json(path) for key, path in paths.items() if path.is_file()}
