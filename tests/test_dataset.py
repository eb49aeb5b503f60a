from __future__ import annotations

import json
import shutil

import label_folders as lf
import pytest

from surgery_r1.data.assemble import build_dataset
from surgery_r1.data.dataset import open_dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import LocationRule


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")
    lf.small_set(root / "labels")
    build_dataset([root / "labels"], root / "ds")
    return root


@pytest.fixture
def root(built, tmp_path):
    """A copy to damage; its images still lie in ``built``."""
    shutil.copytree(built / "ds", tmp_path / "ds")
    return tmp_path / "ds"


def test_open(built):
    dataset = open_dataset(built / "ds", verify=True)
    assert next(iter(dataset.samples)) == "endovis18/seq_1/frame003/0"
    assert [len(dataset.split(name)) for name in ("train", "dev", "val", "test")] == [10, 10, 10, 0]
    assert len(dataset.rows) == 60
    assert len(dataset.train_rows(["cot"])) == 10
    assert len(dataset.train_rows(["cot", "visual_qa"], include_dev=True)) == 40
    sample = dataset.split("val")[0]
    assert dataset.image_path(sample).is_file()
    assert dataset.frame_of(sample).frame_id == "endovis18/seq_1/frame003"
    assert dataset.location_rule == LocationRule("image", "normal") == dataset.location_rule_of("endovis18")
    assert dataset.location_rule_of("endovis17") is None
    assert dataset.manifest["location_rule"]["agreement"] == 1.0
    assert dataset.hash == open_dataset(built / "ds").hash and len(dataset.hash) == 64


def test_unknown_split_and_task(built):
    dataset = open_dataset(built / "ds")
    with pytest.raises(SurgeryR1Error, match="unknown split 'valid'"):
        dataset.split("valid")
    with pytest.raises(SurgeryR1Error, match="unknown task 'vqa'"):
        dataset.train_rows(["vqa"])


def test_a_rule_that_few_labels_follow_is_not_used(root):
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["location_rule"]["agreement"] = 0.94
    (root / "manifest.json").write_text(json.dumps(manifest))
    dataset = open_dataset(root)
    assert dataset.location_rule is None and dataset.manifest["location_rule"]["agreement"] == 0.94


def test_no_such_dataset(built, tmp_path):
    for folder in (tmp_path / "nowhere", built / "labels"):
        with pytest.raises(SurgeryR1Error, match="surgery-r1 data build"):
            open_dataset(folder)


@pytest.mark.parametrize("name", ["samples.jsonl", "frames.jsonl", "rows.jsonl"])
@pytest.mark.parametrize("damage", ["line", "middle", "gone", "key"])
def test_torn_files(root, name, damage):
    path = root / name
    lines = path.read_text().splitlines(keepends=True)
    if damage == "line":
        path.write_text("".join(lines[:-1]))
    elif damage == "middle":
        path.write_text("".join(lines)[:-30])
    elif damage == "key":
        path.write_text("".join(lines).replace('"image"', '"picture"').replace('"task"', '"job"'))
    else:
        path.unlink()
    with pytest.raises(SurgeryR1Error, match=name):
        open_dataset(root).rows  # noqa: B018


@pytest.mark.parametrize("text", ["{}", "[]", "{", "", '{"samples": 3}'])
def test_torn_manifest(root, text):
    (root / "manifest.json").write_text(text)
    with pytest.raises(SurgeryR1Error, match=r"manifest\.json"):
        open_dataset(root)


def test_moved_images(built, root, tmp_path):
    labels = tmp_path / "labels"
    shutil.copytree(built / "labels", labels)
    (labels / "seq_1/left_frames/frame003.png").unlink()
    with pytest.raises(SurgeryR1Error, match=r"1 of 6 images missing, such as seq_1/.*--images ROOT"):
        open_dataset(root, images=labels)
    with pytest.raises(SurgeryR1Error, match="6 of 6 images missing"):
        open_dataset(root, images=tmp_path / "nowhere")
    open_dataset(root, images=labels, check_images=False)
    lf.put_image(labels / "seq_1/left_frames/frame003.png", colour=19)
    dataset = open_dataset(root, images=labels, verify=True)
    assert dataset.image_path(dataset.split("val")[0]) == labels / "seq_1/left_frames/frame003.png"


def test_verify_finds_what_changed(built, root, tmp_path):
    labels = tmp_path / "labels"
    shutil.copytree(built / "labels", labels)
    lf.put_image(labels / "seq_1/left_frames/frame003.png", colour=77)
    open_dataset(root, images=labels)
    with pytest.raises(SurgeryR1Error, match=r"frame003\.png: image changed"):
        open_dataset(root, images=labels, verify=True)
    path = root / "samples.jsonl"
    path.write_text(path.read_text().replace("Idle", "Cutting"))
    with pytest.raises(SurgeryR1Error, match=r"samples\.jsonl: changed"):
        open_dataset(root, verify=True)
