"""The data as they really lie: a doppelganger of the downloads, with drawn frames, checked and built."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import label_folders as lf
import pytest

from surgery_r1._util.folders import replacing_folder
from surgery_r1.cli import main
from surgery_r1.data.assemble import build_dataset
from surgery_r1.data.dataset import open_dataset
from surgery_r1.data.recipe import load_recipe
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.synthetic import make_scenes

# Thousands of frames are drawn and read.
pytestmark = pytest.mark.slow

#: Frames of a sequence of the challenge.
LENGTH = 149


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """All drawn scenes of both domains, small."""
    root = tmp_path_factory.mktemp("drawn")
    make_scenes(root / "18", domain=18, size=(160, 128))
    make_scenes(root / "17", domain=17, size=(160, 128))
    return root


@pytest.fixture(scope="module")
def downloads(drawn, tmp_path_factory):
    """Labels and images in separate trees, with everything that comes along in the archives."""
    root = tmp_path_factory.mktemp("downloads")
    labels, images = root / "EndoVis-18-VQLA", root / "images"
    for sequence in sorted((drawn / "18").glob("seq_*")):
        name = sequence.name
        shutil.copytree(sequence / "vqla", labels / name / "vqla")
        left = images / "miccai_challenge_2018_release" / name / "left_frames"
        shutil.copytree(sequence / "left_frames", left)
        for number in range(LENGTH):
            # Unclear frames were left out of the labels, not of the images.
            frame = left / f"frame{number:03d}.png"
            if not frame.exists():
                lf.put_image(frame, colour=number)
        lf.put_image(left.parent / "right_frames" / "frame000.png")
        lf.put_image(images / "__MACOSX" / name / "left_frames" / "._frame000.png")
        lf.put_labels(root / "EndoVis-18-VQLA/__MACOSX" / name / "vqla/label/._frame000_QA.txt", ["shadow"])
    for path in sorted(labels.rglob("seq_9/vqla/label/*.txt")):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    for number in range(LENGTH):
        lf.put_image(images / "test_data/seq_1/left_frames" / f"frame{number:03d}.png", colour=255)
        lf.put_image(images / "miccai_challenge_2018_release/seq_13/left_frames" / f"frame{number:03d}.png")
    shutil.copytree(drawn / "17", root / "EndoVis-17-VQLA", ignore=shutil.ignore_patterns("scenes.json"))
    return root


def check(capsys, *args) -> dict:
    status = main(["data", "check", *map(str, args), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == 0 and report["faults"] == []
    return report


def test_training_images_and_labels(downloads):
    release = downloads / "images/miccai_challenge_2018_release"
    training = [p for p in release.glob("seq_*/left_frames/*.png") if p.parts[-3] not in ("seq_1", "seq_5", "seq_16")]
    labelled = [p for p in training if p.parts[-3] != "seq_13"]
    assert len(labelled) == 1_639 and len(training) == 1_639 + LENGTH


def test_check_of_endovis18(downloads, capsys):
    report = check(capsys, downloads / "EndoVis-18-VQLA", "--images", downloads / "images")
    splits = report["splits"]
    assert splits["train"]["questions"] + splits["dev"]["questions"] == 9_014
    assert splits["train"]["frames"] + splits["dev"]["frames"] == 1_560
    assert (splits["val"]["frames"], splits["val"]["questions"]) == (447, 2_769)
    whats = {(warning["what"], Path(warning["path"]).parts[-2]) for warning in report["notices"]}
    assert {what for what, _ in whats} == {
        "shadow tree",
        "right camera",
        "images without labels",
        "second image folder for seq_1",
    }
    bare = {
        warning["path"]: warning["value"] for warning in report["notices"] if warning["what"] == "images without labels"
    }
    unlabelled = [value for path, value in bare.items() if "seq_13" in path]
    assert unlabelled == ["149 of 149 images"]
    assert sum(int(value.split()[0]) for path, value in bare.items() if "seq_13" not in path) == 1_639 - 1_560


def test_check_of_endovis17(downloads, capsys):
    report = check(capsys, downloads / "EndoVis-17-VQLA")
    assert (report["frames"], report["questions"]) == (97, 472) and report["notices"] == []
    assert report["splits"]["test"]["questions"] == 472


def test_the_54k_recipe_on_the_downloads(downloads, drawn, tmp_path, capsys):
    """Exactly 54,084 rows; the right seq_1; the same bytes from another order of folders."""
    folders = [downloads / "EndoVis-18-VQLA", downloads / "EndoVis-17-VQLA"]
    args = ["--images", str(downloads / "images"), "--config", "surgery_r1_54k"]
    assert main(["data", "build", *map(str, folders), *args, "--out", str(tmp_path / "ds"), "--stats"]) == 0
    assert "54,084 training rows: 18,028 visual_qa, 18,028 grounding_qa, 18,028 cot" in capsys.readouterr().out
    dataset = open_dataset(tmp_path / "ds")
    assert dataset.manifest["samples"] == {"total": 12_255, "train": 7_192, "dev": 1_822, "val": 2_769, "test": 472}
    assert dataset.manifest["reasoning"]["template-1"]["accepted"] == 18_028
    assert len({row.id for row in dataset.rows}) == 54_084
    assert len({(row.sample_id, row.task, row.question, row.reasoning) for row in dataset.rows}) == 54_084
    assert len(dataset.train_rows()) == 6 * 7_192
    first = dataset.frames["endovis18/seq_1/frame007"]
    assert "test_data" not in first.image
    assert dataset.image_path(first).read_bytes() == (drawn / "18/seq_1/left_frames/frame007.png").read_bytes()
    again = build_dataset(
        folders[::-1], tmp_path / "again", images=downloads / "images", recipe=load_recipe("surgery_r1_54k")
    )
    assert again["rows"]["total"] == 54_084
    for name in ("frames.jsonl", "samples.jsonl", "rows.jsonl"):
        assert (tmp_path / "ds" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    out = tmp_path_factory.mktemp("few") / "scenes"
    make_scenes(out, domain=18, size=(160, 128), frames=200)
    return out


def command(code: str, folder: Path, out: Path) -> list[str]:
    """A build in a process of its own, after ``code``."""
    code += "; from surgery_r1.cli import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, "data", "build", str(folder), "--config", "surgery_r1_54k", "--out", str(out)]


def test_memory_does_not_grow_with_the_frames(few, drawn, tmp_path):
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    unit = 1024 if sys.platform != "darwin" else 1

    def peak(folder: Path, out: str) -> float:
        args = [sys.executable, "-c", code, *command("import sys", folder, tmp_path / out)]
        return int(subprocess.run(args, check=True, capture_output=True, text=True).stdout) * unit / 2**20

    small, large = peak(few, "a"), peak(drawn / "18", "b")
    # Ten times as many frames; paths and hashes of 1,800 more are what grows.
    assert small > 10 and large - small < 8, f"{small:.1f} and {large:.1f} MiB"


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    """A build that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "ds"
    build_dataset([few], out, recipe=load_recipe("surgery_r1_54k"))
    return out


