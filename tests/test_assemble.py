from __future__ import annotations

import dataclasses
import json
import re

import label_folders as lf
import pytest

from surgery_r1 import vocab
from surgery_r1._util.files import sha256_file
from surgery_r1.data.assemble import build as dataset_folder
from surgery_r1.data.assemble import build_dataset
from surgery_r1.data.assemble.splits import Splits
from surgery_r1.data.dataset import open_dataset
from surgery_r1.data.formats import validation
from surgery_r1.data.formats.declarative import load_format
from surgery_r1.data.formats.endovis import LabelFolder
from surgery_r1.data.rationales.checks import CheckContext, SourceWords, plain, rejections
from surgery_r1.data.rationales.writer import RationaleRequest, TemplateWriter
from surgery_r1.data.recipe import TEMPLATE_RATIONALES
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import LOCATION_RULES, LocationRule, location_rule, quadrant
from surgery_r1.records import AnnotatedObject, Frame, Sample

ANSWERS_OF_KIND = load_format("endovis18_extended").answers
FILES = ("frames.jsonl", "samples.jsonl", "rows.jsonl", "labels.jsonl", "manifest.json", "README.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return lf.small_set(tmp_path_factory.mktemp("labels"))


def leftovers(path):
    return [entry.name for entry in path.iterdir() if entry.name.startswith(".")]


def test_contract_of_the_manifest(folder, tmp_path):
    manifest = build_dataset([folder], tmp_path / "ds", seed=3)
    assert json.loads((tmp_path / "ds/manifest.json").read_text()) == manifest
    assert sorted(p.name for p in (tmp_path / "ds").iterdir()) == sorted(FILES)
    assert manifest["samples"] == {"total": 30, "train": 10, "dev": 10, "val": 10, "test": 0}
    assert manifest["frames"] == {"total": 6, "train": 2, "dev": 2, "val": 2, "test": 0}
    assert manifest["rows"] == {"total": 60, "visual_qa": 20, "grounding_qa": 20, "cot": 20}
    assert manifest["skipped"] == {}
    assert manifest["location_rule"]["rule"] == "image-normal" and manifest["location_rule"]["agreement"] == 1.0
    assert manifest["location_rule"]["by_source"]["endovis18"]["agreement"] == 1.0
    assert manifest["image_root"] == str(folder.resolve())
    assert manifest["recipe"]["seed"] == 3 and manifest["recipe"]["writer"] == "template-1"
    for name in ("frames.jsonl", "samples.jsonl", "rows.jsonl"):
        assert manifest["sha256"][name] == sha256_file(tmp_path / "ds" / name)
    card = (tmp_path / "ds/README.md").read_text()
    assert "not the authors' set" in card and "image-normal" in card


def test_rows(folder, tmp_path):
    build_dataset([folder], tmp_path / "ds")
    dataset = open_dataset(tmp_path / "ds")
    by_task = {row.task: row for row in dataset.rows if row.sample_id == "endovis18/seq_2/frame003/2"}
    sample = dataset.samples["endovis18/seq_2/frame003/2"]
    visual, grounding, cot = by_task["visual_qa"], by_task["grounding_qa"], by_task["cot"]
    assert (visual.answer, visual.box_px, visual.reasoning, visual.writer) == (sample.answer, None, None, None)
    assert (grounding.answer, grounding.box_px, grounding.reasoning) == (None, sample.box_px, None)
    assert (cot.answer, cot.box_px, cot.writer) == (sample.answer, sample.box_px, "template-1")
    assert {row.question for row in by_task.values()} == {sample.question}
    assert len({row.id for row in dataset.rows}) == len(dataset.rows)
    assert {dataset.samples[row.sample_id].split for row in dataset.rows} == {"train", "dev"}
    frame = dataset.frame_of(sample)
    assert frame.sha256 == sha256_file(dataset.image_path(sample))


def test_same_input_and_seed_same_bytes(folder, tmp_path):
    for name in ("a", "b"):
        build_dataset([folder], tmp_path / name, seed=1)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in FILES)
    build_dataset([folder], tmp_path / "c", seed=2)
    assert (tmp_path / "a/rows.jsonl").read_bytes() != (tmp_path / "c/rows.jsonl").read_bytes()
    assert (tmp_path / "a/samples.jsonl").read_bytes() == (tmp_path / "c/samples.jsonl").read_bytes()


def test_several_folders_have_a_common_root(tmp_path):
    lf.put_frame(tmp_path / "set18")
    lf.put_frame_17(tmp_path / "set17")
    manifest = build_dataset([tmp_path / "set17", tmp_path / "set18"], tmp_path / "ds")
    assert manifest["image_root"] == str(tmp_path.resolve())
    dataset = open_dataset(tmp_path / "ds")
    assert [sample.source for sample in dataset.samples.values()] == ["endovis18"] * 3 + ["endovis17"] * 2
    assert manifest["sources"]["endovis17"]["sequences"] == {"test": ["seq_1"]}
    assert manifest["rows"]["total"] == 9


