"""Other sets by a dataset format: nested JSON, headings, image columns, several boxes, no boxes, kinds of their own."""

from __future__ import annotations

import json
from pathlib import Path

import label_folders as lf
import pytest

from surgery_r1.cli import main
from surgery_r1.data.dataset import open_dataset
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import load_format
from surgery_r1.data.formats.reader import FormatReader
from surgery_r1.data.formats.source import read_all
from surgery_r1.errors import SurgeryR1Error

LOOKALIKE = Path(__file__).parents[1] / "examples/cholec80_vqa_lookalike"

TOP = """name = "own"
images = '{video:v\\d+}/{number:\\d+}.png'
sequence = "{video}"
frame = "{number}"
"""
REST = """
[answers]
state = ["idle", "burning"]
[questions]
state = 'what does the (?P<subject>.+) do\\?'
[splits]
train = ["v1"]
val = ["v2"]
"""
QUESTION = "What does the hook do?"


def own(root: Path, adapter: str, labels: dict[str, str]):
    """What is read of two frames with label files, by an adapter."""
    for number, frame in enumerate(("v1/01", "v2/07")):
        lf.put_image(root / f"{frame}.png", colour=number)
    for name, text in labels.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "adapter.toml").write_text(TOP + adapter + REST)
    return read_all(FormatReader(load_format(root / "adapter.toml"), root))


NESTED = """
labels = "all.json"
format = "json"
records = "data.images.qas"
parts.name = '{video}/{number}.png'
[columns]
name = "meta.file"
question = "q"
answer = "a"
box = "box"
"""


def nested(second: str = '"idle", "box": [2, 2, 30, 40]') -> str:
    return f"""{{"data": {{"images": [
  {{"meta": {{"file": "v1/01.png"}}, "qas": [
    {{"q": "{QUESTION}", "a": "burning", "box": [1, 2, 30, 40]}}]}},
  {{"meta": {{"file": "v2/07.png"}}, "qas": [
    {{"q": "{QUESTION}",
      "a": {second}}}
  ]}}]}}}}
"""


def test_records_inside_records_of_images(tmp_path):
    content = own(tmp_path, NESTED, {"all.json": nested()})
    assert content.errors == [] and content.warnings == []
    assert [(s.id, s.split, s.answer, s.box_px) for s in content.samples] == [
        ("own/v1/01/0", "train", "burning", (1, 2, 30, 40)),
        ("own/v2/07/0", "val", "idle", (2, 2, 30, 40)),
    ]


@pytest.mark.parametrize(
    ("text", "line", "value"),
    [
        (nested('"asleep", "box": [2, 2, 30, 40]'), 5, "'asleep'"),
        (nested('"idle"'), 5, "no field 'box'"),
        (nested('"idle", "box": [2, 2, 30]'), 5, "3 numbers"),
        (nested('"idle", "box": [[[2]], 2, 30, 40]'), 5, "'...'"),
        (nested().replace('"v2/07.png"', '"7"'), 5, "name '7'"),
        (nested().replace('"qas"', '"rows"', 1), 2, "no key 'qas'"),
        (nested().replace('"data"', '"items"', 1), 1, "no key 'data'"),
        ("[3]", 1, "'3' where an object is expected"),
        (nested()[:90], 3, "not valid JSON: Unterminated"),
        ("[" * 100_000, 1, "nested too deeply"),
    ],
)
def test_errors_in_json_name_the_line_of_the_record(tmp_path, text, line, value):
    content = own(tmp_path, NESTED, {"all.json": text})
    error = next(e for e in content.errors if e.what != validation.NO_QUESTION)
    assert (error.path, error.line) == (str(tmp_path / "all.json"), line) and value in error.value and error.fix


