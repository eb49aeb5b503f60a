"""Scoring prediction files: the contract's keys, denominators that never shrink, and every kind of bad line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery_r1._util.files import read_json, read_jsonl
from surgery_r1.codec import CODEC_VERSION
from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.compare import load_scores
from surgery_r1.evaluate.score import score_predictions
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.records import AnnotatedObject, Frame, Sample

CONTRACT = {
    *("n", "acc", "f_score", "f_score_18", "miou", "miou_published", "acc_at_iou50", "joint_at_iou50"),
    *("parse_failure_rate", "by_kind", "by_sequence", "by_answer", "ci95", "no_image_floor"),
    *("no_image_floor_without_dev", "wrong_referent", "agreement"),
}
WHERE = "Where is suction located?"
STATES, LOCATIONS = ["Idle", "Cutting"], ["left-top", "right-top", "left-bottom", "right-bottom"]


def make_sample(split, sequence, frame, number, question, kind, subject, answer, box, **more) -> Sample:
    name = f"frame{frame:03d}"
    return Sample(
        **{
            "id": f"endovis18/{sequence}/{name}/{number}",
            "source": "endovis18",
            "split": split,
            "sequence": sequence,
            "frame": name,
            "image": f"{sequence}/{name}.png",
            "width": 320,
            "height": 256,
            "question": question,
            "kind": kind,
            "subject": subject,
            "answer": answer,
            "box_px": tuple(box),
        }
        | more
    )


def make_dataset(root: Path, frames: int = 12) -> Dataset:
    """Training: two frames; val: ``frames`` frames with an organ and a location question each."""
    samples, records = [], {}
    for split, sequence, count in (("train", "seq_2", 2), ("dev", "seq_4", 1), ("val", "seq_1", frames)):
        for i in range(count):
            kidney, suction = (40, 40, 280, 220), (10 + i, 10, 110 + i, 90)
            asked = ("organ", "kidney", "kidney", kidney), ("location", "suction", "left-top", suction)
            for number, (kind, subject, answer, box) in enumerate(asked):
                question = WHERE if kind == "location" else "What organ is being operated?"
                samples.append(make_sample(split, sequence, i, number, question, kind, subject, answer, box))
            objects = (
                AnnotatedObject("kidney", None, None, kidney),
                AnnotatedObject("suction", "Idle", "left-top", suction),
                AnnotatedObject("stapler", "Idle", "right-bottom", (200, 150, 300, 240)),
            )
            last = samples[-1]
            records[last.frame_id] = Frame(last.frame_id, last.image, 320, 256, "0", objects)
    rule = {"rule": "image-normal", "agreement": 1.0}
    manifest = {"sha256": {"samples.jsonl": "abc"}, "location_rule": {**rule, "by_source": {"endovis18": rule}}}
    manifest["sources"] = {"endovis18": {"answers": {"organ": ["kidney"], "state": STATES, "location": LOCATIONS}}}
    return Dataset(root, root, manifest, {s.id: s for s in samples}, records)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "data")


def write(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def truth(sample: Sample) -> dict:
    return {"id": sample.id, "answer": sample.answer, "box_px": list(sample.box_px)}


def score(tmp_path: Path, dataset: Dataset, records, **options):
    path = write(tmp_path / "predictions.jsonl", records)
    metrics = score_predictions(path, dataset, "val", tmp_path / "out", **options)
    lines = [line for _, line in read_jsonl(tmp_path / "out" / "scores.jsonl")]
    return metrics, lines


def test_perfect_predictions_and_the_contract(tmp_path, dataset, capsys, caplog):
    metrics, lines = score(tmp_path, dataset, [truth(s) for s in dataset.split("val")])
    assert set(metrics) >= CONTRACT
    assert metrics == read_json(tmp_path / "out" / "metrics.json")
    assert [line["id"] for line in lines] == [s.id for s in dataset.split("val")]
    for key in ("acc", "f_score", "f_score_18", "miou", "miou_published", "acc_at_iou50", "joint_at_iou50"):
        assert metrics[key] == pytest.approx(1.0), key
        low, high = metrics["ci95"][key]
        assert high == 1.0 and 0.0 < low < 1.0, key
    assert metrics["parse_failure_rate"] == 0.0 and metrics["missing"] == 0 and metrics["n"] == 24
    assert metrics["f_score_18_classes"] == 2 and metrics["dataset_hash"] == dataset.hash
    assert list(metrics["by_kind"]) == ["organ", "location"] and list(metrics["by_sequence"]) == ["seq_1"]
    assert metrics["by_sequence"]["seq_1"]["n"] == 24 and metrics["by_answer"]["kidney"]["acc"] == 1.0
    assert metrics["intervals"]["blocks"] == 2
    referents = metrics["wrong_referent"]
    assert (referents["strict"], referents["broad"], referents["failed"], referents["n"]) == (0.0, 0.0, 0.0, 24)
    assert (referents["tools"]["n"], referents["organs"]["n"]) == (12, 12)
    assert capsys.readouterr().err == "" and not caplog.records


@pytest.mark.parametrize(
    ("key", "mean_x", "questions"), [("no_image_floor", 31 / 3, 6), ("no_image_floor_without_dev", 10.5, 4)]
)
def test_the_floor_guesses_from_training_with_dev_and_without(tmp_path, dataset, key, mean_x, questions):
    metrics, _ = score(tmp_path, dataset, [])
    floor = metrics[key]
    # Every answer is the majority; the organ box never moves; the suction boxes begin at x = 10, 11 and in dev at 10.
    suction = [(100 - abs(10 + i - mean_x)) / (100 + abs(10 + i - mean_x)) for i in range(12)]
    assert floor["acc"] == 1.0 and floor["n"] == 24 and floor["training_questions"] == questions
    assert floor["miou"] == pytest.approx((12 + sum(suction)) / 24)
    assert floor["above"]["acc"]["difference"] == -1.0
    assert {"acc", "f_score", "miou", "miou_published", "joint_at_iou50"} <= set(floor)


def test_nothing_predicted_is_wrong_and_counted(tmp_path, dataset, caplog):
    metrics, lines = score(tmp_path, dataset, [])
    assert metrics["n"] == 24 and metrics["missing"] == 24 and metrics["parse_failure_rate"] == 1.0
    assert metrics["acc"] == metrics["f_score"] == metrics["miou"] == metrics["miou_published"] == 0.0
    assert all(line["missing"] and line["problems"] == ["missing"] for line in lines)
    (warning,) = caplog.records
    assert warning.levelname == "WARNING" and warning.name == "surgery_r1.evaluate.score"
    assert warning.getMessage() == (
        f"{tmp_path / 'predictions.jsonl'}: 24 of 24 questions of split 'val' have no prediction; they count as wrong"
    )


def test_denominators_never_shrink(tmp_path, dataset):
    val = dataset.split("val")
    bad = [
        {"id": val[1].id, "text": ""},
        {"id": val[2].id, "text": "the kidney, I think"},
        {"id": val[3].id, "text": None},
        {"id": val[4].id, "text": 5},
        {"id": val[5].id, "answer": None, "box_px": None},
        {"id": val[6].id, "answer": ["kidney"], "box_px": "all of it"},
        {"id": val[7].id, "answer": {"a": 1}, "box_px": [1, 2, 3]},
        {"id": val[8].id, "answer": "", "box_px": [True, False, 1, 2]},
    ]
    metrics, lines = score(tmp_path, dataset, [truth(val[0]), *bad])
    assert metrics["n"] == 24 and metrics["acc"] == metrics["miou"] == pytest.approx(1 / 24)
    assert metrics["miou_published"] == pytest.approx(1 / 24)
    assert metrics["parse_failure_rate"] == pytest.approx(23 / 24)
    failures = metrics["parse_failures"]
    assert {key: failures[key] for key in ("missing", "no_answer", "no_box")} == {
        "missing": 15,
        "no_answer": 8,
        "no_box": 8,
    }
    assert failures["problems"]["missing"] == 15
    # kidney: TP 1, FN 11; left-top: FN 12.
    assert metrics["f_score"] == pytest.approx((2 / 13) / 2)
    assert lines[2]["text"] == "the kidney, I think" and "text" not in lines[0]
    assert lines[1]["line"] == 2 and lines[4]["problems"] == ["bad_text"]


@pytest.mark.parametrize("box", ["[0, 0, 1e400, 10]", "[0, 0, -5, 10]", "[0, 0, 1" + "0" * 400 + ", 1]"])
def test_numbers_that_are_no_box(tmp_path, dataset, box):
    sample = dataset.split("val")[0]
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"id": "{sample.id}", "answer": "kidney", "box_px": {box}}}\n')
    metrics = score_predictions(path, dataset, "val", tmp_path / "out")
    assert metrics["acc"] == pytest.approx(1 / 24) and metrics["miou"] == metrics["miou_published"] == 0.0
    assert metrics["parse_failures"]["no_box"] == 1


def test_text_is_read_in_its_box_space(tmp_path, dataset, caplog):
    val = dataset.split("val")
    reply = "<think>seen</think><answer>left-top</answer><box>[{}]</box>"
    lines = [
        {"id": val[1].id, "text": reply.format("31, 39, 344, 352"), "box_space": "norm1000"},
        {"id": val[3].id, "text": reply.format("22, 20, 222, 180"), "box_space": "pixels"}
        | {"input_width": 640, "input_height": 512, "model": "m", "codec_version": CODEC_VERSION},
    ]
    metrics, scored = score(tmp_path, dataset, lines)
    assert scored[1]["box_px"] == pytest.approx([9.92, 9.984, 110.08, 90.112])
    assert scored[3]["iou"] == 1.0 and scored[3]["reasoning"] == "seen"
    assert metrics["box_space"] == ["norm1000", "pixels"] and metrics["model"] == "m"
    assert "box_space" not in caplog.text


def test_text_without_a_box_space_is_read_as_source_pixels_and_says_so(tmp_path, dataset, caplog):
    sample = dataset.split("val")[1]
    reply = {"id": sample.id, "text": "<answer>left-top</answer><box>[10, 10, 110, 90]</box>"}
    metrics, lines = score(tmp_path, dataset, [reply])
    assert metrics["box_space"] == "source (assumed)" and lines[1]["iou"] == 1.0
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    said = caplog.records[0].getMessage()
    assert "1 text lines do not say their box_space" in said and "--box-space pixels|norm" in said
    metrics, lines = score(tmp_path, dataset, [reply], box_space="norm1000")
    assert lines[1]["box_px"] == pytest.approx([3.2, 2.56, 35.2, 23.04])


def test_several_accepted_answers(tmp_path):
    dataset = make_dataset(tmp_path / "data", 1)
    boxes = ((0, 0, 50, 50), (200, 150, 300, 240))
    asked = make_sample(
        *("val", "seq_1", 0, 2, "What tool is in left-top?", "tool", "left-top", "suction", boxes[0]),
        answers_accepted=("suction", "stapler"),
        boxes_accepted=boxes,
    )
    dataset.samples[asked.id] = asked
    given_stapler = {"id": asked.id, "answer": "stapler", "box_px": list(boxes[1])}
    metrics, lines = score(tmp_path, dataset, [given_stapler])
    assert lines[2]["answer_right"] and lines[2]["answer_true"] == "stapler" and lines[2]["iou"] == 1.0
    assert lines[2]["referent"] == "own"
    # As the family counts, the question is two, of which one is answered right.
    by_line = metrics["counted_by_line"]
    assert (metrics["n"], by_line["n"], metrics["acc"], by_line["acc"]) == (3, 4, pytest.approx(1 / 3), 0.25)
    assert metrics["by_answer"]["stapler"]["f1"] == 1.0 and metrics["f_score_18_classes"] == 3


def test_wrong_referents_are_shares_of_all_questions_that_could_have_one(tmp_path, dataset):
    val = dataset.split("val")
    on_stapler = {"id": val[1].id, "answer": "left-top", "box_px": [200, 150, 300, 240]}
    on_nothing = {"id": val[3].id, "answer": "left-top", "box_px": [300, 0, 319, 20]}
    metrics, lines = score(tmp_path, dataset, [on_stapler, on_nothing, truth(val[5])])
    assert [lines[i]["referent"] for i in (1, 3, 5, 7)] == ["other_clearly", "nothing", "own", "nothing"]
    tools = metrics["wrong_referent"]["tools"]
    assert (tools["strict"], tools["broad"], tools["n"]) == (pytest.approx(1 / 12), pytest.approx(1 / 12), 12)
    # The other ten have no prediction, hence no box.
    assert tools["failed"] == pytest.approx(10 / 12)
    assert lines[1]["coherence"] == "right answer, wrong box" and lines[5]["coherence"] == "coherent"


def test_an_answer_that_is_none_of_the_sets_classes_is_told(tmp_path, dataset):
    val = dataset.split("val")
    metrics, lines = score(tmp_path, dataset, [truth(val[0]), {**truth(val[1]), "answer": "Stapling"}])
    assert [line["outside_classes"] for line in lines[:3]] == [False, True, False]
    assert metrics["answers_outside_classes"] == 1


def test_classes_of_kinds_that_nobody_asks_about_are_not_the_sets(dataset):
    # State is among the format's answers, but no question asks for one.
    assert dataset.classes == ("kidney", *LOCATIONS)


def test_rare_is_the_half_of_the_classes_that_the_set_asks_for(tmp_path, dataset):
    # Four classes are true somewhere; one that no question has must not fill the rare half.
    one, other = (sample for sample in dataset.split("val")[1:4:2])
    for sample, answer in ((one, "right-top"), (other, "left-bottom")):
        dataset.samples[sample.id] = dataclasses.replace(sample, answer=answer)
    metrics, _ = score(tmp_path, dataset, [{**truth(one), "answer": "right-top"}])
    assert metrics["rare_classes"] == ["right-top", "left-bottom"] and metrics["acc_rare"] == 0.5


def first(dataset: Dataset) -> str:
    return dataset.split("val")[0].id


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "not valid JSON"),
        ('{"id": "x", "text"', "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ('{"text": "a"}', "no sample id: id=None"),
        ('{"id": 5, "text": "a"}', "no sample id: id=5"),
        ('{"id": "FIRST"}', "neither text nor answer and box_px"),
        ('{"id": "nobody", "text": "a"}', "id 'nobody' is not in split 'val'"),
        ('{"id": "FIRST", "text": "a", "codec_version": "0"}', "codec version '0'"),
        ('{"id": "FIRST", "text": "a", "dataset_hash": "zzz"}', "predicted on dataset 'zzz'"),
        ('{"id": "FIRST", "text": "a", "split": "test"}', "predicted on split 'test'"),
        ('{"id": "FIRST", "text": "a", "box_space": "inches"}', "unknown box_space 'inches'"),
        ('{"id": "FIRST", "text": "a", "box_space": ["pixels"]}', "unknown box_space"),
        ('{"id": "FIRST", "text": "a", "box_space": "pixels"}', "input_width=None"),
        ('{"id": "FIRST", "answer": "a", "box_px": [1], "box_space": "inches"}', "unknown box_space 'inches'"),
        ('{"id": "FIRST", "answer": "a", "box_px": [NaN, 0, 1, 1]}', "NaN is no JSON number"),
        ('{"id": "SECOND", "text": "b"}', "a second, different prediction"),
    ],
)
def test_bad_lines_are_named(tmp_path, dataset, bad, message):
    val = dataset.split("val")
    path = tmp_path / "p.jsonl"
    good = json.dumps({"id": val[1].id, "text": "a"})
    path.write_text(good + "\n\n" + bad.replace("FIRST", val[0].id).replace("SECOND", val[1].id) + "\n")
    with pytest.raises(SurgeryR1Error) as caught:
        score_predictions(path, dataset, "val", tmp_path / "out")
    assert str(caught.value).startswith(f"{path}:3: ") and message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read(tmp_path, dataset):
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xff"}\n')
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    for name, message in {
        "none.jsonl": "no such file",
        "latin.jsonl": "UTF-8",
        ".": "is a folder",
        "deep.jsonl": "nested",
    }.items():
        with pytest.raises(SurgeryR1Error, match=message):
            score_predictions(tmp_path / name, dataset, "val", tmp_path / "out")


def test_identical_repeats_are_counted_and_ignored(tmp_path, dataset):
    val = dataset.split("val")
    metrics, _ = score(tmp_path, dataset, [truth(val[0]), truth(val[0])])
    assert metrics["duplicates"] == 1 and metrics["acc"] == pytest.approx(1 / 24)


def test_box_space_that_contradicts_the_file_is_refused(tmp_path, dataset):
    line = {"id": first(dataset), "text": "a", "box_space": "norm1000"}
    with pytest.raises(SurgeryR1Error, match="box_space 'norm1000', but 'source' was asked for"):
        score(tmp_path, dataset, [line], box_space="source")
    with pytest.raises(SurgeryR1Error, match="unknown box space 'inch'"):
        score(tmp_path, dataset, [line], box_space="inch")


def test_empty_and_unknown_splits_are_refused(tmp_path, dataset):
    path = write(tmp_path / "p.jsonl", [])
    for split in ("test", "validation"):
        with pytest.raises(SurgeryR1Error, match=f"split '{split}' has no questions; the dataset holds .*'val': 24"):
            score_predictions(path, dataset, split, tmp_path / "out")


def test_a_dataset_without_training_has_no_floor(tmp_path, dataset):
    dataset.samples = {s.id: s for s in dataset.split("val")}
    metrics, _ = score(tmp_path, dataset, [])
    assert metrics["no_image_floor"]["n"] == 0 and "note" in metrics["no_image_floor"]


def test_same_input_same_bytes(tmp_path, dataset):
    records = [truth(s) for s in dataset.split("val")[:7]]
    score(tmp_path, dataset, records)
    before = [(tmp_path / "out" / name).read_bytes() for name in ("scores.jsonl", "metrics.json")]
    score(tmp_path, dataset, records)
    assert before == [(tmp_path / "out" / name).read_bytes() for name in ("scores.jsonl", "metrics.json")]


KEYS = [
    *("id", "kind", "source", "sequence", "frame", "question", "subject", "answer_true", "answer", "answer_right"),
    *("outside_classes", "rare", "iou", "iou_published", "joint", "joint_at_iou50", "coherence", "referent"),
    *(
        "answer_fits_box",
        "conclusion",
        "conclusion_right",
        "conclusion_fits_box",
        "facts",
        "unsupported",
        "box_px",
        "box_true_px",
    ),
    *("width", "height", "reasoning", "problems", "missing", "line"),
]
NEEDED = [
    *("id", "source", "sequence", "frame", "answer_true", "answer", "answer_right"),
    *("iou", "iou_published", "joint", "joint_at_iou50", "box_px"),
]


def test_score_lines_are_read_as_they_were_written(tmp_path, dataset):
    val = dataset.split("val")
    unreadable = [{"id": val[1].id, "text": ""}, {"id": val[2].id, "text": "the kidney, I think"}]
    _, lines = score(tmp_path, dataset, [truth(val[0]), *unreadable])
    # The text stands only where there was one and no answer or box could be read in it; an empty one is a text.
    assert [list(line) == KEYS for line in lines[:4]] == [True, False, False, True]
    assert list(lines[1]) == list(lines[2]) == [*KEYS, "text", "text_length"]
    assert (lines[1]["text"], lines[1]["text_length"], lines[2]["text_length"]) == ("", 0, 19)
    records = load_scores(tmp_path / "out")
    assert [json.dumps(record.to_json()) for record in records] == [json.dumps(line) for line in lines]
    assert [record.failed for record in records[:4]] == [False, True, True, True]
    assert records[0].frame_id == val[0].frame_id in dataset.frames


def test_older_score_lines_are_read_and_what_no_metric_can_do_without_is_named(tmp_path, dataset):
    score(tmp_path, dataset, [truth(s) for s in dataset.split("val")])
    (_, line), *_ = read_jsonl(tmp_path / "out" / "scores.jsonl")
    older = ScoreRecord.from_json({key: line[key] for key in NEEDED} | {"a key of old": 1})
    assert (older.iou, older.referent, older.problems, older.text) == (1.0, None, (), None)
    for key in NEEDED:
        path = write(tmp_path / "scores.jsonl", [line, {k: v for k, v in line.items() if k != key}])
        with pytest.raises(SurgeryR1Error) as caught:
            load_scores(path)
        assert str(caught.value).startswith(f"{path}:2: a score line without {key}")
        assert "score again" in str(caught.value)


# NaN and infinity are no JSON: a file with them is refused.
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(), max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)


def _rates(value, path=""):
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in ("n", "above", "facts_per_rationale"):
                yield from _rates(item, f"{path}.{key}")
    elif isinstance(value, float):
        yield path, value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=JSON, answer=JSON, box=JSON | st.lists(NUMBERS, min_size=4, max_size=4), both=st.booleans())
def test_no_prediction_crashes_scoring_or_leaves_the_unit_interval(tmp_path, dataset, text, answer, box, both):
    val = dataset.split("val")
    records = [{"id": val[1].id, "answer": answer, "box_px": box}, {"id": val[0].id, "text": text}]
    if both:
        records[0]["reasoning"], records[1]["model"] = text, answer
    metrics, lines = score(tmp_path, dataset, records)
    assert len(lines) == 24
    assert all(0.0 <= value <= 1.0 for _, value in _rates(metrics))


def test_lone_surrogates_can_be_written(tmp_path, dataset):
    sample = dataset.split("val")[0]
    _, lines = score(tmp_path, dataset, [{"id": sample.id, "text": "<answer>\ud800</answer> \udfff"}])
    assert lines[0]["answer"] == "?" and lines[0]["text"] == "<answer>?</answer> ?"
