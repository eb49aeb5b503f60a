"""Wrong referents of a scored set: boxes that show another object than the one asked about (ours).

What counts is every question whose frame holds another annotated object, whatever the reply: leaving boxes out, or
putting them on empty tissue, cannot lower the number of questions. See :func:`surgery_r1.matching.referent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from surgery_r1.evaluate.intervals import block_ids, estimates
from surgery_r1.evaluate.metrics import tally
from surgery_r1.evaluate.score_record import ScoreRecord

#: Key of ``wrong_referent`` in ``metrics.json`` -> metric.
_RATES = {"strict": "wrong_referent_strict", "broad": "wrong_referent_broad", "failed": "no_referent"}


def wrong_referent(lines: Sequence[ScoreRecord]) -> dict[str, Any]:
    """``wrong_referent`` of ``metrics.json``: of all questions, and of those about tools and about the organ.

    Returns:
        ``strict`` (another object has an IoU of at least .5, the one asked about less), ``broad`` (another object fits
        the box better), ``failed`` (no box, or one that touches no annotated object), all shares of ``n`` questions in
        [0, 1], None where there is none; ``ci95`` of each. ``tools`` and ``organs`` hold the same.
    """
    organs = [line for line in lines if line.kind == "organ"]
    tools = [line for line in lines if line.kind != "organ"]
    return _shares(lines) | {"tools": _shares(tools), "organs": _shares(organs)}


def _shares(lines: Sequence[ScoreRecord]) -> dict[str, Any]:
    counted = [line for line in lines if line.referent is not None]
    found = estimates(tally(counted, block_ids(counted))) if counted else {}
    return {
        **{key: found[name].value if name in found else None for key, name in _RATES.items()},
        "n": len(counted),
        "ci95": {key: [found[name].low, found[name].high] for key, name in _RATES.items() if name in found},
    }
