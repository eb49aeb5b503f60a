"""vLLM as a child of the trainer: how it is started, and what it leaves behind.

``make test-engines`` has the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from served import only_this_machine

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.save import save_description
from surgery_r1.train.rollouts import colocate
from surgery_r1.train.rollouts.colocate import ColocatedEngine, EngineOptions, command_named

pytest.importorskip("openai", reason="pip install 'surgery-r1[teacher]'")
FAKE = Path(__file__).with_name("fake_vllm.py")


@pytest.fixture
def command(tmp_path):
    """A command that runs the stand-in with this Python."""
    path = tmp_path / "vllm"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def bundle(tiny):
    tiny.model.name_or_path = str(tiny.folder)
    return tiny


@pytest.fixture
def started(command, tmp_path, bundle, monkeypatch):
    """A function that starts an engine; what it says of itself."""
    engines = []

    def start(*arguments: str, rank: int = 0):
        out = tmp_path / "run"
        out.mkdir(exist_ok=True)
        engines.append(ColocatedEngine(EngineOptions(command, arguments, rank, 5.0), out, 8, 1.0))
        engines[-1].start(bundle.model, describe(bundle), "float32")
        return engines[-1], json.loads((out / "facts.json").read_text())

    for _ in only_this_machine(monkeypatch):
        yield start
        for engine in engines:
            engine.close()


def describe(bundle):
    return lambda folder, step: save_description(bundle.processor, bundle.model.config.model_type, bundle.info, folder)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        # The second where it ends between our opening and reading of the file.
        return False


def gone(*pids: int) -> bool:
    end = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_it_is_started_with_the_model_of_the_run_and_ends_with_it(started, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    engine, facts = started("--max-model-len", "1024")
    expected = ["--dtype", "float32", "--logprobs-mode", "processed_logprobs", "--enforce-eager"]
    expected += ["--no-enable-chunked-prefill", "--max-model-len", "2048", "--kv-cache-memory-bytes", "4294967296"]
    expected += ["--max-model-len", "1024"]
    assert facts["arguments"] == expected
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= set(facts["files"])
    assert facts["environment"]["VLLM_SERVER_DEV_MODE"] == "1" == facts["environment"]["HF_HUB_OFFLINE"]
    assert not {"RANK", "MASTER_PORT"} & facts["environment"].keys()
    assert engine.server.base() == "served"
    with engine.awake():
        pass
    # Weights of the start are not kept twice; on a CPU there is no memory to give back.
    assert not list((tmp_path / "run/engine").glob("*.safetensors"))
    assert "sleep" not in (tmp_path / "run/requests.txt").read_text()
    home = engine._home
    assert home.stat().st_mode & 0o077 == 0
    engine.close()
    assert gone(facts["pid"], facts["worker"]) and not home.exists() and not (tmp_path / "run/engine").exists()


def test_one_that_is_not_started_leaves_nothing(command, tmp_path):
    engine = ColocatedEngine(EngineOptions(command, (), 0, 5.0), tmp_path, 8, 1.0)
    assert not engine._home.exists() and not list(tmp_path.glob("engine*"))
    engine.close()


def test_with_an_adapter_it_has_the_base_as_it_lies(started, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = {path.name: path.stat().st_mtime_ns for path in Path(bundle.folder).iterdir()}
    engine, facts = started(rank=20)
    at = facts["arguments"].index("--enable-lora")
    assert facts["arguments"][at : at + 4] == ["--enable-lora", "--max-lora-rank", "32", "--enable-sleep-mode"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(facts["files"])
    assert {path.name: path.stat().st_mtime_ns for path in Path(bundle.folder).iterdir()} == before
    with engine.awake():
        pass
    asked = (tmp_path / "run/requests.txt").read_text().splitlines()
    assert asked[-2:] == ["POST /wake_up", "POST /sleep?level=1"]


def test_one_that_does_not_start_is_told_with_its_own_words(started, tmp_path):
    with pytest.raises(SurgeryR1Error, match=r"vllm.log: vLLM does not start; it says: ValueError: no memory for"):
        started("--fault", "dies")


def test_one_that_never_answers_is_not_waited_for(started, tmp_path, monkeypatch):
    monkeypatch.setattr(colocate, "_PATIENCE", 2.0)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run/vllm.log").write_text("ValueError: of a run before this one\n")
    with pytest.raises(SurgeryR1Error, match=r"does not start; it says: nothing"):
        started("--fault", "silent")


def test_one_that_dies_is_told_with_its_log(started):
    engine, facts = started()
    os.kill(facts["pid"], signal.SIGKILL)
    engine.server.client._limits = engine.server.client._limits.__class__(8, 1.0, 5.0, 0)
    with pytest.raises(SurgeryR1Error, match=r"vLLM \(.*vllm.log\) cannot be reached: .*; see .*--resume"):
        engine.server.base()


@pytest.mark.slow
def test_it_ends_with_a_trainer_that_is_killed(command, tmp_path, bundle):
    script = """
import sys, time
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from surgery_r1.train.rollouts.colocate import ColocatedEngine, EngineOptions

class Model:
    def save_pretrained(self, folder):
        pass

out = Path(sys.argv[1])
engine = ColocatedEngine(EngineOptions(Path(sys.argv[2]), (), 0, 5.0), out, 8, 1.0)
engine.start(Model(), lambda folder, step: None, "float32")
(out / "up").touch()
time.sleep(600)
"""
    out = tmp_path / "run"
    out.mkdir()
    trainer = subprocess.Popen([sys.executable, "-c", script, str(out), str(command), str(Path(__file__).parent)])
    try:
        end = time.monotonic() + 300
        while not (out / "up").exists() and time.monotonic() < end and trainer.poll() is None:
            time.sleep(0.1)
        facts = json.loads((out / "facts.json").read_text())
        assert alive(facts["pid"])
    finally:
        trainer.kill()
        trainer.wait()
    assert gone(facts["pid"], facts["worker"])


def test_the_command_is_found_beside_this_python_and_along_the_path(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert command_named(str(command), Path("/nowhere")) == command
    assert command_named(None, tmp_path) == command
    with pytest.raises(SurgeryR1Error, match="and vllm is none; install vLLM in an environment of its own"):
        command_named(None, Path("/nowhere"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command_named(None, Path("/nowhere")) == command
