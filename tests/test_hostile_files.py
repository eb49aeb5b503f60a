"""Files that hold other things than they should: one error that says where and what, and never a traceback."""

from __future__ import annotations

import json
import logging
import shutil

import pytest

from surgery_r1.cli import main
from surgery_r1.data.dataset import open_dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models import from_pretrained
from surgery_r1.models.tiny.architecture import TINY_BASE
from surgery_r1.train.checkpoints import last_checkpoint

#: What stands where a JSON object should.
NO_OBJECTS = ["[1, 2]", '"text"', "null", "5", "{", "", "\x00", '{"a": ' + "1" * 5000 + "}", "[" * 100_000]
BOX = [10, 10, 40, 40]
OBJECT = {"name": "kidney", "state": None, "location": None, "box_px": BOX}


def refused(read, where, says: str = "") -> None:
    with pytest.raises(SurgeryR1Error) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(f"{where}"), message
    assert says in message and "\n" not in message
    assert "unexpected" not in message.lower() and "report" not in message


@pytest.fixture
def copied(dataset_folder, tmp_path):
    return shutil.copytree(dataset_folder, tmp_path / "dataset")


def read_all(folder):
    dataset = open_dataset(folder, check_images=False)
    return dataset.rows, dataset.location_rule, dataset.hash


def second_line(path, change) -> str:
    """Change the second line of a file; its place."""
    lines = path.read_text(encoding="utf-8").splitlines()
    record = json.loads(lines[1])
    lines[1] = change if isinstance(change, str) else json.dumps({**record, **change})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{path}:2"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("samples", {"width": "320"}, "width = '320', expected int"),
        ("samples", {"width": 320.5}, "width = 320.5, expected int"),
        ("samples", {"height": True}, "height = True, expected int"),
        ("samples", {"height": 0}, "height = 0, expected 1 or more"),
        (
            "samples",
            {"box_px": [1, None, 3, 4]},
            "box_px = [1, None, 3, 4], expected a list of 4 values, each a number",
        ),
        ("samples", {"box_px": ["1", 2, 3, 4]}, "each a number"),
        ("samples", {"box_px": [1, 2, 3]}, "a list of 4 values"),
        ("samples", {"box_px": "1, 2, 3, 4"}, "expected a list"),
        ("samples", {"box_px": {"x1": 1}}, "expected a list"),
        ("samples", {"box_px": [1, 2, float("nan"), 4]}, "each a number"),
        ("samples", {"box_px": [1, 2, float("inf"), 4]}, "each a number"),
        ("samples", {"box_px": [9, 2, 3, 4]}, "is not a box"),
        ("samples", {"question": 5, "answer": []}, "question = 5, expected str; answer = [], expected str"),
        ("samples", {"kind": ["state"]}, "kind = ['state'], expected str"),
        ("samples", {"kind": " "}, "kind is empty, expected a word"),
        ("samples", {"answers_accepted": "left-top"}, "expected a list of str"),
        ("samples", {"answers_accepted": ["left-top"]}, "1 answers_accepted, 0 boxes_accepted"),
        ("samples", {"answers_accepted": ["a"], "boxes_accepted": [[1]]}, "boxes_accepted = [[1]], expected a list of"),
        ("samples", {"answers_accepted": ["a"], "boxes_accepted": [[3, 3, 1, 1]]}, "is not a box"),
        ("samples", {"question": "\ud800"}, "half of a surrogate pair"),
        ("samples", {"colour": "red"}, "unknown key 'colour'; known keys: answer, "),
        ("samples", {"boxpx": BOX}, "unknown key 'boxpx'; did you mean box_px?"),
        ("samples", "{}", "missing id; missing source"),
        ("samples", "[]", "expected a JSON object, found []"),
        ("samples", "null", "expected a JSON object, found None"),
        ("frames", {"objects": 5}, "objects = 5, expected a list"),
        ("frames", {"objects": {"name": "kidney"}}, "expected a list"),
        ("frames", {"objects": [5]}, "objects.0 must be a table, found 5"),
        ("frames", {"objects": [OBJECT, {**OBJECT, "box_px": [1, 2, 3, "4"]}]}, "objects.1.box_px = [1, 2, 3, '4']"),
        ("frames", {"objects": [{**OBJECT, "box_px": None}]}, "objects.0.box_px = None"),
        ("frames", {"objects": [{**OBJECT, "box_px": [3, 3, 1, 1]}]}, "objects.0: box_px=[3, 3, 1, 1] is not a box"),
        ("frames", {"objects": [{**OBJECT, "state": 5}]}, "objects.0.state = 5, expected str"),
        ("frames", {"objects": [{"name": "kidney"}]}, "missing objects.0.state"),
        ("frames", {"sha256": None}, "sha256 = None, expected str"),
        ("rows", {"checks": [1]}, "checks = [1], expected a table"),
        ("rows", {"reasoning": 5}, "reasoning = 5, expected str"),
        ("rows", {"box_px": 5}, "box_px = 5, expected a list"),
        ("rows", {"task": "poem"}, "task='poem', expected one of"),
    ],
)
def test_records(copied, name, change, says):
    refused(lambda: read_all(copied), second_line(copied / f"{name}.jsonl", change), says)


