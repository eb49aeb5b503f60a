"""The page that ``data check`` of a sound folder ends with: each figure against a count made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import label_folders as lf
import pytest

from surgery_r1.cli.check_page import page_facts, page_text
from surgery_r1.cli.data import Build, Check
from surgery_r1.data.check import check_report
from surgery_r1.data.dataset import open_dataset
from surgery_r1.data.formats.endovis import read_folder
from surgery_r1.data.statistics import overlaps, rare_classes, statistics, unseen_classes
from surgery_r1.evaluate.score import score

EXAMPLE = Path(__file__).parents[1] / "examples/own_frames"
BESIDE = "What is the state of stapler?|Idle|25, 21, 65, 51"
FAR = "What is the state of suction?|Cutting|101, 81, 141, 121"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve frames of a train sequence, two of a dev and three of a val sequence."""
    root = tmp_path_factory.mktemp("page")
    for frame in range(12):
        lf.put_frame(root, 2, frame, (*lf.LINES, BESIDE))
    for frame in range(2):
        lf.put_frame(root, 4, frame, (*lf.LINES, FAR))
    for frame in range(3):
        lf.put_frame(root, 1, frame, (*lf.LINES, FAR))
    return root


@pytest.fixture(scope="module")
def facts(folder):
    content = read_folder(folder)
    return page_facts(content, check_report(content))


def test_sequences_and_classes(facts):
    assert facts["sequences"]["endovis18"] == {
        "seq_1": {"split": "val", "frames": 3, "questions": 12},
        "seq_2": {"split": "train", "frames": 12, "questions": 48},
        "seq_4": {"split": "dev", "frames": 2, "questions": 8},
    }
    kinds = facts["classes"]["endovis18"]
    assert list(kinds) == ["organ", "state", "location"]
    assert kinds["state"]["Idle"] == {"train": 24, "dev": 2, "val": 3, "test": 0}
    assert kinds["state"]["Suturing"] == {"train": 0, "dev": 0, "val": 0, "test": 0}
    assert facts["questions_with_box"] == 68


def test_the_rare_tail():
    counts = lambda train, dev=0, val=0: {"train": train, "dev": dev, "val": val, "test": 0}  # noqa: E731
    classes = {"s": {"state": {"a": counts(990, 0, 5), "b": counts(5, 5, 1), "c": counts(0, 4, 7), "d": counts(9)}}}
    rare = [(item["class"], item["n"], round(item["share"], 4)) for item in rare_classes(classes)]
    assert rare == [("c", 4, 0.0039), ("d", 9, 0.0089), ("b", 10, 0.0099)]
    assert unseen_classes(classes) == [{"source": "s", "kind": "state", "class": "c", "held_out": 7, "dev": 4}]


def test_what_val_asks_and_train_never_shows(facts):
    (unseen,) = facts["unseen_classes"]
    assert (unseen["class"], unseen["held_out"], unseen["dev"]) == ("Cutting", 3, 2)


def test_overlaps(facts, folder):
    # The two tools have an IoU of (61 - 25) / (65 - 21); organ and location overlap neither by .3.
    found = facts["overlaps"]["train"]
    assert found == {"n": 48, "iou30": 36 / 48, "iou50": 36 / 48}
    assert facts["overlaps"]["val"] == {"n": 12, "iou30": 0.0, "iou50": 0.0}
    content = read_folder(folder)
    assert overlaps([], content.frames) == {}


def test_blocks_hold_the_frames_they_hold(facts):
    blocks = facts["blocks"]
    assert blocks["train"] == {"frames_per_block": 10, "blocks": 2, "shorter": 1, "smallest": 2}
    assert blocks["val"] == {"frames_per_block": 10, "blocks": 1, "shorter": 1, "smallest": 3}


def test_the_floor_is_the_one_that_score_prints(facts, folder, tmp_path):
    Build((folder,), tmp_path / "ds").run()
    metrics = score([], open_dataset(tmp_path / "ds"), "val")
    for name, key in (("train+dev", "no_image_floor"), ("train", "no_image_floor_without_dev")):
        found = facts["no_image_floor"]["val"][name]
        assert {m: found[m] for m in ("acc", "f_score", "miou")} == {
            m: metrics[key][m] for m in ("acc", "f_score", "miou")
        }
    assert facts["no_image_floor"]["val"]["train"]["acc"] == 0.75
    assert facts["no_image_floor"]["val"]["train+dev"]["acc"] == 1.0


def test_the_page_ends_the_check_of_a_sound_folder(folder, facts, capsys):
    assert Check(folder).run() == 0
    shown = capsys.readouterr().out.rstrip("\n")
    content = read_folder(folder)
    page = page_text(check_report(content), facts)
    assert shown.endswith(page) and "No errors." in shown
    assert len(page.splitlines()) < 60 and max(map(len, page.splitlines())) <= 120
    for text in (
        "endovis18 train, frames/questions: seq_2 12/48",
        "asked in val or test, never shown by train: Cutting 3 (dev has 2)",
        "(IoU from .3, from .5): train 75.0%, 75.0%; dev 0.0%, 0.0%; val 0.0%, 0.0%",
        "val             train+dev (56)  1.000  1.000  1.000  12",
        "location rule of endovis18: image-normal, followed by 100.0% of 14 labels",
        "train 2 (1 of fewer, down to 2)",
    ):
        assert text in page, page


def test_json_keeps_its_keys_and_has_the_page(folder, facts, capsys):
    assert Check(folder, json=True).run() == 0
    report = json.loads(capsys.readouterr().out)
    assert {"frames", "questions", "splits", "location_rule", "faults", "notices"} <= set(report)
    assert {key: report[key] for key in facts} == json.loads(json.dumps(facts))


def test_a_faulty_folder_has_errors_and_no_page(tmp_path, capsys):
    lf.faulty(tmp_path)
    assert Check(tmp_path).run() == 1
    assert "no-image floor" not in capsys.readouterr().out


def test_classes_belong_to_the_set(tmp_path, capsys):
    assert Check(EXAMPLE).run() == 0
    page = capsys.readouterr().out
    assert "tissue manipulation" in page and "Tissue_Manipulation" not in page and "Suturing" not in page
    Build((EXAMPLE,), tmp_path / "ds").run()
    card = (tmp_path / "ds/README.md").read_text()
    assert "| state | idle, tissue manipulation," in card and "Tissue_Manipulation" not in card
    assert "case_a (4)" in card
    answers = open_dataset(tmp_path / "ds").manifest["sources"]["own_frames"]["answers"]
    assert answers["state"][0] == "idle" and "Suturing" not in answers["state"]


def test_a_set_without_training_split(tmp_path, capsys):
    lf.put_frame_17(tmp_path)
    assert Check(tmp_path).run() == 0
    assert "no-image floor: no val or test to compute it for" in capsys.readouterr().out
    assert statistics(read_folder(tmp_path))["unseen_classes"] == []
