from __future__ import annotations

import json
from pathlib import Path

import label_folders as lf
import pytest

from surgery_r1 import vocab
from surgery_r1.data.check import check_folder, check_report
from surgery_r1.data.contact_sheet import write_sheet
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import load_format
from surgery_r1.data.formats.endovis import read_folder
from surgery_r1.data.formats.image_files import checked_size
from surgery_r1.errors import SurgeryR1Error


def whats(issues) -> list[str]:
    return [issue.what for issue in issues]


@pytest.mark.parametrize(
    "label",
    [
        "vqla/label/{}_QA.txt",
        "vqla/label/{}_QA1.txt",
        "vqla/{}_QAL.txt",
        "vqla/{}.txt",
        "vqa/Classification/{}_QA.txt",
        "vqa/Classification/{}.txt",
    ],
)
@pytest.mark.parametrize("parent", ["", "Train_Data", "any/other"])
def test_every_layout_of_endovis18(tmp_path, label, parent):
    lf.put_frame(tmp_path / parent, label=label)
    content = read_folder(tmp_path)
    assert not content.errors and not content.warnings
    assert [sample.id for sample in content.samples] == [f"endovis18/seq_2/frame003/{i}" for i in range(3)]
    assert content.image_root == tmp_path.resolve()
    sample = content.samples[2]
    assert (content.image_root / sample.image).is_file()
    assert (sample.width, sample.height) == lf.SIZE
    assert (sample.kind, sample.subject, sample.answer) == ("location", "bipolar_forceps", "left-top")
    assert sample.box_px == (20, 20, 60, 50)
    assert sample.split == "train"


@pytest.mark.parametrize("label", ["vqla/label/seq1_frame015_QA.txt", "vqla/seq1_frame015.txt"])
@pytest.mark.parametrize("image", ["seq1_frame015.jpg", "seq1_frame015.png"])
@pytest.mark.parametrize("parent", ["", "EndoVis-17-VQLA"])
def test_every_form_of_endovis17(tmp_path, label, image, parent):
    lf.put_image(tmp_path / parent / "left_frames" / image)
    lf.put_labels(tmp_path / parent / label, lf.LINES_17)
    content = read_folder(tmp_path)
    assert not content.errors and not content.warnings
    assert [sample.id for sample in content.samples] == [f"endovis17/seq_1/frame015/{i}" for i in range(2)]
    assert {sample.split for sample in content.samples} == {"test"}


def test_both_sets_in_one_folder(tmp_path):
    lf.put_frame(tmp_path / "EndoVis-18-VQLA", sequence=1)
    lf.put_frame_17(tmp_path / "EndoVis-17-VQLA", sequence=1)
    report = check_folder(tmp_path)
    assert report.splits["val"]["questions"] == 3
    assert report.splits["test"] == {"frames": 1, "questions": 2, "by_kind": {"state": 1, "location": 1}}


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", " \r\n\r\n"])
def test_line_ends_marks_and_blank_lines(tmp_path, start, end):
    label = lf.put_frame(tmp_path)
    lf.put_labels(label, end=end, start=start)
    content = read_folder(tmp_path)
    assert not content.errors and not content.warnings
    assert [sample.question for sample in content.samples] == [line.split("|")[0] for line in lf.LINES]


def test_images_apart(tmp_path):
    labels, images = tmp_path / "labels", tmp_path / "images"
    lf.put_labels(labels / "seq_2/vqla/label/frame003_QA.txt")
    picture = lf.put_image(images / "release_1/seq_2/left_frames/frame003.png")
    content = read_folder(labels, images)
    assert not content.errors
    assert content.image_root == images.resolve()
    assert content.image_root / content.samples[0].image == picture.resolve()


def test_labels_with_own_images_beside_images_apart(tmp_path):
    lf.put_frame_17(tmp_path / "labels")
    lf.put_labels(tmp_path / "labels/seq_2/vqla/frame003_QAL.txt")
    lf.put_image(tmp_path / "images/seq_2/left_frames/frame003.png")
    content = read_folder(tmp_path / "labels", tmp_path / "images")
    assert not content.errors
    assert content.image_root == tmp_path.resolve()
    assert all((content.image_root / sample.image).is_file() for sample in content.samples)


