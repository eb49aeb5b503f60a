"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(script: str, *args: str, cwd: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / script), *args]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "an example says nothing that is not its own"
    return done.stdout


def test_hello(tmp_path):
    said = run("hello.py", cwd=tmp_path)
    assert [line.split(":")[0] for line in said.splitlines()] == ["rationale", "answer", "box", "problems"]
    with Image.open(tmp_path / "hello.png") as picture:
        assert picture.width >= 900


def test_custom_reward_explains_itself():
    done = subprocess.run(
        [sys.executable, "-m", "doctest", "examples/custom_reward.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_example_is_tested_and_listed():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    tested = {name for name in scripts for test in Path(__file__).parent.glob("*.py") if name in test.read_text()}
    listed = (EXAMPLES / "README.md").read_text()
    assert tested == scripts and all(name in listed for name in scripts)
