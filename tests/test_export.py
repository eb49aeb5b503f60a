"""Datasets for other tools: what is written is opened by ``datasets`` and trained on by stock TRL."""

from __future__ import annotations

import json
from pathlib import Path

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
from surgery_r1.rewards import compute_score, trl_rewards
from surgery_r1.train.datasets import rft_dataset, sft_dataset


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


def exported(dataset, out, trainer, *flags) -> dict:
    """``data export --for``; the rows that were written, by stage, as ``datasets`` opens them or from JSON Lines."""
    assert (
        main(["data", "export", str(dataset.root), "--out", str(out), "--for", trainer, "--model", "tiny", *flags]) == 0
    )
    if trainer == "ms-swift":
        return {s: [json.loads(line) for line in (out / s / "train.jsonl").open()] for s in ("sft", "rft")}
    return {s: list(opened(out / s, out.parent / f"{out.name}-{s}")["train"]) for s in ("sft", "rft")}


@pytest.fixture
def expected(dataset):
    """The rows that our own training takes, by stage."""
    bundle = from_pretrained("tiny", with_model=False)
    return {
        "sft": list(sft_dataset(dataset, bundle.processor, "norm100", tasks=("visual_qa", "grounding_qa", "cot"))),
        "rft": list(rft_dataset(dataset, bundle.processor, "norm100")),
    }


@pytest.mark.parametrize("embed", [False, True])
def test_trl_rows_are_those_of_our_own_training(dataset, expected, tmp_path, embed):
    rows = exported(dataset, tmp_path / "out", "trl", *(["--embed-images"] if embed else []))
    assert {stage: len(part) for stage, part in rows.items()} == {"sft": 78, "rft": 13}
    for stage, columns in (("sft", {"prompt", "completion", "images"}), ("rft", {"id", "prompt", "images", "truth"})):
        assert set(rows[stage][0]) == columns
        for row, own in zip(rows[stage], expected[stage], strict=True):
            assert [image.tobytes() for image in row.pop("images")] == [image.tobytes() for image in own["images"]]
            assert row == {name: own[name] for name in row}
    # What TRL calls gets what it needs from these columns.
    score = trl_rewards(["answer"])[0]
    assert score(["<answer>kidney</answer>"], truth=[rows["rft"][0]["truth"]], id=["x"]) == [1.0]


def placed(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Messages with the image in front of the user's text."""
    return [{**m, "content": "<image>" + m["content"]} if m["role"] == "user" else m for m in messages]


@pytest.mark.parametrize("embed", [False, True])
def test_ms_swift_and_llama_factory_rows(dataset, expected, tmp_path, embed):
    """Against their documents: Custom-dataset.md of ms-swift, data/README.md of LLaMA-Factory."""
    out = tmp_path / "out"
    rows = exported(dataset, out, "ms-swift", *(["--embed-images"] if embed else []))
    for row, own in zip(rows["sft"], expected["sft"], strict=True):
        assert set(row) == {"messages", "images"}
        assert row["messages"] == placed(own["prompt"]) + own["completion"]
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    for row, own in zip(rows["rft"], expected["rft"], strict=True):
        assert row["messages"] == placed(own["prompt"]) and (row["truth"], row["id"]) == (own["truth"], own["id"])
    for row, own in zip(rows["sft"] + rows["rft"], expected["sft"] + expected["rft"], strict=True):
        (path,) = row["images"]
        assert sum(message["content"].count("<image>") for message in row["messages"]) == 1
        assert Path(path).is_absolute() is not embed and (out / path).is_relative_to(out) is embed
        assert lf.Image.open(out / path).convert("RGB").tobytes() == own["images"][0].tobytes()
    assert (out / "images").exists() == embed
    described = json.loads((out / "dataset_info.json").read_text())["surgery_r1"]
    assert (out / described["file_name"]).is_file() and described["columns"] == {
        "messages": "messages",
        "images": "images",
    }
    assert described["tags"]["user_tag"] == "user" and described["formatting"] == "sharegpt"


@pytest.mark.parametrize("embed", [False, True])
def test_verl_rows(dataset, expected, tmp_path, embed):
    """Against rl_dataset.py and multiturn_sft_dataset.py of verl, which open ``bytes`` wherever that key is."""
    rows = exported(dataset, tmp_path / "out", "verl", *(["--embed-images"] if embed else []))
    for index, (row, own) in enumerate(zip(rows["rft"], expected["rft"], strict=True)):
        assert row["prompt"] == placed(own["prompt"])
        assert row["reward_model"] == {"style": "rule", "ground_truth": own["truth"]}
        assert row["extra_info"] == {"split": "train", "index": index, "id": own["id"]}
        assert row["data_source"] == "endovis18"
        assert compute_score(row["data_source"], "", row["reward_model"]["ground_truth"])["score"] == 0.0
    for row, own in zip(rows["sft"], expected["sft"], strict=True):
        assert row["messages"] == placed(own["prompt"]) + own["completion"]
    for row, own in zip(rows["sft"] + rows["rft"], expected["sft"] + expected["rft"], strict=True):
        (image,) = row["images"]
        if not embed:
            assert set(image) == {"image"}
            image = lf.Image.open(image["image"]).convert("RGB")
        assert image.tobytes() == own["images"][0].tobytes()


@pytest.mark.parametrize("trainer", ["trl", "ms-swift", "verl"])
def test_the_readme_says_which_limits_the_boxes_need(dataset, tmp_path, trainer):
    exported(dataset, tmp_path / "out", trainer)
    text = (tmp_path / "out/README.md").read_text()
    assert f"# Rows for {trainer}" in text and "`norm100`" in text and "784" in text and "25088" in text


def test_a_question_with_a_media_placeholder_is_refused(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("surgery_r1.prompts.user_text", lambda *_, **__: "What is in <video>?")
    args = ["data", "export", str(dataset.root), "--out", str(tmp_path / "out"), "--for", "verl", "--model", "tiny"]
    assert main(args) == 2
    assert "a text holds <video>" in capsys.readouterr().err and not (tmp_path / "out").exists()


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
        "--for",
        "trl",
        "--model",
        "tiny",
        "--include-dev",
    ]
    assert main([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"sft": 138, "rft": 23}
    rows = opened(tmp_path / "out/sft", tmp_path)["train"]
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
        ([str(dataset.root), "--out", str(tmp_path / "a"), "--include-dev"], "goes with --for"),
        ([str(dataset.root), "--out", str(tmp_path / "a"), "--model", "tiny"], "--model goes with --for"),
        ([str(dataset.root), "--out", str(tmp_path / "a"), "--for", "trl"], "--for needs --model"),
        ([str(dataset.root), "--out", str(tmp_path / "a"), "--for", "trl", "--model", "huge"], "no model at 'huge'"),
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
