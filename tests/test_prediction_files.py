"""Prediction files of every kind: each is read, or refused with one clear line; nothing is skipped without a word."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prediction_files import field_lines, questions, read, text_lines, xywh

import surgery_r1
from surgery_r1._util.locks import held
from surgery_r1.cli import main
from surgery_r1.codec import PROBLEMS
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.box_units import BoxUnits
from surgery_r1.evaluate.prediction_lines import AGREED, LINE_PROBLEMS, looks_like
from surgery_r1.evaluate.predictions import read_predictions
from surgery_r1.prompts import PROMPT_VERSION

SAMPLES = questions(12)
BY_ID = {s.id: s for s in SAMPLES}
RIGHT = field_lines(SAMPLES, lambda s: list(s.box_px))


def error_of(folder: Path, content: bytes | str, name: str = "p.jsonl", **options) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SurgeryR1Error) as caught:
        read_predictions(path, BY_ID, split="val", **options)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 600
    return text.removeprefix(str(path))


# ----------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"{}", mtime=0), ":1: is compressed with gzip; decompress it first"),
        (b"PK\x03\x04rest", ":1: is a zip archive"),
        (b"\xef\xbb\xbf{}", ":1: is text with a byte-order mark; write the file as UTF-8 without one"),
        ("{}".encode("utf-16"), ":1: is UTF-16 text; write the file as UTF-8"),
        (b"\xfe\xff\x00{", ":1: is UTF-16 text"),
        (b'\n{"id": "\xff"}\n', ":2: not UTF-8"),
        ("[" * 100_000, ":1: JSON nested too deeply"),
        ('[\n  {"id": "a"}\n]\n', ":1: not valid JSON: JSON over several lines; write one object a line"),
        ('[{"id": "a"}]\n', ":1: expected a JSON object, found [{'id': 'a'}]; one a line"),
        ("5\n", ":1: expected a JSON object, found 5"),
        ('{"id": "a"}, {"id": "b"}\n', ":1: not valid JSON: Extra data"),
        ('{"id": "endovis18/seq_1/fra', ":1: not valid JSON: the file ends in the middle of a line; it is torn"),
        ('{"id": "a", "box_px": [NaN, 1, 2, 3]}\n', ":1: not valid JSON: NaN is no JSON number"),
        ('{"id": "a", "box_px": [1, 1, Infinity, 3]}\n', ":1: not valid JSON: Infinity is no JSON number"),
        ('{"id": "a", "id": "b"}\n', ":1: not valid JSON: the key 'id' stands there twice"),
        ('{"id": ' + "9" * 5000 + "}\n", ":1: not valid JSON: Exceeds the limit"),
    ],
)
def test_files_that_are_no_json_lines(tmp_path, content, message):
    assert message in error_of(tmp_path, content)


def test_only_regular_files_are_read(tmp_path):
    """A named pipe without a writer would be waited for until the end of days."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, message in {
        "pipe.jsonl": "is not a regular file",
        ".": "is a folder",
        "none.jsonl": "no such file",
        "a\0b": "cannot read: embedded null byte",
    }.items():
        with pytest.raises(SurgeryR1Error, match=message):
            read_predictions(tmp_path / name, BY_ID, split="val")


def test_a_partial_file_is_not_scored_while_it_is_written(tmp_path, caplog):
    partial = tmp_path / "p.jsonl.partial"
    partial.write_text(json.dumps(RIGHT[0]) + "\n")
    with held(tmp_path / "p.jsonl", "predicting"):
        message = f"p.jsonl: process {os.getpid()} on .* is predicting here; wait until it has ended and score the fin"
        with pytest.raises(SurgeryR1Error, match=message):
            read_predictions(partial, BY_ID, split="val")
    assert len(read_predictions(partial, BY_ID, split="val").by_id) == 1
    assert "an unfinished prediction file" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl.partial"]


