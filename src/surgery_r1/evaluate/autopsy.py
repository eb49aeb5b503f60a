"""Which of rationale, answer and box is right, which is right alone, and whether they agree (ours).

Everything is read from score records, so any prediction file will do, ours or another group's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surgery_r1 import vocab
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.intervals import Estimate, block_ids, estimates, share
from surgery_r1.evaluate.metrics import tally
from surgery_r1.evaluate.referents import wrong_referent
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.evaluate.tables import format_interval, number

#: Metrics that say whether two of the three agree, right or wrong.
PAIRS = ("rationale_answer", "rationale_box", "answer_box")


#: What :attr:`ScoreRecord.right_parts` can say: all three first, then two, one alone, none.
PATTERNS: tuple[str, ...] = (
    "rationale + answer + box",
    *("rationale + answer", "rationale + box", "answer + box"),
    *("rationale", "answer", "box", "none"),
)


def autopsy(lines: Sequence[ScoreRecord]) -> dict[str, Any]:
    """Agreement of the three parts of every reply, of all and by question kind and tool.

    Args:
        lines: of one prediction file.

    Returns:
        ``n`` (questions), ``rationales`` (replies that have one), ``pairs`` (share of replies in which two parts agree,
        of those where it can be told), ``right`` (pattern of :data:`PATTERNS` -> share of the replies with a
        rationale), ``wrong_referent`` (see :func:`surgery_r1.evaluate.referents.wrong_referent`), and all of it
        ``by_kind`` and ``by_tool`` (questions about tools). A share is ``{"value", "ci95", "n", "count"}``, its rate in
        [0, 1].

    Raises:
        SurgeryR1Error: when no reply has a rationale.
    """
    if not any(line.reasoning for line in lines):
        raise SurgeryR1Error(
            "no prediction holds a rationale",
            fix="a line holds it as <think>...</think> in its text, or as reasoning beside answer and box_px; without "
            "any, score tells what answers and boxes are worth",
        )
    kinds = {kind: [line for line in lines if line.kind == kind] for kind in _order(line.kind for line in lines)}
    tools: dict[str, list[ScoreRecord]] = {}
    for line in sorted(lines, key=lambda line: line.tool):
        tools.setdefault(line.tool, []).append(line)
    tools.pop("", None)
    return {
        **_counted(lines),
        "by_kind": {kind: _counted(members) for kind, members in kinds.items()},
        "by_tool": {tool: _counted(members) for tool, members in tools.items()},
    }


def _order(kinds: Iterable[str]) -> list[str]:
    there = dict.fromkeys(kinds)
    return [kind for kind in vocab.KINDS if kind in there] + [kind for kind in there if kind not in vocab.KINDS]


def _counted(lines: Sequence[ScoreRecord]) -> dict[str, Any]:
    with_rationale = [line for line in lines if line.reasoning]
    found = estimates(tally(lines, block_ids(lines)))
    told = {name: sum(_known(line, name) for line in lines) for name in PAIRS}
    patterns = [line.right_parts for line in with_rationale]
    blocks = block_ids(with_rationale)
    return {
        "n": len(lines),
        "rationales": len(with_rationale),
        "pairs": {name: _share(found[name], told[name]) for name in PAIRS if name in found},
        "right": {
            name: _share(share([pattern == name for pattern in patterns], blocks), len(patterns))
            for name in PATTERNS
            if patterns
        },
        "wrong_referent": wrong_referent(lines),
    }


def _known(line: ScoreRecord, pair: str) -> bool:
    if pair == "answer_box":
        return line.answer_fits_box is not None
    return line.reasoning is not None and (pair == "rationale_answer" or line.conclusion_fits_box is not None)


def _share(estimate: Estimate, n: int) -> dict[str, Any]:
    ci95 = [estimate.low, estimate.high]
    return {"value": estimate.value, "ci95": ci95, "n": n, "count": round(estimate.value * n)}


def autopsy_rows(entries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells of a table with a column for each system: heading, pairs, patterns, wrong referents.

    Args:
        entries: name of a system -> what :func:`autopsy` says of it.
    """

    def cell(found: Mapping[str, Any] | None) -> str:
        return "-" if not found else f"{number(found['value'])} {format_interval(found['ci95'])} ({found['count']:,})"

    titles = {PATTERNS[0]: "all three right", "none": "none right"}
    titles |= {name: f"{name} right alone" for name in PATTERNS if "+" not in name and name != "none"}
    rows = [["", *entries], ["rationales", *(f"{one['rationales']:,}" for one in entries.values())]]
    for name in PAIRS:
        rows.append([name.replace("_", " = "), *(cell(one["pairs"].get(name)) for one in entries.values())])
    for name in PATTERNS:
        title = titles.get(name, f"{name} right")
        rows.append([title, *(cell(one["right"].get(name)) for one in entries.values())])
    for part, key in (("tools", "broad"), ("tools", "strict"), ("organs", "broad"), ("organs", "strict")):
        found = [one["wrong_referent"][part] for one in entries.values()]
        shown = [f"{number(one[key])} {format_interval(one['ci95'].get(key))}".strip() for one in found]
        rows.append([f"wrong referent, {part}, {key}", *shown])
    return rows


def intervention_rows(interventions: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells of a table with a row for each intervention.

    Args:
        interventions: see :func:`surgery_r1.evaluate.interventions.intervene`.
    """
    columns = ("answer_follows", "answer_kept", "answer_right", "box_follows", "box_kept")

    def cell(share: Mapping[str, Any] | None) -> str:
        return "-" if share is None else f"{number(share['value'])} {format_interval(share['ci95'])}"

    rows = [["rationale", *(name.replace("_", " ") for name in columns), "n", "left out"]]
    for name, found in interventions.items():
        rows.append([name, *(cell(found.get(column)) for column in columns), str(found["n"]), str(found["left_out"])])
    return rows
