"""The wheel that a release uploads: everything is in it, and it works where there is no source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import surgery_r1

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "surgery_r1"
MOST_BYTES = 20_000_000

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that sees no source tree and no index."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env={**kept, "PIP_NO_INDEX": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, because setuptools leaves its own folders in the tree that it builds from."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(SOURCE, tree / "src" / "surgery_r1", ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", out, tree, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Programs of an environment that has the wheel, and of this one what the wheel needs, but not its source."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder)
    programs = folder / "bin"
    python = programs / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=folder)
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = Path(run(python, "-c", code, cwd=folder).stdout.strip())
    # A folder that is named in a .pth file is searched, but its own .pth files (an editable install's) are not read.
    (own / "needs.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return programs


def test_every_file_is_in_the_wheel(wheel):
    files = (path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected = {path.relative_to(SOURCE.parent).as_posix() for path in files}
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert not sorted(expected - held)
    # Tests, documents and folders of a build are not.
    assert not sorted(name for name in held - expected if ".dist-info/" not in name)
    assert any(name.endswith(".safetensors") for name in held) and any(name.endswith("LICENSE") for name in held)


def test_the_wheel_is_small_and_has_the_version(wheel):
    assert wheel.stat().st_size < MOST_BYTES
    assert wheel.name == f"surgery_r1-{surgery_r1.__version__}-py3-none-any.whl"


def test_the_changelog_knows_the_version():
    assert surgery_r1.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_commands_of_the_wheel(installed, tmp_path):
    where = run(installed / "python", "-c", "import surgery_r1; print(surgery_r1.__file__)", cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "make-scenes" in run(installed / "surgery-r1", "data", "--help", cwd=tmp_path).stdout
    assert "predict" in run(installed / "surgery-r1", "--help", cwd=tmp_path).stdout
    run(installed / "surgery-r1", "data", "make-scenes", tmp_path / "scenes", "--frames", "14", cwd=tmp_path)
    assert len([*(tmp_path / "scenes").rglob("*.png")]) == 14
    check = run(installed / "surgery-r1", "data", "check", tmp_path / "scenes", "--json", cwd=tmp_path)
    assert '"frames": 14' in check.stdout


def test_the_shipped_model_loads_from_the_wheel(installed, tmp_path):
    code = "import surgery_r1; model = surgery_r1.load('tiny'); print(type(model).__name__, surgery_r1.__version__)"
    assert run(installed / "python", "-c", code, cwd=tmp_path).stdout.split() == ["Model", surgery_r1.__version__]