# ----------------------------------------------------------------------------------------------------------- lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": 5, "text": "a"}, "no sample id: id=5"),
        ({"sample_id": "a", "text": "a"}, "no sample id: id=None; did you mean 'id' instead of 'sample_id'?"),
        ({"id": ["a"], "text": "a"}, "no sample id: id=['a']"),
        ({"id": "x" * 999, "text": "a"}, "id 'xxx"),
        (
            {"id": "train/1", "text": "a"},
            "is not in split 'val' of the dataset but in split 'train'; give --split train",
        ),
        (
            {"id": "other/1", "text": "a"},
            "not in split 'val' of the dataset, whose ids are like 'endovis18/seq_1/frame000",
        ),
        ({"id": "FIRST", "text": "a", "split": "train"}, "predicted on split 'train'"),
        ({"id": "FIRST", "text": "a", "dataset_hash": "b"}, "predicted on dataset 'b', this one is 'a'"),
        ({"id": "other/1", "text": "a", "dataset_hash": "b"}, "predicted on dataset 'b', this one is 'a'"),
        ({"id": "FIRST", "text": "a", "codec_version": 1}, "written with codec version 1, this is '1'"),
        ({"id": "FIRST", "text": "a", "prompt_version": "0"}, "written with prompt version '0', this is '1'"),
        ({"id": "FIRST"}, "neither text nor answer and box_px"),
        ({"id": "FIRST", "box_px": [1, 2, 3, 4], "box_space": "pixels"}, "box_space 'pixels' with input_width=None"),
    ],
)
def test_lines_that_do_not_fit_are_named(tmp_path, line, message):
    import dataclasses

    line = {key: SAMPLES[0].id if value == "FIRST" else value for key, value in line.items()}
    everything = {**BY_ID, "train/1": dataclasses.replace(SAMPLES[0], split="train", id="train/1")}
    text = "\n" + json.dumps(line) + "\n"
    assert error_of(tmp_path, text, everything=everything, dataset_hash="a").startswith(":2: ")
    assert message in error_of(tmp_path, text, everything=everything, dataset_hash="a")


def test_wrong_types_are_counted_and_shown(tmp_path, caplog):
    odd = [
        {"id": SAMPLES[0].id, "text": ["a"]},
        {"id": SAMPLES[1].id, "answer": 5, "box_px": {"x1": 1}},
        {"id": SAMPLES[2].id, "answer": None, "box_px": None},
        {"id": SAMPLES[3].id, "answer": " ", "box_px": [9, 9, 1, 1]},
        {"id": SAMPLES[4].id, "answer": "Idle", "box_px": "1, 2, 3, 4"},
        {"id": SAMPLES[5].id, "text": None},
    ]
    file = read(tmp_path, SAMPLES, [*odd, *RIGHT[6:]])
    problems = [file.by_id[s.id].reading.problems for s in SAMPLES[:7]]
    assert problems == [
        *(("bad_text",), ("bad_answer", "bad_box"), ("no_answer", "no_box"), ("empty_answer", "inverted_box")),
        *(("bad_box",), ("empty",), ()),
    ]
    assert file.problems == {
        "bad_text": 1,
        "bad_answer": 1,
        "bad_box": 2,
        "no_answer": 1,
        "no_box": 1,
        "empty_answer": 1,
        "inverted_box": 1,
        "empty": 1,
    }
    assert set(file.problems) <= {*PROBLEMS, *LINE_PROBLEMS}
    path = tmp_path / "predictions.jsonl"
    for said in (
        f"{path}:1: text is not a string: not read; 1 line like it",
        f"{path}:2: answer is not a string: not read; 1 line like it",
        f"{path}:2: box_px is an object with keys: not read; 1 line like it",
        f"{path}:5: box_px is a string: not read; 1 line like it",
    ):
        assert said in caplog.text


@pytest.mark.parametrize(
    ("box", "look"),
    [
        (lambda b: str([*b]), "12 are a string"),
        (lambda b: [str(v) for v in b], "12 are a list of strings"),
        (lambda b: [*b[:3]], "12 are a list of 3"),
        (lambda b: [*b, *b], "12 are a list of 8"),
        (lambda b: [[*b[:2]], [*b[2:]]], "12 are nested lists"),
        (lambda b: [[*b]], "12 are nested lists"),
        (lambda b: {"x1": b[0]}, "12 are an object with keys"),
    ],
)
def test_a_file_of_malformed_boxes_is_refused(tmp_path, box, look):
    lines = field_lines(SAMPLES, lambda s: box(s.box_px))
    with pytest.raises(SurgeryR1Error, match=r"12 of 12 boxes are not four numbers, ") as caught:
        read(tmp_path, SAMPLES, lines)
    assert look in str(caught.value) and 'write "box_px": [x1, y1, x2, y2] with numbers' in str(caught.value)
    assert look.endswith(looks_like(lines[0]["box_px"]))


