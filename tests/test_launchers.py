"""accelerate's launcher itself, as docs/several_gpus.md says that a user may take it. Real processes on the CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from launching import records, weights

from surgery_r1.models.save import refuse_empty

pytestmark = pytest.mark.slow

SHORT = ("sft.max_steps=2", "sft.eval_every=2", "sft.batch_size=4", "sft.warmup_steps=0", "sft.trl.logging_steps=1")
SHORT += ("eval.dev_samples=2", "eval.max_new_tokens=4")


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("flags", "processes", "shard"),
    [
        (["--multi_gpu", "--num_processes", "2"], 2, "none"),
        (["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2"], 2, "fsdp2"),
        # It starts several on a CPU through MPI alone, whatever the number.
        (["--cpu", "--num_processes", "2"], 1, "none"),
    ],
    ids=["ddp", "fsdp2", "cpu"],
)
def test_a_run_that_accelerate_launches(dataset_folder, tmp_path, flags, processes, shard):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port()]
    out = tmp_path / "run"
    command = ["train", "sft", "--config", "tiny", "--data", str(dataset_folder), "--out", str(out), "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    # A configuration of whoever runs the tests would speak too.
    environment["HF_HOME"] = str(tmp_path / "home")
    done = subprocess.run(
        [*launcher, "-m", "surgery_r1", *command, "--set", *SHORT],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == 2, "one process tells the result"
    assert json.loads((out / "run.json").read_text())["processes"] == processes
    assert json.loads((out / "config.json").read_text())["ranks"]["shard"] == shard
    refuse_empty(out / "best")
    assert weights(out / "best") and [r["step"] for r in records(out) if "loss" in r] == [1, 2]
