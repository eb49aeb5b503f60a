"""Questions as public files write them, and forms that no format knows: they are never left out quietly."""

from __future__ import annotations

import json

import label_folders as lf
import pytest

from surgery_r1 import vocab
from surgery_r1.cli.data import Build, Check
from surgery_r1.data.assemble import build_dataset
from surgery_r1.data.check import check_folder
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import load_format, shipped_formats
from surgery_r1.data.formats.endovis import read_folder
from surgery_r1.data.formats.fields import FieldParser
from surgery_r1.data.formats.question_forms import QuestionForms
from surgery_r1.errors import SurgeryR1Error

PLACES = [
    ("What is the tool in the left bottom?", "left-bottom"),
    ("What is the tool in the left-bottom?", "left-bottom"),
    ("what is the tool in the Right Top ?", "right-top"),
    ("What is the instrument in left_top?", "left-top"),
    ("What is the tool in the bottom left?", "left-bottom"),
    ("What is the tool in the left bottom? Please answer with one word.", "left-bottom"),
    ("What is the tool in the right-top? Answer with a single word", "right-top"),
    ("What tool is in left-top of the frame?", "left-top"),
    ("Which instrument is located in the right bottom?", "right-bottom"),
]


@pytest.mark.parametrize(("question", "place"), PLACES)
def test_questions_for_the_tool_in_a_place(tmp_path, question, place):
    assert vocab.classify_question(question) == ("tool", place)
    assert FieldParser(load_format("endovis18_extended")).question(question) == ("tool", place)
    lf.put_frame(tmp_path, lines=(*lf.LINES, f"{question}|stapler|21, 21, 61, 51"))
    content = read_folder(tmp_path)
    assert content.errors == [] and content.warnings == []
    asked = content.samples[-1]
    assert (asked.kind, asked.subject, asked.answer) == ("tool", place, "stapler")


@pytest.mark.parametrize("question", ["What is the tool in the left?", "What is the tool in the left bottom? Why?"])
def test_what_names_no_place_is_another_form(question):
    assert vocab.classify_question(question) == (None, None)


def test_an_instruction_may_follow_every_question(tmp_path):
    end = " Please answer with one word."
    lines = [line.replace("?|", f"?{end}|") for line in lf.LINES]
    lf.put_frame(tmp_path, lines=lines)
    assert [sample.kind for sample in read_folder(tmp_path).samples] == ["organ", "state", "location"]
    assert vocab.classify_question(f"Where is suction located?{end}") == ("location", "suction")


def test_shipped_formats_have_the_patterns_of_the_package():
    for name in shipped_formats():
        questions = load_format(name).questions
        assert questions == {kind: vocab.QUESTION_PATTERNS[kind][0] for kind in questions}


def test_two_tools_in_one_place_are_both_right(tmp_path):
    question = "What is the tool in the left bottom?"
    more = [f"{question}|stapler|21, 21, 61, 51", f"{question}|suction|31, 31, 71, 61"]
    lf.put_frame(tmp_path, lines=(*lf.LINES, *more))
    *_, sample = read_folder(tmp_path).samples
    assert sample.answers_accepted == ("stapler", "suction") and len(sample.boxes_accepted) == 2


def test_forms_blank_out_names_places_and_numbers():
    forms = QuestionForms(load_format("endovis18_extended"))
    same = [
        "Which 2 tools touch the bipolar_forceps in the left top?",
        "which 3 tools touch the  Clip Applier in the top-left?",
    ]
    assert {forms.form_of(text) for text in same} == {"which _ tools touch the _ in the _?"}


def _with_unknown(root, count):
    lf.small_set(root)
    for number in range(count):
        tool = vocab.TOOLS[number % len(vocab.TOOLS)]
        lf.put_frame(root, 2, 20 + number, (*lf.LINES, f"Who holds the {tool} now?|Idle|1, 1, 9, 9"))
    return root


