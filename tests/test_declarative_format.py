"""Declarative adapters: a TOML of at most 40 lines reads another VQLA-like set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import label_folders as lf
import pytest

from surgery_r1 import vocab
from surgery_r1.cli import main
from surgery_r1.data.assemble import build_dataset
from surgery_r1.data.check import check_report
from surgery_r1.data.dataset import open_dataset
from surgery_r1.data.formats import declarative as adapters
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import BoxFormat, load_format
from surgery_r1.data.formats.fields import read_box
from surgery_r1.data.formats.lines import LineError
from surgery_r1.data.formats.path_patterns import PathPattern
from surgery_r1.data.formats.reader import FormatReader
from surgery_r1.data.formats.source import read_all
from surgery_r1.data.recipe import load_recipe
from surgery_r1.errors import SurgeryR1Error

EXAMPLE = Path(__file__).parents[1] / "examples/own_frames"

HEAD = """
name = "own"
images = "{sequence}/{frame}.png"
optional = ["organ", "state", "location", "tool"]
[answers]
organ = ["liver"]
state = ["idle", "burning"]
location = ["left-top", "right-bottom"]
tool = ["maryland dissector"]
[questions]
organ = 'which organ\\?'
state = ['what does the (?P<subject>.+) do\\?', 'state of (?P<subject>.+)']
location = 'where is the (?P<subject>.+)\\?'
tool = 'what is (?P<subject>.+)\\?'
[splits]
train = ["video*"]
test = ["v_test"]
[rename]
"upper left" = "left-top"
"""
CSV = 'labels = "labels.csv"\nformat = "csv"\n'
COLUMNS = """
[columns]
sequence = "video"
frame = "image"
question = "q"
answer = "a"
box = ["x1", "y1", "x2", "y2"]
"""


def adapter_of(path: Path, text: str, top: str = CSV) -> adapters.DatasetFormat:
    """An adapter: what is the same in these tests, with ``top`` among its first keys and ``text`` at its end."""
    path.write_text(HEAD.replace("[answers]", top + "[answers]", 1) + text)
    return load_format(path)


def own(root: Path, rows: str, frames=("video1/f1", "video1/f2", "video10/f1", "video2/f1")) -> Path:
    for number, frame in enumerate(frames):
        lf.put_image(root / f"{frame}.png", colour=number)
    (root / "labels.csv").write_text("video,image,q,a,x1,y1,x2,y2\n" + rows)
    return root


def test_patterns():
    pattern = PathPattern(r"**/{seq:seq_\d{1,2}}/*/{seq}_{frame}.png")
    assert pattern.match("a/seq_12/left/seq_12_f1.png") == {"seq": "seq_12", "frame": "f1"}
    assert pattern.match("seq_1/x/SEQ_1_f.PNG") is not None
    for path in ("seq_1/x/seq_2_f.png", "seq_123/x/seq_123_f.png", "seq_1/x/y/seq_1_f.png", "seq_1/x/seq_1_f.png.txt"):
        assert pattern.match(path) is None
    for text in ("{", "{a", "{1}", "{}", "{a:[}"):
        with pytest.raises(ValueError, match=r"brace|no name|unterminated"):
            PathPattern(text)


def test_shipped_adapters_are_short():
    assert adapters.shipped_formats() == ["endovis17", "endovis18", "endovis18_extended"]
    for path in (*adapters.SHIPPED.glob("*.toml"), EXAMPLE / "adapter.toml"):
        text = path.read_text()
        assert len(text.splitlines()) <= 40 and "--adapter" in text
        assert load_format(path).name


def test_shipped_adapters_have_the_classes_and_splits_of_the_package():
    for name in adapters.shipped_formats():
        read = load_format(name)
        answers = {"organ": (vocab.ORGAN,), "state": vocab.STATES, "location": vocab.LOCATIONS, "tool": vocab.TOOLS}
        assert read.answers == {kind: answers[kind] for kind in read.answers}
        for number in range(20):
            official = {"train": vocab.TRAIN_SEQUENCES, "dev": vocab.DEV_SEQUENCES, "val": vocab.VAL_SEQUENCES}
            known = [split for split, numbers in official.items() if number in numbers]
            assert read.splits_of(f"seq_{number}") == (["test"] if name == "endovis17" else known[-1:])


def test_shipped_adapters_read_what_the_reader_of_label_folders_reads(tmp_path):
    lf.small_set(tmp_path / "18")
    lf.put_frame(tmp_path / "18/Train", 15, 7, label="vqla/{}_QAL.txt")
    lf.put_image(tmp_path / "18/test_data/seq_1/left_frames/frame003.png", colour=1)
    for sequence, frame in ((1, 15), (8, 30), (10, 5)):
        lf.put_frame_17(tmp_path / "17", sequence, frame)
    for name in ("18", "17"):
        plain = build_dataset([tmp_path / name], tmp_path / f"plain{name}")
        read = load_format(f"endovis{name}")
        args = [[tmp_path / name], tmp_path / f"ours{name}"]
        ours = build_dataset(*args, open_source=lambda folder, images, read=read: FormatReader(read, folder, images))
        assert ours["samples"] == plain["samples"] and ours["samples"]["total"] in (33, 6)
        for file in ("frames.jsonl", "samples.jsonl", "rows.jsonl", "labels.jsonl"):
            assert (tmp_path / f"plain{name}" / file).read_bytes() == (tmp_path / f"ours{name}" / file).read_bytes()


def test_lines_by_fields_and_by_a_regular_expression(tmp_path):
    lf.put_image(tmp_path / "set/video1/f1.png")
    top = 'labels = "{sequence}/{frame}.txt"\n'
    regex = r"""line = '(?P<x1>\S+) (?P<y1>\S+) (?P<x2>\S+) (?P<y2>\S+) (?P<answer>\w+): (?P<question>.+)'"""
    for way, line in (
        (regex, "1 2 30 40 idle: State of stapler"),
        ('fields = ["box", "answer", "question"]\nseparator = ";"', "1, 2, 30, 40; idle; State of stapler"),
    ):
        lf.put_labels(tmp_path / "set/video1/f1.txt", [line, "nonsense"])
        content = read_all(FormatReader(adapter_of(tmp_path / "a.toml", "", top + way + "\n"), tmp_path / "set"))
        (sample,) = content.samples
        assert (sample.question, sample.answer, sample.box_px) == ("State of stapler", "idle", (1, 2, 30, 40))
        (error,) = content.errors
        assert (error.line, error.what) == (2, validation.FIELD_COUNT) and "nonsense" in error.value
    assert error.fix == "write x1, y1, x2, y2;answer;question"


def test_the_extended_set(tmp_path, capsys):
    tool = "What tool is in left-top of the frame?|bipolar_forceps|21, 21, 61, 51"
    second = "What tool is in left-top of the frame?|stapler|31, 31, 71, 61"
    lf.put_frame(tmp_path / "set", lines=(*lf.LINES, tool, second), label="vqa/Classification/{}_QA.txt")
    args = ["data", "build", str(tmp_path / "set"), "--adapter", "endovis18_extended", "--out", str(tmp_path / "ds")]
    assert main(args) == 0
    dataset = open_dataset(tmp_path / "ds")
    sample = dataset.samples["endovis18_extended/seq_2/frame003/3"]
    assert sample.kind == "tool" and sample.answers_accepted == ("bipolar_forceps", "stapler")
    assert "stapler" in dataset.manifest["sources"]["endovis18_extended"]["answers"]["tool"]


def test_the_worked_example(tmp_path, capsys):
    """A folder to copy: checked, drawn, built by the 54k recipe, and made into what a trainer takes."""
    adapter = ["--adapter", str(EXAMPLE / "adapter.toml")]
    assert main(["data", "check", str(EXAMPLE), *adapter, "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["frames"], report["questions"], report["notices"]) == (8, 54, [])
    assert {split: facts["frames"] for split, facts in report["splits"].items()} == {
        "train": 4, "dev": 2, "val": 2, "test": 0,
    }  # fmt: skip
    assert report["location_rule"]["by_source"]["own_frames"]["agreement"] == 1.0
    out = tmp_path / "ds"
    args = ["data", "build", str(EXAMPLE), *adapter, "--config", "surgery_r1_54k", "--out", str(out)]
    assert main(args) == 0 and (tmp_path / "sheet.png").stat().st_size > 10_000
    dataset = open_dataset(out, verify=True)
    assert dataset.manifest["rows"]["total"] == 6 * 40
    sample = dataset.samples["own_frames/case_a/000000/1"]
    assert (sample.kind, sample.subject, sample.answer) == ("state", "bipolar_forceps", "looping")
    card = (out / "README.md").read_text()
    assert "frames of own_frames" in card and "EndoVis" not in card
    reasons = {row.reasoning for row in dataset.rows if row.sample_id == sample.id and row.task == "cot"}
    assert reasons == {
        "the bipolar_forceps in the left-bottom is seen in the state looping, so its state is looping",
        "in the left-bottom the bipolar_forceps is in the state looping, so its state is looping",
    }


def test_csv_with_names_in_columns(tmp_path):
    rows = (
        "video10,f1,Which organ?,liver,10,10,100,100\n"
        "video2,f1,What does the Maryland dissector do?,burning,0,0,50,40\n"
        "video2,f1,Where is the maryland_dissector?,upper left,0,0,50,40\n"
        'video2,f1,"What is left top?",maryland dissector,0,0,50,40\n'
        "video1,f2,State of clip_applier,idle,80,70,160,128\n"
    )
    folder = own(tmp_path / "set", rows)
    content = read_all(FormatReader(adapter_of(tmp_path / "a.toml", COLUMNS), folder))
    assert content.errors == []
    assert [warning.value for warning in content.warnings] == [
        "splits.test: 'v_test' matches no sequence", "1 of 4 images",
    ]  # fmt: skip
    # Sequences in their natural order.
    assert [sample.id for sample in content.samples] == [
        "own/video1/f2/0", "own/video2/f1/0", "own/video2/f1/1", "own/video2/f1/2", "own/video10/f1/0",
    ]  # fmt: skip
    organ = content.frames["own/video10/f1"].objects[0]
    assert (organ.name, organ.is_organ, content.frames["own/video10/f1"].organ_box) == (
        "liver",
        True,
        (10, 10, 100, 100),
    )
    (tool,) = content.frames["own/video2/f1"].objects
    assert (tool.name, tool.state, tool.location) == ("maryland dissector", "burning", "left-top")
    assert {sample.split for sample in content.samples} == {"train"} and content.samples[-1].kind == "organ"
    build_dataset([folder], tmp_path / "ds", recipe=load_recipe("surgery_r1_54k"), open_source=opened(tmp_path))
    manifest = open_dataset(tmp_path / "ds").manifest
    assert manifest["rows"]["total"] == 30 and manifest["skipped"] == {}


def opened(tmp_path):
    read = load_format(tmp_path / "a.toml")
    return lambda folder, images: FormatReader(read, folder, images)


def test_jsonl_and_images_elsewhere(tmp_path):
    lf.put_image(tmp_path / "images/video1/f1.png")
    records = [
        {"q": "Which organ?", "a": "liver", "bbox": [10, 10, 50, 60]},
        {"q": "State of stapler", "a": "idle", "bbox": "[10, 10, 50, 60]"},
    ]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/video1_f1.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    columns = '[columns]\nquestion = "q"\nanswer = "a"\nbox = "bbox"\n[box]\norder = "xywh"\norigin = 1\n'
    top = 'labels = "{sequence}_{frame}.jsonl"\nformat = "jsonl"\n'
    read = adapter_of(tmp_path / "a.toml", columns, top)
    content = read_all(FormatReader(read, tmp_path / "labels", tmp_path / "images"))
    assert [sample.box_px for sample in content.samples] == [(9, 9, 59, 69)] * 2
    assert content.errors == [] and {warning.what for warning in content.warnings} == {validation.NO_QUESTION}


@pytest.mark.parametrize(
    ("rule", "values", "box"),
    [
        ({}, (10, 20, 40, 60), (10, 20, 40, 60)),
        ({"origin": 1}, (1, 1, 160, 128), (0, 0, 159, 127)),
        ({"order": "xywh"}, (10, 20, 30, 40), (10, 20, 40, 60)),
        ({"order": "cxcywh"}, (25, 40, 30, 40), (10, 20, 40, 60)),
        ({"units": "relative"}, (0, 0.25, 0.5, 1), (0, 32, 80, 128)),
        ({"units": "permille"}, (0, 250, 500, 1000), (0, 32, 80, 128)),
        ({"size": (1280, 1024)}, (80, 160, 320, 480), (10, 20, 40, 60)),
    ],
)
def test_box_conventions(rule, values, box):
    assert read_box([str(value) for value in values], BoxFormat(**rule), (160, 128)) == box


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (("1", "2", "3"), validation.CORNER_COUNT),
        (("1", "2", "3", "x"), validation.NON_NUMERIC),
        (("1", "2", "3", "1_0"), validation.NON_NUMERIC),
        (("1", "2", "3", "٤"), validation.NON_NUMERIC),
        (("1", "2", "3", "1e999"), validation.NAN_CORNER),
        (("1", "2", "3", "nan"), validation.NAN_CORNER),
        (("5", "5", "5", "9"), validation.EMPTY_BOX),
        (("5", "5", "500", "9"), validation.OUTSIDE),
        (("-1", "5", "50", "9"), validation.OUTSIDE),
    ],
)
def test_bad_boxes(values, what):
    with pytest.raises(LineError) as caught:
        read_box(list(values), BoxFormat(), (160, 128))
    assert caught.value.what == what


def test_a_box_too_large_to_be_added_up_is_no_box():
    with pytest.raises(LineError) as caught:
        read_box(["1e308", "1", "1e308", "2"], BoxFormat(order="xywh"), (160, 128))
    assert caught.value.what == validation.NAN_CORNER


def test_errors_name_line_and_remedy(tmp_path):
    rows = (
        "video1,f1,Which organ?,spleen,1,1,9,9\n"  # line 2
        "video1,f1,State of stapler,Burning,1,1,9,9\n"
        "video1,f1,State of stapler,idle,1,1,999,9\n"
        "video1,f1,State of stapler,idle,1,1,9,9\n"
        "video1,f1,State of stapler,idle,1,1,9,9\n"
        "video1,f1,How many tools?,2,1,1,9,9\n"
        "video1,f7,Which organ?,liver,1,1,9,9\n"
        "other,f1,Which organ?,liver,1,1,9,9\n"
        "video1,f2,Which organ?\n"
        "video2,f1,Which organ?,liver,1,1,9,9\n"
    )
    folder = own(tmp_path / "set", rows)
    lf.put_image(folder / "other/f1.png")
    (folder / "video2/f1.png").write_bytes(b"\x89PNG torn")
    source = FormatReader(adapter_of(tmp_path / "a.toml", COLUMNS), folder)
    content = read_all(source)
    found = {error.line: (error.what, error.fix) for error in content.errors}
    assert {line: what for line, (what, _) in found.items()} == {
        2: validation.UNKNOWN_ANSWER,
        3: validation.UNKNOWN_ANSWER,
        4: validation.OUTSIDE,
        6: validation.DUPLICATE,
        8: validation.MISSING_IMAGE,
        9: validation.NO_SEQUENCE,
        10: validation.FIELD_COUNT,
        11: validation.TORN_IMAGE,
    }
    assert found[3][1].startswith("did you mean 'burning'?") and '[rename] "Burning" = "burning"' in found[3][1]
    assert "one of liver" in found[2][1] and "[splits]" in found[9][1]
    assert sum(content.skipped.values()) == 9 and len(content.samples) == 1
    assert [(n.what, n.line) for n in content.warnings if n.line] == [("unknown question form", 7)]
    with pytest.raises(SurgeryR1Error, match="8 errors"):
        build_dataset([folder], tmp_path / "ds", open_source=opened(tmp_path))
    manifest = build_dataset([folder], tmp_path / "ds", on_fault="skip", open_source=opened(tmp_path))
    assert manifest["samples"]["total"] == 1 and sum(manifest["skipped"].values()) == 9


def test_a_question_pattern_that_is_wrong_stops_the_build(tmp_path):
    rows = "video1,f1,Which organ?,liver,1,1,9,9\nvideo1,f1,Where is stapler?,upper left,1,1,9,9\n"
    adapter_of(tmp_path / "a.toml", COLUMNS)
    text = (tmp_path / "a.toml").read_text().replace('"location", "tool"]', '"tool"]', 1)
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(SurgeryR1Error, match=r"questions\.location matches no question, correct the pattern"):
        build_dataset([own(tmp_path / "set", rows)], tmp_path / "ds", open_source=opened(tmp_path))


def test_a_sequence_in_two_splits(tmp_path):
    folder = own(tmp_path / "set", "video1,f1,Which organ?,liver,1,1,9,9\n")
    read = adapter_of(tmp_path / "a.toml", COLUMNS)
    read = replace(read, splits={"train": ("*",), "val": ("video1",)})
    content = read_all(FormatReader(read, folder))
    (error,) = content.errors
    assert (error.what, error.value) == (
        validation.SEVERAL_SPLITS,
        "'video1' is in train and val",
    ) and not content.samples


def test_frames_of_several_sizes_give_a_warning(tmp_path):
    folder = own(tmp_path / "set", "video1,f1,Which organ?,liver,1,1,9,9\nvideo1,f2,Which organ?,liver,1,1,9,9\n")
    (folder / "video1/f2.png").write_bytes(lf.image_bytes("png", size=(80, 64)))
    content = read_all(FormatReader(adapter_of(tmp_path / "a.toml", COLUMNS), folder))
    warnings = {warning.what: warning for warning in check_report(content).warnings}
    assert warnings["frames of several sizes"].value == "160x128: 1, 80x64: 1"
    assert "see that none was resized" in warnings["frames of several sizes"].fix


def test_a_pattern_that_matches_nothing(tmp_path):
    folder = own(tmp_path / "set", "")
    read = adapter_of(tmp_path / "a.toml", COLUMNS, CSV.replace("labels.csv", "*.tsv"))
    with pytest.raises(
        SurgeryR1Error, match=r"labels = '\*\.tsv' matches none of 5 files; .*first files are: labels\.csv"
    ):
        FormatReader(read, folder)
    with pytest.raises(SurgeryR1Error, match="no such folder"):
        FormatReader(read, tmp_path / "gone")


def test_two_images_for_a_frame(tmp_path):
    folder = own(tmp_path / "set", "video1,f1,Which organ?,liver,1,1,9,9\n", frames=("video1/f1", "b/video1/f1"))
    text = HEAD.replace('"{sequence}/{frame}.png"', '"**/{sequence}/{frame}.png"').replace(
        "[answers]", CSV + "[answers]", 1
    )
    (tmp_path / "a.toml").write_text(text + COLUMNS)
    content = read_all(FormatReader(load_format(tmp_path / "a.toml"), folder))
    assert content.warnings[0].what == "two images for one frame"
    assert content.frames["own/video1/f1"].image == "b/video1/f1.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("images =", "image ="), r"a\.toml:3: unknown key 'image'; did you mean images\?"),
        (('name = "own"', 'name = "my own"'), "name = 'my own', expected letters"),
        (('"{sequence}/{frame}.png"', '"{sequence}/{frame.png"'), "a brace is not closed"),
        (
            ('"{sequence}/{frame}.png"', '"{video}/{frame}.png"'),
            r"sequence = '\{sequence\}' needs sequence, which images",
        ),
        (("organ = 'which", "phase = 'which"), "questions.phase without answers.phase"),
        (("organ = 'which", "Phase-1 = 'which"), "questions: the kind 'Phase-1', expected a word of small letters"),
        (('optional = ["organ"', 'optional = ["phase"'), "optional = .*'phase' is none of"),
        (("(?P<subject>.+)\\?'\n[", ".+\\?'\n["), "questions.tool = .* has no group subject"),
        (("where is the (", "where is the (("), "questions.location = .*unterminated"),
        (('train = ["video*"]', 'training = ["video*"]'), "splits.training: expected some of train, dev, val, test"),
        (('= "left-top"\n[col', '= "left-up"\n[col'), "rename: 'upper left' becomes 'left-up', which is no class"),
        (('answer = "a"\n', ""), "columns without answer"),
        (('images = "{', 'sequence = "c{sequence:03d}"\nimages = "{'), "sequence = .*write names in braces"),
        (('images = "{', 'frame = "{frame"\nimages = "{'), "frame = .*write names in braces"),
        (('images = "{', 'frame = "{frame}{}"\nimages = "{'), "frame = .*write names in braces"),
        (('organ = ["liver"]', "organ = []"), "answers.organ is empty"),
        (
            ("do\\?', 'state of (?P<subject>.+)'", "do\\?', 'state( of)? (?P<subject>.+)?'"),
            "subject must not be optional",
        ),
        (('images = "{', 'box = { ordr = "xywh" }\nimages = "{'), r"a\.toml:3: unknown key 'box\.ordr'; did you mean"),
        (('"x2", "y2"]', '"x2"]'), "expected one column or four"),
        (('format = "csv"', 'format = "xml"'), r"format = 'xml', expected one of \['lines', 'csv', 'jsonl', 'json'\]"),
        (('format = "csv"', 'fields = ["q"]\nformat = "lines"'), "fields without question, answer"),
        (('format = "csv"', 'fields = ["q", "q"]\nformat = "lines"'), "a name stands twice"),
        (('format = "csv"', 'fields = ["q"]\nline = "a"\nformat = "lines"'), "lines are read by one of them"),
        (('format = "csv"', 'fields = ["q"]\nseparator = ","\nformat = "lines"'), "separator = ',', expected"),
        (('format = "csv"', 'fields = ["question"]\nformat = "csv"'), "fields are for lines"),
        (('format = "csv"', 'format = "lines"'), "line = '' has no group answer, question"),
        (("[columns]", "[box]\nsize = [3]\n[columns]"), r"box\.size = \[3\], expected width and height"),
    ],
)
def test_wrong_adapters(tmp_path, change, message):
    text = HEAD.replace("[answers]", CSV + "[answers]", 1).rstrip() + COLUMNS
    assert text.count(change[0]) == 1, change
    path = tmp_path / "a.toml"
    path.write_text(text.replace(*change))
    with pytest.raises(SurgeryR1Error, match=message):
        load_format(path)


def test_unknown_adapter():
    with pytest.raises(SurgeryR1Error, match="one of endovis17, endovis18, endovis18_extended"):
        load_format("endovis19")