@pytest.mark.parametrize("record", [100, 300, 5000])
def test_a_killed_build_begun_again_gives_the_same_bytes(few, whole, tmp_path, record):
    """Killed in the first pass, early and late in the second: nothing half-built stays, and a new build is as ever."""
    out = tmp_path / "ds"
    kill = f"""
import itertools, os, signal, sys
from surgery_r1.data.assemble import build as dataset_folder
write, count = dataset_folder.dump_json, itertools.count()
def dump_json(data):
    if next(count) == {record}:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(data)
dataset_folder.dump_json = dump_json
"""
    killed = subprocess.run(command(kill.strip() + "\nsys", few, out), stdout=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists() and any(path.name.endswith(".partial") for path in tmp_path.iterdir())
    build_dataset([few], out, recipe=load_recipe("surgery_r1_54k"))
    assert [path.name for path in tmp_path.iterdir()] == ["ds"]
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in whole.iterdir()) and "rows.jsonl" in names
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_a_label_file_or_image_that_changed_gives_a_warning(tmp_path, capsys):
    lf.small_set(tmp_path / "set")
    build_dataset([tmp_path / "set"], tmp_path / "ds")
    assert main(["data", "check", str(tmp_path / "ds")]) == 0
    assert "has changed since it was built" in capsys.readouterr().out
    label = tmp_path / "set/seq_2/vqla/label/frame003_QA.txt"
    label.write_text(label.read_text() + lf.STATE_2)
    lf.put_image(tmp_path / "set/seq_4/left_frames/frame010.png", colour=1)
    (tmp_path / "ds/rows.jsonl").write_text("")
    assert main(["data", "check", str(tmp_path / "ds"), "--json"]) == 1
    errors = json.loads(capsys.readouterr().out)["faults"]
    assert [(Path(error["path"]).name, error["what"]) for error in errors] == [
        ("rows.jsonl", "changed since it was built"),
        ("frame010.png", "image changed since the dataset was built"),
        ("frame003_QA.txt", "label file changed since the dataset was built"),
    ]
    assert all("sha256" in error["value"] and "restore it" in error["fix"] for error in errors)
    (tmp_path / "set/seq_2/vqla").rename(tmp_path / "set/seq_2/gone")
    assert main(["data", "check", str(tmp_path / "ds"), "--json"]) == 1
    errors = json.loads(capsys.readouterr().out)["faults"]
    assert sum("cannot be read" in error["value"] for error in errors) == 2
    (tmp_path / "set").rename(tmp_path / "moved")
    assert main(["data", "check", str(tmp_path / "ds"), "--images", str(tmp_path / "moved"), "--json"]) == 1
    (warning,) = json.loads(capsys.readouterr().out)["notices"]
    assert warning["what"] == "labels not compared"


