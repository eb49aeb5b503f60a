"""``scripts/profile_demo.py`` wraps private parts of three packages by name: they must be there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
#: In a process of its own, because what is wrapped stays so.
CODE = """
import profile_demo
from surgery_r1.train import dev
before = dev.Scorer.line
profile_demo.instrument(profile_demo.Profile())
assert dev.Scorer.line is not before
"""


@pytest.mark.slow
def test_all_parts_that_are_counted_exist():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=SCRIPTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
