"""RFT with examples/minimal_rft.py and with TRL, from the same SFT model on the same settings: docs/minimal_rft.json.

python scripts/compare_minimal_rft.py --data demo/dataset --model demo/sft --out docs/minimal_rft.json

Both ways ask the same questions in the same order; completions are drawn anew, so figures agree within what seeds do.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from surgery_r1._util.files import read_json, read_jsonl, write_json
from surgery_r1.data.dataset import open_dataset
from surgery_r1.evaluate.predict import evenly_spaced
from surgery_r1.train.config import TrainConfig, load_config
from surgery_r1.train.run_folder import provenance
from surgery_r1.train.stage import train

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import minimal_rft

METRICS = ("acc", "miou", "joint", "joint_at_iou50", "parse_failure_rate")
WAYS = ("minimal", "trl")


def settings_of(config: TrainConfig) -> minimal_rft.Settings:
    """The settings of minimal_rft that say what ``config`` says."""
    rft, dev = config.rft, config.eval
    return minimal_rft.Settings(
        steps=rft.max_steps,
        prompts=rft.prompts,
        generations=rft.generations,
        learning_rate=rft.learning_rate,
        warmup_steps=rft.warmup_steps,
        max_completion=rft.max_completion,
        rewards=rft.rewards,
        flips=rft.flips,
        seed=config.seed,
        dev_samples=dev.dev_samples,
        dev_batch_size=dev.batch_size,
        dev_max_new_tokens=dev.max_new_tokens,
    )


def run(way: str, config: TrainConfig, data: Path, model: Path, out: Path) -> dict[str, Any]:
    """One run into ``out``: dev figures before the first and after the last step, seconds, and what it started from.

    Seconds are those of the whole call: loading, both evaluations, training, saving.
    """
    begun = time.perf_counter()
    if way == "minimal":
        result = minimal_rft.train(data, model, out, settings_of(config))
        start, dev = result["start"], result["dev"]
        facts = result
    else:
        train("rft", config, open_dataset(data), out, base=model, quiet=True)
        lines = [line for _, line in read_jsonl(out / "metrics.jsonl") if "dev/acc" in line]
        start, dev = ({name: line[f"dev/{name}"] for name in METRICS} for line in (lines[0], lines[-1]))
        assert (lines[0]["step"], lines[-1]["step"]) == (0, config.rft.max_steps)
        facts = read_json(out / "run.json")
    return {
        "way": way,
        "seed": config.seed,
        "dev": dev,
        "seconds": round(time.perf_counter() - begun, 1),
        "start": start,
        "inputs": {name: facts[name] for name in ("dataset_sha256", "base_sha256")},
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """For each way mean and standard deviation over seeds of every figure."""
    values = {way: {m: [r["dev"][m] for r in runs if r["way"] == way] for m in METRICS} for way in WAYS}
    return {
        way: {m: {"mean": statistics.fmean(v), "std": statistics.stdev(v)} for m, v in of_way.items()}
        for way, of_way in values.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="SFT run that both ways start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="two or more")
    parser.add_argument("--steps", type=int, default=0, help="0 takes those of the tiny config")
    parser.add_argument("--dev-samples", type=int, default=0, help="0 takes all questions of dev")
    args = parser.parse_args()
    config = load_config("tiny")
    steps = args.steps or config.rft.max_steps
    config = replace(
        config,
        rft=replace(config.rft, max_steps=steps, eval_every=steps),
        eval=replace(config.eval, choose="last", dev_samples=args.dev_samples),
    )
    dataset = open_dataset(args.data)
    # Of the code that runs, not of what it has become when the last run ends.
    made_with = provenance()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for way in WAYS:
                one = run(way, replace(config, seed=seed), args.data, args.model, Path(folder) / f"{way}-{seed}")
                runs.append(one)
                print(json.dumps(one), flush=True)
    starts, inputs = ([one.pop(name) for one in runs] for name in ("start", "inputs"))
    # Sums over dev in another order differ in the last digits.
    apart = max(abs(start[name] - starts[0][name]) for start in starts for name in METRICS)
    if apart > 1e-9 or any(found != inputs[0] for found in inputs):
        raise SystemExit("the runs did not start from the same model and data")
    shared = {name: value for name, value in asdict(settings_of(config)).items() if name != "seed"}
    record = {
        "date": date.today().isoformat(),
        "versions": made_with["versions"],
        "git": made_with["git"],
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        **inputs[0],
        "settings": shared,
        "dev_questions": len(evenly_spaced(dataset.split("dev"), args.dev_samples)),
        "start": starts[0],
        "runs": runs,
        "summary": summary(runs),
    }
    write_json(args.out, record)


if __name__ == "__main__":
    main()
