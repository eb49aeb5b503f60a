"""``surgery-r1 score`` and ``surgery-r1 report``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from surgery_r1._util.files import dump_json

if TYPE_CHECKING:
    from surgery_r1.report.inputs import Group


@dataclass
class Score:
    """Score predictions on every question of a split: metrics.json and scores.jsonl."""

    predictions: tyro.conf.Positional[Path]
    """predictions.jsonl: lines with id and text, or with id, answer and box_px."""
    data: Path
    """Dataset folder that was predicted on."""
    split: str
    """Split to score: train, dev, val or test."""
    out: Path
    """Folder to write."""
    box_space: Literal["pixels", "norm1000", "norm100", "norm1", "source"] | None = None
    """Units of the boxes, where lines do not say it: pixels of the resized image, thousandths, hundredths or shares of
    the frame, or pixels of the frame (the default, checked against the truth)."""
    box_format: Literal["xyxy", "xywh", "cxcywh"] | None = None
    """Two corners (the default), corner and size, or centre and size."""
    box_origin: Literal[0, 1] | None = None
    """What the first pixel is called: 0 (the default) or 1."""
    images: Path | None = None
    """Where the images lie now; not needed for scoring."""
    json: bool = False
    """Print metrics.json instead of a table."""

    def run(self) -> int:
        """Exit status 0."""
        from surgery_r1.data.dataset import open_dataset
        from surgery_r1.evaluate.score import score_predictions
        from surgery_r1.evaluate.tables import text_table

        dataset = open_dataset(self.data, images=self.images, check_images=False)
        metrics = score_predictions(
            self.predictions,
            dataset,
            self.split,
            self.out,
            box_space=self.box_space,
            box_format=self.box_format,
            box_origin=self.box_origin,
        )
        if self.json:
            _say(dump_json(metrics, indent=2))
        else:
            _say(text_table([(self.out.name, metrics)]))
            _say(f"{self.out / 'metrics.json'} and scores.jsonl")
        return 0


@dataclass
class Report:
    """Write one static HTML file: tables, curves, and every question with its boxes; or the rollouts of RFT."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, score folders, or folders that hold some; tables list them in this order."""
    out: Path
    """The HTML file to write."""
    data: Path | None = None
    """Dataset folder with the frames; without it boxes stand on an empty ground."""
    images: Path | None = None
    """Where the images lie now, if they moved."""
    no_frames: bool = False
    """Leave every picture of a frame out, so that the file may be passed on."""
    max_pictures: int | None = None
    """Largest number of frames with a picture; by default as many as some 9 MB hold."""
    rollouts: bool = False
    """Show what RFT has tried instead: the recorded groups of one run, with what each reply was paid for."""
    json: bool = False
    """Print what was written as JSON instead of tables."""

    def run(self) -> int:
        """Exit status 0."""
        from surgery_r1.data.dataset import open_dataset
        from surgery_r1.report import write_report, write_rollout_page
        from surgery_r1.report.inputs import read_inputs

        wanted = self.data is not None and not self.no_frames
        dataset = open_dataset(self.data, images=self.images) if wanted and self.data is not None else None
        settings: dict[str, Any] = {"dataset": dataset, "frames": not self.no_frames, "max_items": self.max_pictures}
        result = (write_rollout_page if self.rollouts else write_report)(self.sources, self.out, **settings)
        if self.json:
            _say(dump_json(result, indent=2))
            return 0
        if self.rollouts:
            counts = f"{result['groups']} groups of {result['steps']} steps, {result['pictures']} pictures"
            _say(f"{self.out}: {counts}, {result['bytes']:,} bytes")
            return 0
        for group in read_inputs(self.sources)[0]:
            _say(_group_table(group))
        counts = f"{result['questions']} questions, {result['pictures']} pictures, {result['bytes']:,} bytes"
        _say(f"{self.out}: {counts}")
        return 0


def _group_table(group: Group) -> str:
    from surgery_r1.evaluate.tables import text_table

    return f"{group.title}\n{text_table([(scored.name, scored.metrics) for scored in group.scored])}"


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
