"""Runs of several processes that tests launch, and what they are compared by."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("ranks_worker.py")


def launch(tmp_path: Path, count: int, **job) -> subprocess.CompletedProcess:
    """Run :mod:`ranks_worker` in ``count`` processes."""
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job, default=str))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(count)] if count > 1 else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(WORKER.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(WORKER), str(path)]
    wait = 300 * len(job.get("jobs", [job]))
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=wait, check=False)


def trained(tmp_path: Path, count: int, **job) -> Path:
    done = launch(tmp_path, count, **job)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(job["out"])


def seconds_since_event(run: Path) -> float:
    """How long ago what a test wanted to happen in a run has happened."""
    return time.time() - run.with_suffix(".event").stat().st_mtime


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def records(run: Path) -> list[dict]:
    """metrics.jsonl, times aside."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if "time" not in k and "per_second" not in k} for line in lines]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in records(run) if "loss" in line]


def apart(ours: dict, theirs: dict) -> float:
    """Largest difference of any tensor, by the size of theirs."""
    assert ours and ours.keys() == theirs.keys()
    return max(((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=1e-12)).item() for n in theirs)


#: A rank's own state, the form of the optimiser's, and what DeepSpeed keeps for itself.
_OWN = re.compile(r"(rng_state|log_state)(_\d+)?(?=\.)|optimizer\.\w+$|.*/(global_step\d+.*|latest|zero_to_\w+\.py)$")


def names(run: Path) -> list[str]:
    """Files and folders of a run, those of ranks and engines aside."""
    found = {_OWN.sub(r"\1", str(path.relative_to(run))) for path in run.rglob("*")}
    return sorted(name for name in found if name and not name.endswith("/"))


#: Plain SGD without clipping: what is learned is the gradient itself.
SGD = {"optim": "sgd", "max_grad_norm": 0, "logging_steps": 1, "lr_scheduler_type": "constant"}
UNEVEN_SFT = {"sft_batch_size": 4, "sft_max_steps": 20, "sft_eval_every": 20, "sft_learning_rate": 1e-3}
UNEVEN_SFT |= {"sft_flips": [], "sft_direct_answers": False, "sft_tasks": ["cot"], "sft_trl": SGD}
UNEVEN_RFT = {"rft_prompts": 4, "rft_generations": 2, "rft_max_steps": 20, "rft_eval_every": 20}
UNEVEN_RFT |= {"rft_max_completion": 200, "rft_learning_rate": 1e-3, "rft_trl": SGD}
DEV = {"eval_dev_samples": 2, "eval_max_new_tokens": 4, "eval_choose": "last"}


def uneven(
    tmp_path: Path,
    name: str,
    count: int,
    stage_name: str,
    data: Path,
    base: Path | str = "tiny",
    lora: bool = False,
    **changes,
) -> tuple[Path, dict]:
    """A run on rows or completions of 20 and 200 tokens, and the gradients of its first step."""
    job = uneven_job(tmp_path, name, stage_name, data, base, lora, **changes)
    return trained(tmp_path, count, **job), load_file(job["gradients"])


def uneven_job(
    tmp_path: Path, name: str, stage_name: str, data: Path, base: Path | str = "tiny", lora: bool = False, **changes
) -> dict:
    """What :mod:`ranks_worker` is told for :func:`uneven`."""
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def length(text, truth):\n    return sum(map(ord, text)) % 7 / 7\n")
    whole = {**(UNEVEN_SFT if stage_name == "sft" else UNEVEN_RFT), **DEV, **changes}
    if stage_name == "rft":
        whole["rft_rewards"] = {f"{rewards}:length": 1.0}
    job = {"stage": stage_name, "data": data, "base": base, "lora": lora, "uneven": True, "changes": whole}
    return {**job, "out": tmp_path / name, "gradients": tmp_path / f"{name}.grads"}


def uneven_together(tmp_path: Path, count: int, jobs: list[dict], **more) -> dict[str, tuple[Path, dict]]:
    """Runs of :func:`uneven_job` that follow each other in the same processes, by name."""
    done = launch(tmp_path, count, jobs=jobs, **more)
    assert done.returncode == 0, done.stderr[-3000:]
    return {job["out"].name: (job["out"], load_file(job["gradients"])) for job in jobs}