@pytest.mark.parametrize("apart", [False, True])
def test_test_archive_has_another_seq_1(tmp_path, apart):
    right = lf.put_image(tmp_path / "train/seq_1/left_frames/frame003.png", colour=1)
    wrong = lf.put_image(tmp_path / "test_data/seq_1/left_frames/frame003.png", colour=2)
    lf.put_labels(tmp_path / ("labels" if apart else "train") / "seq_1/vqla/label/frame003_QA.txt")
    content = read_folder(tmp_path)
    assert content.image_root / content.samples[0].image == right.resolve()
    warning = next(warning for warning in content.warnings if warning.path == str(wrong.parent))
    assert "second image folder for seq_1" in warning.what and str(right.parent) in warning.value


def test_images_from_a_test_folder_give_a_warning(tmp_path):
    lf.put_frame(tmp_path / "test_data", sequence=1)
    report = check_folder(tmp_path)
    assert not report.errors
    assert whats(report.warnings) == ["images of seq_1 come from a test folder"]


def test_shadows_right_frames_and_unlabelled_images_are_no_errors(tmp_path):
    lf.put_frame(tmp_path)
    lf.put_labels(tmp_path / "__MACOSX/seq_2/vqla/label/._frame003_QA.txt", ["junk"])
    lf.put_labels(tmp_path / "seq_2/vqla/label/._frame003_QA.txt", ["junk"])
    lf.put_image(tmp_path / "seq_2/right_frames/frame003.png")
    lf.put_image(tmp_path / "seq_2/left_frames/frame004.png")
    lf.put_image(tmp_path / "seq_13/left_frames/frame000.png")
    report = check_folder(tmp_path)
    assert not report.errors and report.questions == 3 and report.frames == 1
    assert sorted(whats(report.warnings)) == [
        "images without labels",
        "images without labels",
        "right camera",
        "shadow files",
        "shadow tree",
    ]
    bare = {Path(n.path).parts[-2]: n.value for n in report.warnings if n.what == "images without labels"}
    assert bare == {"seq_13": "1 of 1 images", "seq_2": "1 of 2 images"}


def test_mask_images_are_not_frames(tmp_path):
    lf.put_frame(tmp_path)
    lf.put_image(tmp_path / "seq_2/labels/frame003.png", colour=0)
    assert "left_frames" in read_folder(tmp_path).samples[0].image


def test_two_label_folders_are_counted_once(tmp_path):
    lf.put_frame(tmp_path)
    extended = (*lf.LINES, "What tool is in left-top?|bipolar_forceps|21, 21, 61, 51")
    lf.put_labels(tmp_path / "seq_2/vqa/Classification/frame003_QA.txt", extended)
    report = check_folder(tmp_path)
    assert not report.errors
    assert report.questions == 4 and report.splits["train"]["by_kind"]["tool"] == 1
    assert whats(report.warnings) == ["second label folder for the same frames"]
    assert report.warnings[0].value.startswith("3 questions")


def test_boxless_label_folder_beside_the_boxes(tmp_path):
    lf.put_frame(tmp_path)
    boxless = [line.rpartition("|")[0] for line in lf.LINES]
    lf.put_labels(tmp_path / "seq_2/vqa/Classification/frame003_QA.txt", boxless)
    report = check_folder(tmp_path)
    assert not report.errors and report.questions == 3


@pytest.mark.parametrize("second", ["3 fields", "outside", "broken"])
def test_faulty_lines_of_a_second_label_folder(tmp_path, second):
    """A known question is compared and never faulty; only new lines can be."""
    lf.put_frame(tmp_path)
    line = {"3 fields": lf.STATE + "|", "outside": lf.STATE.replace("61", "999"), "broken": "broken"}[second]
    lf.put_labels(tmp_path / "seq_2/vqla/frame003_QAL.txt", [line])
    content = read_folder(tmp_path)
    assert len(content.samples) == 3
    if second == "broken":
        assert whats(content.errors) == [validation.FIELD_COUNT] and not content.warnings
    else:
        assert not content.errors
        assert whats(content.warnings) == ["label files disagree", "second label folder for the same frames"]
        assert repr(line)[:40] in content.warnings[0].value