def test_the_same_folder_twice(folder, tmp_path):
    with pytest.raises(SurgeryR1Error, match="in two of the folders"):
        build_dataset([folder, folder], tmp_path / "ds")


def test_errors_stop_the_build(tmp_path):
    label = lf.faulty(tmp_path / "set")
    with pytest.raises(SurgeryR1Error) as error:
        build_dataset([tmp_path / "set"], tmp_path / "ds")
    assert "4 errors" in str(error.value) and f"{label}:5: {validation.FIELD_COUNT}" in str(error.value)
    assert "--on-fault skip" in str(error.value)
    assert not (tmp_path / "ds").exists() and not leftovers(tmp_path)


def test_errors_are_skipped_and_counted(tmp_path):
    lf.faulty(tmp_path / "set")
    manifest = build_dataset([tmp_path / "set"], tmp_path / "ds", on_fault="skip")
    assert manifest["skipped"] == {
        validation.DUPLICATE: 1,
        validation.MISSING_IMAGE: 5,
        validation.UNKNOWN_ANSWER: 1,
        validation.FIELD_COUNT: 1,
    }
    assert manifest["samples"] == {"total": 23, "train": 8, "dev": 10, "val": 5, "test": 0}
    assert manifest["recipe"]["on_fault"] == "skip"
    assert "wrong field count: 1" in (tmp_path / "ds/README.md").read_text()
    open_dataset(tmp_path / "ds")


def test_nothing_sound_left(tmp_path):
    lf.put_frame(tmp_path / "set", lines=["broken"])
    with pytest.raises(SurgeryR1Error, match="no usable question"):
        build_dataset([tmp_path / "set"], tmp_path / "ds", on_fault="skip")


def test_out_is_not_replaced_unasked(folder, tmp_path):
    out = tmp_path / "ds"
    out.mkdir()
    build_dataset([folder], out)
    with pytest.raises(SurgeryR1Error, match="--overwrite"):
        build_dataset([folder], out)
    (out / "stray.txt").write_text("old")
    build_dataset([folder], out, overwrite=True, seed=5)
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES) and not leftovers(tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("mine")
    for path in (precious, precious / "thesis.txt"):
        with pytest.raises(SurgeryR1Error, match="name a new folder"):
            build_dataset([folder], path, overwrite=True)
    assert (precious / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), SystemExit])
def test_an_interrupted_build_leaves_the_old_dataset(folder, tmp_path, monkeypatch, error):
    out = tmp_path / "ds"
    build_dataset([folder], out)
    before = {name: (out / name).read_bytes() for name in FILES}

    def interrupted(*args):
        raise error

    monkeypatch.setattr(dataset_folder, "dataset_card", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit, SurgeryR1Error)) as caught:
        build_dataset([folder], out, overwrite=True, seed=9)
    if isinstance(error, OSError):
        assert "no space left" in str(caught.value)
    assert {name: (out / name).read_bytes() for name in FILES} == before
    assert not leftovers(tmp_path)


def test_embedded_images_travel_with_the_dataset(tmp_path):
    lf.small_set(tmp_path / "set")
    lf.put_frame_17(tmp_path / "set17")
    manifest = build_dataset([tmp_path / "set", tmp_path / "set17"], tmp_path / "ds", embed_images=True)
    assert manifest["image_root"] == "images"
    (tmp_path / "set").rename(tmp_path / "gone")
    (tmp_path / "ds").rename(tmp_path / "moved")
    dataset = open_dataset(tmp_path / "moved", verify=True)
    sample = dataset.samples["endovis18/seq_2/frame003/0"]
    assert dataset.image_path(sample) == tmp_path / "moved/images/endovis18/seq_2/frame003.png"


def make_sample(**changes) -> Sample:
    values = {
        "id": "endovis18/seq_2/frame003/0",
        "source": "endovis18",
        "split": "train",
        "sequence": "seq_2",
        "frame": "frame003",
        "image": "x.png",
        "width": 160,
        "height": 128,
        "question": "?",
        "kind": "state",
        "subject": "suction",
        "answer": "Suction",
        "box_px": (1, 1, 9, 9),
    }
    return Sample(**values | changes)


def make_frame(sample: Sample, objects=(), sha256="00") -> Frame:
    return Frame(sample.frame_id, "x.png", 160, 128, sha256, tuple(objects))


