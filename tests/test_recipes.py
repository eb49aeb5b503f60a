"""The scripts of ``runs/`` with the tiny config on a CPU: every line of them is run, a GPU, Slurm and vLLM aside."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surgery_r1.synthetic import make_scenes
from surgery_r1.train.config import load_config

ROOT = Path(__file__).parents[1]
#: Steps and replies that a test can afford.
SMALL = (
    "sft.batch_size=2 sft.max_steps=2 sft.eval_every=1 sft.trl.logging_steps=1 rft.prompts=2 rft.generations=2 "
    "rft.max_steps=1 rft.eval_every=1 rft.max_completion=8 eval.dev_samples=2 eval.max_new_tokens=4"
)

needs_shell = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("curl") is None, reason="needs bash and curl"
)


def test_lines_of_the_page_are_configs_that_load_and_steps_that_divide():
    """Rows of SFT and questions of RFT are as many as one GPU takes, whatever the recipe."""
    page = (ROOT / "docs" / "recipes.md").read_text()
    lines = [line.strip() for line in page.splitlines() if line.startswith("    ") and "runs/" in line]
    assert len(lines) == 7
    for line in lines:
        given = dict(re.findall(r'([A-Z]+)=("[^"]*"|[^ ]+)', line))
        words = {name: value.strip('"') for name, value in given.items()}
        config = load_config(words.get("CONFIG", "qwen2_5_vl_7b"), tuple(words.get("SET", "").split()))
        nodes = int(found[1]) if (found := re.search(r"--nodes=(\d+)", line)) else 1
        processes = nodes * int(words.get("NPROC", 1))
        assert config.sft.batch_size % processes == 0 and config.rft.prompts % processes == 0
        mine = config.rft.prompts * config.rft.generations // processes
        assert mine % config.rft.micro_batch == 0 and config.sft.batch_size // processes % config.sft.micro_batch == 0
        assert config.sft.batch_size * config.sft.max_steps == pytest.approx(6000, rel=0.001)


@pytest.fixture
def start(tmp_path, dataset_folder):
    """A function that starts a script of ``runs/``: ``start("stages.sh", SET="...")``."""

    def started(script: str, **variables) -> subprocess.Popen:
        path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        given = {"CONFIG": "tiny", "DATASET": dataset_folder, "OUT": tmp_path / "out", "SET": SMALL, **variables}
        own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment = {**own, "PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment |= {"OMP_NUM_THREADS": "1", **{name: str(value) for name, value in given.items()}}
        return subprocess.Popen(
            ["bash", ROOT / "runs" / script],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return started


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit status, standard output and error."""
    try:
        out, err = process.communicate(timeout=420)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def command(folder: Path, name: str, text: str) -> None:
    """A program ``name`` that the scripts find before any other."""
    (folder / "bin").mkdir(exist_ok=True)
    path = folder / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@needs_shell
@pytest.mark.slow
def test_the_paper_table_over_seeds(start, tmp_path):
    given = {"SEEDS": "0 1", "FLAGS": "--rows base sft", "SET": SMALL}
    status, out, err = ended(start("reproduce.sh", **given))
    assert status == 0, err[-2000:]
    found = result(tmp_path / "out")
    assert found["seeds"] == [0, 1] and list(found["rows"]) == ["base", "sft"] and "0 reused" not in out
    status, out, err = ended(start("reproduce.sh", **given))
    assert status == 0 and "stages: 0 run" in out, err[-2000:]


@needs_shell
@pytest.mark.slow
def test_from_downloads_to_the_report(start, scenes, tmp_path):
    held_out = tmp_path / "scenes17"
    make_scenes(held_out, domain=17, frames=3, size=(160, 128), workers=1)
    labels = shutil.copytree(scenes, tmp_path / "scenes18")
    given = {"ENDOVIS18": labels, "FRAMES": labels, "ENDOVIS17": held_out, "DATASET": tmp_path / "built"}
    status, out, err = ended(start("endovis18_7b.sh", **given, BASE="tiny"))
    assert status == 0, err[-2000:]
    found = tmp_path / "out"
    # 106 training questions, six rows each, and those of dev.
    rows = json.loads((tmp_path / "built" / "manifest.json").read_text())["rows"]
    assert rows["total"] == 6 * (106 + 28) and out.count("last step, on dev: joint") == 2
    for name in ("base/val", "base/test", "sft-val", "sft-test", "rft-val", "rft-test"):
        assert json.loads((found / name / "metrics.json").read_text())["n"] > 0
    assert (found / "report.html").is_file() and (found / "model" / "model.safetensors").is_file()
    # Again: nothing is trained, and no reply is written anew.
    before = (found / "rft-val" / "predictions.jsonl").stat().st_mtime_ns
    status, out, err = ended(start("endovis18_7b.sh", **given, BASE="tiny"))
    assert status == 0 and "on dev: joint" not in out, err[-2000:]
    assert (found / "rft-val" / "predictions.jsonl").stat().st_mtime_ns == before


