"""What is registered before the first stage, what is refused, and how planted scores are judged and written down."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small import small

from surgery_r1.codec import render
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.compare import load_scores
from surgery_r1.evaluate.plain_table import latex_text
from surgery_r1.evaluate.score import score_predictions
from surgery_r1.reproduce.contrast import MEASURES, PAID_BY, SHIPPED, check_contrast, read_contrast
from surgery_r1.reproduce.judge import judge
from surgery_r1.reproduce.pool import FACTS, Pool
from surgery_r1.reproduce.registration import contrast_to_register, register, registered_seeds
from surgery_r1.reproduce.rows import COHERENCE, ROWS, check_config, rows_named
from surgery_r1.reproduce.tables import MEASURES as SHOWN
from surgery_r1.reproduce.tables import published_table, result_tables
from surgery_r1.rewards import REWARDS
from surgery_r1.train.config import load_config

ROOT = Path(__file__).resolve().parents[1]
DATA = {"dataset_sha256": "d" * 64}
FAR = (0.0, 0.0, 3.0, 3.0)


def contrast_file(folder: Path, *claims: str, title="mine") -> Path:
    """A contrast of claims, each as the lines of its table."""
    path = folder / "mine.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'title = "{title}"\n' + "".join(f"\n[[claims]]\n{claim}\n" for claim in claims))
    return path


def claim(measure="joint_at_iou50", a="rft", b=("sft",), **more) -> str:
    values = {"measure": measure, "a": a, "b": list(b), **({} if {"above", "below"} & set(more) else {"above": 0.0})}
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in (values | more).items())


# ------------------------------------------------------------------------------------------------------- contrasts


def test_the_shipped_contrast_can_be_judged_with_the_shipped_configs():
    contrast = read_contrast(SHIPPED)
    for name in ("tiny", "qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_8b"):
        config = load_config(name)
        check_config(config, rows_named(()))
        check_contrast(contrast, config, ("val", "test"), SHIPPED)
        unpaid = [c.measure for c in contrast.claims if not PAID_BY.get(c.measure, set()) & set(config.rft.rewards)]
        assert "swapped_answer_follows" in unpaid
    assert contrast.rows_swapped("val") == {"rft", "sft"} and contrast.rows_swapped("test") == set()
    assert {name for names in PAID_BY.values() for name in names} <= set(REWARDS) and set(COHERENCE) <= set(REWARDS)
    assert set(PAID_BY) <= set(MEASURES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (claim("accuracy"), r"unknown measure 'accuracy', use one of acc, "),
        (claim(a="rtf"), "unknown row 'rtf'"),
        (claim(b=["rft"]), r"b = \['rft'\]: name rows other than a = 'rft'"),
        (claim(b=[]), r"b = \[\]: name rows"),
        (claim(above=0.0, below=0.0), "give one of above and below"),
        (claim(split="dev"), "split = 'dev', use val or test"),
        (claim(questions="toolz"), "questions = 'toolz', use one of all, tools, organs"),
        (claim(abov=0.0, above=0.0), "abov"),
    ],
)
def test_a_contrast_that_says_nothing_clear_is_refused(tmp_path, text, message):
    with pytest.raises(SurgeryR1Error, match=message):
        read_contrast(contrast_file(tmp_path, text))


def test_a_contrast_needs_claims_and_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('title = "nothing"\nclaims = []\n')
    with pytest.raises(SurgeryR1Error, match="claims is empty: nothing could fail"):
        read_contrast(path)
    with pytest.raises(SurgeryR1Error, match="no such contrast"):
        contrast_to_register(tmp_path / "out", tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (claim(), "every measure of the contrast is paid for by a reward of this config"),
        (claim("wrong_referent_broad", split="test", below=0.0), "no questions in test"),
        (
            claim("swapped_answer_follows", b=["sft_without_cot"]),
            "swapped_answer_follows needs rationales, and sft_without_cot is predicted without",
        ),
        (claim("rationale_right", a="sft_without_cot"), "rationale_right needs rationales"),
    ],
)
def test_a_contrast_that_could_not_be_judged_is_refused(tmp_path, text, message):
    path = contrast_file(tmp_path, text)
    with pytest.raises(SurgeryR1Error, match=message):
        check_contrast(read_contrast(path), small(), ["val"], path)


def test_what_pays_for_a_measure_depends_on_the_mixture(tmp_path):
    path = contrast_file(tmp_path, claim("wrong_referent_broad", below=0.0))
    check_contrast(read_contrast(path), small(), ["val"], path)
    with pytest.raises(SurgeryR1Error, match="is paid for by a reward"):
        check_contrast(read_contrast(path), small(rft_rewards={"answer": 1.0, "referent": 1.0}), ["val"], path)


# ------------------------------------------------------------------------------------------------------------ rows


def test_rows_change_what_they_say():
    config = load_config("tiny")
    made = {name: row.config(config, 7) for name, row in ROWS.items()}
    assert made["sft"] == made["rft"] == config
    assert "cot" not in made["sft_without_cot"].sft.tasks and made["sft_without_cot"].sft.direct_answers
    assert not made["sft_without_cot"].eval.reasoning and not ROWS["sft_without_cot"].reasoning(config)
    assert set(made["rft_without_coherence"].rft.rewards) == {"format", "answer", "box", "rationale"}
    assert made["sft_continued"].sft.max_steps == 7 and made["sft_continued"].eval.choose == "last"
    assert made["random_rewards"].rft.rewards == {"random": 1.0}
    assert all(ROWS[row.parent].stage == "sft" for row in ROWS.values() if row.parent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rft_rewards": {"answer": 1.0}}, "has no coherence that a row could go without"),
        ({"rft_rewards": {"coherence": 1.0}}, "nothing but coherence"),
        ({"sft_tasks": ("visual_qa",)}, "shows no rationale, and rft.reasoning asks for one"),
        ({"sft_tasks": ("cot",)}, "leaves nothing to train without chain of thought"),
    ],
)
def test_a_config_without_a_row_is_refused_before_anything_is_run(changes, message):
    with pytest.raises(SurgeryR1Error, match=message):
        check_config(small(**changes), rows_named(()))
    check_config(small(**changes), rows_named(["base", "random_rewards"]))


def test_an_unknown_row_is_refused():
    with pytest.raises(SurgeryR1Error, match="unknown row 'rtf'; give some of base, sft_without_cot"):
        rows_named(["rtf"])


# ---------------------------------------------------------------------------------------------------- registration


def begun(folder: Path, given: Path | None = None, config=None, data=DATA, seeds=(0,)):
    return register(folder, contrast_to_register(folder, given), config or small(), data, seeds)


def test_what_is_registered_is_there_before_any_stage(tmp_path):
    found = begun(tmp_path / "out")
    assert found.contrast.read_bytes() == SHIPPED.read_bytes()
    noted = json.loads((tmp_path / "out" / "registered.json").read_text())
    assert noted["contrast"]["text"] == SHIPPED.read_text() and len(noted["contrast"]["sha256"]) == 64
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00", noted["registered"])
    assert noted["config"]["rft.max_steps"] == 4 and noted["data"] == DATA
    # A second call finds the same, and keeps the time.
    assert begun(tmp_path / "out").registered == noted["registered"]


def test_a_contrast_put_there_beforehand_is_the_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(contrast_file(tmp_path, claim("answer_box")), out / "contrast.toml")
    assert "answer_box" in begun(out).contrast.read_text()
    with pytest.raises(SurgeryR1Error, match="is another contrast than the one in"):
        begun(out, contrast_file(tmp_path, claim("acc")))


def test_a_contrast_that_was_changed_is_refused(tmp_path):
    mine = contrast_file(tmp_path, claim("answer_box"))
    begun(tmp_path / "out", mine)
    begun(tmp_path / "out", mine)
    registered = tmp_path / "out" / "contrast.toml"
    text = registered.read_text()
    registered.write_text(text.replace("above = 0.0", "above = -0.5"))
    with pytest.raises(SurgeryR1Error, match=r"is not the contrast that was registered on .* another --out"):
        begun(tmp_path / "out")
    registered.unlink()
    with pytest.raises(SurgeryR1Error, match="is not the contrast that was registered"):
        begun(tmp_path / "out", mine)
    registered.write_text(text)
    assert begun(tmp_path / "out").contrast_sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": small(rft_max_steps=5)}, "begun with another config: rft.max_steps was 4, now 5; go on"),
        ({"config": small(rft_rewards={"answer": 1.0})}, r"rft.rewards.box was 1.0, now None"),
        ({"data": {"dataset_sha256": "e"}}, "begun with other data"),
        ({"seeds": (1,)}, "begun with seeds 0, of which 0 would be left out of the table; give --seeds 0"),
    ],
)
def test_a_folder_begun_with_something_else_is_refused(tmp_path, changes, message):
    begun(tmp_path)
    before = (tmp_path / "registered.json").read_bytes()
    with pytest.raises(SurgeryR1Error, match=message):
        begun(tmp_path, **changes)
    assert (tmp_path / "registered.json").read_bytes() == before


def test_seeds_may_be_added_and_what_changes_no_result_may_differ(tmp_path):
    begun(tmp_path, seeds=(3,))
    divided = replace(small(eval_batch_size=2, sft_micro_batch=2), threads=2, seed=9)
    begun(tmp_path, config=divided, seeds=(3, 5))
    assert registered_seeds(tmp_path) == (3, 5)
    assert all("added" in item for item in json.loads((tmp_path / "registered.json").read_text())["seeds"])


def test_a_folder_with_something_else_is_left_as_it_is(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(SurgeryR1Error, match=r"holds thesis\.txt, and no registered\.json"):
        begun(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# ------------------------------------------------------------------------------------------------------- judgement


def planted(dataset, folder: Path, right: float, *, contradicts=False, pointing=True) -> Path:
    """Scores of replies of which a share is right in answer and box; rationales may end elsewhere."""
    samples = dataset.split("val")
    lines = []
    for i, sample in enumerate(samples):
        good = (i * 7) % len(samples) < right * len(samples)
        wrong = next(name for name in (*dataset.answers[sample.source][sample.kind], "liver") if name != sample.answer)
        answer = sample.answer if good else wrong
        said = wrong if contradicts and good else answer
        text = render(f"what is seen is {said}", answer, sample.box_px if good and pointing else FAR)
        lines.append({"id": sample.id, "text": text, "box_space": "source", "box_format": "xyxy", "box_origin": 0})
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    score_predictions(folder / "predictions.jsonl", dataset, "val", folder)
    return folder


@pytest.fixture(scope="module")
def folders(dataset, tmp_path_factory):
    """Two seeds of three rows; RFT answers better than both others, and its rationales contradict it."""
    root = tmp_path_factory.mktemp("planted")
    shares = {"sft": (0.5, 0.45), "sft_continued": (0.6, 0.5), "rft": (1.0, 0.95)}
    return {
        (name, "val", seed): planted(dataset, root / f"{name}{seed}", right, contradicts=name == "rft")
        for name, both in shares.items()
        for seed, right in enumerate(both)
    }


def judged(tmp_path, folders, *claims, drawn=True, config=None):
    contrast = read_contrast(contrast_file(tmp_path, *claims))
    return judge(contrast, Pool(folders, drawn), config or small(), [0, 1])


def test_a_pooled_value_has_its_seeds_and_their_spread(dataset, folders):
    n = len(dataset.split("val"))
    found = Pool(folders, drawn=True).values("rft", "val", SHOWN)
    acc = found["acc"]
    by_seed = [json.loads((folders["rft", "val", seed] / "metrics.json").read_text())["acc"] for seed in (0, 1)]
    assert list(acc["by_seed"].values()) == by_seed and acc["n"] == 2 * n
    assert acc["value"] == pytest.approx(sum(by_seed) / 2)
    assert acc["sd"] == pytest.approx(abs(by_seed[0] - by_seed[1]) / 2**0.5)
    assert found["wrong_referent_broad (organs)"]["n"] + found["wrong_referent_broad (tools)"]["n"] == 2 * n


def test_one_seed_has_the_intervals_of_its_metrics(folders):
    metrics = json.loads((folders["sft", "val", 0] / "metrics.json").read_text())
    found = Pool({k: v for k, v in folders.items() if k[2] == 0}, drawn=True).values("sft", "val", SHOWN)
    for name in ("acc", "f_score", "miou", "joint_at_iou50", "rationale_contradicts"):
        assert found[name]["value"] == pytest.approx(metrics[name])
        assert found[name]["ci95"] == pytest.approx(metrics["ci95"][name]) and found[name]["sd"] is None


def test_the_same_frames_answered_by_two_seeds_are_no_more_frames(folders):
    """On drawn scenes two seeds are twice as many blocks; on the user's frames they are the same blocks."""
    drawn, own = (Pool(folders, drawn).difference("rft", "sft", "acc", "val", "all")[0] for drawn in (True, False))
    assert drawn.blocks == 2 * own.blocks and drawn.n == own.n
    assert drawn.difference == pytest.approx(own.difference)


