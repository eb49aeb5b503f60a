"""``surgery-r1 reproduce``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from surgery_r1._util.files import dump_json
from surgery_r1._util.offline import stay_offline
from surgery_r1.cli.output import say
from surgery_r1.cli.overrides import Overrides, in_order
from surgery_r1.errors import SurgeryR1Error


@dataclass(kw_only=True)
class ReproduceCommand:
    """Every row of the paper's table, over seeds, judged by a contrast registered before the first stage."""

    config: str
    """A TOML file, or a shipped config by name: tiny, qwen2_5_vl_3b, qwen2_5_vl_7b, qwen3_vl_8b."""
    out: Path
    """Folder for everything; what is finished and made of the same is not run again. Prediction files of other systems
    in it become rows too: rivals/NAME/seedN/SPLIT.jsonl, with --data rivals/NAME/SPLIT.jsonl."""
    set: Overrides = ()
    """Change values of the config, written as in TOML: --set rft.max_steps=20 sft.learning_rate=1e-4."""
    data: Path | None = None
    """Your dataset folder; the seeds are then those of training. Without it scenes of each seed are drawn."""
    images: Path | None = None
    """With --data: where the images lie now, if they moved."""
    seeds: tuple[int, ...] = ()
    """Of scenes, SFT and RFT alike; by default those that --out was begun with, else the config's."""
    only: tuple[int, ...] = ()
    """Of these seeds, those that this call runs: calls with different ones may run side by side."""
    rows: tuple[str, ...] = ()
    """Rows to run; by default all: base sft_without_cot sft rft_without_coherence rft sft_continued random_rewards."""
    contrast: Path | None = None
    """A contrast of your own (TOML) in place of the shipped one; it cannot be changed after the first call."""
    frames: int | None = None
    """Of drawn scenes: frames per domain; the full sets (2,007 and 97) by default."""
    no_frames: bool = False
    """Leave every picture of a frame out of the reports, so that they may be passed on."""
    allow_hub: bool = False
    """Allow downloads from the model hub."""
    json: bool = False
    """Print result.json at the end; progress then goes to standard error."""

    def run(self) -> int:
        """Exit status 0, whether the contrast passes or not; errors are raised."""
        stay_offline(self.allow_hub)
        _refuse_several_processes()
        from surgery_r1.data.dataset import open_dataset
        from surgery_r1.reproduce.run import Reproduction
        from surgery_r1.train.config import load_config

        if self.data is None and self.images is not None:
            raise SurgeryR1Error("--images is for --data", fix="add --data, or leave it out")
        if self.data is not None and self.frames is not None:
            raise SurgeryR1Error("--frames is for drawn scenes", fix="leave it out, or leave --data out")
        config = load_config(self.config, in_order(self.set))
        dataset = None
        if self.data is not None:
            dataset = open_dataset(self.data, images=self.images)
        result = Reproduction(
            self.out,
            config,
            dataset,
            self.seeds,
            self.only,
            self.rows,
            self.contrast,
            frames=self.frames,
            allow_hub=self.allow_hub,
            pictures=not self.no_frames,
            say=_to_standard_error if self.json else say,
        ).run()
        if self.json:
            say(dump_json(result, indent=2))
        return 0


def _to_standard_error(text: str) -> None:
    sys.stderr.write(text + "\n")


def _refuse_several_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SurgeryR1Error(
            "reproduce runs in one process",
            fix="train a stage with torchrun and surgery-r1 train into its folder, such as OUT/seed0/sft: what was "
            "made of the same is taken as it is",
        )