def test_no_sequence_in_two_splits():
    splits = Splits()
    for sample in (
        make_sample(),
        make_sample(split="dev", source="endovis17"),
        make_sample(sequence="seq_3", split="dev"),
    ):
        splits.add(sample, make_frame(sample))
    with pytest.raises(SurgeryR1Error, match="endovis18/seq_2 is in several splits: dev, train"):
        splits.add(make_sample(split="dev"), make_frame(sample))


def test_build_checks_the_splits(folder, tmp_path):
    class TornApart(LabelFolder):
        def frames(self):
            for number, content in enumerate(super().frames()):
                if not number:
                    content.samples[0] = dataclasses.replace(content.samples[0], split="test")
                yield content

    with pytest.raises(SurgeryR1Error, match="several splits"):
        build_dataset([folder], tmp_path / "ds", open_source=TornApart)


def test_one_image_in_two_splits_is_counted():
    splits = Splits()
    for sample in (make_sample(), make_sample(sequence="seq_3", split="val"), make_sample(sequence="seq_6")):
        splits.add(sample, make_frame(sample, sha256="ab" if sample.sequence != "seq_6" else "cd"))
    assert splits.images_in_two == 1


BOXES = {"left-top": (5, 5, 40, 40), "right-bottom": (100, 80, 150, 120), "right-top": (100, 4, 150, 40)}


def every_question():
    """Each question kind with each of its answers, on a frame that annotates it."""
    for tool in vocab.TOOLS:
        for state in vocab.STATES:
            place, box = "left-top", BOXES["left-top"]
            seen = (AnnotatedObject("kidney", None, None, (20, 20, 120, 120)), AnnotatedObject(tool, state, place, box))
            base = {"subject": tool, "box_px": box}
            yield make_sample(kind="state", answer=state, **base), seen
            yield make_sample(kind="location", answer=place, **base), seen
            yield make_sample(kind="tool", subject=place, answer=tool, box_px=box), seen
            yield make_sample(kind="organ", subject="kidney", answer="kidney", box_px=seen[0].box_px), seen
            yield make_sample(kind="state", answer=state, **base), (dataclasses.replace(seen[1], location=None),)
    kidney = AnnotatedObject("kidney", None, None, (20, 20, 120, 120))
    yield make_sample(kind="organ", subject="kidney", answer="kidney"), (kidney,)
    bare = AnnotatedObject("suction", None, "left-top", BOXES["left-top"])
    yield make_sample(kind="location", answer="left-top", box_px=bare.box_px), (bare,)
    yield make_sample(kind="tool", subject="left-top", answer="suction", box_px=bare.box_px), (bare,)


@pytest.mark.parametrize("rule", [*LOCATION_RULES, None], ids=lambda rule: rule.name if rule else "none")
def test_reasoning_is_short_plain_and_says_its_answer_only(rule):
    writer = TemplateWriter({"endovis18": rule})
    known, words = SourceWords(ANSWERS_OF_KIND), set()
    for sample, seen in every_question():
        frame = make_frame(sample, seen)
        texts = []
        for number in range(TEMPLATE_RATIONALES):
            draft = writer.write(RationaleRequest(sample, frame, number))
            context = CheckContext(sample, frame, known, rule, neighbours=set(map(plain, texts)))
            assert rejections(draft, context) == [], draft.text
            assert 7 <= len(draft.text.split()) <= 17, draft.text
            words.update(re.findall(r"[\w-]+", draft.text))
            texts.append(draft.text)
        assert {writer.write(RationaleRequest(sample, frame, 0, attempt=1)).text} == {texts[1]}
    names = {name for answers in ANSWERS_OF_KIND.values() for name in answers}
    assert len(words - names) < 70


@pytest.mark.parametrize("rule", LOCATION_RULES, ids=lambda rule: rule.name)
def test_reasoning_on_places_follows_the_rule(rule):
    organ = AnnotatedObject("kidney", None, None, (60, 50, 90, 70))
    for box in BOXES.values():
        answer = quadrant(box, rule, 160, 128, organ.box_px)
        sample = make_sample(kind="location", answer=answer, box_px=box)
        frame = make_frame(sample, [organ])
        text = TemplateWriter({"endovis18": rule}).write(RationaleRequest(sample, frame)).text
        cx, cy = (80, 64) if rule.reference == "image" else (75, 60)
        assert ("left of" in text) == ((box[0] + box[2]) / 2 < cx)
        assert ("above" in text) == ((box[1] + box[3]) / 2 < cy)
        assert ("kidney" in text) == (rule.reference == "organ")


def test_reasoning_claims_no_place_that_the_box_contradicts():
    sample = make_sample(kind="location", answer="right-bottom", box_px=BOXES["left-top"])
    frame = make_frame(sample)
    for rule in (LocationRule("image", "normal"), location_rule("organ-normal"), None):
        text = TemplateWriter({"endovis18": rule}).write(RationaleRequest(sample, frame)).text
        assert "center" not in text and "right-bottom" in text
