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
        wanted: Sequence[Rationale | None] = rationales if task == "cot" else [None] * getattr(rows, task)
        for number, reasoning in enumerate(wanted):
            yield TrainingRow(
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
