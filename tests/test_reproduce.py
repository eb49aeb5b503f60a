"""``reproduce`` on short trainings: once, again for nothing, after a kill, and when something has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from small import small
from test_reproduce_contrast import claim, contrast_file, planted

from surgery_r1._util.locks import held
from surgery_r1.cli import main
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.compare import load_scores
from surgery_r1.evaluate.generation import GenerationOptions
from surgery_r1.evaluate.swapped import read_swapped, swap_rationales
from surgery_r1.reproduce.ledger import Ledger
from surgery_r1.reproduce.made_of import of_run, trained_with
from surgery_r1.reproduce.registration import register
from surgery_r1.reproduce.rivals import find_rivals
from surgery_r1.reproduce.run import Reproduction
from surgery_r1.reproduce.seed import SeedStages

UNPAID = claim("wrong_referent_broad", below=0.0)
ROWS = ("base", "sft", "rft", "sft_continued")
QUICK = small(sft_max_steps=2, rft_max_steps=2, eval_max_new_tokens=8, eval_batch_size=32)


class Killed(BaseException):
    """Stands for a kill: nothing of ours runs after it."""


def reproduction(out: Path, dataset, **changes) -> Reproduction:
    contrast = contrast_file(out.parent, claim(), UNPAID, title="rft against sft")
    settings = {"rows": ROWS, "contrast": contrast, "pictures": False, "say": lambda _: None, "config": QUICK}
    return Reproduction(out, data=dataset, **(settings | changes))


def run(out: Path, dataset, **changes) -> tuple[dict, dict[str, str]]:
    """The result, and what was done of each stage: ``run`` or ``reused``."""
    result = reproduction(out, dataset, **changes).run()
    return result, {item["stage"]: item["was"] for item in result["stages"]}


def times(out: Path) -> dict[str, int]:
    """When each model and each prediction file was written."""
    names = ("model.safetensors", "predictions.jsonl")
    paths = [path for name in names for path in out.rglob(name) if "superseded" not in path.parts]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A reproduction that was killed in RFT, then in a prediction, and then came to its end."""
    from surgery_r1.evaluate import run as evaluate_run
    from surgery_r1.train.callbacks import Recorder

    out = tmp_path_factory.mktemp("reproduce") / "out"
    killed = []

    def dies_in_rft(self, args, state, control, **_):
        if self.stage == "rft":
            killed.append("rft")
            raise Killed

    def dies_in_prediction(*args, **settings):
        if settings["name"] == "rft":
            killed.append("predict")
            raise Killed
        return predicts(*args, **settings)

    predicts = evaluate_run.predict_with_model
    for place, name, dies in (
        (Recorder, "on_step_end", dies_in_rft),
        (evaluate_run, "predict_with_model", dies_in_prediction),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(place, name, dies)
            reproduction(out, dataset).run()
        assert (out / "registered.json").is_file() and not (out / "result.json").exists()
    assert killed == ["rft", "predict"]
    result, done = run(out, dataset)
    return out, result, done


@pytest.fixture
def copied(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    return out


def test_what_a_kill_had_left_was_not_made_again(finished):
    out, result, done = finished
    assert done["train sft"] == done["train rft"] == done["score sft val"] == "reused"
    assert done["score rft val"] == done["train sft_continued"] == "run"
    steps = result["compute"]["0"]["steps"]
    ran = json.loads((out / "seed0" / "sft_continued" / "config.json").read_text())
    assert ran["sft"]["max_steps"] == steps >= 1 and ran["eval"]["choose"] == "last"
    # The time of the call that was cut counts too.
    assert set(result["seconds"]["0"]) >= {"train sft", "train rft", "score rft val"}


def test_everything_is_written(finished):
    out, result, _ = finished
    assert list(result["rows"]) == list(ROWS)
    for name in ROWS:
        assert 0 <= result["rows"][name]["val"]["acc"]["value"] <= 1
    assert json.loads((out / "result.json").read_text())["contrast"] == json.loads(json.dumps(result["contrast"]))
    assert [one["passed"] for one in result["contrast"]["claims"]].count(None) == 0
    page = (out / "report.html").read_text()
    for part in ("The paper&#39;s table", "registered beforehand", "Published, not measured here", "seed0/report.html"):
        assert part in page
    assert (out / "seed0" / "report.html").stat().st_size > 10_000
    assert "| RFT with coherence |" in (out / "table.md").read_text()
    assert r"\begin{tabular}" in (out / "table.tex").read_text()


def test_the_same_again_runs_nothing(copied, dataset):
    before = times(copied)
    _, done = run(copied, dataset, config=replace(QUICK, threads=1))
    assert set(done.values()) == {"reused"} and times(copied) == before and len(before) > 6


@pytest.mark.slow
def test_seeds_run_by_calls_of_their_own_end_in_one_table(copied, dataset):
    """What a Slurm array or two cores do: each call runs one seed and shows what is finished by then."""
    before = times(copied)
    first, done = run(copied, dataset, seeds=(0, 3), only=(3,), rows=("base", "sft", "rft"))
    assert done.pop("score base val") == "reused"
    assert set(done.values()) == {"run"} and first["seeds"] == [0, 3]
    assert set(first["rows"]["rft"]["val"]["acc"]["by_seed"]) == {"0", "3"}
    assert list(first["rows"]["sft_continued"]["val"]["acc"]["by_seed"]) == ["0"]
    assert {path: when for path, when in times(copied).items() if path in before} == before
    page = (copied / "report.html").read_text()
    assert "seed0/report.html" in page and "seed3/report.html" in page
    whole, done = run(copied, dataset, seeds=(0, 3))
    assert {stage for stage, was in done.items() if was == "run"} == {
        stage for stage in done if "sft_continued" in stage
    }
    assert set(whole["rows"]["sft_continued"]["val"]["acc"]["by_seed"]) == {"0", "3"}
    with pytest.raises(SurgeryR1Error, match=r"seed 5 is none of .* 0 3; add it to --seeds: 0 3 5"):
        reproduction(copied, dataset, only=(5,)).run()


def test_one_seed_is_run_by_one_call_at_a_time(copied, dataset):
    with (
        held(copied / "seed0", "reproducing"),
        pytest.raises(SurgeryR1Error, match=r"seed0: .* is already reproducing here"),
    ):
        reproduction(copied, dataset).run()


def test_what_is_lost_is_made_again_and_nothing_else(copied, dataset):
    before = times(copied)
    shutil.rmtree(copied / "seed0" / "scores" / "sft")
    metrics = copied / "seed0" / "scores" / "rft" / "val" / "metrics.json"
    metrics.unlink()
    _, done = run(copied, dataset)
    assert {stage for stage, was in done.items() if was == "run"} == {"score sft val", "score rft val"}
    changed = {path for path, when in times(copied).items() if before[path] != when}
    # What had been predicted was scored again, not predicted again.
    assert changed == {"seed0/scores/sft/val/predictions.jsonl"} and metrics.is_file()


@pytest.mark.slow
def test_another_parent_is_another_model(copied, dataset):
    """Who comes from it is trained and predicted again; what was paid for is put aside."""
    from safetensors.torch import load_file, save_file

    weights = copied / "seed0" / "sft" / "best" / "model.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] * 1.5}, weights, metadata={"format": "pt"})
    result, done = run(copied, dataset, rows=("sft", "rft"))
    assert done["train sft"] == "reused"
    assert done["score sft val"] == done["train rft"] == done["score rft val"] == "run"
    kept = copied / "superseded" / "seed0"
    assert (kept / "rft" / "best" / "model.safetensors").is_file()
    assert (kept / "scores" / "rft" / "val" / "predictions.jsonl").is_file()
    # SFT continued came from the other weights, and this call does not run it: it is not shown beside them.
    assert list(result["rows"]) == ["base", "sft", "rft"]


def test_a_run_that_was_trained_elsewhere_is_taken(finished, dataset, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0] / "seed0" / "sft", out / "seed0" / "sft")
    with pytest.raises(SurgeryR1Error, match=r"holds seed0, and no registered\.json"):
        run(out, dataset, rows=("sft",))
    (out / "seed0").rename(tmp_path / "kept")
    register(out, contrast_file(tmp_path, claim(), UNPAID), QUICK, {"dataset_sha256": dataset.hash}, (0,))
    (tmp_path / "kept").rename(out / "seed0")
    _, done = run(out, dataset, rows=("sft",), contrast=None)
    assert done == {"train sft": "reused", "score sft val": "run"}


@pytest.mark.slow
def test_two_seeds_on_ones_own_frames(copied, dataset):
    """A seed is added: the base is predicted once for both, and the spread is shown."""
    result, _ = run(copied, dataset, seeds=(0, 4), rows=("base", "sft"))
    seeds = {(item["seed"], item["stage"]): item["was"] for item in result["stages"]}
    assert seeds[0, "train sft"] == seeds[0, "score sft val"] == seeds[4, "score base val"] == "reused"
    assert seeds[4, "train sft"] == "run"
    trained = of_run(copied / "seed4" / "sft")
    assert trained["config"]["seed"] == 4
    sft, base = (result["rows"][name]["val"]["acc"] for name in ("sft", "base"))
    assert set(sft["by_seed"]) == {"0", "4"} and sft["sd"] is not None and sft["n"] == 2 * base["n"]
    assert base["sd"] is None and not (copied / "seed4" / "scores" / "base").exists()
    assert "±" in (copied / "table.md").read_text()
    # RFT has one seed of two: the contrast has to wait.
    assert result["contrast"]["passed"] is None
    with pytest.raises(SurgeryR1Error, match="begun with seeds 0 4, of which 4 would be left out"):
        run(copied, dataset, seeds=(0,))


def test_sft_without_chain_of_thought_is_asked_for_none(dataset, tmp_path):
    result, _ = run(tmp_path / "out", dataset, rows=("sft_without_cot",))
    folder = tmp_path / "out" / "seed0"
    trained = json.loads((folder / "sft_without_cot" / "config.json").read_text())
    assert trained["sft"]["tasks"] == ["grounding_qa"] and trained["eval"]["reasoning"] is False
    line = json.loads((folder / "scores" / "sft_without_cot" / "val" / "predictions.jsonl").read_text().split("\n")[0])
    assert line["reasoning"] is False and "<think>" not in line["text"]
    assert result["rows"]["sft_without_cot"]["val"]["rationale_right"]["value"] is None
    assert not (folder / "sft").exists() and result["contrast"]["passed"] is None


def test_prediction_files_of_others_become_rows(copied, dataset, tmp_path):
    rival = copied / "rivals" / "specialist" / "val.jsonl"
    rival.parent.mkdir(parents=True)
    lines = [{"id": s.id, "answer": s.answer, "box_px": list(s.box_px)} for s in dataset.split("val")]
    rival.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # What predict is still writing.
    for name in (".test.jsonl.lock", "test.jsonl.partial"):
        rival.with_name(name).touch()
    result, done = run(copied, dataset)
    assert done.pop("score specialist val") == "run" and set(done.values()) == {"reused"}
    assert list(result["rows"]) == [*ROWS, "specialist"]
    assert result["rows"]["specialist"]["val"]["joint_at_iou50"]["value"] == 1
    assert result["rows"]["specialist"]["val"]["facts_per_rationale"]["value"] is None
    assert "| rival: specialist | 1.000" in (copied / "table.md").read_text()
    assert run(copied, dataset)[1]["score specialist val"] == "reused"
    rival.write_text(json.dumps(lines[0]) + "\n")
    result, done = run(copied, dataset)
    assert done["score specialist val"] == "run" and result["rows"]["specialist"]["val"]["acc"]["value"] < 1
    rival.rename(rival.with_name("validation.jsonl"))
    with pytest.raises(SurgeryR1Error, match=r"validation.jsonl: is no prediction .* NAME/SPLIT.jsonl below .* val"):
        run(copied, dataset)


def test_which_files_are_a_rivals(tmp_path):
    for name in ("theirs/seed3/val.jsonl", "theirs/seed4/val.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_rivals(tmp_path, ["val", "test"], [3, 4], drawn=True)
    assert {key: path.parent.name for key, path in found["theirs"].items()} == {
        ("val", 3): "seed3",
        ("val", 4): "seed4",
    }
    with pytest.raises(SurgeryR1Error, match=r"NAME/seedN/SPLIT.jsonl .*N of 3"):
        find_rivals(tmp_path, ["val", "test"], [3], drawn=True)
    with pytest.raises(SurgeryR1Error, match=r"call it NAME/SPLIT.jsonl"):
        find_rivals(tmp_path, ["val", "test"], [3], drawn=False)
    (tmp_path / "theirs").rename(tmp_path / "sft")
    with pytest.raises(SurgeryR1Error, match="a rival is called 'sft', as a row is"):
        find_rivals(tmp_path, ["val", "test"], [3, 4], drawn=True)


# ------------------------------------------------------------------------------------------------------ refusals


def test_a_contrast_that_was_exchanged_with_its_registration_is_refused(copied, dataset):
    """Even where contrast.toml and registered.json fit each other: every seed knows what it was begun for."""
    contrast, noted = copied / "contrast.toml", copied / "registered.json"
    contrast.write_text(contrast.read_text().replace("above = 0.0", "above = -0.5"))
    registered = json.loads(noted.read_text())
    registered["contrast"]["sha256"] = hashlib.sha256(contrast.read_bytes()).hexdigest()
    noted.write_text(json.dumps(registered))
    for more in ({}, {"seeds": (0, 9), "only": (9,)}):
        with pytest.raises(SurgeryR1Error, match=r"seed0/stages.json: was begun for the contrast with sha256"):
            run(copied, dataset, contrast=None, **more)


def test_a_hub_model_is_not_trained_on_drawn_scenes_by_mistake(tmp_path, capsys):
    assert main(["reproduce", "--config", "qwen2_5_vl_7b", "--out", str(tmp_path / "out")]) == 2
    assert "without a dataset scenes are drawn, on which Qwen/" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_flags_that_do_not_go_together(tmp_path, dataset_folder, capsys, monkeypatch):
    command = ["reproduce", "--config", "tiny", "--out", str(tmp_path / "out")]
    assert main([*command, "--images", str(tmp_path)]) == 2
    assert "--images is for --data" in capsys.readouterr().err
    assert main([*command, "--data", str(dataset_folder), "--frames", "30"]) == 2
    assert "--frames is for drawn scenes" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 2
    assert "reproduce runs in one process; train a stage with torchrun" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_contrast_that_cannot_be_judged_is_told_after_all_is_written(dataset, tmp_path, monkeypatch):
    """A model that writes no rationales: what was paid for is there, with what to do."""
    contrast = contrast_file(tmp_path / "own", claim("rationale_right"), UNPAID)
    monkeypatch.setattr(SeedStages, "score", lambda *_: None)
    monkeypatch.setattr(SeedStages, "is_current", lambda *_: True)
    mute = tmp_path / "mute"
    planted(dataset, mute, 0.5)
    lines = [json.loads(line) | {"reasoning": None} for line in (mute / "scores.jsonl").read_text().splitlines()]
    (mute / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(SeedStages, "scores", lambda *_: mute)
    with pytest.raises(SurgeryR1Error, match=r"tables and report are written, but .* holds a rationale; train rows"):
        run(tmp_path / "out", dataset, contrast=contrast)
    assert "cannot be told: no prediction of rft" in (tmp_path / "out" / "table.md").read_text()


# -------------------------------------------------------------------------------------------------------- parts


def test_what_a_model_depends_on():
    config = QUICK.to_json()
    sft = trained_with("sft", config)
    assert "seed" in sft and "model.base" in sft and "sft.tasks" in sft and "sft.patience" in sft
    free = ("threads", "sft.micro_batch", "eval.batch_size")
    assert not [name for name in sft if name.startswith(("rft.", "ranks.")) or name in free]


def test_the_time_of_a_killed_call_is_read_from_its_log(tmp_path):
    ledger, log = Ledger(tmp_path / "stages.json"), tmp_path / "metrics.jsonl"
    with pytest.raises(Killed), ledger.running("train sft", {"a": 1}, log):
        raise Killed
    first = ledger["train sft"]["seconds"]
    # As a kill leaves it: begun a minute ago, and the last line of the log is half a minute old.
    ledger.note("train sft", begun_s=time.time() - 60)
    log.write_text("{}\n")
    os.utime(log, (time.time() - 30, time.time() - 30))
    with Ledger(tmp_path / "stages.json").running("train sft", {"a": 1}, log):
        pass
    noted = Ledger(tmp_path / "stages.json")["train sft"]
    assert 29 < noted["seconds"] - first < 32 and "finished" in noted and "begun_s" not in noted
    with Ledger(tmp_path / "stages.json").running("train sft", {"a": 2}):
        pass
    assert Ledger(tmp_path / "stages.json")["train sft"]["seconds"] < 1


def test_swapping_rationales_goes_on_after_a_kill(dataset, tmp_path):
    lines = load_scores(planted(dataset, tmp_path / "sft", 1.0))
    options, out = GenerationOptions(4, 8), tmp_path / "swapped" / "swapped.jsonl"
    asked = swap_rationales("tiny", dataset, lines, options, out, stamp={"weights": "a"}, limit=12)
    whole = out.read_text()
    assert 4 < asked <= 12 and len(read_swapped(out)) == asked
    assert all({"answer_follows", "answer_kept"} <= set(flags) for flags in read_swapped(out).values())
    # Half of it, and a line that the kill has torn.
    partial = out.with_name("swapped.jsonl.partial")
    cut = "".join(line + "\n" for line in whole.splitlines()[:5])
    partial.write_text(cut + '{"id": "endov')
    again = swap_rationales("tiny", dataset, lines, options, out, stamp={"weights": "a"}, limit=12)
    assert again == asked - 5 and out.read_text() == whole
    partial.write_text(cut)
    with pytest.raises(SurgeryR1Error, match="was started with another model, other predictions or other settings"):
        swap_rationales("tiny", dataset, lines, options, out, stamp={"weights": "b"}, limit=12)


# ------------------------------------------------------------------------------------------------------- as a whole


@pytest.mark.slow
def test_the_whole_by_command_with_a_real_kill(tmp_path):
    """All rows on drawn scenes, two seeds, killed in RFT: the second call ends what the first began."""
    out = tmp_path / "out"
    small_steps = (
        *("sft.max_steps=6", "sft.eval_every=6", "rft.max_steps=4", "rft.eval_every=2", "rft.prompts=2"),
        *(
            "rft.generations=4",
            "rft.max_completion=24",
            "eval.max_new_tokens=12",
            "eval.dev_samples=8",
            "eval.batch_size=32",
        ),
    )
    command = [sys.executable, "-m", "surgery_r1", "reproduce", "--config", "tiny", "--out", str(out), "--seeds", "0"]
    command += ["1", "--frames", "30", "--set", *small_steps]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "seed0" / "rft" / "checkpoints" / "checkpoint-2" / "trainer_state.json").is_file():
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = times(out)
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    # So short a training writes hardly any rationale: then the contrast cannot be told, which is an error of its own.
    assert done.returncode in (0, 2), done.stderr
    result = json.loads((out / "result.json").read_text())
    was = {(item["seed"], item["stage"]): item["was"] for item in result["stages"]}
    assert was[0, "train sft"] == was[0, "score sft val"] == was[0, "dataset"] == "reused"
    assert was[0, "train rft"] == was[1, "scenes18"] == "run"
    # The shipped contrast asks for it in these two rows.
    assert {stage for _, stage in was if stage.startswith("swap")} == {"swap sft val", "swap rft val"}
    assert {path: when for path, when in times(out).items() if path in before and "/rft/" not in path} == {
        path: when for path, when in before.items() if "/rft/" not in path
    }
    assert len(result["rows"]) == 7 and all(set(found) == {"val", "test"} for found in result["rows"].values())
    # The seed draws other scenes: not even the base finds the same.
    base = result["rows"]["base"]["val"]["miou"]
    assert base["n"] > 60 and base["by_seed"]["0"] != base["by_seed"]["1"]