def test_label_folders_that_disagree(tmp_path):
    lf.put_frame(tmp_path)
    second = lf.put_labels(tmp_path / "seq_2/vqla/frame003_QAL.txt", [lf.STATE.replace("Idle", "Cutting")])
    content = read_folder(tmp_path)
    assert [sample.answer for sample in content.samples] == ["kidney", "Idle", "left-top"]
    warning = content.warnings[0]
    assert (warning.path, warning.line, warning.what) == (str(second), 1, "label files disagree")


GOOD = "What is the state of bipolar_forceps?|Idle|"


@pytest.mark.parametrize(
    ("line", "what", "value"),
    [
        ("What is the state of bipolar_forceps?|Idle", validation.FIELD_COUNT, "2 fields"),
        (GOOD + "1, 1, 9, 9|", validation.FIELD_COUNT, "4 fields"),
        ("", None, ""),
        (GOOD + "1, 1, 9", validation.CORNER_COUNT, "3 numbers"),
        (GOOD + "1, 1, 9, 9, 9", validation.CORNER_COUNT, "5 numbers"),
        (GOOD + "1, one, 9, 9", validation.NON_NUMERIC, "'one'"),
        (GOOD + "1, 1_0, 90, 90", validation.NON_NUMERIC, "'1_0'"),
        (GOOD + "1, ١, 90, 90", validation.NON_NUMERIC, "'١'"),
        (GOOD + "1 1 90 90", validation.CORNER_COUNT, "1 numbers"),
        (GOOD + "1, , 9, 9", validation.NON_NUMERIC, "''"),
        (GOOD + "nan, 1, 9, 9", validation.NAN_CORNER, "'nan'"),
        (GOOD + "1, 1, inf, 9", validation.NAN_CORNER, "'inf'"),
        (GOOD + "1, 1, 1e999, 9", validation.NAN_CORNER, "1e999"),
        (GOOD + "9, 1, 9, 9", validation.EMPTY_BOX, "'9, 1, 9, 9'"),
        (GOOD + "9, 9, 1, 1", validation.EMPTY_BOX, "'9, 9, 1, 1'"),
        (GOOD + "0, 1, 9, 9", validation.OUTSIDE, "160x128"),
        (GOOD + "1, 1, 161, 9", validation.OUTSIDE, "161"),
        (GOOD + "1, 1, 9, 129", validation.OUTSIDE, "129"),
        (GOOD + "1, 1, 160, 128", None, ""),
        (GOOD + "1.5, 1, 159.5, 128", None, ""),
        (GOOD.replace("Idle", "Sleeping") + "1, 1, 9, 9", validation.UNKNOWN_ANSWER, "'Sleeping'"),
        (GOOD.replace("Idle", "left-top") + "1, 1, 9, 9", validation.UNKNOWN_ANSWER, "'left-top'"),
        (GOOD.replace("Idle", "idle") + "1, 1, 9, 9", validation.UNKNOWN_ANSWER, "'idle'"),
        (lf.LOCATION, validation.DUPLICATE, "Where is"),
    ],
)
def test_line_errors(tmp_path, line, what, value):
    label = lf.put_frame(tmp_path, lines=(lf.LOCATION, "", line))
    content = read_folder(tmp_path)
    if what is None:
        assert not content.errors
        return
    (error,) = content.errors
    assert (error.path, error.line, error.what) == (str(label), 3, what)
    assert what in validation.ERRORS
    assert value in error.value and error.fix
    assert str(error).startswith(f"{label}:3: {what}, ")
    assert content.skipped == {what: 1}
    assert [sample.id for sample in content.samples] == ["endovis18/seq_2/frame003/0"]


def test_error_names_the_near_answer(tmp_path):
    lf.put_frame(tmp_path, lines=[GOOD.replace("Idle", "idle") + "1, 1, 9, 9"])
    assert read_folder(tmp_path).errors[0].fix.startswith("did you mean 'Idle'? Correct the label")


def test_ids_stay_when_a_line_is_faulty(tmp_path):
    lf.put_frame(tmp_path, lines=("broken", lf.STATE))
    assert read_folder(tmp_path).samples[0].id.endswith("/1")