def test_a_contrast_is_judged(tmp_path, folders):
    found = judged(
        tmp_path,
        folders,
        claim(b=["sft", "sft_continued"]),
        claim("acc", above=0.9),
        claim("rationale_contradicts", below=0.01),
        claim("wrong_referent_strict", a="sft", b=["rft"], below=1.0),
    )
    better, beyond, reasons, _ = found["claims"]
    assert better["rival"] == "sft_continued" and set(better["against"]) == {"sft", "sft_continued"}
    assert better["passed"] and better["ci95"][0] > 0 and better["paid_for"] is True
    assert better["difference"] < better["against"]["sft"]["difference"]
    assert set(better["by_seed"]) == {"0", "1"}
    # Better, but not by that much; and the rationales contradict the answers more often.
    assert not beyond["passed"] and beyond["difference"] > 0
    assert not reasons["passed"] and reasons["difference"] > 0.5 and reasons["paid_for"] is True
    assert found["passed"] is False


def test_a_claim_on_a_row_that_is_left_out_cannot_be_told_yet(tmp_path, folders):
    some = {key: path for key, path in folders.items() if key[:1] != ("sft_continued",) or key[2] == 0}
    found = judged(tmp_path, some, claim(b=["sft", "sft_continued"]), claim("acc"))
    first, second = found["claims"]
    assert first["passed"] is None and first["why"] == "not run with every seed: sft_continued" and "fix" not in first
    assert second["passed"] and found["passed"] is None


