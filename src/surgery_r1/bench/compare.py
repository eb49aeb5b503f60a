"""Runs baseline and optimised variant in turn, each in a process of its own: what was measured, what was counted."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
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
#: Dense bfloat16 operations per second by part of the device's name, from NVIDIA's data sheets, which print twice as
#: many for sparse matrices; the first that fits counts. MFU is operations of unique tokens per second (see
#: :mod:`surgery_r1.bench.operations`) over this.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
#: The variants, and what the record calls them.
VARIANTS = {"baseline": "plain", "optimised": "ours"}


def bench(name: str, work: Work, pairs: int = 5, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time ``pairs`` pairs after one warm-up each; what ``bench NAME --json FILE`` writes.

    Args:
        name: one of :data:`NAMES`.
        say: where progress lines go.

    Raises:
        SurgeryR1Error: for work that cannot be run, or a variant that failed.
    """
    work = work.of(name)
    work.check()
    if work.whole and name != "rft":
        raise SurgeryR1Error(f"a whole step of {name!r}", fix="give --whole with rft")
    if pairs < 1:
        raise SurgeryR1Error(f"pairs = {pairs}", fix="give 1 or more")
    before = _load()
    workers = {variant: _Worker(name, work, variant) for variant in VARIANTS}
    try:
        for worker in workers.values():
            worker.ask("run")
        times: list[dict[str, dict[str, float]]] = []
        for number in range(pairs):
            # Who goes first alternates.
            order = list(VARIANTS) if number % 2 == 0 else list(VARIANTS)[::-1]
            times.append({variant: workers[variant].ask("run") for variant in order})
            baseline, optimised = (times[-1][variant]["compared"] for variant in VARIANTS)
            say(
                f"pair {number + 1} of {pairs}: baseline {baseline:.2f} s, optimised {optimised:.2f} s, "
                f"{baseline / optimised:.1f} x"
            )
        facts = {variant: worker.ask("facts") for variant, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    return _record(name, work, times, facts, {"before": before, "after": _load()})


def _load() -> list[float]:
    """Processes that want a core, averaged over 1, 5 and 15 minutes; empty where the system does not count them."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else []


def _record(
    name: str, work: Work, times: list[dict[str, Any]], facts: dict[str, Any], load: dict[str, list[float]]
) -> dict[str, Any]:
    ratios = [pair["baseline"]["compared"] / pair["optimised"]["compared"] for pair in times]
    cpu = [pair["baseline"]["compared_cpu"] / pair["optimised"]["compared_cpu"] for pair in times]
    steps = [pair["baseline"]["step"] / pair["optimised"]["step"] for pair in times]
    operations = {
        variant: _operations(name, work, facts[variant]["counts"], kept=variant == "optimised") for variant in VARIANTS
    }
    parts = {
        variant: {part: statistics.median(pair[variant].get(part, 0.0) for pair in times) for part in times[0][variant]}
        for variant in VARIANTS
    }
    peak = next((rate for part, rate in PEAKS.items() if part in facts["baseline"]["machine"]["device"]), None)
    made = work.asked * {"sft": work.rows, "rft": work.generations, "predict": 1}[name]
    rates = {
        variant: {
            "samples_per_second": made / parts[variant]["compared"],
            "completion_tokens_per_second": made * work.completion_tokens / parts[variant]["compared"],
            # Operations of what is unique, whichever way it is computed.
            "unique_operations_per_second": operations["optimised"] / parts[variant]["compared"],
            **({"mfu": operations["optimised"] / parts[variant]["compared"] / peak} if peak else {}),
        }
        for variant in VARIANTS
    }

    def by_variant(value: Callable[[str], Any]) -> dict[str, Any]:
        return {key: value(variant) for variant, key in VARIANTS.items()}

    return {
        "name": name,
        "config": asdict(work),
        "machine": facts["baseline"]["machine"],
        "load": load,
        "pairs": [
            {
                f"{key}{unit}": pair[variant][part]
                for part, unit in (("compared", "_s"), ("compared_cpu", "_cpu_s"))
                for variant, key in VARIANTS.items()
            }
            for pair in times
        ],
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ratio_predicted": operations["baseline"] / operations["optimised"],
        "ratio_step_median": statistics.median(steps),
        "ratio_cpu_median": statistics.median(cpu),
        **by_variant(parts.__getitem__),
        "tokens": by_variant(lambda variant: facts[variant]["counts"]["tokens"]),
        "operations": by_variant(operations.__getitem__),
        "rates": by_variant(rates.__getitem__),
        "peak_memory_bytes": by_variant(lambda variant: facts[variant]["peak"]),
        **_agreement(facts["baseline"]["output"], facts["optimised"]["output"]),
    }


def _operations(name: str, work: Work, counts: dict[str, int], *, kept: bool) -> float:
    """Operations of one run, counted from shapes."""
    parts = {part: counts[part] for part in ("tokens", "pairs", "heads", "images")}
    if name == "predict":
        return generation(work, **parts)
    if not work.whole:
        return training(work, **parts, kept=kept)
    rollouts = {part: counts[f"rollout_{part}"] for part in parts}
    return generation(work, **rollouts) + training(work, **parts, kept=kept)


def _agreement(baseline: list[Any], optimised: list[Any]) -> dict[str, Any]:
    """Largest difference of log-probabilities or losses; for texts, how many differ."""
    if len(baseline) != len(optimised):
        raise SurgeryR1Error(
            f"{len(baseline)} results of the baseline, {len(optimised)} of the optimised variant", fix="report this"
        )
    if baseline and isinstance(baseline[0], str):
        differ = sum(a != b for a, b in zip(baseline, optimised, strict=True))
        return {"max_abs_diff": None, "texts": len(baseline), "texts_that_differ": differ}
    return {"max_abs_diff": max(abs(a - b) for a, b in zip(baseline, optimised, strict=True))}


class _Worker:
    """One variant in a fresh process, asked over a pipe."""

    def __init__(self, name: str, work: Work, variant: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.variant = variant
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, name, work, variant), daemon=True)
        self._process.start()
        other.close()

    def ask(self, what: str) -> Any:
        try:
            self._pipe.send(what)
            kind, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise SurgeryR1Error(
                f"the {self.variant} variant was ended by the system", fix="it may have run out of memory: ask for less"
            ) from None
        if kind == "error":
            raise SurgeryR1Error(
                f"the {self.variant} variant failed:\n{answer}", fix="ask for less, or for what the machine has"
            )
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send("stop")
        self._process.join(timeout=10)
        self._process.terminate()
        self._process.join()


def _serve(pipe: Any, name: str, work: Work, variant: str) -> None:
    """Set a job up at the first question and answer until the parent ends the process."""
    import io
    import traceback

    from surgery_r1._util.offline import stay_offline

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
                    job = _job(name, work.whole)(work, variant)
                    before = start_peak(work.device)
                if what == "run":
                    answer: Any = job.run()
                else:
                    peak = peak_bytes(work.device) - before
                    answer = {"counts": job.counts(), "output": job.output(), "peak": peak, "machine": machine_of(work)}
                pipe.send(("ok", answer))
            except Exception:
                pipe.send(("error", traceback.format_exc(limit=-3)))


def _job(name: str, whole: bool) -> Any:
    from surgery_r1.bench.prediction import PredictionBenchmark
    from surgery_r1.bench.training import RftBenchmark, SftBenchmark
    from surgery_r1.bench.whole import WholeRftBenchmark

    rft = WholeRftBenchmark if whole else RftBenchmark
    return {"sft": SftBenchmark, "rft": rft, "predict": PredictionBenchmark}[name]


def start_peak(device: str) -> int:
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


def peak_bytes(device: str) -> int:
    """Most bytes in use since :func:`start_peak`."""
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


def machine_of(work: Work) -> dict[str, Any]:
    import torch
    import transformers
    import trl

    cuda = work.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
