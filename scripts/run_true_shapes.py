"""Both stages at the true shape of Qwen2.5-VL-3B on this machine's CPU, and what was planned for them.

    python scripts/make_model_folder.py qwen2_5_vl_3b MODEL
    python scripts/run_true_shapes.py MODEL --out docs/true_shapes.json

One step of each stage through the commands: bfloat16, LoRA, checkpointing, frozen tower, shared frames. SFT has the 18
rows of a frame; RFT two questions of it with four completions of 64 tokens each; the frame is 1280 x 1024, 1,280 image
tokens. ``plain`` is SFT without sharing on two rows.

Memory is what the kernel counts for the process: VmHWM, and, because clean pages of the mapped weights come and go with
what else the machine does, the largest RssAnon plus the weights' bytes. Freed blocks of a megabyte and more go back to
the system at once (``MALLOC_MMAP_THRESHOLD_``): glibc else keeps the holes between tensors that stay, a gigabyte here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from surgery_r1._util.files import write_json

RUNS = ("sft", "rft", "plain")

_CONFIG = """
extends = "qwen2_5_vl_3b"
threads = {threads}
[model]
base = "{model}"
[lora]
dropout = 0.0
[sft]
rows_per_frame = {rows_per_frame}
batch_size = {batch}
micro_batch = 0
max_steps = 1
eval_every = 1
warmup_steps = 0
[sft.trl]
gradient_checkpointing = true
dataloader_num_workers = 0
[rft]
rewards = {{ random = 1.0 }}
prompts = 2
generations = 4
micro_batch = 0
questions_per_frame = 2
max_completion = {completion}
max_steps = 1
eval_every = 1
warmup_steps = 0
[rft.trl]
gradient_checkpointing = true
[eval]
dev_samples = 1
batch_size = 1
max_new_tokens = 4
choose = "last"
"""


def make_dataset(folder: Path) -> Path:
    """A dataset of one drawn frame with three questions, 18 rows; dev has the same frame."""
    from surgery_r1.data.assemble import build_dataset
    from surgery_r1.synthetic import make_scenes

    scenes, dataset = folder / "scenes", folder / "dataset"
    make_scenes(scenes, domain=18, frames=14, size=(1280, 1024), workers=1)
    source, dev = scenes / "seq_2", scenes / "seq_4"
    (label,) = source.rglob("*.txt")
    organ, *rest = label.read_text().splitlines()
    state = next(line for line in rest if "state of" in line)
    tool = state.split("state of ")[1].split("?")[0]
    place = next(line for line in rest if line.startswith(f"Where is {tool} located"))
    label.write_text("\n".join((organ, state, place)) + "\n")
    shutil.rmtree(dev)
    shutil.copytree(source, dev)
    for other in scenes.glob("seq_*"):
        if other not in (source, dev):
            shutil.rmtree(other)
    build_dataset([scenes], dataset)
    return dataset


def command(name: str, args: argparse.Namespace, folder: Path, dataset: Path, *more: str) -> list[str]:
    """The command of one of :data:`RUNS`."""
    config = folder / f"{name}.toml"
    plain = name == "plain"
    values = {"model": args.model.resolve(), "threads": args.threads, "completion": args.completion}
    config.write_text(_CONFIG.format(rows_per_frame=0 if plain else 18, batch=2 if plain else 1, **values))
    stage = "rft" if name == "rft" else "sft"
    out = ["--out", str(folder / "runs" / name), "--json", *more]
    return [sys.executable, "-m", "surgery_r1", "train", stage, "--config", str(config), "--data", str(dataset), *out]


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MALLOC_MMAP_THRESHOLD_": "1000000"}


class Watch(threading.Thread):
    """The largest memory of a process, read until it ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.path = Path(f"/proc/{pid}/status")
        self.largest = {"VmHWM": 0, "RssAnon": 0}

    def run(self) -> None:
        while True:
            try:
                lines = [line.split() for line in self.path.read_text().splitlines()]
            except OSError:
                return
            found = {line[0][:-1]: int(line[1]) * 1024 for line in lines if line and line[0][:-1] in self.largest}
            if not found:
                return
            self.largest = {name: max(size, found.get(name, 0)) for name, size in self.largest.items()}
            time.sleep(0.02)


def watched(command_line: list[str], threads: int) -> tuple[dict[str, Any], str]:
    """Run a command to its end: what was measured, and what it printed."""
    start = time.monotonic()
    before = os.times().children_user + os.times().children_system
    process = subprocess.Popen(
        command_line, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, env=environment(threads)
    )
    watch = Watch(process.pid)
    watch.start()
    printed, _ = process.communicate()
    usage = os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(command_line)} ended with {process.returncode}")
    watch.join()
    measured = {
        "seconds": time.monotonic() - start,
        "cpu_seconds": usage.children_user + usage.children_system - before,
        "VmHWM": watch.largest["VmHWM"],
        "RssAnon": watch.largest["RssAnon"],
    }
    return measured, printed


def run_one(name: str, args: argparse.Namespace, folder: Path, dataset: Path) -> dict[str, Any]:
    """Plan and run one of :data:`RUNS`."""
    planned = subprocess.run(
        command(name, args, folder, dataset, "--plan", "--device", "cpu"),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment(args.threads),
    )
    plan = json.loads(planned.stdout)
    measured, _ = watched(command(name, args, folder, dataset), args.threads)
    weights = sum(path.stat().st_size for path in args.model.glob("*.safetensors"))
    measured["anonymous_and_weights"] = measured["RssAnon"] + weights
    records = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    values = {key: value for record in records for key, value in record.items() if not key.startswith("dev/")}
    shown = ("loss", "grad_norm", "train_runtime", "step_time", "completions/mean_length")
    return {
        "plan": plan,
        "measured": measured,
        "plan_over_measured": plan["peak"] / measured["anonymous_and_weights"],
        "plan_over_vmhwm": plan["peak"] / measured["VmHWM"],
        "trainer": {key: values[key] for key in shown if key in values},
    }


def machine(threads: int) -> dict[str, Any]:
    import peft
    import torch
    import transformers
    import trl

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl, peft)}
    return {
        "cores": os.cpu_count(),
        "memory": memory,
        "threads": threads,
        "processor": platform.machine(),
        "load_average_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        **versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of scripts/make_model_folder.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON; what it holds of other runs is kept")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--completion", type=int, default=64, help="tokens of a completion (rft)")
    args = parser.parse_args()
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = make_dataset(folder)
        for name in args.only:
            facts = machine(args.threads)
            done = run_one(name, args, folder, dataset)
            result[name] = {"machine": facts, **done}
            write_json(args.out, result)
            print(f"{name}: {json.dumps({k: v for k, v in done.items() if k != 'plan'})}", flush=True)


if __name__ == "__main__":
    main()