def test_predictions_without_rationales_cannot_be_judged_by_them(dataset, tmp_path, folders):
    mute = tmp_path / "mute"
    mute.mkdir()
    lines = [{"id": s.id, "answer": s.answer, "box_px": s.box_px} for s in dataset.split("val")]
    (mute / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    score_predictions(mute / "predictions.jsonl", dataset, "val", mute)
    some = folders | {("rft", "val", seed): mute for seed in (0, 1)}
    found = judged(tmp_path, some, claim("rationale_right"))["claims"][0]
    assert found["passed"] is None and found["why"] == "no prediction of rft on val holds a rationale"
    assert "another --out" in found["fix"]


def test_swapped_rationales_are_compared_on_the_questions_that_both_have(tmp_path, folders):
    copied = {}
    for (row, split, seed), path in folders.items():
        folder = copied[row, split, seed] = tmp_path / f"{row}{seed}"
        shutil.copytree(path, folder)
        (folder / "swapped").mkdir()
        ids = [json.loads(line)["id"] for line in (folder / "scores.jsonl").read_text().splitlines()]
        follows = {"sft": 10, "rft": 3, "sft_continued": 5}[row]
        left_out = {"sft": 0, "rft": 4, "sft_continued": 0}[row]
        lines = [{"id": name, "flags": {"answer_follows": i % 10 < follows}} for i, name in enumerate(ids[left_out:])]
        (folder / "swapped" / "swapped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = judged(tmp_path, copied, claim("swapped_answer_follows", above=-0.05))["claims"][0]
    assert found["n"] == 2 * (len(ids) - 4) and found["paid_for"] is False
    assert found["difference"] == pytest.approx(-0.7, abs=0.06) and not found["passed"]
    shown = Pool(copied, drawn=True).values("rft", "val", [("swapped_answer_follows", "all"), (FACTS, "all")])
    follows = shown["swapped_answer_follows"]
    assert follows["n"] == 2 * (len(ids) - 4) and follows["value"] == pytest.approx(0.3, abs=0.06)
    assert follows["ci95"][0] < follows["value"] < follows["ci95"][1] and set(follows["by_seed"]) == {"0", "1"}
    # A seed that another call has scored, and not swapped yet.
    kept = copied["rft", "val", 1] / "swapped"
    kept.rename(kept.with_name("later"))
    waiting = Pool(copied, drawn=True)
    assert waiting.values("rft", "val", [("swapped_answer_follows", "all")])["swapped_answer_follows"]["value"] is None
    told = judged(tmp_path, copied, claim("swapped_answer_follows", above=-0.05))["claims"][0]
    assert told["why"] == "rationales not swapped with every seed: rft" and "fix" not in told
    kept.with_name("later").rename(kept)
    lines = load_scores(copied["rft", "val", 0])
    assert shown[FACTS]["by_seed"]["0"] == sum(line.facts for line in lines) / len(lines) > 0
    assert shown[FACTS]["ci95"] is None and shown[FACTS]["value"] is not None
    same = judged(
        tmp_path,
        copied | {("rft", "val", s): copied["sft", "val", s] for s in (0, 1)},
        claim("swapped_answer_follows", above=-0.05),
    )["claims"][0]
    assert same["ci95"] == (0.0, 0.0) or list(same["ci95"]) == [0.0, 0.0]
    assert same["passed"]


# ---------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def result(tmp_path, folders):
    pool = Pool(folders, drawn=True)
    return {
        "registered": {
            "registered": "2026-01-01T00:00:00+00:00",
            "contrast_sha256": "a" * 64,
            "seeds": [{"seed": 0, "added": "2026-01-01"}, {"seed": 1, "added": "2026-01-02"}],
        },
        "seeds": [0, 1],
        "rows": {name: {"val": pool.values(name, "val", SHOWN)} for name in ("sft", "rft", "sft_continued")},
        "compute": {"0": {"steps": 300, "how": "RFT took 90 s, an SFT step 0.3 s"}},
        "left_out_rewards": ["coherence"],
        "contrast": judged(tmp_path, folders, claim(b=["sft", "sft_continued"]), claim("acc", b=["base"])),
        "seconds": {"0": {"train sft": 180.0, "train rft": 90.0}, "1": {"train sft": 181.0}},
    }


def test_tables_are_whole(result):
    tables = result_tables(result)
    for table in tables:
        assert {len(row) for row in (table.head, *table.rows)} == {len(table.head)}
    paper, agreement, contrast, published, times = tables
    assert [row[0] for row in paper.rows] == ["SFT with CoT", "RFT with coherence", "control: SFT continued"]
    assert re.fullmatch(r"[.\d]+ \[[.\d]+, [.\d]+\] ± [.\d]+", paper.rows[1][1]) and paper.rows[1][-1] == "2"
    assert "rationale contradicts answer" in agreement.head and agreement.title.endswith("val")
    assert [row[-1] for row in contrast.rows] == ["holds", "cannot be told: not run with every seed: base"]
    assert any("Seeds were added" in note for note in contrast.notes)
    assert published.title.startswith("Published, not measured here") and "2506.19469" in published.title
    assert times.rows[-1] == ["all", "270.0", "181.0"]
    assert any("300 steps" in note for note in paper.notes)


def unescaped(text: str) -> str:
    return re.sub(r"\\[&%$#_{}]", "", text)


def test_latex_is_balanced_and_escaped(result):
    """As far as a text can be checked without a TeX: braces, environments, math, and cells of every row."""
    for table in result_tables(result):
        text = table.latex()
        plain = unescaped(text)
        assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
        opened, closed = (re.findall(rf"\\{word}{{(\w+\*?)}}", text) for word in ("begin", "end"))
        assert opened == closed[::-1] == ["table*", "tabular"]
        columns = re.search(r"\\begin{tabular}{(\w+)}", text)[1]
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(rows) == len(table.rows) + 1
        assert {unescaped(row).count("&") for row in rows} == {len(columns) - 1}
        assert not set("#%_^~±") & set(unescaped(text)) and text.isascii()


def test_latex_commands_in_a_text_are_text():
    assert latex_text(r"\input{x} a_b 5 % #1 & ~^ <>") == (
        r"\textbackslash{}input\{x\} a\_b 5 \% \#1 \& \textasciitilde{}\textasciicircum{} $<$$>$"
    )
    assert latex_text("[.1, .2]") == "{}[.1, .2]"


def test_published_figures_are_those_of_the_docs():
    shown = (ROOT / "docs" / "task.md").read_text(encoding="utf-8")
    for name, *values in published_table().rows:
        line = next(line for line in shown.splitlines() if line.startswith(f"| {name} |"))
        assert re.findall(r"\.\d{4}", line) == values
