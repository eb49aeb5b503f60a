"""``surgery-r1 gpu``: what only a GPU can show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from surgery_r1.cli.messages import logger
from surgery_r1.cli.output import say

Name = Literal["exact", "flex", "rft", "rft-6", "sft", "memory"]


@dataclass
class Gpu:
    """Measure what only a GPU can show: exactness in bfloat16, flex attention, steps against stock TRL, memory.

    What --out holds already is not measured again.
    """

    names: tyro.conf.Positional[tuple[Name, ...]] = ()
    """Which measurements; all of them by default."""
    out: Path = Path("runs/gpu")
    """Folder with a JSON file for each measurement."""
    shape: tuple[Literal["3b", "7b", "tiny"], ...] = ("3b", "7b")
    """Sizes of models with random weights; tiny tries the commands."""
    device: Literal["cuda", "cpu"] = "cuda"
    """A CPU says nothing of a GPU: take --shape tiny there."""
    peak_tflops: float | None = None
    """Dense bfloat16 operations a second of the device, in 10^12, where the table of bench does not know it."""
    pairs: int = 5
    """Pairs of timed steps."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        from surgery_r1.bench.gpu import plan
        from surgery_r1.bench.gpu.table import MEASUREMENTS, table

        chosen = plan.Plan(self.names or tuple(MEASUREMENTS), self.shape, self.device, self.peak_tflops, self.pairs)
        try:
            plan.run(chosen, self.out, logger.info)
        finally:
            found = plan.records(self.out, self.shape)
            if found:
                say(table(found, self.shape))
        return 0
