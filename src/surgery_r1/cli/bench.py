"""``surgery-r1 bench``: shared frames against stock TRL or transformers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from surgery_r1._util.files import dump_json, write_json
from surgery_r1.bench.shapes import Work
from surgery_r1.cli.messages import logger


@dataclass
class Bench:
    """Time shared frames against stock TRL or transformers, on the same rows, each in a process of its own."""

    name: tyro.conf.Positional[Literal["sft", "rft", "predict"]]
    """What to time."""
    work: Work = field(default_factory=Work)
    pairs: int = 5
    """Pairs of measurements."""
    json: Path | None = None
    """File to write the record to."""

    def run(self) -> int:
        """Exit status 0."""
        from surgery_r1.bench.compare import bench

        record = bench(self.name, self.work, self.pairs, say=logger.info)
        if self.json:
            write_json(self.json, record)
        sys.stdout.write(_summary(record) + "\n")
        return 0


def _summary(record: dict) -> str:
    from surgery_r1.bench.compare import VARIANTS

    lines = [
        f"{record['name']}: {record['ratio_median']:.2f} x faster (median of {len(record['pairs'])} pairs, "
        f"{record['ratio_min']:.2f} to {record['ratio_max']:.2f}); "
        f"counted operations say {record['ratio_predicted']:.2f}"
    ]
    lines.append(f"CPU seconds: {record['ratio_cpu_median']:.2f} x fewer; load before: {_load(record)}")
    if record["ratio_step_median"] != record["ratio_median"]:
        lines.append(f"with preprocessing: {record['ratio_step_median']:.2f} x")
    for variant, key in VARIANTS.items():
        parts = ", ".join(f"{k} {v:.2f}" for k, v in record[key].items() if not k.startswith("compared"))
        lines.append(
            f"{variant:9} {record['tokens'][key]:,} tokens, peak {record['peak_memory_bytes'][key] / 2**20:,.0f} MiB, "
            f"{record['rates'][key]['samples_per_second']:.2f} samples/s; seconds: {parts}"
        )
    difference = record["max_abs_diff"]
    lines.append(
        f"{record['texts_that_differ']} of {record['texts']} texts differ"
        if difference is None
        else f"largest difference {difference:.1e}"
    )
    return "\n".join(lines) + "\n" + dump_json(record["machine"])


def _load(record: dict) -> str:
    before = record["load"]["before"]
    return f"{before[0]:.1f}" if before else "not known"