def test_jsonl_with_the_questions_of_an_image_in_a_line(tmp_path):
    rows = [
        {"file": "v1/01.png", "qas": [{"q": QUESTION, "a": "idle", "box": "1 1 9 9"}]},
        {"file": "v2/07.png", "qas": [{"q": QUESTION, "a": "burning", "box": [1, 1, 9, 9]}, {"q": QUESTION, "a": "x"}]},
    ]
    adapter = NESTED.replace("all.json", "all.jsonl").replace('"json"', '"jsonl"')
    adapter = adapter.replace('"data.images.qas"', '"qas"').replace("meta.file", "file")
    content = own(tmp_path, adapter, {"all.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    assert [s.answer for s in content.samples] == ["idle", "burning"]
    (error,) = content.errors
    assert error.line == 2 and "no field 'box'" in error.value


@pytest.mark.parametrize("end", ["txt", "csv"])
def test_headings_and_a_column_with_the_path_of_the_image(tmp_path, end):
    adapter = f'labels = "all.{end}"\nskip_lines = 2\nparts.file = "{{video}}/{{number}}"\n'
    rows = f"v1/01|{QUESTION}|idle|1, 1, 9, 9\nv2/07|{QUESTION}|burning|1, 1, 9, 9\nodd|{QUESTION}|idle|1, 1, 9, 9\n"
    heading = "made by somebody\nin 2020\n"
    if end == "txt":
        adapter += 'fields = ["file", "question", "answer", "box"]\n'
    else:
        adapter += 'format = "csv"\n[columns]\nfile = "f"\nquestion = "q"\nanswer = "a"\nbox = "b"\n'
        heading, rows = heading + "f;q;a;b\n", rows.replace("|", ";")
    content = own(tmp_path, adapter, {f"all.{end}": heading + rows})
    assert [(s.frame_id, s.answer) for s in content.samples] == [("own/v1/01", "idle"), ("own/v2/07", "burning")]
    (error,) = content.errors
    assert error.line == (5 if end == "txt" else 6) and error.value == "file 'odd'"
    assert error.fix == "parts.file = '{video}/{number}' does not match it"


SEVERAL = 'labels = "{video}/{number}.txt"\nfields = ["question", "answer", "box"]\nseveral_boxes = true\n'


def test_several_boxes_for_one_answer(tmp_path):
    line = f"{QUESTION}|idle|[[1, 1, 9, 9], [20, 20, 30, 30]]\n"
    content = own(tmp_path, SEVERAL, {"v1/01.txt": line, "v2/07.txt": f"{QUESTION}|idle|1, 1, 9, 9\n"})
    assert content.errors == [] and content.warnings == []
    two, one = content.samples
    assert two.accepted == (("idle", (1, 1, 9, 9)), ("idle", (20, 20, 30, 30))) and two.box_px == (1, 1, 9, 9)
    assert one.accepted == (("idle", (1, 1, 9, 9)),) and one.answers_accepted == ()
    seen = content.frames["own/v1/01"].objects
    assert [(o.name, o.state, o.box_px) for o in seen] == [("hook", "idle", box) for _, box in two.accepted]


@pytest.mark.parametrize("box", ["1, 1, 9", "1, 1, 9, 9, 2", ""])
def test_numbers_that_are_no_boxes(tmp_path, box):
    content = own(
        tmp_path, SEVERAL, {"v1/01.txt": f"{QUESTION}|idle|{box}\n", "v2/07.txt": f"{QUESTION}|idle|1,1,9,9\n"}
    )
    (error,) = content.errors
    assert error.what == validation.CORNER_COUNT and error.fix == "write four for each box: x1, y1, x2, y2"


def test_a_box_may_be_optional(tmp_path):
    adapter = 'labels = "all.csv"\nformat = "csv"\nbox = { optional = true }\n'
    adapter += '[columns]\nvideo = "v"\nnumber = "n"\nquestion = "q"\nanswer = "a"\nbox = ["x", "y", "z", "w"]\n'
    rows = f"v1,01,{QUESTION},idle,1,1,9,9\nv2,07,{QUESTION},idle,,,,\nv2,07,{QUESTION},burning,1,1,9,9\n"
    content = own(tmp_path, adapter, {"all.csv": "v,n,q,a,x,y,z,w\n" + rows})
    assert [s.box_px for s in content.samples] == [(1, 1, 9, 9), None]
    (error,) = content.errors
    assert (error.line, error.what) == (4, validation.MIXED_BOXES)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (NESTED.replace('"json"', '"csv"'), "records = 'data.images.qas' is for json and jsonl"),
        (NESTED.replace("data.images", "data..images"), "expected keys with dots between them"),
        (
            NESTED.replace("parts.name", "parts.nome"),
            r"parts\.nome: there is no field of this name; known: answer, box",
        ),
        (NESTED.replace("'{video}/", "'{video/"), r"parts\.name = .*a brace is not closed"),
        (NESTED.replace("records", "skip_lines = 1\nrecords"), "skip_lines = 1 is for lines, csv and jsonl"),
        (NESTED.replace("records", "skip_lines = -1\nrecords"), "skip_lines = -1, expected 0 or more"),
        (NESTED.replace("records", "skip_lines = true\nrecords"), "skip_lines = True, expected int"),
        (NESTED.replace("records", "several_boxes = 1\nrecords"), "several_boxes = 1, expected bool"),
        (NESTED.replace("records", "box = 4\nrecords"), "box must be a table, found 4"),
        (NESTED.replace("records", "box.origin = 2\nrecords"), r"box\.origin = 2, expected one of \[0, 1\]"),
        (
            NESTED.replace('box = "box"', "").replace("records", "box.optional = true\nrecords"),
            "no field is called box",
        ),
        (NESTED.replace('"q"', "7"), r"columns = .*, expected str or a list of str in \['question'\]"),
        (NESTED.replace('"all.json"', "[]"), r"labels = \[\], expected a pattern"),
        (SEVERAL.replace("several_boxes", "records = 'a'\nseveral_boxes"), "records = 'a' is for json and jsonl"),
        ('labels = "a.txt"\nline = "(?P<question>.)(?P<answer>.)(?P<x1>.)"\n', "line = .* has no group x2, y1, y2"),
    ],
)
def test_wrong_formats(tmp_path, adapter, message):
    (tmp_path / "a.toml").write_text(TOP + adapter + REST)
    with pytest.raises(SurgeryR1Error, match=message):
        load_format(tmp_path / "a.toml")