def test_ids_stay_when_a_line_cannot_be_decoded(tmp_path):
    label = lf.put_frame(tmp_path)
    label.write_bytes(b"Id\xe9le\n\n" + "\n".join(lf.LINES).encode())
    assert [sample.id[-2:] for sample in read_folder(tmp_path).samples] == ["/1", "/2", "/3"]


@pytest.mark.parametrize(
    ("data", "line", "left"),
    [
        ("\n".join(lf.LINES).encode("utf-16"), 1, 0),
        (lf.ORGAN.encode() + b"\n" + lf.STATE.encode().replace(b"Idle", b"Id\xe9le") + b"\n", 2, 1),
        (lf.ORGAN.encode() + b"\n\0\0\0\n", 1, 0),
    ],
)
def test_wrong_encoding(tmp_path, data, line, left):
    label = lf.put_frame(tmp_path)
    label.write_bytes(data)
    content = read_folder(tmp_path)
    (error,) = content.errors
    assert (error.path, error.line, error.what) == (str(label), line, validation.ENCODING)
    assert len(content.samples) == left


def test_missing_image(tmp_path):
    label = lf.put_frame(tmp_path)
    lf.put_frame(tmp_path, frame=4)
    (tmp_path / "seq_2/left_frames/frame003.png").unlink()
    content = read_folder(tmp_path)
    (error,) = content.errors
    assert (error.path, error.line, error.what) == (str(label), 1, validation.MISSING_IMAGE)
    assert "frame003" in error.value and "--images" in error.fix
    assert content.skipped == {validation.MISSING_IMAGE: 3}
    assert list(content.frames) == ["endovis18/seq_2/frame004"]


def test_no_images_at_all(tmp_path):
    lf.put_labels(tmp_path / "seq_2/vqla/label/frame003_QA.txt")
    assert whats(check_folder(tmp_path).errors) == [validation.MISSING_IMAGE]


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("keep", [0, 4, 20, 0.5, -1, -20, "zeros", "text"])
def test_torn_image(tmp_path, kind, keep):
    label = lf.put_frame(tmp_path)
    image = tmp_path / "seq_2/left_frames/frame003.png"
    data = lf.image_bytes(kind)
    if keep == "zeros":
        data = b"\0" * len(data)
    elif keep == "text":
        data = b"version https://git-lfs.github.com/spec/v1\n"
    else:
        data = data[: int(len(data) * keep) if isinstance(keep, float) else keep]
    image.write_bytes(data)
    content = read_folder(tmp_path)
    (error,) = content.errors
    assert (error.path, error.line, error.what) == (str(label), 1, validation.TORN_IMAGE)
    assert str(image) in error.value
    assert content.skipped == {validation.TORN_IMAGE: 3} and not content.samples


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_image_size(tmp_path, kind):
    path = tmp_path / "image.bin"
    path.write_bytes(lf.image_bytes(kind, size=(17, 33)) + (b"\0" * 9 if kind == "jpg" else b""))
    assert checked_size(path) == (17, 33)
    path.write_bytes(lf.image_bytes(kind)[:-12])
    with pytest.raises(SurgeryR1Error, match=r"without its end|cannot be decoded"):
        checked_size(path)


@pytest.mark.parametrize(("sequence", "found"), [(8, "sequence 8"), (13, "sequence 13"), (99, "sequence 99")])
def test_labels_without_an_official_split(tmp_path, sequence, found):
    lf.put_frame(tmp_path, sequence=sequence)
    content = read_folder(tmp_path)
    assert whats(content.errors) == [validation.NO_SEQUENCE] and content.errors[0].value == found
    assert content.skipped == {validation.NO_SEQUENCE: 3}


def test_official_splits():
    read = load_format("endovis18")
    assert all(len(read.splits_of(f"seq_{n}")) == (n not in (8, 13)) for n in range(1, 17))
    splits = {n: next(iter(read.splits_of(f"seq_{n}")), None) for n in range(1, 17)}
    assert [n for n, split in splits.items() if split == "val"] == [1, 5, 16]
    assert [n for n, split in splits.items() if split == "dev"] == sorted(vocab.DEV_SEQUENCES)
    assert [n for n, split in splits.items() if split is None] == [8, 13]
    assert sum(split in ("train", "dev") for split in splits.values()) == 11


