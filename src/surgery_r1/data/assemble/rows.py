"""Training rows: what each question becomes by the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from surgery_r1.data.paraphrases import paraphrase
from surgery_r1.data.rationales.generate import Rationale
from surgery_r1.data.recipe import RowsConfig
from surgery_r1.records import TASKS, Sample, TrainingRow

#: Splits whose samples become rows; training leaves dev out unless it is told to include it.
ROW_SPLITS: tuple[str, ...] = ("train", "dev")


def rows_of(sample: Sample, rows: RowsConfig, rationales: Sequence[Rationale]) -> Iterator[TrainingRow]:
    """Rows of a sample, in the order of :data:`surgery_r1.records.TASKS` and then of paraphrases and rationales.

    A sample without a box has no Grounding-QA rows.
    """
    for task in TASKS:
        if task == "grounding_qa" and sample.box_px is None:
            continue
        if task == "cot":
            for number, reasoning in enumerate(rationales):
                yield _row(sample, task, number, reasoning=reasoning)
        else:
            for number in range(getattr(rows, task)):
                yield _row(sample, task, number)


def _row(sample: Sample, task: str, number: int, reasoning: Rationale | None = None) -> TrainingRow:
    return TrainingRow(
        id=f"{sample.id}/{task}" + (f"/{number + 1}" if number else ""),
        sample_id=sample.id,
        task=task,
        question=sample.question if reasoning else paraphrase(sample, task, number),
        reasoning=reasoning.text if reasoning else None,
        answer=None if task == "grounding_qa" else sample.answer,
        box_px=None if task == "visual_qa" else sample.box_px,
        writer=reasoning.writer if reasoning else None,
        checks=reasoning.checks if reasoning else {},
    )
