"""Drawn scenes: label statistics, geometry of the labels, and files that are the same for the same seed."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from surgery_r1 import vocab
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.synthetic import draw_random_scene, make_scenes
from surgery_r1.synthetic import statistics as records
from surgery_r1.synthetic.boxes import clearance, location_of, tool_box
from surgery_r1.synthetic.placement import CLEAR, plan_random, plan_sequence
from surgery_r1.synthetic.render import draw_tool, objects_of, render_scene
from surgery_r1.synthetic.scene import KidneyPose
from surgery_r1.synthetic.style import make_style
from surgery_r1.synthetic.tissue import kidney_outline
from surgery_r1.synthetic.write import question_lines, share_out, style_of


def _count(sequences: dict, wanted=None) -> tuple[int, int]:
    rows = [r for s, frames in sequences.items() if wanted is None or s in wanted for r in frames]
    return len(rows), sum(len(r) for r in rows)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_counts_are_those_of_the_real_sets(seed):
    domestic = records.sequence_records(18, seed)
    frames, tools = _count(domestic, vocab.TRAIN_SEQUENCES)
    assert (frames, frames + 2 * tools) == (1560, 9014)
    frames, tools = _count(domestic, vocab.VAL_SEQUENCES)
    assert (frames, tools, frames + 2 * tools) == (447, 1161, 2769)
    assert all(len(domestic[s]) == 149 for s in vocab.VAL_SEQUENCES)
    frames, tools = _count(records.sequence_records(17, seed))
    assert (frames, tools, 2 * tools) == (97, 236, 472)


def test_train_states_and_places_are_the_real_ones():
    rows = [r for s in vocab.TRAIN_SEQUENCES for r in records.train_records(s)]
    states = Counter(state for r in rows for _, state, _ in r)
    assert states["Idle"] == 1641 and states["Cutting"] == 483 and states["Suturing"] == 6 and states["Staple"] == 13
    assert Counter(len(r) for r in rows) == {1: 74, 2: 954, 3: 383, 4: 149}
    places = Counter(place for r in rows for _, _, place in r)
    assert places == {"left-top": 1507, "right-top": 1214, "left-bottom": 531, "right-bottom": 475}
    with_stapler = [
        s for s in vocab.TRAIN_SEQUENCES if any(t == "stapler" for r in records.train_records(s) for t, *_ in r)
    ]
    assert len(with_stapler) <= 3  # rare tools stay in few sequences, as in reality


@pytest.mark.parametrize("domain", [18, 17])
def test_every_tool_and_state_is_asked_about(domain):
    sequences = records.sequence_records(domain)
    wanted = vocab.VAL_SEQUENCES if domain == 18 else tuple(sequences)
    labels = [label for s in wanted for r in sequences[s] for label in r]
    assert {t for t, _, _ in labels} == set(vocab.TOOLS)
    assert {s for _, s, _ in labels} == set(vocab.STATES)


@pytest.mark.parametrize("domain", [18, 17])
def test_location_labels_agree_with_boxes_on_every_frame(domain):
    for sequence, rows in records.sequence_records(domain, 3).items():
        style = style_of(domain, sequence, 3)
        for plan, record in zip(plan_sequence(rows, 1.25, style, domain, 3, sequence), rows, strict=True):
            assert [(t.name, t.state, t.location) for t in plan.tools] == list(record)
            for pose in plan.tools:
                box = tool_box(pose, 1.25, style.circle)
                assert clearance(box, pose.location, 1.25) >= CLEAR
                assert location_of(box, 1.25) == pose.location


def test_frames_of_a_sequence_move_smoothly():
    plans = plan_sequence([(("bipolar_forceps", "Idle", "left-top"),)] * 120, 1.25, make_style("train", 5), "t")
    tips = np.array([p.tools[0].tip for p in plans])
    steps = np.hypot(*np.diff(tips, axis=0).T)
    assert steps.max() < 0.1 and np.ptp(tips, axis=0).max() > 0.05


@pytest.mark.parametrize("domain", [18, 17])
@pytest.mark.parametrize("name", vocab.TOOLS)
def test_tool_boxes_are_tight_to_drawn_pixels(name, domain):
    rng = random.Random(name)
    style = replace(make_style("pretrain", 1, domain), shaft=(1.0, 1.0, 1.0))
    unit = 256
    for state in ("Idle", "Cutting"):
        pose = plan_random(rng, 1.25, style, [(name, state, rng.choice(vocab.LOCATIONS))]).tools[0]
        image = Image.new("RGB", (320, 256))
        draw_tool(ImageDraw.Draw(image), pose, style, unit)
        seen = np.asarray(image).max(axis=2) > 0
        if style.circle is not None:
            y, x = np.mgrid[:256, :320] + 0.5
            seen &= np.hypot(x - 160, y - 128) < style.circle * unit
        ys, xs = np.nonzero(seen)
        drawn = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(drawn - np.array(tool_box(pose, 1.25, style.circle)) * unit).max() <= 2.5


def test_kidney_outline_bounds_the_painted_organ():
    style = replace(make_style("pretrain", 2), vessels=0, blur=0.0, grain=0.0)
    plan = plan_random(random.Random(0), 1.25, style, [])
    plan = replace(plan, kidney=KidneyPose((0.6, 0.5), (0.3, 0.2), 0.4, 0.3))
    far = replace(plan, kidney=replace(plan.kidney, centre=(9.0, 9.0)))
    change = np.abs(
        np.asarray(render_scene(plan, style, (320, 256)), int) - np.asarray(render_scene(far, style, (320, 256)), int)
    )
    ys, xs = np.nonzero(change.max(axis=2) > 4)  # the organ and the shadow around it
    x1, y1 = kidney_outline(plan.kidney).min(axis=0) * 256
    x2, y2 = kidney_outline(plan.kidney).max(axis=0) * 256
    assert xs.min() - 2 <= x1 < x2 <= xs.max() + 3 and ys.min() - 2 <= y1 < y2 <= ys.max() + 3
    assert (x2 - x1) > 0.6 * np.ptp(xs) and (y2 - y1) > 0.6 * np.ptp(ys)


def test_random_scenes_are_flat_and_sound():
    rng, names, states, places = random.Random(0), Counter(), Counter(), Counter()
    for _ in range(150):
        scene = draw_random_scene(rng, (168, 140))
        assert scene.image.size == (168, 140) and scene.image.mode == "RGB"
        kidney, *tools = scene.objects
        assert kidney.name == vocab.ORGAN and kidney.state is kidney.location is kidney.tip_px is None
        assert 1 <= len(tools) <= 4
        for obj in scene.objects:
            x1, y1, x2, y2 = obj.box_px
            assert 0 <= x1 < x2 <= 168 and 0 <= y1 < y2 <= 140
        for obj in tools:
            assert obj.tip_px and 0 < obj.tip_px[0] < 168 and 0 < obj.tip_px[1] < 140
            names[obj.name], states[obj.state] = names[obj.name] + 1, states[obj.state] + 1
            places[obj.location] += 1
    assert set(names) == set(vocab.TOOLS) and set(states) == set(vocab.STATES) and set(places) == set(vocab.LOCATIONS)
    assert max(names.values()) < 2 * min(names.values()) and max(places.values()) < 2 * min(places.values())


def test_random_scene_follows_its_seed():
    def once(seed):
        scene = draw_random_scene(random.Random(seed), (168, 140), style_seed=4)
        return scene.image.tobytes(), scene.objects

    assert once(1) == once(1)
    assert once(1) != once(2)


@pytest.mark.parametrize("size", [(160, 128), (1280, 1024)])
def test_any_size_shows_the_same_scene(size):
    style = make_style("pretrain", 3)
    plan = plan_random(
        random.Random(5), 1.25, style, [("stapler", "Staple", "left-top"), ("suction", "Suction", "right-bottom")]
    )
    image = render_scene(plan, style, size)
    reference = render_scene(plan, style, (320, 256))
    assert image.size == size
    apart = np.abs(np.asarray(image.resize((80, 64)), int) - np.asarray(reference.resize((80, 64)), int))
    assert apart.mean() < 12
    for obj, ref in zip(objects_of(plan, style, size), objects_of(plan, style, (320, 256)), strict=True):
        assert np.allclose(np.array(obj.box_px) / size[0], np.array(ref.box_px) / 320)


def _digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_same_bytes_whatever_the_workers(tmp_path):
    seen = []
    counts = make_scenes(tmp_path / "a", size=(160, 128), frames=16, workers=1, progress=lambda *x: seen.append(x))
    make_scenes(tmp_path / "b", size=(160, 128), frames=16, workers=2)
    make_scenes(tmp_path / "c", size=(160, 128), frames=16, workers=1, seed=1)
    one, two, other = (_digest(tmp_path / x) for x in "abc")
    assert one == two
    assert {k: v for k, v in one.items() if k.endswith("png")} != {k: v for k, v in other.items() if k.endswith("png")}
    assert counts["frames"] == 16 and seen[-1] == (16, 16)
    assert len(list((tmp_path / "a").glob("seq_*/left_frames/frame*.png"))) == 16
    assert {p.name for p in (tmp_path / "a").glob("seq_*")} == {
        f"seq_{s}" for s in vocab.TRAIN_SEQUENCES + vocab.VAL_SEQUENCES
    }
    assert not (tmp_path / "a.partial").exists()


def test_files_of_the_cross_set(tmp_path):
    counts = make_scenes(tmp_path / "x", domain=17, size=(160, 128), frames=12, workers=1)
    labels = sorted((tmp_path / "x" / "vqla" / "label").glob("*.txt"))
    pictures = sorted((tmp_path / "x" / "left_frames").glob("*.jpg"))
    assert [p.stem + "_QA" for p in pictures] == [p.stem for p in labels] and len(labels) == 12
    assert counts["questions"] == sum(len(p.read_text().splitlines()) for p in labels)
    assert not any("organ" in p.read_text() for p in labels)


def test_label_lines_are_the_real_grammar():
    rng = random.Random(2)
    style = make_style("pretrain", 8)
    record = [("suction", "Idle", "left-top"), ("stapler", "Staple", "right-bottom")]
    lines = question_lines(objects_of(plan_random(rng, 1.25, style, record), style, (160, 128)), (160, 128))
    assert [line.split("|")[:2] for line in lines] == [
        ["What organ is being operated?", "kidney"],
        ["What is the state of suction?", "Idle"],
        ["What is the state of stapler?", "Staple"],
        ["Where is suction located?", "left-top"],
        ["Where is stapler located?", "right-bottom"],
    ]
    for line in lines:
        question, _, corners = line.split("|")
        assert vocab.classify_question(question)[0]
        x1, y1, x2, y2 = (int(v) for v in corners.split(", "))
        assert 1 <= x1 < x2 <= 160 and 1 <= y1 < y2 <= 128


@pytest.mark.parametrize("frames", [1, 2, 5, 14, 15, 300, 2006, 2007])
def test_share_out_gives_each_sequence_its_part(frames):
    lengths = {s: len(r) for s, r in records.sequence_records(18).items()}
    spans = share_out(lengths, frames)
    assert sum(map(len, spans.values())) == frames and len(spans) == min(frames, 14)
    assert all(0 <= r.start < r.stop <= lengths[s] for s, r in spans.items())
    if frames == 300:
        assert all(abs(len(r) - 300 * lengths[s] / 2007) <= 1.5 for s, r in spans.items())
    if frames > 1:
        assert {s in vocab.VAL_SEQUENCES for s in spans} == {True, False}


@pytest.mark.parametrize(
    "wrong", [{"domain": 16}, {"size": (64, 64)}, {"size": (160, 1024)}, {"frames": 0}, {"frames": 9999}]
)
def test_what_cannot_be_drawn_is_refused(tmp_path, wrong):
    with pytest.raises(SurgeryR1Error):
        make_scenes(tmp_path / "x", **wrong)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SurgeryR1Error, match="not empty"):
        make_scenes(tmp_path, frames=2, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_fact_table_round_trip():
    for sequence in vocab.TRAIN_SEQUENCES:
        for record in records.train_records(sequence):
            assert records.decode(records.encode(record)) == record
