"""What ``pip install surgery-r1`` without extras can do, and what it says of the rest."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from surgery_r1._util.extras import EXTRAS

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
#: Module -> the distribution that brings it, where the names differ.
NAMES = {"PIL": "pillow", "sklearn": "scikit-learn", "python_multipart": "python-multipart"}


@functools.cache
def closure() -> frozenset[str]:
    """Names of the distributions that come without extras."""
    found: set[str] = set()
    todo = [Requirement(line) for line in PROJECT["dependencies"]]
    while todo:
        name = canonicalize_name(todo.pop().name)
        if name not in found:
            found.add(name)
            needs = map(Requirement, metadata.requires(name) or [])
            todo += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return frozenset(found)


@functools.cache
def blocked() -> tuple[str, ...]:
    """Installed modules that a bare install would not have."""
    keep = closure() | {"surgery-r1", "pip", "setuptools"}
    owners = metadata.packages_distributions()
    return tuple(sorted(m for m, dists in owners.items() if not {canonicalize_name(d) for d in dists} & keep))


def bare(code: str) -> subprocess.CompletedProcess:
    """Run ``code`` where only what a bare install has can be imported."""
    blocker = f"""
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {set(blocked())!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""
    return subprocess.run([sys.executable, "-c", blocker + code], capture_output=True, text=True, check=False)


def test_the_bare_install_has_no_trainer():
    assert {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "pandas", "openai"} <= set(blocked())
    assert {"numpy", "PIL", "pydantic", "jinja2", "tyro"}.isdisjoint(blocked())


def test_extras_bring_what_they_are_said_to():
    for extra, modules in EXTRAS.items():
        lines = PROJECT["optional-dependencies"][extra]
        brought = {canonicalize_name(Requirement(line).name) for line in lines}
        # pyarrow comes with datasets.
        assert {NAMES.get(module, module) for module in modules} - {"pyarrow"} <= brought


def test_rewards_work_beside_any_trainer():
    code = """
import surgery_r1.rewards as rewards
import surgery_r1.rewards.bindings as bindings
from surgery_r1.codec import View
truth = rewards.Truth("s", "visual_qa", False, "organ", "kidney", (("kidney", None),), 160, 128, (), None, None,
                      View(160, 128, 168, 140), "norm100")
print(bindings.compute_score("s", "<answer>kidney</answer>", truth.to_json(), mixture={"answer": 1})["score"])
print("torch" in sys.modules)
"""
    done = bare(code)
    assert (done.returncode, done.stdout.split()) == (0, ["1.0", "False"]), done.stderr


def test_data_scoring_and_reports_work(tmp_path):
    code = f"""
import json
from pathlib import Path
from surgery_r1.cli import main
out = Path({str(tmp_path)!r})
def run(*words):
    assert main([*map(str, words)]) == 0, words
run("data", "make-scenes", out / "scenes", "--frames", "14", "--size", "160x128")
run("data", "check", out / "scenes")
run("data", "build", out / "scenes", "--out", out / "dataset")
import surgery_r1
samples = surgery_r1.open_dataset(out / "dataset").split("val")
lines = [json.dumps({{"id": s.id, "answer": s.answer, "box_px": s.box_px}}) for s in samples]
(out / "predictions.jsonl").write_text("\\n".join(lines))
run("score", out / "predictions.jsonl", "--data", out / "dataset", "--split", "val", "--out", out / "scores")
run("report", out / "scores", "--out", out / "report.html")
"""
    done = bare(code)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "scores/metrics.json").read_text())["acc"] == 1.0
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["ask", "FRAME", "Where is suction located?", "--model", "tiny"], "predict"),
        (["predict", "--model", "tiny", "--data", "DATA", "--split", "val", "--out", "OUT"], "predict"),
        (["export", "RUN", "OUT"], "predict"),
        (["serve", "--model", "tiny"], "serve"),
        (["train", "sft", "--config", "tiny", "--data", "DATA", "--out", "OUT"], "train"),
        (["data", "export", "DATA", "--out", "OUT"], "train"),
        (["data", "export", "DATA", "--out", "OUT", "--for", "trl", "--model", "tiny"], "train"),
    ],
)
def test_commands_that_need_more_say_which_extra(dataset_folder, tmp_path, command, extra):
    Image.new("RGB", (160, 128)).save(tmp_path / "frame.png")
    places = {"DATA": dataset_folder, "OUT": tmp_path / "out", "FRAME": tmp_path / "frame.png", "RUN": tmp_path}
    words = [str(places.get(word, word)) for word in command]
    done = bare(f"from surgery_r1.cli import main; sys.exit(main({words!r}))")
    assert done.returncode == 2 and "unexpected" not in done.stderr, done.stderr
    assert f"is not installed; pip install 'surgery-r1[{extra}]'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_load_says_which_extra():
    done = bare("import surgery_r1\ntry: surgery_r1.load('tiny')\nexcept surgery_r1.SurgeryR1Error as e: print(e)")
    assert "is not installed; pip install 'surgery-r1[predict]'" in done.stdout, done.stderr
