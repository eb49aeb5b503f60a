"""``surgery-r1 bench``: shared frames against stock TRL or transformers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from surgery_r1._util.files import dump_json, write_json


@dataclass
class Bench:
    """Time shared frames against stock TRL or transformers, on the same rows, each in a process of its own."""

    name: tyro.conf.Positional[Literal["sft", "rft", "predict"]]
    """What to time."""
    shape: Literal["cpu", "3b", "7b"] = "cpu"
    """Size of the model, whose weights are random."""
    pairs: int = 5
    """Pairs of measurements."""
    image_tokens: int = 1280
    """Tokens of the frame."""
    prompt_tokens: int = 150
    """Text tokens of a prompt."""
    completion_tokens: int = 0
    """Tokens of a completion; 0: 128 for rft, 60 for sft, 32 for predict."""
    questions: int = 0
    """Questions on the frame; 0: 1 for rft, 6 for sft and predict."""
    generations: int = 8
    """Completions of a question (rft)."""
    rows: int = 3
    """Training rows of a question (sft)."""
    micro_batch: int = 0
    """Rows in a pass of the baseline; 0: one group (rft) or 6 rows (sft)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations."""
    device: str = "cpu"
    """cpu or cuda."""
    lora: bool = False
    """Train an adapter instead of the language model."""
    checkpointing: bool = False
    """Recompute activations in the backward pass."""
    threads: int = 0
    """Threads of each process; 0: as many as torch takes."""
    json: Path | None = None
    """File to write the record to."""

    def run(self) -> int:
        """Exit status 0."""
        from surgery_r1.bench.compare import bench
        from surgery_r1.bench.shapes import Work

        tokens = self.completion_tokens or {"rft": 128, "sft": 60, "predict": 32}[self.name]
        questions = self.questions or (1 if self.name == "rft" else 6)
        work = Work(
            shape=self.shape,
            image_tokens=self.image_tokens,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=tokens,
            questions=questions,
            generations=self.generations,
            rows=self.rows,
            micro_batch=self.micro_batch,
            dtype=self.dtype,
            device=self.device,
            lora=self.lora,
            checkpointing=self.checkpointing,
            threads=self.threads,
        )
        record = bench(self.name, work, self.pairs, say=_progress)
        if self.json:
            write_json(self.json, record)
        sys.stdout.write(_summary(record) + "\n")
        return 0


def _progress(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _summary(record: dict) -> str:
    from surgery_r1.bench.compare import VARIANTS

    lines = [
        f"{record['name']}: {record['ratio_median']:.2f} x faster (median of {len(record['pairs'])} pairs, "
        f"{record['ratio_min']:.2f} to {record['ratio_max']:.2f}); "
        f"counted operations say {record['ratio_predicted']:.2f}"
    ]
    if record["ratio_step_median"] != record["ratio_median"]:
        lines.append(f"with preprocessing: {record['ratio_step_median']:.2f} x")
    for variant, key in VARIANTS.items():
        parts = ", ".join(f"{k} {v:.2f}" for k, v in record[key].items() if k != "compared")
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
