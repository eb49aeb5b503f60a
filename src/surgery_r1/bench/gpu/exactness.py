"""How far shared frames in bfloat16 are from plain rows in float32, beside how far plain rows in bfloat16 are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from surgery_r1.bench.gpu.sizes import Shape, in_fresh_process, work_of
from surgery_r1.bench.shapes import Work
from surgery_r1.errors import SurgeryR1Error

#: Shared frames may be this much further from float32 than plain rows in the same precision are: both round, in
#: another order.
ALLOWED = 1.25


def measure(shape: Shape, device: str) -> dict[str, Any]:
    """An RFT update of two questions three times, from the same weights and completions."""
    work = work_of("rft", shape, device, questions=2)
    exact = in_fresh_process(update, replace(work, dtype="float32"), "baseline")
    plain, shared = (in_fresh_process(update, work, variant) for variant in ("baseline", "optimised"))
    return {"config": work.__dict__, **compared(exact, plain, shared)}


def update(work: Work, variant: str) -> dict[str, np.ndarray]:
    """``log_probs`` (completion tokens,), and the gradient of each trained weight under its name; all float32."""
    from surgery_r1.bench.training import RftBenchmark

    benchmark = RftBenchmark(work, variant)
    benchmark.update()
    trained = benchmark.trainer.model.named_parameters()
    gradients = {name: p.grad.detach().float().cpu().numpy() for name, p in trained if p.grad is not None}
    return {"log_probs": np.asarray(benchmark.output(), dtype=np.float32), **gradients}


def compared(exact: dict[str, Any], plain: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """Errors of log-probabilities in nats a token, and of all gradients relative to their length.

    >>> one = {"log_probs": np.zeros(2), "w": np.ones(4)}
    >>> off = {"log_probs": np.full(2, 0.5), "w": np.full(4, 1.5)}
    >>> compared(one, off, off)["gradients"]
    {'plain': 0.5, 'shared': 0.5, 'apart': 0.0, 'ratio': 1.0}

    Raises:
        SurgeryR1Error: when they do not train the same weights, or nothing is learned.
    """
    if not exact.keys() == plain.keys() == shared.keys():
        raise SurgeryR1Error("the ways train different weights", fix="report this")
    names = [name for name in exact if name != "log_probs"]
    length = _norm([exact[name] for name in names])
    if not length:
        raise SurgeryR1Error("the gradients are all zero", fix="report this")

    def apart(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float, float]:
        """Root mean square and largest difference of log-probabilities, relative difference of gradients."""
        nats = one["log_probs"] - other["log_probs"]
        gradients = _norm([one[name] - other[name] for name in names]) / length
        return float(np.sqrt(np.mean(nats**2))), float(np.abs(nats).max()), gradients

    pairs = {"plain": apart(plain, exact), "shared": apart(shared, exact), "apart": apart(shared, plain)}
    rms, largest, gradients = ({key: values[i] for key, values in pairs.items()} for i in range(3))
    result: dict[str, Any] = {"log_probs": rms, "log_probs_largest": largest, "gradients": gradients}
    for errors in (rms, gradients):
        errors["ratio"] = errors["shared"] / errors["plain"] if errors["plain"] else float(errors["shared"] > 0)
    return {**result, "reached": max(rms["ratio"], gradients["ratio"]) <= ALLOWED}


def _norm(parts: list[Any]) -> float:
    return float(np.sqrt(sum(float(np.sum(np.square(part, dtype=np.float64))) for part in parts)))