@pytest.mark.parametrize(
    ("key", "part"),
    [
        *(("bbox", "box_px"), ("box", "box_px"), ("bbox_2d", "box_px"), ("boxpx", "box_px"), ("Box_px", "box_px")),
        *(("label", "answer"), ("Answer", "answer"), ("anwser", "answer"), ("pred", "answer")),
        *(("response", "text"), ("prediction", "text"), ("output", "text"), ("txt", "text")),
    ],
)
def test_a_part_under_another_key_in_every_line_is_refused(tmp_path, key, part):
    lines = text_lines(SAMPLES, lambda s: s.box_px) if part == "text" else RIGHT
    lines = [{key if name == part else name: value for name, value in line.items()} for line in lines]
    with pytest.raises(SurgeryR1Error) as caught:
        read(tmp_path, SAMPLES, lines)
    assert f"predictions.jsonl:1: no line has '{part}', but 12 lines have '{key}'; did you mean '{part}'?" in str(
        caught.value
    )


def test_a_part_under_another_key_in_some_lines_is_counted_and_shown(tmp_path, caplog):
    other = {"id": SAMPLES[0].id, "answer": "Idle", "bbox": [1, 2, 3, 4]}
    file = read(tmp_path, SAMPLES, [*RIGHT[1:], other])
    assert file.by_id[SAMPLES[0].id].reading.problems == ("wrong_key", "no_box")
    assert file.problems["wrong_key"] == 1
    assert "predictions.jsonl:12: 'box_px' stands under 'bbox', which is not read; 1 line like it" in caplog.text


def test_a_rationale_under_another_key_is_told(tmp_path, caplog):
    """No score needs it, so that the file is read; the autopsy does."""
    file = read(tmp_path, SAMPLES, [line | {"rationale": "it is seen"} for line in RIGHT])
    assert not file.problems and file.by_id[SAMPLES[0].id].reading.rationale is None
    assert "predictions.jsonl:1: 'reasoning' stands under 'rationale', which is not read; 12 lines" in caplog.text
    with pytest.raises(SurgeryR1Error, match="has neither text nor answer and box_px"):
        read(tmp_path, SAMPLES, [{"id": SAMPLES[0].id, "rationale": "it is seen"}])


@pytest.mark.parametrize("nothing", [None, [], "", {}])
def test_a_detector_that_finds_nothing_is_no_converter_gone_wrong(tmp_path, nothing, caplog):
    file = read(tmp_path, SAMPLES, field_lines(SAMPLES, lambda _: nothing))
    assert file.problems == {"no_box": 12} and caplog.text == ""


def test_texts_whose_boxes_hold_no_plain_numbers_are_told(tmp_path, caplog):
    file = read(tmp_path, SAMPLES, text_lines(SAMPLES, lambda s: [str(v) for v in s.box_px]), units=BoxUnits("source"))
    assert file.problems["bad_box"] == 12
    assert "predictions.jsonl:1: <box> does not hold [x1, y1, x2, y2] in plain numbers" in caplog.text
    assert "12 lines like it" in caplog.text


def test_keys_of_ones_own_are_nobodys_business(tmp_path, caplog):
    lines = [{**line, "seconds": 1.5, "prompt": "Where?", "response": "raw", "bbox": None} for line in RIGHT]
    assert not read(tmp_path, SAMPLES, lines).problems and caplog.text == ""


def test_repeats_are_told_and_contradictions_refused(tmp_path, caplog):
    again = dict(reversed(RIGHT[0].items()))
    file = read(tmp_path, SAMPLES, [*RIGHT, RIGHT[0], again])
    assert file.duplicates == 2 and "2 lines repeat another one and are ignored" in caplog.text
    with pytest.raises(SurgeryR1Error, match=r"jsonl:13: a second, different prediction .*first is at .*jsonl:1;"):
        read(tmp_path, SAMPLES, [*RIGHT, {**RIGHT[0], "answer": "x"}])


@pytest.mark.parametrize("key", AGREED)
def test_lines_of_two_runs_are_refused(tmp_path, key):
    values = {"reasoning": (True, False), "split": ("val", "train")}.get(key, ("1", "2"))
    lines = [{**line, key: values[i == 7]} for i, line in enumerate(RIGHT)]
    with pytest.raises(SurgeryR1Error) as caught:
        read(tmp_path, SAMPLES, lines)
    assert str(caught.value).startswith(f"{tmp_path / 'predictions.jsonl'}:8: ")
    if key not in ("split", "codec_version", "prompt_version"):
        assert f"{key} is {values[1]!r}, but {values[0]!r} at {tmp_path / 'predictions.jsonl'}:1" in str(caught.value)


