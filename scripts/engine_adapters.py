"""A served LoRA adapter against the same adapter merged, and what bf16 changes.

A part of ``scripts/test_engines.py``, after ``engine_rollouts.py``, whose ten steps of LoRA it serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine_servers import ours, served, texts

QUESTIONS = 100


def adapters(dataset: Path, base: Path, run: Path, folder: Path, environment: Path) -> Iterator[dict[str, Any]]:
    """A row for each format: replies of the served adapter, against vLLM's and our own of the merged export.

    Args:
        base: that the adapter was trained on.
        run: a checkpoint with the adapter.
    """
    folder.mkdir()
    adapter, merged = folder / "adapter", folder / "merged"
    ours("export", run, adapter, "--adapter-only")
    ours("export", run, merged)
    asked = ["--data", dataset, "--split", "train", "--limit", str(QUESTIONS), "--max-new-tokens", "64"]
    for dtype in ("float32", "bfloat16"):
        for name, model in {"ours": merged, "base": base}.items():
            ours("predict", "--model", model, *asked, "--dtype", dtype, "--out", folder / f"{name}.{dtype}.jsonl")
        log = folder / f"merged.{dtype}.log"
        with served("vllm serve", environment, merged, log, dtype=dtype) as server:
            more = ["--model", merged, "--endpoint", server.endpoint, "--out", folder / f"merged.{dtype}.jsonl"]
            ours("predict", *more, *asked)
        lora = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"surgery-r1={adapter}")
        log = folder / f"adapter.{dtype}.log"
        with served("vllm serve", environment, base, log, *lora, dtype=dtype) as server:
            more = ["--model", adapter, "--endpoint", server.endpoint, "--out", folder / f"adapter.{dtype}.jsonl"]
            ours("predict", *more, "--served-model", "surgery-r1", *asked)
        found = {name: texts(folder / f"{name}.{dtype}.jsonl") for name in ("ours", "base", "merged", "adapter")}

        def same(a: str, b: str, found: dict[str, dict[str, str]] = found) -> int:
            return sum(found[a][key] == text for key, text in found[b].items())

        yield {
            "dtype": dtype,
            "questions": len(found["ours"]),
            "adapter_as_merged": same("adapter", "merged"),
            "adapter_as_ours": same("adapter", "ours"),
            "merged_as_ours": same("merged", "ours"),
            "ours_as_base": same("ours", "base"),
        }