def test_a_stray_line_is_a_warning(tmp_path):
    report = check_folder(_with_unknown(tmp_path, 1))
    assert report.errors == () and [w.what for w in report.warnings] == [validation.UNKNOWN_FORM]


def test_a_stray_line_in_two_label_files_of_a_frame_is_one(tmp_path):
    folder = _with_unknown(tmp_path, 1)
    line = "Who holds the bipolar_forceps now?|Idle|1, 1, 9, 9"
    lf.put_labels(folder / "seq_2/vqa/Classification/frame020_QA.txt", (*lf.LINES, line))
    report = check_folder(folder)
    assert report.errors == () and validation.UNKNOWN_FORM in [w.what for w in report.warnings]
    assert "4 questions already read" in [w.value for w in report.warnings][-1]


def test_a_form_that_is_left_out_is_an_error(tmp_path, capsys):
    folder = _with_unknown(tmp_path / "set", 3)
    assert Check(folder).run() == 1
    shown = capsys.readouterr().out
    assert "No errors" not in shown and "3 lines are left out" in shown
    (error,) = check_folder(folder).errors
    assert error.what == validation.FORM_LEFT_OUT
    assert (error.path, error.line) == (str(folder / "seq_2/vqla/label/frame020_QA.txt"), 4)
    assert "such as 'Who holds the bipolar_forceps now?'" in error.value
    assert "the nearest known form is 'w" in error.fix and "[questions]" in error.fix
    with pytest.raises(SurgeryR1Error, match="question form that the dataset format does not know"):
        build_dataset([folder], tmp_path / "ds")
    manifest = build_dataset([folder], tmp_path / "ds", on_fault="skip")
    assert manifest["skipped"] == {validation.UNKNOWN_FORM: 3}


def test_many_stray_lines_are_an_error(tmp_path):
    lf.small_set(tmp_path)
    lf.put_frame(tmp_path, 2, 20, (*lf.LINES, "Who?|a|1, 1, 9, 9", "Why now?|b|1, 1, 9, 9", "What for?|c|1, 1, 9, 9"))
    (error,) = check_folder(tmp_path).errors
    assert error.what == validation.FORM_LEFT_OUT and error.value.startswith("3 lines of 3 more forms")


@pytest.mark.parametrize("lines", [(), ("Who?|a|1, 1, 9, 9",)])
def test_a_folder_where_nothing_is_read_is_an_error(tmp_path, lines, capsys):
    lf.put_frame(tmp_path, lines=lines)
    assert Check(tmp_path, json=True).run() == 1
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert fault["what"] == validation.NOTHING_READ
    with pytest.raises(SurgeryR1Error, match="no usable question"):
        Build((tmp_path,), tmp_path / "ds").run()


def test_a_kind_that_nothing_fills_is_an_error(tmp_path, capsys):
    lf.small_set(tmp_path)
    assert Check(tmp_path, adapter="endovis18").run() == 0
    (tmp_path / "own.toml").write_text(
        load_text("endovis18")
        .replace("[answers]", 'optional = ["count"]\n[answers]\ncount = ["1"]')
        .replace("[questions]", "[questions]\ncount = 'how many\\?'")
    )
    assert Check(tmp_path, adapter=str(tmp_path / "own.toml")).run() == 0
    text = (tmp_path / "own.toml").read_text().replace('optional = ["count"]\n', "")
    (tmp_path / "own.toml").write_text(text)
    capsys.readouterr()
    assert Check(tmp_path, adapter=str(tmp_path / "own.toml")).run() == 1
    assert (
        'questions.count matches no question, correct the pattern, leave the kind out, or write: optional = ["count"]'
        in (capsys.readouterr().out)
    )


def load_text(name):
    from surgery_r1.data.formats.declarative import SHIPPED

    return (
        (SHIPPED / f"{name}.toml")
        .read_text()
        .replace("[box]\norigin = 1\n", "", 1)
        .replace(
            'fields = ["question", "answer", "box"]', 'fields = ["question", "answer", "box"]\nbox = { origin = 1 }'
        )
    )