def test_unknown_question_form_is_a_warning(tmp_path):
    label = lf.put_frame(tmp_path, lines=(*lf.LINES, "How many tools are there?|2|1, 1, 9, 9"))
    report = check_folder(tmp_path)
    assert not report.errors and report.questions == 3
    (warning,) = report.warnings
    assert (warning.path, warning.line, warning.what) == (str(label), 4, "unknown question form")


@pytest.mark.parametrize(
    "question",
    ["What tool is in left-top?", "What tool is in the left top?", "Which tool is located at left-top of the frame?"],
)
def test_forms_of_the_tool_question(tmp_path, question):
    lf.put_frame(tmp_path, lines=[f"{question}|suction|1, 1, 20, 20"])
    (sample,) = read_folder(tmp_path).samples
    assert (sample.kind, sample.subject, sample.answer) == ("tool", "left-top", "suction")


def test_unreadable_folder_is_an_error(tmp_path, monkeypatch):
    def refused(root, **options):
        options["onerror"](PermissionError(13, "Permission denied", str(root)))
        return iter(())

    monkeypatch.setattr("os.walk", refused)
    with pytest.raises(SurgeryR1Error, match="cannot read the folder"):
        check_folder(tmp_path)


def test_unknown_tool_is_kept_with_a_warning(tmp_path):
    lf.put_frame(tmp_path, lines=[lf.STATE.replace("bipolar_forceps", "vessel_sealer")])
    report = check_folder(tmp_path)
    assert report.questions == 1 and whats(report.warnings) == ["unknown tool in a question"]


def test_several_right_answers_merge(tmp_path):
    label = lf.put_frame(
        tmp_path,
        lines=(
            "What tool is in left-top?|suction|1, 1, 20, 20",
            "What tool is in left-top?|bipolar_forceps|21, 21, 61, 51",
        ),
    )
    content = read_folder(tmp_path)
    assert not content.errors
    (sample,) = content.samples
    assert sample.answers_accepted == ("suction", "bipolar_forceps")
    assert sample.boxes_accepted == ((0, 0, 19, 19), (20, 20, 60, 50))
    assert (sample.answer, sample.box_px) == sample.accepted[0]
    (warning,) = content.warnings
    assert (warning.path, warning.line) == (str(label), 2)
    assert warning.what == "question with several right answers" and "suction, bipolar_forceps" in warning.value
    frame = content.frames[sample.frame_id]
    assert [(o.name, o.location) for o in frame.objects] == [("suction", "left-top"), ("bipolar_forceps", "left-top")]


def test_objects_of_a_frame(tmp_path):
    lf.put_frame(tmp_path, lines=(lf.STATE_2, lf.LOCATION, lf.ORGAN, lf.STATE, lf.LOCATION_2))
    (frame,) = read_folder(tmp_path).frames.values()
    assert [(o.name, o.state, o.location) for o in frame.objects] == [
        ("kidney", None, None),
        ("suction", "Suction", "right-bottom"),
        ("bipolar_forceps", "Idle", "left-top"),
    ]
    assert frame.organ_box == (10, 10, 149, 119)


def test_two_boxes_for_one_tool_give_a_warning(tmp_path):
    label = lf.put_frame(tmp_path, lines=(lf.STATE, lf.LOCATION.replace("21, 21", "31, 31")))
    content = read_folder(tmp_path)
    (warning,) = content.warnings
    assert (warning.path, warning.line, warning.what) == (str(label), 2, "two boxes for bipolar_forceps")
    (frame,) = content.frames.values()
    assert len(frame.objects) == 1 and frame.objects[0].box_px == (20, 20, 60, 50)
    assert content.samples[1].box_px == (30, 30, 60, 50)


def test_empty_label_file_and_odd_names_give_a_warning(tmp_path):
    lf.put_frame(tmp_path)
    lf.put_frame(tmp_path, frame=4, lines=())
    lf.put_labels(tmp_path / "seq_2/vqla/label/readme.txt", ["hello"])
    lf.put_labels(tmp_path / "seq_2/vqa/Sentence/frame003_QA.txt", ["hello"])
    report = check_folder(tmp_path)
    assert not report.errors and report.frames == 1
    assert sorted(whats(report.warnings)) == ["label file without questions", "other texts", "unknown label file name"]


