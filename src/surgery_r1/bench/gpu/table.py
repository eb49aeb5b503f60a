"""The rows of ``docs/gpu.md``: what was measured, and what not yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Measurement -> what it asks, and the goal.
MEASUREMENTS = {
    "exact": ("error of shared frames by error of plain rows, bf16 against float32", "at most 1.25"),
    "flex": ("flex attention: graphs compiled after the second step; share of masks", "0; under 2 %"),
    "rft": ("RFT update, 1 question: times faster than stock TRL; MFU on unique tokens", "-"),
    "rft-6": ("RFT update, 6 questions on a frame: the same", "-"),
    "sft": ("SFT update, 18 rows on a frame: the same", "-"),
    "memory": ("smallest memory of an RFT update with AdamW", "22 GiB"),
}

NOT_YET = "not measured yet"


def rows(names: Sequence[str], shapes: Sequence[str]) -> list[tuple[str, str]]:
    """(measurement, shape) in the order in which they run: memory is asked of the largest shape alone.

    >>> rows(["memory", "exact"], ["7b", "3b"])
    [('exact', '3b'), ('exact', '7b'), ('memory', '7b')]
    """
    ordered = [shape for shape in ("tiny", "3b", "7b") if shape in shapes]
    chosen = [name for name in MEASUREMENTS if name in names]
    return [(name, shape) for name in chosen for shape in (ordered if name != "memory" else ordered[-1:])]


def table(records: Mapping[tuple[str, str], dict[str, Any]], shapes: Sequence[str]) -> str:
    """A row for each measurement and shape.

    Args:
        records: by measurement and shape, see :func:`surgery_r1.bench.gpu.plan.records`.
    """
    lines = ["| measurement | shape | goal | result | on |", "|---|---|---|---|---|"]
    for name, shape in rows([*MEASUREMENTS], shapes):
        record = records.get((name, shape))
        question, goal = MEASUREMENTS[name]
        result = _result(name, record) if record else NOT_YET
        where = f"{record['machine']['device']}, {record['date']}" if record else ""
        lines.append(f"| `{name}`: {question} | {shape} | {goal} | {result} | {where} |")
    return "\n".join(lines)


def _result(name: str, record: Mapping[str, Any]) -> str:
    if name == "exact":
        return f"log-probabilities {record['log_probs']['ratio']:.2f}, gradients {record['gradients']['ratio']:.2f}"
    if name == "flex":
        return f"{record['compiled_later']}; {record['mask_share']:.1%}"
    if name == "memory":
        smallest = record["smallest"]
        if smallest is None:
            return "no room, whatever was tried"
        return f"{smallest['bytes'] / 2**30:.1f} GiB, {smallest['micro_batch']} completions a pass"
    mfu = record["mfu_unique"]
    told = f"; MFU {mfu['ours']:.1%}, stock TRL {mfu['plain']:.1%}" if mfu else ""
    return f"{record['ratio_median']:.1f} ({record['ratio_min']:.1f} to {record['ratio_max']:.1f}){told}"
