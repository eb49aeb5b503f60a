"""``surgery-r1 data export``: a dataset for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from surgery_r1._util.files import dump_json
from surgery_r1.cli.output import format_table, say
from surgery_r1.errors import SurgeryR1Error


@dataclass
class ExportData:
    """Write a dataset as Parquet, one row a frame, that datasets.load_dataset opens; or as conversations for TRL."""

    dataset: tyro.conf.Positional[Path]
    """What surgery-r1 data build wrote."""
    out: Path
    """The folder to write."""
    conversations: str | None = None
    """Write each training row as the conversation that this model (a folder, or tiny) is trained on with TRL."""
    include_dev: bool = False
    """Conversations: rows of the dev sequences too."""
    images: Path | None = None
    """Where the images lie now, if they moved."""
    embed_images: bool = False
    """Put the images into the files: frames then leave with them."""
    json: bool = False
    """Print what was written as JSON."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        from surgery_r1.data.dataset import open_dataset

        if self.include_dev and not self.conversations:
            raise SurgeryR1Error(
                "--include-dev goes with --conversations", fix="frames of all splits are written anyway"
            )
        dataset = open_dataset(self.dataset, images=self.images)
        if self.conversations:
            from surgery_r1.data.export.conversations import export_conversations

            counts = export_conversations(
                dataset, self.conversations, self.out, include_dev=self.include_dev, embed_images=self.embed_images
            )
        else:
            from surgery_r1.data.export.parquet import export_frames

            counts = export_frames(dataset, self.out, embed_images=self.embed_images)
        if self.json:
            say(dump_json(counts, indent=2))
        else:
            what = "conversations" if self.conversations else "frames"
            say(format_table([("split", what), *counts.items()]))
            say(f"written: {self.out}")
        return 0
