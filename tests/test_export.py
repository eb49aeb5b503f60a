"""Datasets for other tools: what is written is opened by ``datasets`` and trained on by stock TRL."""

from __future__ import annotations

import json

import label_folders as lf
import pytest
from datasets import load_dataset

from surgery_r1.cli import main
from surgery_r1.data.assemble import build_dataset
from surgery_r1.data.dataset import open_dataset
from surgery_r1.data.export.conversations import to_conversations
from surgery_r1.data.export.parquet import export_frames
from surgery_r1.data.recipe import load_recipe
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.load import from_pretrained
from surgery_r1.train.datasets import sft_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A train, a dev and a val sequence; one question with two right answers."""
    root = tmp_path_factory.mktemp("exchange")
    lf.small_set(root / "set")
    second = lf.LOCATION.replace("left-top", "right-top").replace("21, 21, 61, 51", "101, 21, 141, 51")
    lf.put_frame(root / "set", 2, 20, (*lf.LINES, second))
    build_dataset([root / "set"], root / "ds", recipe=load_recipe("surgery_r1_54k"))
    return open_dataset(root / "ds")


def opened(folder, tmp_path):
    return load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("embed", [False, True])
def test_one_row_a_frame(dataset, tmp_path, embed):
    counts = export_frames(dataset, tmp_path / "out", embed_images=embed)
    assert counts == {"train": 3, "dev": 2, "val": 2}
    frames = opened(tmp_path / "out", tmp_path)
    assert {name: len(part) for name, part in frames.items()} == counts
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == dataset.manifest
    seen, rows = [], []
    for part in frames.values():
        for frame in part:
            own = dataset.frames[frame["frame_id"]]
            assert (frame["sha256"], frame["width"], frame["height"]) == (own.sha256, 160, 128)
            assert [item["name"] for item in frame["objects"]] == [item.name for item in own.objects]
            if embed:
                assert frame["image"].size == (160, 128)
                assert frame["image"].tobytes()[:3] == lf.Image.open(dataset.image_path(own)).tobytes()[:3]
            else:
                assert dataset.image_root.joinpath(frame["image"]) == dataset.image_path(own)
            for question in frame["questions"]:
                sample = dataset.samples[question["id"]]
                assert tuple(question["box_px"]) == sample.box_px and question["answer"] == sample.answer
                assert tuple(question["answers_accepted"]) == sample.answers_accepted
                seen.append(question["id"])
                rows += [(row["id"], row["task"], row["question"], row["reasoning"]) for row in question["rows"]]
    assert sorted(seen) == sorted(dataset.samples)
    assert sorted(rows) == sorted((row.id, row.task, row.question, row.reasoning) for row in dataset.rows)
    size = sum(path.stat().st_size for path in (tmp_path / "out/data").iterdir())
    images = sum(dataset.image_path(frame).stat().st_size for frame in dataset.frames.values())
    assert (b"IHDR" in b"".join(p.read_bytes() for p in (tmp_path / "out/data").iterdir())) == embed and images and size


@pytest.mark.parametrize("embed", [False, True])
def test_conversations_are_what_our_own_training_takes(dataset, tmp_path, embed):
    bundle = from_pretrained("tiny", with_model=False)
    space = bundle.info.box_space
    export_frames(dataset, tmp_path / "out", embed_images=embed)
    frames = opened(tmp_path / "out", tmp_path)["train"]
    ours = to_conversations(frames, bundle.processor, space, image_root=None if embed else dataset.image_root)
    plain = sft_dataset(dataset, bundle.processor, space, tasks=("visual_qa", "grounding_qa", "cot"))
    assert len(ours) == len(plain) == 6 * 13
    for a, b in zip(ours, plain, strict=True):
        assert (a["prompt"], a["completion"]) == (b["prompt"], b["completion"])
        assert [image.tobytes() for image in a["images"]] == [image.tobytes() for image in b["images"]]
    cot = to_conversations(frames, bundle.processor, space, tasks=("cot",), image_root=dataset.image_root)
    assert len(cot) == 26 and all("<think>" in row["completion"][0]["content"] for row in cot)
    if not embed:
        with pytest.raises(SurgeryR1Error, match="say where they lie"):
            to_conversations(frames, bundle.processor, space)


def test_stock_trl_trains_on_what_the_command_writes(dataset, tmp_path, capsys):
    from surgery_r1._util.offline import stay_offline

    stay_offline(False)
    from trl import SFTConfig, SFTTrainer

    args = [
        "data",
        "export",
        str(dataset.root),
        "--out",
        str(tmp_path / "out"),
        "--conversations",
        "tiny",
        "--include-dev",
    ]
    assert main([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"train": 78, "dev": 60}
    rows = opened(tmp_path / "out", tmp_path)["train"]
    bundle = from_pretrained("tiny", device="cpu")
    arguments = SFTConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
    )
    trainer = SFTTrainer(bundle.model, args=arguments, train_dataset=rows, processing_class=bundle.processor)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)


def test_bad_input(dataset, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("precious")
    for args, message in (
        ([str(dataset.root), "--out", str(taken)], "folder is not empty"),
        ([str(dataset.root), "--out", str(tmp_path / "a"), "--include-dev"], "goes with --conversations"),
        ([str(dataset.root), "--out", str(tmp_path / "a"), "--conversations", "huge"], "no model at 'huge'"),
        ([str(tmp_path / "gone"), "--out", str(tmp_path / "a")], "no such dataset folder"),
    ):
        assert main(["data", "export", *args]) == 2
        assert message in capsys.readouterr().err
    assert (taken / "mine.txt").read_text() == "precious" and not (tmp_path / "a").exists()


def test_an_image_that_changed_is_not_passed_on(tmp_path):
    lf.put_frame(tmp_path / "set")
    build_dataset([tmp_path / "set"], tmp_path / "ds")
    lf.put_image(tmp_path / "set/seq_2/left_frames/frame003.png", colour=1)
    with pytest.raises(SurgeryR1Error, match="the image changed since the dataset was built"):
        export_frames(open_dataset(tmp_path / "ds"), tmp_path / "out", embed_images=True)
    assert not (tmp_path / "out").exists()


def test_an_image_that_goes_missing_leaves_nothing_half_written(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(type(dataset), "image_path", lambda self, item: tmp_path / "gone.png")
    with pytest.raises(SurgeryR1Error, match="image cannot be read"):
        export_frames(dataset, tmp_path / "out", embed_images=True)
    assert not (tmp_path / "out").exists()
