"""Prediction and ``ask``: same texts in any batch, resumable, raw text kept; and the demo end to end."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image
from small import small

from surgery_r1.cli import main
from surgery_r1.codec import CODEC_VERSION, View, read_reply, render, to_model
from surgery_r1.demo import Demo
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate import run as evaluate_run
from surgery_r1.evaluate.confidence import Written
from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine, numbered
from surgery_r1.evaluate.predict import evenly_spaced, predict, prompt_of
from surgery_r1.evaluate.score import score_predictions
from surgery_r1.inference import Reply, load
from surgery_r1.models.load import engine_sha256, from_pretrained
from surgery_r1.models.processor import view_of
from surgery_r1.models.tiny.architecture import TINY_BASE
from surgery_r1.train.fit import TrainResult
from surgery_r1.train.stage import train


class Scripted:
    """An engine that says what a function of the prompt says; dies after ``dies_after`` batches."""

    def __init__(self, bundle, reply, batch: int = 4, dies_after: int | None = None):
        self.encoder = TransformersEngine(bundle.model, bundle.processor, bundle.info.box_space).encoder
        self.reply, self.batch, self.dies_after, self.asked = reply, batch, dies_after, []

    name = "scripted"

    def replies(self, prompts):
        return numbered(self.generate(prompts))

    def generate(self, prompts):
        for number, start in enumerate(range(0, len(prompts), self.batch)):
            if number == self.dies_after:
                raise KeyboardInterrupt
            batch = prompts[start : start + self.batch]
            self.asked += batch
            yield [self.reply(prompt) for prompt in batch]


def run(dataset, engine, bundle, out, **changes):
    reasoning = changes.pop("reasoning", True)
    how = GenerationOptions(max_new_tokens=changes.pop("max_new_tokens", 9), reasoning=reasoning)
    hashes = {"weights_sha256": "abc", "engine_sha256": "def"}
    options = {"model_name": "scripted", **hashes, "options": how, **changes}
    return predict(dataset, options.pop("split", "val"), engine, bundle.info, out, **options)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_batched_equals_one_by_one(tiny, dataset):
    """Padding, shared frames and mixed sizes must not change a reply."""
    samples = evenly_spaced(dataset.split("val"), 6)
    asked = [prompt_of(s, dataset, reasoning=i % 2 == 0) for i, s in enumerate(samples)]
    one, whole = (
        [
            text
            for batch in TransformersEngine(
                tiny.model, tiny.processor, tiny.info.box_space, GenerationOptions(size, 16)
            ).generate(asked)
            for text in batch
        ]
        for size in (1, 6)
    )
    assert one == whole and len(one) == 6


def test_the_engine_leaves_the_model_as_it_was(tiny, dataset):
    engine = TransformersEngine(tiny.model, tiny.processor, "norm100", GenerationOptions(max_new_tokens=2))
    for training in (True, False):
        tiny.model.train(training)
        list(engine.generate([prompt_of(dataset.split("val")[0], dataset)]))
        assert tiny.model.training is training


def test_lines_keep_raw_text_and_say_where_it_comes_from(tiny, dataset, tmp_path):
    odd = "<think>a\u2028b\x00</think> 漢字 🩺 \r\n<answer>"
    out, seen = tmp_path / "deep" / "predictions.jsonl", []
    count = run(dataset, Scripted(tiny, lambda _: odd), tiny, out, progress=lambda *counts: seen.append(counts))
    records = [json.loads(line) for line in out.read_bytes().decode().split("\n") if line]
    assert count == len(records) == len(dataset.split("val")) == seen[-1][0] == seen[-1][1]
    assert [r["id"] for r in records] == [s.id for s in dataset.split("val")]
    view = view_of(tiny.processor, 160, 128)
    for record in records:
        assert record["text"] == odd and record["model"] == "scripted" and record["weights_sha256"] == "abc"
        assert (record["split"], record["dataset_hash"]) == ("val", dataset.hash)
        assert (record["codec_version"], record["box_space"], record["reasoning"]) == (CODEC_VERSION, "norm100", True)
        assert (record["input_width"], record["input_height"]) == (view.input_width, view.input_height)
        assert record["max_new_tokens"] == 9 and record["max_pixels"] == tiny.info.max_pixels
    assert not list(out.parent.glob("*.partial"))
    with pytest.raises(SurgeryR1Error, match="already exists"):
        run(dataset, Scripted(tiny, lambda _: odd), tiny, out)


def test_right_replies_score_full(tiny, dataset, tmp_path):
    """Prompt, codec, view and scoring fit together: the truth, written as a model writes it, is found right."""
    by_text = {(prompt_of(s, dataset).text, prompt_of(s, dataset).images): s for s in dataset.split("val")}

    def truth(prompt):
        sample = by_text[prompt.text, prompt.images]
        view = View(sample.width, sample.height, 1, 1)
        return render("it is so", sample.answer, to_model(sample.box_px, "norm100", view))

    run(dataset, Scripted(tiny, truth), tiny, tmp_path / "p.jsonl")
    metrics = score_predictions(tmp_path / "p.jsonl", dataset, "val", tmp_path / "scores")
    assert metrics["acc"] == 1 and metrics["miou"] > 0.9 and metrics["joint_at_iou50"] == 1
    assert metrics["parse_failure_rate"] == 0


@pytest.mark.parametrize("torn", ["", '{"id": "endovis18/se', '{"id": "endovis18/seq_1/frame\xe9'])
def test_a_killed_run_goes_on_where_it_was(tiny, dataset, tmp_path, torn):
    out, partial = tmp_path / "p.jsonl", tmp_path / "p.jsonl.partial"
    with pytest.raises(KeyboardInterrupt):
        run(dataset, Scripted(tiny, lambda _: "x", dies_after=3), tiny, out)
    assert not out.exists() and len(lines(partial)) == 12
    with partial.open("ab") as handle:
        handle.write(torn.encode("latin-1"))
    engine = Scripted(tiny, lambda _: "x")
    assert run(dataset, engine, tiny, out) == len(engine.asked) == len(dataset.split("val")) - 12
    assert [r["id"] for r in lines(out)] == [s.id for s in dataset.split("val")] and not partial.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_sha256": "other"}, "was started with weights_sha256='abc', now it is 'other'"),
        ({"engine_sha256": "new"}, r"engine_sha256='def', now it is 'new' \(tokenizer, chat template, image processor"),
        ({"reasoning": False}, "reasoning=True"),
        ({"max_new_tokens": 10}, "max_new_tokens=9, now it is 10"),
        ({"split": "dev"}, "split='val'"),
    ],
)
def test_a_partial_file_of_other_settings_is_refused(tiny, dataset, tmp_path, change, message):
    out = tmp_path / "p.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(dataset, Scripted(tiny, lambda _: "x", dies_after=1), tiny, out)
    with pytest.raises(SurgeryR1Error, match=rf"p\.jsonl\.partial:1: .*{message}.*remove .*partial to start again"):
        run(dataset, Scripted(tiny, lambda _: "y"), tiny, out, **change)


def test_a_second_predict_into_one_file_ends_at_once_and_loses_nothing(tiny, dataset, tmp_path, monkeypatch):
    out = tmp_path / "p.jsonl"
    refused = []

    def second(prompt):
        if not refused:
            with pytest.raises(
                SurgeryR1Error, match=rf"p.jsonl: process {os.getpid()} on .* is already predicting here"
            ):
                run(dataset, Scripted(tiny, lambda _: "other"), tiny, out)
            with monkeypatch.context() as patch:
                patch.setattr(evaluate_run, "from_pretrained", None)
                with pytest.raises(
                    SurgeryR1Error, match="is predicting here; wait until it has ended, or give another"
                ):
                    evaluate_run.predict_with_model("tiny", dataset, "val", out)
            refused.append(prompt)
        return "x"

    run(dataset, Scripted(tiny, second), tiny, out)
    assert refused and {record["text"] for record in lines(out)} == {"x"}
    assert [record["id"] for record in lines(out)] == [s.id for s in dataset.split("val")]
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]
    monkeypatch.setattr(evaluate_run, "from_pretrained", None)
    with pytest.raises(SurgeryR1Error, match="already exists"):
        evaluate_run.predict_with_model("tiny", dataset, "val", out)


def test_two_processes_write_one_line_a_question(dataset_folder, dataset, tmp_path):
    """What two commands started at the same time leave behind."""
    command = [*(sys.executable, "-m", "surgery_r1", "predict", "--model", "tiny", "--data", str(dataset_folder))]
    command += ["--split", "val", "--out", "p.jsonl", "--max-new-tokens", "2", "--batch-size", "4"]
    both = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    (error,) = [text for text, process in zip(said, both, strict=True) if process.returncode]
    assert "predicting here; wait until it has ended" in error or "already exists" in error
    assert [record["id"] for record in lines(tmp_path / "p.jsonl")] == [s.id for s in dataset.split("val")]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text + text.splitlines()[0] + "\n", r"partial:5: holds a second line for id 'endovis18/"),
        (
            lambda text: text.replace('"id": "', '"id": "x'),
            r"partial:1: holds id 'xendovis18/.*', which is not asked for",
        ),
        (lambda text: text.replace('"id"', '"key"'), r"partial:1: holds id None, which is not asked for"),
        (lambda text: text.replace('"text": "x"', '"text": 5'), r"partial:1: holds text 5"),
    ],
)
def test_a_partial_file_with_other_lines_is_not_gone_on_with(tiny, dataset, tmp_path, spoil, message):
    out, partial = tmp_path / "p.jsonl", tmp_path / "p.jsonl.partial"
    with pytest.raises(KeyboardInterrupt):
        run(dataset, Scripted(tiny, lambda _: "x", dies_after=1), tiny, out)
    partial.write_text(spoil(partial.read_text()))
    with pytest.raises(SurgeryR1Error, match=message + ".*; remove .*partial to start again"):
        run(dataset, Scripted(tiny, lambda _: "x"), tiny, out)
    assert not out.exists()


def test_the_file_gets_its_name_only_with_one_line_a_question(tiny, dataset, tmp_path):
    """Whatever was done to the partial file in the meantime."""
    partial = tmp_path / "p.jsonl.partial"

    def emptied(progress, _):
        if progress == len(dataset.split("val")):
            partial.write_text("".join(partial.read_text().splitlines(keepends=True)[1:]))

    with pytest.raises(SurgeryR1Error, match="1 of 38 questions have no line; run the same command again"):
        run(dataset, Scripted(tiny, lambda _: "x"), tiny, tmp_path / "p.jsonl", progress=emptied)
    assert not (tmp_path / "p.jsonl").exists()
    assert run(dataset, Scripted(tiny, lambda _: "x"), tiny, tmp_path / "p.jsonl") == 1


def test_the_engine_hash_covers_all_that_a_reply_depends_on(tiny, tmp_path):
    """Wherever the folder lies; and each change of a file that matters, or of a setting, is seen."""
    first = engine_sha256(tiny)
    folder = tmp_path / "copy"

    def changed(name: str, before: str, after: str, **options) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(TINY_BASE, folder)
        (folder / "surgery_r1.json").unlink()
        text = (folder / name).read_text(encoding="utf-8")
        assert before in text
        (folder / name).write_text(text.replace(before, after, 1), encoding="utf-8")
        return engine_sha256(from_pretrained(folder, device="cpu", box_space="norm100", **options))

    limits = {"min_pixels": tiny.info.min_pixels, "max_pixels": tiny.info.max_pixels}
    assert changed("config.json", "{", "{", **limits) == first
    hashes = [
        first,
        changed("config.json", "{", "{", **limits | {"max_pixels": 20_000}),
        changed("chat_template.jinja", "", "{# other #}", **limits),
        changed("preprocessor_config.json", '"image_mean": [', '"image_mean": [\n0.5, 0.5, 0.5], "x": [', **limits),
        changed("tokenizer.json", '"lstrip": false', '"lstrip": true', **limits),
    ]
    assert len(set(hashes)) == len(hashes)


def test_an_engine_must_answer_every_prompt(tiny, dataset, tmp_path):
    engine = Scripted(tiny, lambda _: "x")
    engine.generate = lambda prompts: iter([["x"] * (len(prompts) - 1)])
    with pytest.raises(SurgeryR1Error, match="gave 37 replies to 38 prompts"):
        run(dataset, engine, tiny, tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()
    engine.generate = lambda prompts: iter([["x"] * (len(prompts) + 1)])
    with pytest.raises(SurgeryR1Error, match="replies to"):
        run(dataset, engine, tiny, tmp_path / "q.jsonl")


def test_limit_and_empty_split(tiny, dataset, tmp_path):
    assert run(dataset, Scripted(tiny, lambda _: "x"), tiny, tmp_path / "p.jsonl", limit=5) == 5
    assert [r["id"] for r in lines(tmp_path / "p.jsonl")] == [s.id for s in evenly_spaced(dataset.split("val"), 5)]
    with pytest.raises(SurgeryR1Error, match="split 'test' has no samples"):
        run(dataset, Scripted(tiny, lambda _: "x"), tiny, tmp_path / "q.jsonl", split="test")


def test_stage_predicts_and_scores_and_does_not_predict_again(dataset, tmp_path, monkeypatch):
    out = tmp_path / "scores"
    how = GenerationOptions(max_new_tokens=8)
    options = {"limit": 3, "name": "base"}
    metrics = evaluate_run.predict_and_score("tiny", dataset, "val", out, how, **options)
    assert metrics["n"] == len(dataset.split("val")) and metrics["parse_failures"]["missing"] == metrics["n"] - 3
    assert lines(out / "predictions.jsonl")[0]["model"] == "base"
    monkeypatch.setattr(evaluate_run, "predict_with_model", None)
    again = evaluate_run.predict_and_score("tiny", dataset, "val", out, how, **options)
    assert again["acc"] == metrics["acc"]


def test_an_adapter_predicts(dataset, tmp_path):
    config = small(sft_max_steps=1, sft_eval_every=1, eval_dev_samples=1)
    config = replace(config, lora=replace(config.lora, enabled=True))
    train("sft", config, dataset, tmp_path / "run", quiet=True)
    out = tmp_path / "p.jsonl"
    how = GenerationOptions(max_new_tokens=4)
    assert evaluate_run.predict_with_model(tmp_path / "run", dataset, "val", out, how, limit=2) == 2
    assert {r["stage"] for r in lines(out)} == {"sft"}


# ----------------------------------------------------------------------------------------------------------- ask


def test_a_reply_shows_itself(dataset):
    sample = dataset.split("val")[0]
    reply = load("tiny").ask(dataset.image_path(sample), sample.question, max_new_tokens=12)
    with Image.open(io.BytesIO(reply._repr_png_())) as image:
        assert image.format == "PNG" and image.width >= sample.width
    data = reply.to_json()
    assert data["text"] == reply.text and set(data) == {"reasoning", "answer", "box_px", "problems", "text"}
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<answer>kidney</answer>",
        "<box>[200, 0, 900, 1]</box>",
        "<think>x</think><answer>" + "a" * 150 + "</answer><box>[1, 2, 30, 40]</box>",
    ],
)
def test_a_reply_shows_whatever_the_model_says(dataset, monkeypatch, text):
    monkeypatch.setattr(TransformersEngine, "write", lambda *_, **__: iter([[Written(text)]]))
    sample = dataset.split("val")[0]
    reply = load("tiny").ask(dataset.image_path(sample), "Where?")
    assert reply.text == text and len(reply._repr_png_()) > 100
    read = read_reply(text, "norm100", View(160, 128, 168, 140))
    assert (reply.rationale, reply.answer, reply.box_px, reply.problems) == (
        *(read.rationale, read.answer, read.box_px, read.problems),
    )


def test_many_questions_are_answered_as_one_by_one(dataset):
    """Also about images in memory, of any mode, and in any order."""
    model = load("tiny")
    samples = evenly_spaced(dataset.split("val"), 4)
    paths = [(dataset.image_path(sample), sample.question) for sample in samples]
    with Image.open(paths[0][0]) as image:
        in_memory = image.convert("RGBA")
    asked = [*paths, (in_memory, samples[0].question), (str(paths[0][0]), samples[1].question)]
    many = model.ask_many(asked, max_new_tokens=8, batch_size=3)
    assert [reply.text for reply in many] == [model.ask(*one, max_new_tokens=8).text for one in asked]
    assert many[4] == many[0] and [reply.question for reply in many] == [question for _, question in asked]
    assert model.ask_many([]) == []


def test_a_question_of_an_unknown_form_is_told(dataset, caplog):
    path = dataset.image_path(dataset.split("val")[0])
    load("tiny").ask(path, "Where is suction located?", max_new_tokens=2)
    assert caplog.text == ""
    load("tiny").ask(path, "How many tools are there?", max_new_tokens=2)
    assert "'How many tools are there?' has none of the forms of EndoVis-VQLA (What organ" in caplog.text


def test_a_reply_without_its_frame_has_no_picture():
    reply = Reply("Where?", None, None, None, "")
    assert reply._repr_png_() is None
    with pytest.raises(ValueError, match="holds no frame"):
        reply.picture()


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "question is empty"),
        (" \n", "question is empty"),
        ("Where? " * 15_000, "a question of 104,999 characters; ask in at most 2,000"),
    ],
)
def test_ask_refuses(dataset, tmp_path, question, message):
    with pytest.raises(SurgeryR1Error, match=message):
        load("tiny").ask(dataset.image_path(dataset.split("val")[0]), question)
    with pytest.raises(SurgeryR1Error, match="no such image"):
        load("tiny").ask(tmp_path / "none.png", "Where?")


# ---------------------------------------------------------------------------------------------------------- demo


def tiny_demo(out, seed=0, **changes) -> Demo:
    config = small(sft_max_steps=2, rft_max_steps=2, eval_max_new_tokens=12, eval_batch_size=32)
    config = replace(config, seed=seed)
    return Demo(out, config, size=(160, 128), frames=30, **{"say": lambda _: None, **changes})


def test_demo_end_to_end(tmp_path):
    """Every part once, then again for nothing; then after a kill between prediction and scoring."""
    said: list[str] = []
    out = tmp_path / "demo"
    summary = tiny_demo(out, controls=True, say=said.append).run()
    text = "\n".join(said)
    for name in ("base", "sft", "rft", "sft_continued", "random_rewards"):
        for split in ("val", "test"):
            metrics = summary["metrics"][name][split]
            assert 0 <= metrics["acc"] <= 1 and metrics["n"] > 20
            assert (out / "scores" / name / split / "scores.jsonl").is_file()
    assert set(summary["differences"]["val"]) == {
        "rft minus sft",
        "sft_continued minus sft",
        "random_rewards minus sft",
    }
    assert "no-image floor" in text and str((out / "report.html").resolve()) in text and "surgery-r1 ask" in text
    assert (out / "first_look.png").is_file() and (out / "report.html").stat().st_size > 10_000
    # What a control shows is where training led, not where it began.
    assert json.loads((out / "random_rewards" / "result.json").read_text())["best_step"] == 2

    (out / "scores" / "rft" / "val" / "metrics.json").unlink()
    before = (out / "scores" / "rft" / "val" / "predictions.jsonl").stat().st_mtime_ns
    said.clear()
    again = tiny_demo(out, controls=True, say=said.append).run()
    assert again["metrics"]["rft"]["val"]["acc"] == summary["metrics"]["rft"]["val"]["acc"]
    assert (out / "scores" / "rft" / "val" / "predictions.jsonl").stat().st_mtime_ns == before
    assert "\n".join(said).count("already trained") == 4
    with pytest.raises(SurgeryR1Error, match="demo with other settings; give --fresh"):
        tiny_demo(out, seed=1).run()


def test_the_seed_of_a_demo_is_that_of_scenes_and_of_both_stages(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(Demo, "run", lambda demo: seen.update(demo=demo) or {})
    assert main(["demo", "--out", str(tmp_path / "demo"), "--seed", "7"]) == 0
    assert seen["demo"].config.seed == 7
    assert main(["demo", "--out", str(tmp_path / "demo"), "--set", "seed=5"]) == 0
    assert seen["demo"].config.seed == 5


def test_demo_stops_when_training_was_stopped(tmp_path, monkeypatch, dataset_folder, scenes):
    """Unfinished training must not be scored as if it were whole."""
    demo = tiny_demo(tmp_path / "demo")
    for name in ("scenes18", "scenes17"):
        (tmp_path / "demo" / name).mkdir(parents=True)
    shutil.copytree(dataset_folder, tmp_path / "demo" / "dataset")
    stopped = TrainResult(tmp_path, -1, -1.0, stopped=True, steps=7)
    monkeypatch.setattr("surgery_r1.train.stage.train", lambda *_, **__: stopped)
    monkeypatch.setattr(Demo, "_score", lambda *_: None)
    with pytest.raises(SurgeryR1Error, match=r"sft: stopped at step 7; run the same command again"):
        demo.run()


def test_fresh_removes_what_a_demo_wrote_and_nothing_else(tmp_path, monkeypatch):
    from surgery_r1 import demo

    for name in ("scenes18", "dataset", "thesis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / "report.html").write_text("x")
    monkeypatch.setattr(Demo, "run", lambda self: {})
    demo.run_demo(tmp_path, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
