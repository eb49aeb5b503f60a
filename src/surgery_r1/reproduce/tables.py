"""The tables of a reproduction: the paper's shape, agreement, the contrast, times, and what the paper prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery_r1._util import toml
from surgery_r1.evaluate.intervals import FRAMES_PER_BLOCK, METHOD
from surgery_r1.evaluate.plain_table import PlainTable
from surgery_r1.evaluate.tables import format_interval, number, signed
from surgery_r1.reproduce.pool import FACTS, named
from surgery_r1.reproduce.rows import ROWS, title_of

#: Heading -> (metric, group of questions): what the paper prints of each set.
PAPER: dict[str, tuple[str, str]] = {
    "Acc": ("acc", "all"),
    "F": ("f_score", "all"),
    "true mIoU": ("miou", "all"),
    "mIoU published": ("miou_published", "all"),
}

#: The same: whether rationale, answer and box agree.
AGREEMENT: dict[str, tuple[str, str]] = {
    "rationale contradicts answer": ("rationale_contradicts", "all"),
    "rationale right": ("rationale_right", "all"),
    "facts per rationale": (FACTS, "all"),
    "follows another rationale": ("swapped_answer_follows", "all"),
    "wrong referent, tools": ("wrong_referent_broad", "tools"),
    "wrong referent, organs": ("wrong_referent_broad", "organs"),
    "class-balanced F": ("f_balanced", "all"),
    "joint": ("joint", "all"),
    "joint@.5": ("joint_at_iou50", "all"),
    "unparsed": ("parse_failure_rate", "all"),
}

MEASURES = (*PAPER.values(), *AGREEMENT.values())

SETS = {"val": "val", "test": "cross-set"}


def cell(found: Mapping[str, Any] | None) -> str:
    """A value with its interval and, over several seeds, its standard deviation over them.

    >>> cell({"value": 0.5, "ci95": [0.4, 0.6], "sd": 0.012})
    '.500 [.400, .600] ± .012'
    """
    if found is None or found["value"] is None:
        return "-"
    spread = "" if found["sd"] is None else f" ± {number(found['sd'])}"
    return f"{number(found['value'])} {format_interval(found['ci95'])}{spread}"


def result_tables(result: Mapping[str, Any]) -> list[PlainTable]:
    """All tables of a ``result.json``, in the order in which they are shown."""
    splits = [split for split in SETS if any(split in found for found in result["rows"].values())]
    agreement = [_agreement(result, split) for split in splits]
    return [_paper(result, splits), *agreement, _contrast(result), published_table(), _times(result)]


def _paper(result: Mapping[str, Any], splits: Sequence[str]) -> PlainTable:
    head = ["", *(f"{SETS[split]}: {name}" for split in splits for name in PAPER), "seeds"]
    rows = []
    for name, found in result["rows"].items():
        cells = [cell(found.get(split, {}).get(named(*measure))) for split in splits for measure in PAPER.values()]
        rows.append([title_of(name), *cells, str(len(_seeds(found)))])
    several = "±: standard deviation over seeds."
    spread = several if len(result["seeds"]) > 1 else "One seed: how far seeds lie apart is not seen."
    notes = [
        f"95 % intervals in brackets: {METHOD}, {FRAMES_PER_BLOCK} neighbouring frames a block, over the questions of "
        f"all seeds; they hold scenes and models fixed. {spread} 'mIoU published' is the field's formula, which is not "
        "an IoU.",
    ]
    if "sft_continued" in result["rows"] and result["compute"]:
        steps = "; ".join(
            f"seed {seed}: {item['steps']} steps ({item['how']})" for seed, item in result["compute"].items()
        )
        notes.append(f"SFT continued for the compute that RFT took: {steps}.")
    if "rft_without_coherence" in result["rows"]:
        notes.append(f"Without coherence: the rewards {', '.join(result['left_out_rewards'])} are left out.")
    return PlainTable("The paper's table", head, rows, notes)


def _seeds(found: Mapping[str, Any]) -> set[str]:
    return {seed for measures in found.values() for one in measures.values() for seed in one["by_seed"]}


def _agreement(result: Mapping[str, Any], split: str) -> PlainTable:
    found = {name: row.get(split, {}) for name, row in result["rows"].items()}
    columns = {head: [cell(one.get(named(*measure))) for one in found.values()] for head, measure in AGREEMENT.items()}
    # Rationales are swapped for the contrast alone: on one set, in some rows.
    columns = {head: cells for head, cells in columns.items() if set(cells) != {"-"}}
    rows = [[title_of(name), *(cells[i] for cells in columns.values())] for i, name in enumerate(found)]
    notes = [
        "Rationale right, contradicts: of the replies with a rationale. Facts: named in one, on average. Follows "
        "another: with another question's rationale in its mouth the answer goes with that. Wrong referent: another "
        "annotated object fits the box better than the one asked about."
    ]
    return PlainTable(f"Do rationale, answer and box agree: {SETS[split]}", ["", *columns], rows, notes)


def _contrast(result: Mapping[str, Any]) -> PlainTable:
    contrast = result["contrast"]
    head = ["claim", "difference", "n", "blocks", "each seed", "a reward pays for it", "verdict"]
    rows = []
    for claim in contrast["claims"]:
        paid = {True: "yes", False: "no", None: "one of your own may"}[claim["paid_for"]]
        if claim["passed"] is None:
            rows.append([claim["claim"], "-", "-", "-", "-", paid, f"cannot be told: {claim['why']}"])
            continue
        shown = (
            f"{signed(claim['difference'])} {format_interval(claim['ci95'], sign=True)} to {ROWS[claim['rival']].title}"
        )
        seeds = ", ".join(f"{seed}: {signed(value)}" for seed, value in claim["by_seed"].items())
        cells = [shown, str(claim["n"]), str(claim["blocks"]), seeds, paid, verdict(claim["passed"])]
        rows.append([claim["claim"], *cells])
    registered = result["registered"]
    notes = [
        f"{contrast['title']}: {verdict(contrast['passed'])}. A claim holds where its whole 95 % interval lies on the "
        f"named side. Registered {registered['registered']}, sha256 {registered['contrast_sha256'][:16]}.",
    ]
    if len({item["added"] for item in registered["seeds"]}) > 1:
        added = ", ".join(f"{item['seed']} on {item['added']}" for item in registered["seeds"])
        notes.append(f"Seeds were added: {added}.")
    return PlainTable("The contrast registered beforehand", head, rows, notes)


def verdict(passed: bool | None) -> str:
    """In a word."""
    return {True: "holds", False: "FAILED", None: "cannot be told yet"}[passed]


def _times(result: Mapping[str, Any]) -> PlainTable:
    seconds: Mapping[str, Mapping[str, float]] = result["seconds"]
    stages = list(dict.fromkeys(stage for one in seconds.values() for stage in one))
    rows = [[stage, *(_shown(one.get(stage)) for one in seconds.values())] for stage in stages]
    rows.append(["all", *(_shown(sum(one.values())) for one in seconds.values())])
    note = "Seconds of each stage over all calls, models loaded included; a stage that was made elsewhere has none."
    return PlainTable("Seconds", ["stage", *(f"seed {seed}" for seed in seconds)], rows, [note])


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.1f}"


@dataclass(frozen=True, slots=True)
class _PublishedRow:
    name: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Published:
    source: str
    note: str
    rows: tuple[_PublishedRow, ...]


def published_table() -> PlainTable:
    """What the paper prints: a table of its own, because nothing in it was measured here."""
    path = Path(__file__).with_name("published.toml")
    data, text = toml.load_toml(path)
    found = toml.build(_Published, data, path, text)
    head = [f"{name}: {metric}" for name in ("EndoVis-18", "EndoVis-17, cross-set") for metric in ("Acc", "F", "mIoU")]
    # As printed: four digits.
    rows = [[row.name, *(f"{value:.4f}".removeprefix("0") for value in row.values)] for row in found.rows]
    return PlainTable(f"Published, not measured here: {found.source}", ["", *head], rows, [found.note])
