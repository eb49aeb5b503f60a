"""``surgery-r1 data export``: a dataset for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from surgery_r1._util.files import dump_json
from surgery_r1.cli.output import format_table, say
from surgery_r1.errors import SurgeryR1Error


@dataclass
class ExportData:
    """Write a dataset as Parquet, one row a frame, that datasets.load_dataset opens; or as another trainer's rows."""

    dataset: tyro.conf.Positional[Path]
    """What surgery-r1 data build wrote."""
    out: Path
    """The folder to write."""
    trainer: Annotated[Literal["trl", "ms-swift", "verl"] | None, tyro.conf.arg(name="for")] = None
    """Write the rows that this trainer takes, for SFT and RL. Those for ms-swift serve LLaMA-Factory too."""
    model: str | None = None
    """With --for: the model that is to be trained (a folder, or tiny), in whose units boxes are written."""
    include_dev: bool = False
    """With --for: rows of the dev sequences too."""
    images: Path | None = None
    """Where the images lie now, if they moved."""
    embed_images: bool = False
    """Put the images into the files: frames then leave with them."""
    json: bool = False
    """Print what was written as JSON."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        from surgery_r1.data.dataset import open_dataset

        if self.trainer is None and (self.include_dev or self.model):
            flag = "--include-dev" if self.include_dev else "--model"
            raise SurgeryR1Error(f"{flag} goes with --for", fix="frames of all splits are written anyway")
        if self.trainer is not None and self.model is None:
            raise SurgeryR1Error(
                "--for needs --model", fix="name the model that is to be trained: boxes are in its units"
            )
        dataset = open_dataset(self.dataset, images=self.images)
        if self.trainer is not None and self.model is not None:
            from surgery_r1.data.export.trainers import export_for

            counts = export_for(
                self.trainer,
                dataset,
                self.model,
                self.out,
                include_dev=self.include_dev,
                embed_images=self.embed_images,
            )
        else:
            from surgery_r1.data.export.parquet import export_frames

            counts = export_frames(dataset, self.out, embed_images=self.embed_images)
        if self.json:
            say(dump_json(counts, indent=2))
        else:
            head = ("stage", "rows") if self.trainer else ("split", "frames")
            say(format_table([head, *counts.items()]))
            say(f"written: {self.out}")
        return 0
