"""The autopsy counts what was planted, in a table, a file and a report."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from surgery_r1.cli import main
from surgery_r1.cli.autopsy import system_names
from surgery_r1.codec import Prediction, begin, render
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.autopsy import PAIRS, PATTERNS
from surgery_r1.evaluate.compare import load_scores
from surgery_r1.evaluate.interventions import Interventions
from surgery_r1.evaluate.predict import prompt_of
from surgery_r1.models.encode import PromptEncoder

FAR = (0.0, 0.0, 3.0, 3.0)


def planted(dataset, folder: Path, patterns) -> Path:
    """A prediction file whose replies are right in the parts that ``patterns`` name, by turns."""
    lines = []
    for i, sample in enumerate(dataset.split("val")):
        parts = patterns[i % len(patterns)].split(" + ")
        # The set knows one organ; the liver is another one.
        classes = [*dataset.answers[sample.source][sample.kind], "liver"]
        wrong = next(name for name in classes if name != sample.answer)
        said = sample.answer if "rationale" in parts else wrong
        given = sample.answer if "answer" in parts else wrong
        box = sample.box_px if "box" in parts else FAR
        lines.append({"id": sample.id, "text": render(f"what is seen is {said}", given, box), "box_space": "source"})
    path = folder / "predictions.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def autopsy(dataset_folder, out, *paths, expect=0) -> dict:
    command = ["autopsy", *map(str, paths), "--data", str(dataset_folder), "--out", str(out)]
    assert main(command) == expect
    return json.loads((out / "autopsy.json").read_text())["systems"] if expect == 0 else {}


def test_every_pattern_is_counted(dataset, dataset_folder, tmp_path, capsys):
    found = autopsy(dataset_folder, tmp_path / "out", planted(dataset, tmp_path / "sft", PATTERNS))["sft"]
    n = len(dataset.split("val"))
    expected = Counter(PATTERNS[i % len(PATTERNS)] for i in range(n))
    assert found["n"] == found["rationales"] == n
    assert {name: one["count"] for name, one in found["right"].items()} == expected
    agrees = sum(("rationale" in name) == ("answer" in name) for name in expected.elements())
    assert found["pairs"]["rationale_answer"]["count"] == agrees
    for one in (*found["right"].values(), *found["pairs"].values()):
        low, high = one["ci95"]
        assert 0 <= low <= one["value"] <= high <= 1 and low < high
    by_kind = found["by_kind"]
    assert sum(one["n"] for one in by_kind.values()) == n
    for name in PATTERNS:
        assert sum(one["right"][name]["count"] for one in by_kind.values()) == expected[name]
    tools = {s.subject for s in dataset.split("val") if s.kind in ("state", "location")}
    assert found["by_tool"].keys() == tools
    table = capsys.readouterr().out
    assert f"({expected['box']})" in next(line for line in table.splitlines() if line.startswith("box right alone"))


def test_what_agrees_in_error_is_told_from_what_is_right(dataset, dataset_folder, tmp_path):
    """Rationale and answer name the state of the object that the box is on: all agree, none is right."""
    lines = []
    for sample in dataset.split("val"):
        others = [s for s in dataset.frame_of(sample).objects if s.state and s.name != sample.subject]
        if sample.kind != "state" or not others or others[0].state == sample.answer:
            continue
        text = render(f"its state is {others[0].state}", others[0].state, others[0].box_px)
        lines.append({"id": sample.id, "text": text, "box_space": "source"})
    path = tmp_path / "swapped.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = autopsy(dataset_folder, tmp_path / "out", path)["swapped"]["by_kind"]["state"]
    assert len(lines) >= 3 and state["rationales"] == len(lines)
    assert state["pairs"]["rationale_answer"]["value"] == 1 and state["pairs"]["rationale_box"]["value"] == 1
    assert state["right"]["none"]["value"] == 1
    assert state["wrong_referent"]["tools"]["broad"] > 0


def test_systems_stand_side_by_side(dataset, dataset_folder, tmp_path, capsys):
    paths = [planted(dataset, tmp_path / name, [pattern]) for name, pattern in (("a", PATTERNS[0]), ("b", "box"))]
    found = autopsy(dataset_folder, tmp_path / "out", *paths)
    assert list(found) == ["a", "b"]
    assert found["a"]["right"][PATTERNS[0]]["value"] == found["b"]["right"]["box"]["value"] == 1
    heading = next(line for line in capsys.readouterr().out.splitlines() if line.strip())
    assert heading.split() == ["a", "b"]
    page = (tmp_path / "out" / "report.html").read_text()
    shown = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert {tuple(one["rightParts"] for one in item["by"]) for item in shown["items"]} == {(PATTERNS[0], "box")}


def test_a_file_without_rationales_is_refused(dataset, dataset_folder, tmp_path, capsys):
    path = tmp_path / "direct.jsonl"
    lines = [{"id": s.id, "answer": s.answer, "box_px": s.box_px} for s in dataset.split("val")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    autopsy(dataset_folder, tmp_path / "out", path, expect=2)
    assert (
        "direct.jsonl: no prediction holds a rationale; a line holds it as <think>...</think> in its text, or"
        in capsys.readouterr().err
    )


def test_two_systems_of_one_name_are_refused():
    with pytest.raises(SurgeryR1Error, match="several prediction files are called 'sft'"):
        system_names((Path("a/sft/val/predictions.jsonl"), Path("b/sft/predictions.jsonl")))
    assert system_names((Path("a/sft/val/predictions.jsonl"), Path("rft.jsonl"))) == ["sft", "rft"]


def test_pairs_are_metrics():
    from surgery_r1.evaluate.metrics import METRICS

    assert set(PAIRS) <= set(METRICS)


# ------------------------------------------------------------------------------------- another rationale in its mouth


@pytest.fixture
def lines(dataset, dataset_folder, tmp_path):
    autopsy(dataset_folder, tmp_path / "out", planted(dataset, tmp_path / "sft", [PATTERNS[0]]))
    return load_scores(tmp_path / "out" / "scores" / "sft")


def test_rationales_are_exchanged_for_ones_that_end_elsewhere(dataset, lines):
    made = Interventions(dataset, lines, seed=3)
    for name in ("swapped", "changed"):
        imposed = made.imposed(name)
        assert len(imposed) > 10
        for one in imposed:
            assert one.conclusion != one.line.conclusion and one.rationale.endswith(one.conclusion)
        assert (
            imposed
            == Interventions(dataset, lines, seed=3).imposed(name)
            != Interventions(dataset, lines).imposed(name)
        )
    swapped = made.imposed("swapped")
    assert {(other.reasoning, other.kind) for other in lines} >= {(one.rationale, one.line.kind) for one in swapped}
    assert [one.rationale for one in made.imposed("own")] == [line.reasoning for line in lines]
    assert {one.rationale for one in made.imposed("off")} == {None}


def test_what_followed_is_counted(dataset, lines):
    """A model that repeats itself whatever is put in its mouth, and one that says what was put there."""
    made = Interventions(dataset, lines)
    imposed = made.imposed("swapped")
    deaf = [Prediction(one.rationale, one.line.answer, one.line.box_px) for one in imposed]
    found = made.counted(imposed, list(map(made.flags, imposed, deaf)))
    assert (found["answer_follows"]["value"], found["answer_kept"]["value"], found["box_kept"]["value"]) == (0, 1, 1)
    assert found["n"] + found["left_out"] == len(lines) and found["answer_right"]["value"] == 1
    obedient = [Prediction(one.rationale, one.conclusion, FAR) for one in imposed]
    found = made.counted(imposed, list(map(made.flags, imposed, obedient)))
    assert (found["answer_follows"]["value"], found["answer_kept"]["value"], found["box_kept"]["value"]) == (1, 0, 0)
    assert sum(one["n"] for one in found["by_kind"].values()) == found["n"]
    low, high = found["answer_follows"]["ci95"]
    assert 0 < low < high == 1


def test_the_model_goes_on_from_what_was_put_in_its_mouth(tiny, dataset):
    encoder = PromptEncoder(tiny.processor, tiny.info.box_space)
    prompt = prompt_of(dataset.split("val")[0], dataset)
    start = begin("its state is Idle")
    (plain,), _ = encoder.tokens([prompt])
    (told,), _ = encoder.tokens([replace(prompt, reply_start=start)])
    added = tiny.processor.tokenizer(start, add_special_tokens=False)["input_ids"]
    assert list(told.ids) == [*plain.ids, *added]
    assert encoder.token_count(replace(prompt, reply_start=start)) == len(told.ids)
    with pytest.raises(SurgeryR1Error, match="the start of the reply holds the control token"):
        encoder.tokens([replace(prompt, reply_start="<|im_end|>")])


def test_interventions_by_command(dataset, dataset_folder, tmp_path, capsys):
    path = planted(dataset, tmp_path / "base", [PATTERNS[0]])
    more = ("--model", "tiny", "--limit", "6", "--max-new-tokens", "8")
    found = autopsy(dataset_folder, tmp_path / "out", path, *more)["base"]["interventions"]
    # The base was never taught to answer without a rationale.
    assert list(found) == ["own", "swapped", "changed"]
    assert found["own"]["n"] == 6 and found["swapped"]["n"] + found["swapped"]["left_out"] == 6
    assert "Another rationale in its mouth:" in capsys.readouterr().out
    assert not (tmp_path / "out" / "interventions").exists()
    lines = [json.loads(line) | {"weights_sha256": "0" * 64} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    autopsy(dataset_folder, tmp_path / "out", path, *more, expect=2)
    assert "but the predictions were made with 000000000000" in capsys.readouterr().err
    autopsy(dataset_folder, tmp_path / "out", path, path, "--model", "tiny", expect=2)


def test_interventions_go_on_after_a_kill(dataset, dataset_folder, tmp_path, capsys, monkeypatch):
    path = planted(dataset, tmp_path / "base", [PATTERNS[0]])
    command = ("--model", "tiny", "--limit", "6", "--max-new-tokens", "8", "--batch-size", "4")
    whole = autopsy(dataset_folder, tmp_path / "whole", path, *command)
    asked, asks = [], Interventions.ask

    def dies(self, engine, imposed):
        if sum(asked) >= 10:
            raise KeyboardInterrupt
        asked.append(len(imposed))
        return asks(self, engine, imposed)

    monkeypatch.setattr(Interventions, "ask", dies)
    assert main(["autopsy", str(path), "--data", str(dataset_folder), "--out", str(tmp_path / "out"), *command]) != 0
    kept = tmp_path / "out" / "interventions"
    assert sum(len(part.read_text().splitlines()) for part in kept.glob("*.partial")) == sum(asked) == 10
    autopsy(dataset_folder, tmp_path / "out", path, *command, "--seed", "1", expect=2)
    assert "was started with another model, other predictions or other settings" in capsys.readouterr().err
    monkeypatch.setattr(Interventions, "ask", lambda *args: asked.append(len(args[2])) or asks(*args))
    assert autopsy(dataset_folder, tmp_path / "out", path, *command) == whole
    assert sum(asked) == sum(one["n"] for one in whole["base"]["interventions"].values()) and not kept.exists()


def test_boxes_in_other_units(dataset, dataset_folder, tmp_path, capsys):
    """Another group's file in thousandths: told to say so, and read right when it is said."""
    lines = []
    for sample in dataset.split("val"):
        scale = (1000 / sample.width, 1000 / sample.height) * 2
        box = [round(value * by, 1) for value, by in zip(sample.box_px, scale, strict=True)]
        lines.append({"id": sample.id, "answer": sample.answer, "box_px": box, "reasoning": f"it is {sample.answer}"})
    path = tmp_path / "theirs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    autopsy(dataset_folder, tmp_path / "out", path, expect=2)
    assert "--box-space norm1000" in capsys.readouterr().err
    found = autopsy(dataset_folder, tmp_path / "out", path, "--box-space", "norm1000")["theirs"]
    assert found["right"][PATTERNS[0]]["value"] == 1 and found["rationales"] == len(lines)
