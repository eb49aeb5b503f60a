"""The rows of the table: which model each is, what it is trained from, and how a config is changed for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.stages import continued, random_rewards
from surgery_r1.train.config import TrainConfig

#: Rewards that pay for an answer and a box that belong together: what the row without coherence goes without.
COHERENCE = ("coherence", "joint", "referent", "spatial", "coherence_all")


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        name: of its run folder and its scores.
        title: in tables.
        stage: how it is trained; None for the base.
        parent: the row it is trained from; None where that is the base.
        config: of its training, from the config of the reproduction and the steps of SFT continued.
        reasoning: whether it is asked for a rationale, given the config of the reproduction.
    """

    name: str
    title: str
    stage: Literal["sft", "rft"] | None = None
    parent: str | None = None
    config: Callable[[TrainConfig, int], TrainConfig] = lambda config, _: config
    reasoning: Callable[[TrainConfig], bool] = lambda config: config.rft.reasoning


def _without_cot(config: TrainConfig) -> TrainConfig:
    tasks = tuple(task for task in config.sft.tasks if task != "cot")
    sft = replace(config.sft, tasks=tasks, direct_answers=True)
    return replace(config, sft=sft, eval=replace(config.eval, reasoning=False))


def _without_coherence(config: TrainConfig) -> TrainConfig:
    kept = {name: weight for name, weight in config.rft.rewards.items() if name not in COHERENCE}
    return replace(config, rft=replace(config.rft, rewards=kept))


def _with_cot(config: TrainConfig) -> bool:
    return "cot" in config.sft.tasks


#: In the order of the paper's table, controls last.
ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("base", "base", reasoning=lambda _: True),
        Row(
            "sft_without_cot", "SFT without CoT", "sft", config=lambda c, _: _without_cot(c), reasoning=lambda _: False
        ),
        Row("sft", "SFT with CoT", "sft", reasoning=_with_cot),
        Row("rft_without_coherence", "RFT without coherence", "rft", "sft", lambda c, _: _without_coherence(c)),
        Row("rft", "RFT with coherence", "rft", "sft"),
        Row("sft_continued", "control: SFT continued", "sft", "sft", continued, _with_cot),
        Row("random_rewards", "control: random rewards", "rft", "sft", lambda c, _: random_rewards(c)),
    )
}


def title_of(name: str) -> str:
    """What a row is called in tables; one that is none of :data:`ROWS` is a rival's.

    >>> title_of("sft"), title_of("specialist")
    ('SFT with CoT', 'rival: specialist')
    """
    return ROWS[name].title if name in ROWS else f"rival: {name}"


def rows_named(names: Sequence[str]) -> list[Row]:
    """The rows of these names in the order of the table; all of them for none.

    Raises:
        SurgeryR1Error: for a name that no row has.

    >>> [row.name for row in rows_named(["rft", "base"])]
    ['base', 'rft']
    """
    if unknown := [name for name in names if name not in ROWS]:
        raise SurgeryR1Error(f"unknown row {unknown[0]!r}", fix=f"give some of {', '.join(ROWS)}")
    return [row for row in ROWS.values() if not names or row.name in names]


def check_config(config: TrainConfig, rows: Sequence[Row]) -> None:
    """Refuse a config that cannot give a row, before anything is paid for.

    Raises:
        SurgeryR1Error: where the config has no row of that kind.
    """
    names = {row.name for row in rows}
    if "rft_without_coherence" in names and not set(config.rft.rewards) & set(COHERENCE):
        raise SurgeryR1Error(
            f"rft.rewards = {sorted(config.rft.rewards)} has no coherence that a row could go without",
            fix=f"add one of {', '.join(COHERENCE)}, or leave the row out: --rows",
        )
    if "rft_without_coherence" in names and not set(config.rft.rewards) - set(COHERENCE):
        raise SurgeryR1Error(
            "rft.rewards holds nothing but coherence: without it there is no reward left",
            fix="add answer or box, or leave the row rft_without_coherence out: --rows",
        )
    if "cot" not in config.sft.tasks and names & {"sft", "rft"} and config.rft.reasoning:
        raise SurgeryR1Error(
            f"sft.tasks = {list(config.sft.tasks)} shows no rationale, and rft.reasoning asks for one",
            fix="add 'cot' to sft.tasks: SFT without it is a row of its own",
        )
    if "sft_without_cot" in names and not set(config.sft.tasks) - {"cot"}:
        raise SurgeryR1Error(
            f"sft.tasks = {list(config.sft.tasks)} leaves nothing to train without chain of thought",
            fix="add visual_qa and grounding_qa, or leave the row out: --rows",
        )