@pytest.mark.parametrize(
    ("top", "left", "rule"),
    [("left-top", "image", "image-normal"), ("left-bottom", "image", "image-flipped")],
)
def test_location_rule_of_the_image(tmp_path, top, left, rule):
    # The organ lies far above and left of everything, so that no organ rule fits.
    organ = lf.ORGAN.replace("11, 11, 150, 120", "1, 1, 9, 9")
    flipped = "right-top" if top == "left-bottom" else "right-bottom"
    lines = (organ, lf.LOCATION.replace("left-top", top), lf.LOCATION_2.replace("right-bottom", flipped))
    lf.put_frame(tmp_path, lines=lines)
    measured = check_folder(tmp_path).location_rule
    assert (measured["rule"], measured["agreement"], measured["n"]) == (rule, 1.0, 2)
    assert set(measured["all"]) == {"image-normal", "image-flipped", "organ-normal", "organ-flipped"}
    assert measured["by_source"]["endovis18"]["rule"] == rule


def test_location_rule_of_the_organ(tmp_path):
    organ = lf.ORGAN.replace("11, 11, 150, 120", "1, 1, 9, 9")
    lf.put_frame(tmp_path, lines=(organ, lf.LOCATION.replace("left-top", "right-top")))
    assert check_folder(tmp_path).location_rule["rule"] == "organ-flipped"


def test_location_rule_is_not_chosen_on_val(tmp_path):
    lf.put_frame(tmp_path, sequence=2)
    for frame in range(20):
        lf.put_frame(tmp_path, sequence=1, frame=frame, lines=[lf.LOCATION.replace("left-top", "left-bottom")])
    report = check_folder(tmp_path)
    assert report.location_rule["rule"] == "image-normal" and report.location_rule["n"] == 1
    assert whats(report.warnings) == ["splits follow different location rules"]


def test_sorted_and_repeatable(tmp_path):
    for sequence, frame in ((10, 1), (2, 10), (2, 9), (1, 0), (2, 100)):
        lf.put_frame(tmp_path, sequence=sequence, frame=frame)
    frames = list(read_folder(tmp_path).frames)
    assert [name.split("/", 1)[1] for name in frames] == [
        "seq_1/frame000",
        "seq_2/frame009",
        "seq_2/frame010",
        "seq_2/frame100",
        "seq_10/frame001",
    ]
    assert check_folder(tmp_path).to_json() == check_folder(tmp_path).to_json()


def test_report_is_the_contract(tmp_path):
    lf.put_frame(tmp_path, lines=(*lf.LINES, "broken"))
    report = json.loads(json.dumps(check_folder(tmp_path).to_json()))
    assert list(report) == ["frames", "questions", "splits", "location_rule", "faults", "notices"]
    assert set(report["faults"][0]) == {"path", "line", "what", "value", "fix"}
    assert report["splits"]["train"] == {
        "frames": 1,
        "questions": 3,
        "by_kind": {"organ": 1, "state": 1, "location": 1},
    }


def test_no_folder_and_no_labels(tmp_path):
    with pytest.raises(SurgeryR1Error, match="no such folder"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(SurgeryR1Error, match="no label file found"):
        check_folder(tmp_path)
    lf.put_frame(tmp_path)
    with pytest.raises(SurgeryR1Error, match="no such folder"):
        check_folder(tmp_path, tmp_path / "nowhere")


def test_links_that_lead_back(tmp_path):
    lf.put_frame(tmp_path)
    (tmp_path / "seq_2/loop").symlink_to(tmp_path)
    assert check_folder(tmp_path).questions == 3


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg"])
def test_sheet(tmp_path, name):
    from PIL import Image

    lf.small_set(tmp_path / "set")
    content = read_folder(tmp_path / "set")
    assert write_sheet(content, tmp_path / name, cells=5, width=200) == 5
    with Image.open(tmp_path / name) as sheet:
        assert sheet.width > 800
        sheet.load()
    assert check_report(content).frames == 6