def test_a_class_must_be_a_text(tmp_path):
    (tmp_path / "a.toml").write_text(TOP + NESTED + REST.replace("[answers]", "[answers]\ncount = [1, 2]"))
    with pytest.raises(SurgeryR1Error, match=r"answers = .*, expected a list of str in \['count'\]"):
        load_format(tmp_path / "a.toml")


def test_the_lookalike_of_cholec80_vqa(tmp_path, capsys):
    """A set without boxes, with kinds of its own: checked, built, and read as its README says."""
    assert main(["data", "check", str(LOOKALIKE), "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["frames"], report["questions"], report["questions_with_box"], report["overlaps"]) == (7, 42, 0, {})
    assert report["splits"]["train"]["by_kind"] == {"count": 3, "phase": 3, "use": 12}
    assert report["location_rule"]["rule"] is None and (tmp_path / "sheet.png").stat().st_size > 5_000
    out = tmp_path / "ds"
    assert main(["data", "build", str(LOOKALIKE), "--config", "surgery_r1_54k", "--out", str(out)]) == 0
    dataset = open_dataset(out, verify=True)
    assert dataset.manifest["rows"] == {"total": 120, "visual_qa": 60, "grounding_qa": 0, "cot": 60}
    assert all(frame.objects == () for frame in dataset.frames.values())
    assert all(row.box_px is None for row in dataset.rows)
    assert dataset.classes[:7] == tuple(load_format(LOOKALIKE / "adapter.toml").answers["phase"])
    (asked,) = (s for s in dataset.split("val") if s.kind == "use" and s.subject == "grasper" and s.frame == "0")
    assert (asked.answer, asked.box_px) == ("no", None)
    counted = next(row for row in dataset.rows if row.task == "cot" and row.question.startswith("how many"))
    said = {row.reasoning for row in dataset.rows_of[counted.sample_id] if row.task == "cot"}
    assert said == {
        "the frame is looked at for the count, and the answer is 2",
        "as to the count, the frame is looked at and the answer is 2",
    }
    asked_anew = {row.question for row in dataset.rows_of[counted.sample_id]}
    assert asked_anew == {counted.question, f"Look at the frame. {counted.question}"}
    card = (out / "README.md").read_text()
    assert "without boxes" in card and "video_1 (3)" in card and "| count | 0, 1, 2, 3 |" in card and "top" not in card


def test_one_file_for_all_frames_names_them_in_its_lines(tmp_path):
    """The form in which one public loader writes the same set: ``video/frame|question|answer``."""
    adapter = 'labels = "all.txt"\nfields = ["file", "question", "answer"]\nparts.file = "{video}/{number}"\n'
    content = own(tmp_path, adapter, {"all.txt": f"v2/07|{QUESTION}|idle\nv1/01|{QUESTION}|burning\n"})
    assert [(s.frame_id, s.answer, s.box_px) for s in content.samples] == [
        ("own/v1/01", "burning", None),
        ("own/v2/07", "idle", None),
    ]
    assert content.errors == []


def test_a_set_without_boxes_is_predicted_and_scored_on_its_answers(tmp_path, capsys):
    out, predictions = tmp_path / "ds", tmp_path / "predictions.jsonl"
    assert main(["data", "build", str(LOOKALIKE), "--out", str(out)]) == 0
    args = ["--model", "tiny", "--data", str(out), "--split", "val", "--max-new-tokens", "8", "--limit", "4"]
    assert main(["predict", *args, "--out", str(predictions)]) == 0
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(lines) == 4 and all(line["text"] for line in lines)
    # A system that is right about every answer and says nothing of boxes.
    right = [{"id": sample.id, "answer": sample.answer, "box_px": None} for sample in open_dataset(out).split("val")]
    predictions.write_text("".join(json.dumps(line) + "\n" for line in right))
    assert (
        main(["score", str(predictions), "--data", str(out), "--split", "val", "--out", str(tmp_path / "scores")]) == 0
    )
    metrics = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert (metrics["n"], metrics["acc"], metrics["f_score"], metrics["parse_failure_rate"]) == (12, 1.0, 1.0, 0.0)
    assert metrics.get("miou") is None and set(metrics["by_kind"]) == {"phase", "count", "use"}
    assert metrics["no_image_floor"]["acc"] == pytest.approx(10 / 12)
