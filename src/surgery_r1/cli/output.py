"""What commands print: lines, tables, and lists of validation issues."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery_r1.data.formats.validation import ValidationIssue

_SHOWN_PER_KIND = 10


def say(text: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(text + "\n")


def format_table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as aligned text: the first row is the heading, numbers go right.

    >>> print(format_table([("split", "n"), ("val", 1234)]))
    split      n
    val    1,234
    """
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    numeric = [all(isinstance(row[column], int) for row in rows[1:]) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    )


def splits_table(splits: dict[str, dict[str, Any]], frames: int, questions: int) -> str:
    """Frames and questions of each split, the latter by kind."""
    kinds = list(dict.fromkeys(kind for facts in splits.values() for kind in facts["by_kind"]))
    table: list[Sequence[Any]] = [("split", "frames", "questions", *kinds)]
    for split, facts in splits.items():
        table.append((split, facts["frames"], facts["questions"], *(facts["by_kind"].get(kind, 0) for kind in kinds)))
    sums = [sum(facts["by_kind"].get(kind, 0) for facts in splits.values()) for kind in kinds]
    table.append(("total", frames, questions, *sums))
    return format_table(table)


def stats_table(reasoning: dict[str, Any]) -> str:
    """What became of the reasoning that was asked for, by writer and by reason."""
    table: list[Sequence[Any]] = [("writer", "reasoning", "count")]
    for writer, counts in reasoning.items():
        for name in ("asked", "accepted", "at_first_attempt", "dropped"):
            table.append((writer, name.replace("_", " "), counts[name]))
        table += [(writer, f"rejected: {reason}", count) for reason, count in counts["rejected"].items()]
    return format_table(table)


def rule_lines(rule: dict[str, Any]) -> str:
    """The measured location rule of each source."""
    lines = []
    for source, facts in rule["by_source"].items():
        if facts["rule"] is None:
            lines.append(f"location rule of {source}: no location labels to measure")
        else:
            share = f"{facts['agreement']:.1%} of {facts['n']:,} labels"
            lines.append(f"location rule of {source}: {facts['rule']}, followed by {share}")
    return "\n".join(lines)


def say_issues(name: str, issues: Sequence[ValidationIssue]) -> None:
    """Print how many issues there are, and the first of each sort; ``name`` is ``error`` or ``warning``."""
    if not issues:
        return
    say(f"\n{len(issues):,} {name}{'s' if len(issues) > 1 else ''}:")
    shown: Counter[str] = Counter()
    for issue in issues:
        shown[issue.what] += 1
        if shown[issue.what] <= _SHOWN_PER_KIND:
            say(f"  {issue}")
    for what, count in shown.items():
        if count > _SHOWN_PER_KIND:
            say(f"  and {count - _SHOWN_PER_KIND:,} more: {what} (--json lists all)")
    say("")
