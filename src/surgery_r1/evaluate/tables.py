"""Tables of several systems for the terminal and for Markdown. Nothing is computed here, only written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Column heading -> key of ``metrics.json``: how good answers and boxes are.
COLUMNS: dict[str, str] = {
    "Acc": "acc",
    "F": "f_score",
    "true mIoU": "miou",
    "mIoU published": "miou_published",
    "joint@.5": "joint_at_iou50",
}

#: The same: whether box, rationale and answer belong together.
AGREEMENT_COLUMNS: dict[str, str] = {
    "wrong referent": "wrong_referent_broad",
    "strict": "wrong_referent_strict",
    "no referent": "no_referent",
    "answer fits box": "answer_box",
    "rationale = answer": "rationale_answer",
    "rationale right": "rationale_right",
}

#: Metrics of which less is better.
LESS_IS_BETTER: frozenset[str] = frozenset({"wrong_referent_broad", "wrong_referent_strict", "no_referent"})

FLOOR = "no-image floor"
FLOOR_WITHOUT_DEV = "floor without dev"

#: Below this many blocks tables say that the intervals are rough.
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


def signed(value: float | None) -> str:
    """:func:`number` with its sign."""
    return ("+" if value is not None and value >= 0 else "") + number(value)


def format_interval(ci95: Sequence[float] | None, *, sign: bool = False) -> str:
    """An interval as ``[.12, .34]``."""
    write = signed if sign else number
    return "" if ci95 is None else f"[{write(ci95[0])}, {write(ci95[1])}]"


def excludes_zero(ci95: Sequence[float]) -> bool:
    """Whether an interval of a difference lies on one side of 0."""
    return ci95[0] > 0 or ci95[1] < 0


def rows(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    """Cells of the table, heading first, then the no-image floors, then one row for each ``(name, metrics)``."""
    table = [["", *COLUMNS, "n", "unparsed"]]
    for name, floor in floors(entries):
        table.append([name, *_cells(floor, COLUMNS), str(floor["n"]), "-"])
    for name, metrics in entries:
        table.append([name, *_cells(metrics, COLUMNS), str(metrics["n"]), number(metrics["parse_failure_rate"])])
    return table


def agreement_rows(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    """Cells of the second table: do box, rationale and answer belong together, and how much do rationales say."""
    table = [["", *AGREEMENT_COLUMNS, "facts", "rationales"]]
    for name, floor in floors(entries)[:1]:
        table.append([name, *_cells(floor, AGREEMENT_COLUMNS), "-", "-"])
    for name, metrics in entries:
        said = metrics.get("agreement", {})
        table.append([name, *_cells(metrics, AGREEMENT_COLUMNS), facts(said), str(said.get("n", "-"))])
    return table


def facts(agreement: Mapping[str, Any]) -> str:
    """Facts named per rationale, a dash where there is none."""
    value = agreement.get("facts_per_rationale")
    return "-" if value is None else f"{value:.1f}"


def floors(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The floors that the first of the entries to have one has, by name."""
    found = []
    for name, key in ((FLOOR, "no_image_floor"), (FLOOR_WITHOUT_DEV, "no_image_floor_without_dev")):
        floor = next((m[key] for _, m in entries if m.get(key, {}).get("acc") is not None), None)
        if floor is not None:
            found.append((name, floor))
    return found


def _cells(metrics: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    ci95 = metrics.get("ci95", {})
    return [f"{number(metrics.get(key))} {format_interval(ci95.get(key))}".strip() for key in columns.values()]


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
    tables = [_aligned(rows(entries)), _aligned(agreement_rows(entries))]
    return "\n".join([*tables[0], "", *tables[1], *_notes(entries), *(difference_line(*d) for d in differences)]) + "\n"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(1, "-" * len(max(lines, key=len)))
    return lines


def markdown_table(
    entries: Sequence[tuple[str, Mapping[str, Any]]],
    differences: Sequence[tuple[str, str, Mapping[str, Any]]] = (),
) -> str:
    """The same table in Markdown."""
    tables = [_markdown(rows(entries)), _markdown(agreement_rows(entries))]
    text = "\n".join([*tables[0], "", *tables[1], "", *_notes(entries)])
    return text + "".join(f"\n- {difference_line(*item)}" for item in differences) + "\n"


def _markdown(table: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    lines.insert(1, "|---|" + "---:|" * (len(table[0]) - 1))
    return lines


def _notes(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    if not entries:
        return []
    how = entries[0][1].get("intervals", {})
    notes = [
        f"95 % intervals: {how.get('method', '?')}; {how.get('blocks', '?')} blocks of"
        f" {how.get('frames_per_block', '?')} neighbouring frames. 'mIoU published' is the field's formula, which is"
        " not an IoU. Wrong referent: another object fits the box better (strict: beyond doubt); no referent: no box,"
        " or on no object. Facts: named per rationale."
    ]
    if how.get("blocks", FEW_BLOCKS) < FEW_BLOCKS:
        notes.append("So few blocks make rough intervals.")
    return notes