def test_records_that_are_no_text(copied):
    path = copied / "samples.jsonl"
    path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
    refused(lambda: read_all(copied), f"{path}:1", "not UTF-8")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samples": None}, "samples must be a table, found None"),
        ({"samples": 5}, "samples must be a table, found 5"),
        ({"frames": {"total": "28"}}, "frames.total = '28', expected int"),
        ({"rows": {}}, "missing rows.total"),
        ({"image_root": 5}, "image_root = 5, expected str"),
        ({"label_root": []}, "label_root = [], expected str"),
        ({"sha256": {"samples.jsonl": 5}}, "expected str in ['samples.jsonl']"),
        ({"sha256": []}, "sha256 = [], expected a table"),
        ({"location_rule": "image"}, "location_rule must be a table"),
        ({"location_rule": {"rule": None, "agreement": "high"}}, "location_rule.agreement = 'high', expected a number"),
        ({"location_rule": {"rule": "none", "agreement": 1}}, "unknown location rule 'none'"),
        (
            {"location_rule": {"rule": None, "agreement": None, "by_source": {"endovis18": 5}}},
            "location_rule.by_source.endovis18 must be a table, found 5",
        ),
    ],
)
def test_manifests(copied, change, says):
    path = copied / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(lambda: read_all(copied), path, says)


@pytest.mark.parametrize("text", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
@pytest.mark.parametrize("name", ["manifest.json", "surgery_r1.json", "config.json", "adapter_config.json"])
def test_no_object_where_one_is_read(tmp_path, dataset_folder, name, text):
    folder = tmp_path / "folder"
    if name == "manifest.json":
        shutil.copytree(dataset_folder, folder)
    else:
        shutil.copytree(TINY_BASE, folder)
    (folder / name).write_text(text)
    read = read_all if name == "manifest.json" else from_pretrained
    refused(lambda: read(folder), f"{folder / name}:1")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("surgery_r1.json", {"min_pixels": "784"}, "min_pixels = '784', expected int"),
        ("surgery_r1.json", {"max_pixels": None}, "max_pixels = None, expected int"),
        ("surgery_r1.json", {"min_pixels": -5}, "min_pixels = -5, expected 1 or more"),
        ("surgery_r1.json", {"box_space": ["pixels"]}, "box_space = ['pixels'], expected str"),
        ("surgery_r1.json", {"stage": {"a": 1}}, "stage = {'a': 1}, expected str"),
        ("surgery_r1.json", {"step": "5"}, "step = '5', expected int"),
        ("surgery_r1.json", {"codec_version": 1}, "codec_version = 1, expected str"),
        ("config.json", {"model_type": None}, "unknown model family None"),
        ("config.json", {"model_type": ["qwen2_vl"]}, "unknown model family ['qwen2_vl']"),
        ("config.json", {"model_type": {}}, "unknown model family {}"),
        ("adapter_config.json", {"base_model_name_or_path": 5}, "base_model_name_or_path = 5"),
        ("adapter_config.json", {"base_model_name_or_path": ["tiny"]}, "base_model_name_or_path = ['tiny']"),
        ("adapter_config.json", {"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ("preprocessor_config.json", {"patch_size": "14"}, "patch_size = '14', expected int"),
        ("preprocessor_config.json", {"merge_size": None}, "merge_size = None, expected int"),
        ("preprocessor_config.json", {"patch_size": 0}, "patch_size = 0, expected 1 or more"),
        ("preprocessor_config.json", {"image_mean": "grey"}, "image_mean"),
    ],
)
def test_models(tmp_path, name, change, says):
    folder = shutil.copytree(TINY_BASE, tmp_path / "model")
    path = folder / name
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**before, **change}))
    refused(lambda: from_pretrained(folder, with_model=False), path, says)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["[1]", "null", '{"size": "large", "text_config": 5, "vision_config": null}'])
def test_what_transformers_reads(tmp_path, name, text):
    folder = shutil.copytree(TINY_BASE, tmp_path / "model")
    if text.startswith("{"):
        text = json.dumps({**json.loads((folder / name).read_text()), **json.loads(text)})
    (folder / name).write_text(text)
    try:
        from_pretrained(folder)
    except SurgeryR1Error as error:
        assert str(folder) in str(error) and "unexpected" not in str(error) and "report" not in str(error)
    else:
        # Generation settings that say nothing are the defaults.
        assert name == "generation_config.json"


@pytest.mark.parametrize("text", ["[1]", "null", '"text"', "", "{", '{"global_step": "2"}', '{"global_step": [2]}'])
def test_trainer_states_are_passed_over(tmp_path, caplog, text):
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "rng_state.pth").touch()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "trainer_state.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert f"{folder} is incomplete and is passed over" in caplog.text


def test_commands_end_with_one_line(copied, capsys):
    place = second_line(copied / "samples.jsonl", {"box_px": [1, None, 3, 4]})
    assert main(["predict", "--model", "tiny", "--data", str(copied), "--split", "val", "--out", "p.jsonl"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith(f"surgery-r1: {place}: bad Sample: box_px = [1, None, 3, 4]")
