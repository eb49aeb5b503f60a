"""The registered contrast, judged: each claim holds, has failed, or cannot be told yet."""

from __future__ import annotations

from typing import Any

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.intervals import Difference
from surgery_r1.reproduce.contrast import SWAPPED, Claim, Contrast, paid_for
from surgery_r1.reproduce.pool import Pool
from surgery_r1.train.config import TrainConfig


def judge(contrast: Contrast, pool: Pool, config: TrainConfig, seeds: list[int]) -> dict[str, Any]:
    """What became of a contrast.

    Returns:
        ``{"title", "passed", "claims"}``. ``passed`` is None while a claim cannot be told. A claim has its words
        (``claim``), ``rival`` (the ``b`` that was best), ``difference``, ``ci95``, ``n``, ``blocks``, ``by_seed``,
        ``bound``, ``side``, ``paid_for`` (by a reward of the config; None where that cannot be known), ``passed``,
        ``why`` it cannot be told (with a ``fix`` where the predictions are of no use for it), and ``against`` with the
        difference to every ``b``.
    """
    claims = [_judged(claim, pool, config, seeds) for claim in contrast.claims]
    told = [claim["passed"] for claim in claims]
    passed = None if None in told else all(told)
    return {"title": contrast.title, "passed": passed, "claims": claims}


def _judged(claim: Claim, pool: Pool, config: TrainConfig, seeds: list[int]) -> dict[str, Any]:
    stated = {
        "claim": claim.title,
        "measure": claim.measure,
        "questions": claim.questions,
        "split": claim.split,
        "a": claim.a,
        "bound": claim.bound,
        "side": "above" if claim.above is not None else "below",
        "paid_for": paid_for(claim.measure, config),
    }
    absent = [row for row in (claim.a, *claim.b) if set(seeds) - set(pool.seeds(row, claim.split))]
    if absent:
        return stated | {"passed": None, "why": f"not run with every seed: {', '.join(absent)}"}
    if claim.measure in SWAPPED:
        absent = [row for row in (claim.a, *claim.b) if not pool.is_swapped(row, claim.split, seeds)]
        if absent:
            return stated | {"passed": None, "why": f"rationales not swapped with every seed: {', '.join(absent)}"}
    against: dict[str, dict[str, Any]] = {}
    for row in claim.b:
        try:
            found, by_seed = pool.difference(claim.a, row, claim.measure, claim.split, claim.questions)
        except SurgeryR1Error as error:
            fix = "train rows that write rationales; a contrast without this measure needs another --out"
            return stated | {"passed": None, "why": error.what, "fix": fix}
        if found.difference is None:
            return stated | {"passed": None, "why": f"no question counts for {claim.a} and {row}"}
        against[row] = found.to_json() | {"by_seed": by_seed, "passed": holds(claim, found)}
    # The best rival is the one to which the difference looks worst for the claim.
    worst = min if claim.above is not None else max
    rival = worst(against, key=lambda row: against[row]["difference"])
    return stated | {"rival": rival, **against[rival], "against": against, "why": None}


def holds(claim: Claim, found: Difference) -> bool:
    """Whether the whole interval lies on the side of the bound that the claim says."""
    low, high = found.ci95
    return low > claim.bound if claim.above is not None else high < claim.bound