def test_rationales_of_other_systems_are_no_setting(tmp_path):
    lines = [{**line, "reasoning": f"because {i}", "model": "m"} for i, line in enumerate(RIGHT)]
    file = read(tmp_path, SAMPLES, lines)
    assert file.meta == {"model": "m"} and file.by_id[SAMPLES[3].id].reading.rationale == "because 3"


def test_the_command_line_says_which_flag_reads_the_boxes(dataset, dataset_folder, tmp_path, capsys):
    samples = dataset.split("val")
    lines = field_lines(samples, lambda s: [v + 1 for v in xywh(s.box_px)[:2]] + xywh(s.box_px)[2:])
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["score", str(path), "--data", str(dataset_folder), "--split", "val", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"{path}: boxes look like corner and size (xywh), counted from 1" in error and "Traceback" not in error
    flags = ["--box-format", "xywh", "--box-origin", "1"]
    assert f"; give {' '.join(flags)}; if the boxes are right as they stand, give" in error
    assert not (tmp_path / "out").exists()
    assert main([*command, *flags]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["miou"] == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------------------ fuzz

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["text", "answer", "box_px", "bbox", "reasoning", "box_space", "box_format", "box_origin", *AGREED]
LINES = JSON | st.builds(
    lambda number, odd, more: {"id": SAMPLES[number].id, **odd, **more},
    st.integers(0, 11),
    st.fixed_dictionaries({}, optional=dict.fromkeys([*KEYS, "input_width", "input_height", "id"], JSON)),
    st.fixed_dictionaries(
        {},
        optional={
            "box_px": st.lists(st.integers() | st.floats(-1e4, 1e4), min_size=4, max_size=4),
            "text": st.sampled_from(["<box>[1, 2, 3, 4]</box>", "<answer>Idle</answer>", "\ud800", ""]),
            "box_space": st.sampled_from(["norm1", "norm1000", "source"]),
            "prompt_version": st.just(PROMPT_VERSION),
        },
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, max_size=14))
def test_any_json_is_read_or_refused(tmp_path, lines):
    """Never another exception, and never a box that is none."""
    try:
        file = read(tmp_path, SAMPLES, lines)
    except SurgeryR1Error as error:
        assert "\n" not in str(error) and str(error).startswith(str(tmp_path))
        return
    for line in file.by_id.values():
        box = line.reading.box_px
        assert box is None or (box[0] < box[2] and box[1] < box[3])
    assert set(file.problems) <= {*PROBLEMS, *LINE_PROBLEMS}
    json.dumps(file.meta).encode("utf-8")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path, content):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    try:
        assert read_predictions(path, BY_ID, split="val").by_id == {}
    except SurgeryR1Error as error:
        assert str(error).startswith(str(path))


# ---------------------------------------------------------------------------------------------------- from Python


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "a", "box_px": [float("nan"), 1, 2, 3]}, "predictions:2: cannot be written as JSON"),
        ({"id": "a", "answer": {1, 2}}, "predictions:2: cannot be written as JSON: .*give plain strings"),
        ("a", "predictions:2: expected a dict, found 'a'"),
    ],
)
def test_dicts_that_json_cannot_hold(dataset, line, message):
    good = {"id": dataset.split("val")[0].id, "text": ""}
    with pytest.raises(SurgeryR1Error, match=message):
        surgery_r1.score([good, line], dataset, "val")


def test_units_are_given_from_python(dataset):
    samples = dataset.split("val")
    sizes = [(s, (s.width, s.height) * 2) for s in samples]
    lines = [
        {"id": s.id, "answer": s.answer, "box_px": [v / u for v, u in zip(s.box_px, size, strict=True)]}
        for s, size in sizes
    ]
    assert surgery_r1.score(lines, dataset, "val", box_space="norm1")["miou"] == pytest.approx(1.0)
    with pytest.raises(SurgeryR1Error, match=r"boxes look like shares of the frame .*give --box-space norm1;"):
        surgery_r1.score(lines, dataset, "val")