#: Runs what stands behind its own flags, and notes the call.
SRUN = '#!/bin/bash\necho "srun $*" >>"$CALLS"\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/bin/bash\necho "scontrol $*" >>"$CALLS"\n[ "$1" = requeue ] || echo localhost\n'


@needs_shell
@pytest.mark.slow
def test_a_slurm_job_whose_time_is_up_goes_on_when_it_is_queued_again(start, tmp_path):
    command(tmp_path, "srun", SRUN)
    command(tmp_path, "scontrol", SCONTROL)
    calls, out = tmp_path / "calls", tmp_path / "out"
    job = {"SLURM_JOB_ID": 7, "SLURM_NNODES": 1, "SLURM_JOB_NODELIST": "node[1-2]", "NPROC": 2, "CALLS": calls}
    # Without patience it could end by itself before it is told to.
    long = SMALL.replace("sft.max_steps=2", "sft.max_steps=500 sft.patience=0")
    process = start("slurm.sh", **job, PORT=free_port(), SET=long)
    metrics, deadline = out / "sft" / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.is_file() and '"loss"' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, ended(process)[2][-2000:]
        time.sleep(0.2)
    # As --signal=B:TERM does: the script of the job alone.
    process.send_signal(signal.SIGTERM)
    status, _, err = ended(process)
    assert status == 75 and "sft was stopped; the same line goes on" in err, err[-2000:]
    assert result(out / "sft")["stopped"] and not (out / "rft").exists()
    assert calls.read_text().splitlines()[-1] == "scontrol requeue 7"
    done = result(out / "sft")["steps"]
    shorter = SMALL.replace("sft.max_steps=2", f"sft.max_steps={done + 1} sft.patience=0")
    status, _, err = ended(start("slurm.sh", **job, PORT=free_port(), SET=shorter, SLURM_RESTART_COUNT=1))
    assert status == 0, err[-2000:]
    assert result(out / "sft")["steps"] == done + 1 and result(out / "rft")["steps"] == 1
    assert json.loads((out / "sft" / "run.json").read_text())["processes"] == 2
    launched = [line for line in calls.read_text().splitlines() if line.startswith("srun")]
    assert "--nnodes 1 --nproc_per_node 2 --rdzv_backend c10d --rdzv_id 7-0 --rdzv_endpoint localhost:" in launched[0]
    assert [line.split(" --config")[0][-9:] for line in launched] == ["train sft", "train sft", "train rft"]
    assert "--rdzv_id 7-1 " in launched[1]
    assert ["--resume" in line for line in launched] == [False, True, False]


#: Answers /health, and notes how it was started.
VLLM = """#!/usr/bin/env python3
import http.server, json, os, sys
names = ("CUDA_VISIBLE_DEVICES", "VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
open(os.environ["CALLS"], "w").write(json.dumps([sys.argv[1:], {name: os.environ[name] for name in names}]))
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Healthy).serve_forever()
"""
#: Stands in for the processes of training: notes what they were asked for, and which GPUs they see.
TRAINER = """#!/bin/bash
echo "$CUDA_VISIBLE_DEVICES $*" >>"$TRAINED"
while [ "$1" != --out ]; do shift; done
mkdir -p "$2" && echo '{"stopped": false}' >"$2/result.json"
"""


@needs_shell
@pytest.mark.slow
def test_a_server_on_a_gpu_of_its_own(start, tmp_path, tiny, monkeypatch):
    monkeypatch.undo()  # to see whether the server has gone
    command(tmp_path, "vllm", VLLM)
    command(tmp_path, "trainer", TRAINER)
    out, port = tmp_path / "out", free_port()
    # What SFT leaves behind.
    shutil.copytree(tiny.folder, out / "sft")
    (out / "sft" / "result.json").write_text('{"stopped": false, "best_step": 2, "dev/joint": 0.5}')
    notes = {"CALLS": tmp_path / "served", "TRAINED": tmp_path / "trained"}
    status, _, err = ended(
        start("vllm_rollouts.sh", **notes, PORT=port, NPROC=3, LAUNCH="trainer", SET="rft.prompts=3")
    )
    assert status == 0, err[-2000:]
    arguments, environment = json.loads((tmp_path / "served").read_text())
    assert arguments == [
        *("serve", str(out / "start"), "--host", "127.0.0.1", "--port", str(port)),
        *("--enable-lora", "--max-lora-rank", "64"),
    ]
    assert environment["CUDA_VISIBLE_DEVICES"] == "3" and (out / "start" / "model.safetensors").is_file()
    (trained,) = (tmp_path / "trained").read_text().splitlines()
    assert trained.startswith("0,1,2 -m surgery_r1 train rft --config tiny ")
    wanted = f" --set rft.prompts=3 rft.rollouts=server --endpoint http://127.0.0.1:{port}/v1"
    assert trained.endswith(wanted)
    # The server ends with the script.
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        pass
