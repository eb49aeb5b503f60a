"""Tables of several systems for the terminal and for Markdown. Nothing is computed here, only written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Column heading -> key of ``metrics.json``.
COLUMNS: dict[str, str] = {
    "Acc": "acc",
    "F": "f_score",
    "true mIoU": "miou",
    "mIoU published": "miou_published",
    "joint@.5": "joint_at_iou50",
}

FLOOR = "no-image floor"

#: Below this many blocks a percentile bootstrap is known to be too narrow, and tables say so.
FEW_BLOCKS = 10


def number(value: float | None) -> str:
    """Three decimals without the leading zero, as the papers of the field write rates; a dash for None.

    >>> number(0.5), number(1.0), number(-0.0321), number(None)
    ('.500', '1.000', '-.032', '-')
    """
    if value is None:
        return "-"
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def signed(value: float) -> str:
    """:func:`number` with its sign."""
    return ("+" if value >= 0 else "") + number(value)


def format_interval(ci95: Sequence[float] | None, *, sign: bool = False) -> str:
    """An interval as ``[.12, .34]``."""
    write = signed if sign else number
    return "" if ci95 is None else f"[{write(ci95[0])}, {write(ci95[1])}]"


def excludes_zero(ci95: Sequence[float]) -> bool:
    """Whether an interval of a difference lies on one side of 0."""
    return ci95[0] > 0 or ci95[1] < 0


def rows(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    """Cells of the table, heading first, then the no-image floor, then one row for each ``(name, metrics)``."""
    table = [["", *COLUMNS, "n", "unparsed"]]
    floor = next((m["no_image_floor"] for _, m in entries if m.get("no_image_floor", {}).get("acc") is not None), None)
    if floor is not None:
        table.append([FLOOR, *_cells(floor), str(floor["n"]), "-"])
    for name, metrics in entries:
        table.append([name, *_cells(metrics), str(metrics["n"]), number(metrics["parse_failure_rate"])])
    return table


def _cells(metrics: Mapping[str, Any]) -> list[str]:
    ci95 = metrics.get("ci95", {})
    return [f"{number(metrics.get(key))} {format_interval(ci95.get(key))}".strip() for key in COLUMNS.values()]


def difference_line(name: str, metric: str, difference: Mapping[str, Any]) -> str:
    """One paired difference as a line of text."""
    verdict = "" if excludes_zero(difference["ci95"]) else "  (interval includes 0)"
    return (
        f"{name}, {metric}: {signed(difference['difference'])} {format_interval(difference['ci95'], sign=True)}"
        f"  n={difference['n']}, {difference['blocks']} blocks{verdict}"
    )


def text_table(
    entries: Sequence[tuple[str, Mapping[str, Any]]],
    differences: Sequence[tuple[str, str, Mapping[str, Any]]] = (),
) -> str:
    """The table with aligned columns, for a terminal.

    Args:
        entries: ``(name, metrics.json)`` of systems scored on the same split.
        differences: ``(name, metric, result of compare_scores)``.
    """
    table = rows(entries)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(1, "-" * len(max(lines, key=len)))
    return "\n".join([*lines, *_notes(entries), *(difference_line(*item) for item in differences)]) + "\n"


def markdown_table(
    entries: Sequence[tuple[str, Mapping[str, Any]]],
    differences: Sequence[tuple[str, str, Mapping[str, Any]]] = (),
) -> str:
    """The same table in Markdown."""
    table = [[cell.replace("|", "\\|") for cell in row] for row in rows(entries)]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    lines.insert(1, "|---|" + "---:|" * (len(table[0]) - 1))
    text = "\n".join([*lines, "", *_notes(entries)])
    return text + "".join(f"\n- {difference_line(*item)}" for item in differences) + "\n"


def _notes(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    if not entries:
        return []
    how = entries[0][1].get("bootstrap", {})
    notes = [
        f"95 % intervals: {how.get('resamples', '?')} resamples (seed {how.get('seed', '?')}) of"
        f" {how.get('blocks', '?')} blocks of {how.get('frames_per_block', '?')} neighbouring frames."
        " 'mIoU published' is the field's formula, which is not an IoU."
    ]
    if how.get("blocks", FEW_BLOCKS) < FEW_BLOCKS:
        notes.append("So few blocks make rough intervals, most likely too narrow.")
    return notes
