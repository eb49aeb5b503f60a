"""How much faster shared frames make the demo's training: the same rows with the switch on and off, in turn.

python scripts/bench_demo.py --data demo/dataset --model demo/sft --out demo_bench.json

Seconds are those of whole training runs of a few steps, evaluation on eight questions of dev included, start-up not.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from surgery_r1._util.toml import SHIPPED
from surgery_r1.data.dataset import open_dataset

STEPS = {"sft": 12, "rft": 6}


def config(stage: str, shared: bool, data: Path) -> str:
    """The demo's config for a few steps of one stage, as TOML."""
    tables: dict[str, Any] = tomllib.loads((SHIPPED / "tiny.toml").read_text(encoding="utf-8"))
    tables[stage] |= {"max_steps": STEPS[stage], "eval_every": STEPS[stage]}
    tables["eval"] |= {"dev_samples": 8, "choose": "last"}
    if not shared:
        tables["sft"]["batch_size"] = rows_per_step(data, tables["sft"]["rows_per_frame"], tables["sft"]["batch_size"])
        tables["sft"]["rows_per_frame"] = 0
        tables["rft"]["share_frames"] = False
    return "\n".join(_table(name, table) for name, table in tables.items())


def rows_per_step(data: Path, most: int, packs: int) -> int:
    """Rows in so many packs of at most ``most`` rows of a frame, on average over the training rows."""
    dataset = open_dataset(data)
    frames = Counter(dataset.samples[row.sample_id].frame_id for row in dataset.train_rows())
    return round(packs * frames.total() / sum(math.ceil(count / most) for count in frames.values()))


def _table(name: str, table: dict[str, Any]) -> str:
    inner = {key: value for key, value in table.items() if isinstance(value, dict) and key == "trl"}
    rewards = {key: value for key, value in table.items() if isinstance(value, dict) and key != "trl"}
    lines = [f"[{name}]"] + [f"{k} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, dict)]
    lines += [f"{k} = {{ {', '.join(f'{a} = {b}' for a, b in v.items())} }}" for k, v in rewards.items()]
    return "\n".join(lines) + "\n" + "\n".join(_table(f"{name}.{k}", v) for k, v in inner.items())


def seconds(stage: str, shared: bool, data: Path, model: Path, folder: Path) -> float:
    """Seconds of a training run in a process of its own."""
    (folder / "config.toml").write_text(config(stage, shared, data), encoding="utf-8")
    out = folder / f"{stage}-{shared}-{len(list(folder.iterdir()))}"
    command = [sys.executable, "-m", "surgery_r1", "train", stage, "--config", str(folder / "config.toml")]
    command += ["--data", str(data), "--out", str(out)] + (["--model", str(model)] if stage == "rft" else [])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return next(record["train_runtime"] for record in records if "train_runtime" in record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="where RFT starts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    result = {}
    for stage in STEPS:
        pairs = []
        with tempfile.TemporaryDirectory() as scratch:
            for _ in range(args.pairs):
                baseline, optimised = (
                    seconds(stage, shared, args.data, args.model, Path(scratch)) for shared in (False, True)
                )
                pairs.append({"plain_s": baseline, "ours_s": optimised})
                print(
                    f"{stage}: baseline {baseline:.1f} s, optimised {optimised:.1f} s, {baseline / optimised:.2f} x",
                    flush=True,
                )
        ratios = sorted(pair["plain_s"] / pair["ours_s"] for pair in pairs)
        result[stage] = {"steps": STEPS[stage], "pairs": pairs, "ratio_median": statistics.median(ratios)}
        print(f"{stage}: {result[stage]['ratio_median']:.2f} x faster (median of {len(pairs)} pairs)", flush=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