def test_a_build_at_work_is_left_alone(tmp_path):
    with replacing_folder(tmp_path / "ds", False) as first:
        (first / "manifest.json").write_text("{}")
        with (
            pytest.raises(SurgeryR1Error, match=rf"ds: process {os.getpid()} on .* is already writing here"),
            replacing_folder(tmp_path / "ds", False),
        ):
            pass
        assert (first / "manifest.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["ds"]


def test_what_another_build_has_left_is_not_touched(tmp_path):
    other = tmp_path / ".ds.v2.abcd1234.old"
    other.mkdir()
    (other / "manifest.json").write_text("precious")
    with replacing_folder(tmp_path / "ds", False):
        pass
    assert (other / "manifest.json").read_text() == "precious"


def test_a_dataset_that_a_killed_build_had_set_aside_comes_back(tmp_path):
    aside = tmp_path / ".ds.abc.old"
    aside.mkdir()
    (aside / "manifest.json").write_text("precious")
    (aside / "samples.jsonl").write_text("")
    with pytest.raises(SurgeryR1Error, match="already there"), replacing_folder(tmp_path / "ds", False):
        pass
    assert (tmp_path / "ds/manifest.json").read_text() == "precious"


def test_a_file_that_stops_a_build_is_named(tmp_path):
    gone = tmp_path / "gone.png"
    with (
        pytest.raises(SurgeryR1Error, match=rf"ds: cannot write: No such file or directory: {gone}"),
        replacing_folder(tmp_path / "ds", False),
    ):
        gone.read_bytes()
    # The temporary file or folder is nobody's business.
    with (
        pytest.raises(SurgeryR1Error, match=r"ds: cannot write: Permission denied; check path and permissions"),
        replacing_folder(tmp_path / "ds", False) as folder,
    ):
        raise PermissionError(13, "Permission denied", str(folder / "rows.jsonl"))
