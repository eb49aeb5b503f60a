"""Runs both ways in turn, each in a process of its own, and puts what was measured beside what was counted."""

from __future__ import annotations

import contextlib
import multiprocessing
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from surgery_r1.bench.operations import generation, training
from surgery_r1.bench.shapes import Work
from surgery_r1.errors import SurgeryR1Error

NAMES = ("sft", "rft", "predict")
#: Dense bfloat16 operations per second, from NVIDIA's data sheets. MFU is operations of unique tokens per second
#: (see :mod:`surgery_r1.bench.operations`) over this.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
WAYS = ("plain", "ours")


def bench(name: str, work: Work, pairs: int = 5, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time ``pairs`` pairs after one warm-up each; the contract's record (DESIGN section 2).

    Args:
        name: one of :data:`NAMES`.
        say: where progress lines go.

    Raises:
        SurgeryR1Error: for work that cannot be run, or a way that failed.
    """
    work.check()
    if pairs < 1:
        raise SurgeryR1Error(f"pairs = {pairs}", fix="give 1 or more")
    workers = {way: _Worker(name, work, way) for way in WAYS}
    try:
        for worker in workers.values():
            worker.ask("run")
        times: list[dict[str, dict[str, float]]] = []
        for number in range(pairs):
            # Who goes first alternates.
            order = WAYS if number % 2 == 0 else WAYS[::-1]
            times.append({way: workers[way].ask("run") for way in order})
            plain, ours = (times[-1][way]["compared"] for way in WAYS)
            say(f"pair {number + 1} of {pairs}: plain {plain:.2f} s, ours {ours:.2f} s, {plain / ours:.1f} x")
        facts = {way: worker.ask("facts") for way, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    return _record(name, work, times, facts)


def _record(name: str, work: Work, times: list[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    ratios = [pair["plain"]["compared"] / pair["ours"]["compared"] for pair in times]
    steps = [pair["plain"]["step"] / pair["ours"]["step"] for pair in times]
    operations = {
        way: generation(work, **facts[way]["counts"])
        if name == "predict"
        else training(work, **facts[way]["counts"], kept=way == "ours")
        for way in WAYS
    }
    parts = {
        way: {part: statistics.median(pair[way].get(part, 0.0) for pair in times) for part in times[0][way]}
        for way in WAYS
    }
    peak = next((rate for part, rate in PEAKS.items() if part in facts["plain"]["machine"]["device"]), None)
    made = {"sft": work.questions * work.rows, "rft": work.questions * work.generations, "predict": work.questions}[
        name
    ]
    rates = {
        way: {
            "samples_per_second": made / parts[way]["compared"],
            "completion_tokens_per_second": made * work.completion_tokens / parts[way]["compared"],
            # Operations of what is unique, whichever way it is computed.
            "unique_operations_per_second": operations["ours"] / parts[way]["compared"],
            **({"mfu": operations["ours"] / parts[way]["compared"] / peak} if peak else {}),
        }
        for way in WAYS
    }
    return {
        "name": name,
        "config": asdict(work),
        "machine": facts["plain"]["machine"],
        "pairs": [{f"{way}_s": pair[way]["compared"] for way in WAYS} for pair in times],
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ratio_predicted": operations["plain"] / operations["ours"],
        "ratio_step_median": statistics.median(steps),
        **{way: parts[way] for way in WAYS},
        "tokens": {way: facts[way]["counts"]["tokens"] for way in WAYS},
        "operations": operations,
        "rates": rates,
        "peak_memory_bytes": {way: facts[way]["peak"] for way in WAYS},
        **_agreement(facts["plain"]["output"], facts["ours"]["output"]),
    }


def _agreement(plain: list[Any], ours: list[Any]) -> dict[str, Any]:
    """Largest difference of log-probabilities or losses; for texts, how many differ."""
    if len(plain) != len(ours):
        raise SurgeryR1Error(f"{len(plain)} results of the plain way, {len(ours)} of ours", fix="report this")
    if plain and isinstance(plain[0], str):
        differ = sum(a != b for a, b in zip(plain, ours, strict=True))
        return {"max_abs_diff": None, "texts": len(plain), "texts_that_differ": differ}
    return {"max_abs_diff": max(abs(a - b) for a, b in zip(plain, ours, strict=True))}


class _Worker:
    """One way in a fresh process, asked over a pipe."""

    def __init__(self, name: str, work: Work, way: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.way = way
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, name, work, way), daemon=True)
        self._process.start()
        other.close()

    def ask(self, what: str) -> Any:
        try:
            self._pipe.send(what)
            kind, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise SurgeryR1Error(
                f"the {self.way} way was ended by the system", fix="it may have run out of memory: ask for less"
            ) from None
        if kind == "error":
            raise SurgeryR1Error(
                f"the {self.way} way failed:\n{answer}", fix="ask for less, or for what the machine has"
            )
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send("stop")
        self._process.join(timeout=10)
        self._process.terminate()
        self._process.join()


def _serve(pipe: Any, name: str, work: Work, way: str) -> None:
    """Set a job up at the first question and answer until the parent ends the process."""
    import io
    import traceback

    from surgery_r1.train.run_folder import stay_offline

    stay_offline(False)
    # What trainers print would drown the result.
    with contextlib.redirect_stdout(io.StringIO()):
        job, before = None, 0
        while True:
            what = pipe.recv()
            if what == "stop":
                return
            try:
                if job is None:
                    job = _job(name)(work, way)
                    before = _start_peak(work.device)
                if what == "run":
                    answer: Any = job.run()
                else:
                    peak = _peak(work.device) - before
                    answer = {"counts": job.counts(), "output": job.output(), "peak": peak, "machine": _machine(work)}
                pipe.send(("ok", answer))
            except Exception:
                pipe.send(("error", traceback.format_exc(limit=-3)))


def _job(name: str) -> Any:
    from surgery_r1.bench.prediction import Predict
    from surgery_r1.bench.training import Rft, Sft

    return {"sft": Sft, "rft": Rft, "predict": Predict}[name]


def _start_peak(device: str) -> int:
    """Forget earlier peaks; bytes in use now."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    import psutil

    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    return psutil.Process().memory_info().rss


def _peak(device: str) -> int:
    """Most bytes in use since :func:`_start_peak`."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    # Kilobytes on Linux, bytes on macOS; since the start of the process.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _machine(work: Work) -> dict[str, Any]:
    import torch
    import transformers
    import trl

    cuda = work.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
