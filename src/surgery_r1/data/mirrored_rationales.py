"""Rationales about mirrored frames, by the one writer that needs no second look: the template writer (ours).

What it says comes from the annotations, and those of a mirrored frame are known. A teacher's sentences cannot be turned
over; they stay with the frame that they were written about.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from surgery_r1.data.dataset import Dataset
from surgery_r1.data.mirroring import flip_frame, flip_sample
from surgery_r1.data.rationales.generate import RationaleGenerator
from surgery_r1.data.rationales.writer import TemplateWriter
from surgery_r1.data.recipe import TEMPLATE, ReasoningConfig, Recipe, RowsConfig
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.records import TrainingRow


class MirroredRationales:
    """Writes the template writer's rationales of a dataset anew, by its recipe and with the same checks.

    Attributes:
        left: rationales asked for that stay with their frames: another writer's, or not accepted in the mirror.

    Raises:
        SurgeryR1Error: when none of the dataset's rationales is by the template writer.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._rows = {
            sample_id: own
            for sample_id, rows in dataset.rows_of.items()
            if (own := [row.id for row in rows if row.reasoning and row.writer == TemplateWriter.name])
        }
        if not self._rows:
            raise SurgeryR1Error(
                f"no rationale here is by {TemplateWriter.name}, and no other writer's can be told of a mirrored frame",
                where=dataset.root,
                fix="set sft.flip_rationales = false",
            )
        recipe: dict[str, Any] = dataset.manifest.get("recipe", {})
        told = {name: value for name, value in recipe.get("reasoning", {}).items() if name != "writers"}
        each = max(map(len, self._rows.values()))
        rules = {source: dataset.location_rule_of(source) for source in dataset.answers}
        self._generate = RationaleGenerator(
            Recipe(seed=recipe.get("seed", 0), rows=RowsConfig(0, 0, each), reasoning=ReasoningConfig(**told)),
            {TEMPLATE: TemplateWriter(rules)},
            rules,
            dataset.answers,
        )
        self._on_frame: dict[str, list[str]] = defaultdict(list)
        for sample_id in self._rows:
            self._on_frame[dataset.samples[sample_id].frame_id].append(sample_id)
        self._told: dict[tuple[str, str], dict[str, str]] = {}
        self.left = 0

    def __call__(self, row: TrainingRow, flip: str) -> str | None:
        """The rationale of ``row`` about its frame flipped so; None for one that stays with its frame."""
        key = self._dataset.samples[row.sample_id].frame_id, flip
        if key not in self._told:
            self._told[key] = self._of_frame(*key)
        told = self._told[key].get(row.id)
        self.left += told is None
        return told

    def _of_frame(self, frame_id: str, flip: str) -> dict[str, str]:
        """All of a frame together, as they were written: no two of them may say the same."""
        ids = self._on_frame[frame_id]
        samples = [flip_sample(self._dataset.samples[sample_id], flip) for sample_id in ids]
        ((_, found),) = self._generate([(flip_frame(self._dataset.frames[frame_id], flip), samples, samples)])
        told: dict[str, str] = {}
        for sample_id, rationales in zip(ids, found, strict=True):
            rows = self._rows[sample_id]
            # Of two, which one was dropped is not known: then neither is told.
            if len(rationales) >= len(rows):
                told |= zip(rows, (each.text for each in rationales[: len(rows)]), strict=True)
        return told
