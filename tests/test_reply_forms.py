"""A trained model is asked for replies of a form that it was trained to give, and for no other."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
from small import small

import surgery_r1
from surgery_r1.cli import main
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models import from_pretrained
from surgery_r1.models.info import ModelInfo
from surgery_r1.models.reply_forms import check_reply_form, trained_further
from surgery_r1.train.stage import train

BASE = from_pretrained("tiny", with_model=False).info
UNTAUGHT = r"the model was not trained to reply without a rationale; ask with one, or train with \[sft\] direct_answers"
NO_COT = r"the model was not trained to give a rationale \(no cot rows\); ask without one \(--no-reasoning\), or train"


def quick(tasks=("cot",), direct=False, dev=True, rft=True):
    config = small(
        sft_max_steps=1, sft_eval_every=1, sft_tasks=tasks, sft_direct_answers=direct, rft_reasoning=rft,
        rft_max_steps=1, rft_eval_every=1, eval_dev_samples=1, eval_reasoning=dev,
    )  # fmt: skip
    return replace(config, sft=replace(config.sft, flips=()), rft=replace(config.rft, flips=()))


def forms(run) -> tuple[bool, bool]:
    info = ModelInfo.read(run / "best")
    return info.rationales, info.direct_answers


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory):
    """SFT runs by what they were trained with."""
    out = tmp_path_factory.mktemp("runs")
    train("sft", quick(), dataset, out / "cot", quiet=True)
    train("sft", quick(direct=True), dataset, out / "both", quiet=True)
    train("sft", quick(("visual_qa",), direct=True, dev=False), dataset, out / "direct", quiet=True)
    return out


def test_sft_records_what_it_shows(runs):
    assert [forms(runs / name) for name in ("cot", "both", "direct")] == [(True, False), (True, True), (False, True)]


def test_rft_keeps_what_its_start_knows_and_adds_its_own(runs, dataset, tmp_path):
    for start, reasoning, want in (
        ("both", True, (True, True)),
        ("cot", True, (True, False)),
        ("cot", False, (True, True)),
    ):
        out = tmp_path / f"{start}-{reasoning}"
        train("rft", quick(rft=reasoning, dev=reasoning), dataset, out, base=runs / start, quiet=True)
        assert forms(out) == want
    # A base model knows nothing that was recorded, whatever its file says.
    assert not trained_further(BASE, rationales=False, direct_answers=True).rationales


def ask(model, dataset, **how):
    sample = dataset.split("dev")[0]
    return surgery_r1.load(model, device="cpu").ask(
        dataset.image_path(sample), sample.question, max_new_tokens=2, **how
    )


def predict(model, dataset, out, *flags) -> int:
    args = ["predict", "--model", str(model), "--data", str(dataset.root), "--split", "dev", "--out", str(out)]
    return main([*args, "--limit", "1", "--max-new-tokens", "2", *flags])


def test_without_a_rationale(runs, dataset, tmp_path, capfd):
    with pytest.raises(SurgeryR1Error, match=rf"cot/best: {UNTAUGHT}"):
        ask(runs / "cot", dataset, reasoning=False)
    assert predict(runs / "cot", dataset, tmp_path / "p.jsonl", "--no-reasoning") == 2
    assert "runs0/cot: the model was not trained to reply without" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
    image = str(dataset.image_path(dataset.split("dev")[0]))
    asked = ["ask", image, "Where is suction located?", "--out", str(tmp_path / "a.png"), "--no-reasoning"]
    assert main([*asked, "--model", str(runs / "cot")]) == 2
    assert main([*asked, "--model", str(runs / "both"), "--max-new-tokens", "2"]) == 0
    assert predict(runs / "both", dataset, tmp_path / "p.jsonl", "--no-reasoning") == 0
    assert predict(runs / "both", dataset, tmp_path / "q.jsonl") == 0


def test_with_a_rationale_where_none_was_shown(runs, dataset, tmp_path, capfd):
    with pytest.raises(SurgeryR1Error, match=rf"direct/best: {NO_COT}"):
        ask(runs / "direct", dataset)
    assert predict(runs / "direct", dataset, tmp_path / "p.jsonl") == 2
    assert "not trained to give a rationale" in capfd.readouterr().err
    assert "no_reasoning" not in ask(runs / "direct", dataset, reasoning=False).problems


@pytest.mark.parametrize(
    ("stage", "config", "message"),
    [
        ("sft", quick(dev=False), f"eval.reasoning = false: {UNTAUGHT}"),
        ("sft", quick(("visual_qa",), direct=True), f"eval.reasoning = true: {NO_COT}"),
        ("rft", quick(dev=False), f"eval.reasoning = false: {UNTAUGHT}"),
        ("sft", quick(("visual_qa",)), r"eval.reasoning = true: .* \(no cot rows\); train with \[sft\] tasks"),
    ],
)
def test_dev_is_not_asked_for_it_either(runs, dataset, tmp_path, stage, config, message):
    with pytest.raises(SurgeryR1Error, match=message):
        train(stage, config, dataset, tmp_path / "run", base=runs / "cot" if stage == "rft" else None, quiet=True)
    assert not list(tmp_path.iterdir()), "before the run folder is taken"


def test_of_a_base_model_nobody_knows(dataset, tmp_path, caplog):
    model = surgery_r1.load("tiny", device="cpu")
    sample = dataset.split("dev")[0]
    with caplog.at_level(logging.WARNING):
        for reasoning in (True, False, False):
            model.ask(dataset.image_path(sample), sample.question, reasoning=reasoning, max_new_tokens=2)
    told = [r.getMessage() for r in caplog.records if "without a rationale" in r.getMessage()]
    assert len(told) == 1 and "base model: whether it was taught to reply without a rationale is not known" in told[0]
    assert predict("tiny", dataset, tmp_path / "p.jsonl", "--no-reasoning") == 0


def test_an_old_file_reads_as_trained_with_rationales_alone(runs, tmp_path):
    data = json.loads((runs / "both/best/surgery_r1.json").read_text())
    del data["rationales"], data["direct_answers"]
    (tmp_path / "surgery_r1.json").write_text(json.dumps(data))
    info = ModelInfo.read(tmp_path)
    check_reply_form(info, True, "old")
    with pytest.raises(SurgeryR1Error, match=rf"old: {UNTAUGHT}"):
        check_reply_form(info, False, "old")


def test_a_rationale_that_was_not_asked_for_is_not_missed(runs, dataset):
    assert "no_reasoning" not in ask(runs / "both", dataset, reasoning=False).problems
    assert "no_reasoning" in ask(runs / "both", dataset).problems
