"""The rollout viewer, in a browser: each filter finds its planted groups, and the worst group is one click away."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from planted_rollouts import PLANTED, RIGHT, WORST, group, planted_run
from test_score import make_dataset

from surgery_r1._util.files import read_json, write_json, write_jsonl
from surgery_r1.cli import main
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.report import rollouts, write_rollout_page
from surgery_r1.train.rollouts.files import write_rollouts

EVIL = '<think></script><script>document.title="owned"</script><img src=x onerror=alert(1)></think>'


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Frames that differ from left to right."""
    made = make_dataset(tmp_path_factory.mktemp("data"), 12)
    for frame in made.frames.values():
        path = made.image_path(frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(90).resize((320, 256)).convert("RGB").save(path)
    return made


@pytest.fixture(scope="module")
def work(dataset, tmp_path_factory) -> Path:
    """The planted run, whose frames are those of the dataset, and its page."""
    root = tmp_path_factory.mktemp("viewer")
    run = planted_run(root / "rft", dataset.hash)
    frames = [*dataset.frames]
    for path in (run / "rollouts").iterdir():
        step = int(re.search(r"\d+", path.name)[0])
        groups = rollouts.read_rollouts(path)
        write_rollouts(run, step, [{**one, "frame": frames[i % 3]} for i, one in enumerate(groups)])
    write_rollout_page([run], root / "page.html", dataset=dataset)
    return root


@pytest.fixture
def opened(browser, work):
    """A function that opens a page; any error of its script fails the test."""
    errors = []

    def go(path: Path = work / "page.html", width: int = 1280):
        page = browser.new_page(viewport={"width": width, "height": 900})
        # Machines are shared.
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.goto(path.as_uri())
        page.wait_for_selector("#detail .reply")
        return page

    yield go
    assert not errors


def shown(page) -> list[str]:
    return page.locator("#groups .question").all_inner_texts()


def press(page, key: str, value: str) -> None:
    page.locator(f'button[data-key="{key}"][data-value="{value}"]').click()


def test_each_filter_finds_its_planted_groups(opened):
    page = opened()
    press(page, "order", "as asked")
    for name in PLANTED:
        if name == "nothing":
            continue
        press(page, "filter", name)
        # The worst group has no reply of the right form.
        own = [f"{name}?"] * 2 + (["worst?"] if name == "format lost" else [])
        assert shown(page) == own, name
        assert f"{len(own)} of 13 groups" in page.locator("#count").inner_text()
        press(page, "scope", "this step")
        assert shown(page) == own[:1]
        press(page, "scope", "all steps")


def has_text(page, selector: str, text) -> None:
    """Waits for it. (Waiting for a function is an ``eval``, which the page's policy forbids.)"""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text, timeout=120_000)


def test_the_worst_group_is_one_click_away_and_the_first_to_be_seen(opened):
    page = opened()
    assert page.locator("#detail h2").inner_text() == "worst?" and shown(page)[0] == "worst?"
    press(page, "filter", "all equal")
    has_text(page, "#detail", re.compile("All rewards are equal"))
    page.get_by_role("button", name="Worst group of the run").click()
    has_text(page, "#detail h2", "worst?")
    # Mirrored as it was shown to the model.
    assert "scale(-1, 1)" in page.locator(".frame .picture").get_attribute("style")


def test_keys_choose_steps_groups_and_replies(opened):
    page = opened()
    step = page.locator("#controls output")
    page.keyboard.press("ArrowLeft")
    has_text(page, "#controls output", "6")
    assert len(shown(page)) == 6
    first = page.locator("#detail h2").inner_text()
    page.keyboard.press("ArrowDown")
    has_text(page, "#detail h2", re.compile(rf"^(?!{re.escape(first)}$)"))
    page.keyboard.press("2")
    assert page.evaluate("document.activeElement.dataset.reply") == "1"
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    has_text(page, "#controls output", "1")
    assert page.evaluate("document.activeElement.id") == "step", "the slider can be moved on"
    page.locator("#step").blur()
    page.keyboard.press("w")
    has_text(page, "#controls output", "11")
    assert step.inner_text() == "11"


def test_boxes_texts_and_bars_of_a_group(opened):
    page = opened()
    press(page, "filter", "wrong referent")
    has_text(page, "#detail h2", "wrong referent?")
    cards = page.locator(".replies > .reply")
    assert cards.count() == 3, "alike replies stand together"
    assert "×2" in cards.nth(1).inner_text() and cards.nth(0).locator("mark").count() == 0
    worst = cards.nth(2)
    assert worst.locator("mark").all_inner_texts()[:2] == ["Cutting", "Cutting"]
    assert "wrong referent: another object fits the box better" in worst.inner_text()
    assert worst.locator(".bars dd.value").all_inner_texts() == ["1.00", ".00", ".00"]
    strokes = [
        (float(box.get_attribute("stroke-width")), box.get_attribute("stroke-dasharray") or "")
        for box in page.locator(".frame .box").all()
    ]
    # Drawn from the worst to the best: thicker, and undashed above 0.
    assert strokes == sorted(strokes, key=lambda one: one[0]) and (strokes[0][1], strokes[-1][1]) == ("7 4", "")
    worst.hover()
    assert page.locator(".frame svg").get_attribute("class") == "one mistaken"
    assert page.locator(".frame .front.reply").count() == 1


def test_a_click_into_the_curves_chooses_a_step(opened):
    page = opened()
    curve = page.locator(".curve svg").first
    assert curve.locator("polyline").count() == 2
    box = curve.bounding_box()
    curve.click(position={"x": box["width"] * 34 / 640 + 2, "y": 60})
    has_text(page, "#controls output", "1")
    assert len(shown(page)) == 6


def test_nothing_is_wider_than_a_small_screen(opened):
    page = opened(width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_model_text_is_inert_and_nothing_is_loaded(opened, work, tmp_path):
    run = planted_run(tmp_path / "rft")
    write_rollouts(run, 1, [group(1, EVIL, [EVIL, RIGHT, EVIL * 40])])
    write_rollout_page([run], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert EVIL not in text and "<img" not in text and "default-src 'none'" in text
    page = opened(tmp_path / "page.html")
    press(page, "filter", "format lost")
    assert page.title() == "Rollouts of rft" and page.locator("img").count() == 0
    assert "onerror=alert" in page.locator("#groups").inner_text()


def island(text: str, name: str = "data"):
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.S).group(1))


def test_frames_stand_once_or_are_left_out(work, dataset, tmp_path, capsys):
    text = (work / "page.html").read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") == len(island(text)["pictures"]) == 3
    assert len(island(text, "chunks")) == 3
    command = ["report", str(work / "rft"), "--rollouts", "--no-frames", "--out", str(tmp_path / "none.html")]
    assert main(command) == 0
    assert "13 groups of 3 steps, 0 pictures" in capsys.readouterr().out
    bare = (tmp_path / "none.html").read_text(encoding="utf-8")
    assert "data:image" not in bare and "left out on request" in bare
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["replies"], result["bytes"]) == (52, len(bare.encode()))


def test_a_long_run_stays_small_and_quick(opened, dataset, tmp_path, monkeypatch):
    """100 steps of 16 groups of 8 long replies."""
    run, frames = tmp_path / "rft", [*dataset.frames]
    text = RIGHT.replace("the jaws rest", "word after word " * 60)
    some = [{**group(1, f"{i}?", [text, *WORST, RIGHT, RIGHT, "x"], i), "frame": frames[i % 12]} for i in range(16)]
    for step in range(1, 101):
        write_rollouts(run, step, [{**one, "step": step} for one in some])
    write_jsonl(run / "metrics.jsonl", [{"step": 1, "stage": "rft", "reward": 0.5}])
    result = write_rollout_page([run], tmp_path / "page.html", dataset=dataset)
    assert (result["steps"], result["groups"], result["replies"]) == (100, 1600, 12800)
    assert result["bytes"] < 15_000_000 and result["pictures"] == 12
    page = opened(tmp_path / "page.html")
    # Only a screenful of the list is built.
    assert page.locator("#groups li").count() == 60
    monkeypatch.setattr(rollouts, "_MOST_GROUPS", result["bytes"] // 4)
    fewer = write_rollout_page([run], tmp_path / "few.html")
    assert 0 < fewer["steps"] < 100 and fewer["steps"] + fewer["steps_left_out"] == 100
    assert "recorded steps were left out" in (tmp_path / "few.html").read_text(encoding="utf-8")


def test_sources_that_cannot_be_shown_are_named(work, dataset, tmp_path):
    write_jsonl(tmp_path / "sft" / "metrics.jsonl", [{"step": 1, "stage": "sft", "loss": 1.0}])
    with pytest.raises(SurgeryR1Error, match=r"no run with recorded groups; train rft with rft\.rollouts_every"):
        write_rollout_page([tmp_path / "sft"], tmp_path / "r.html")
    shutil.copytree(work / "rft", tmp_path / "other")
    with pytest.raises(SurgeryR1Error, match="2 runs with recorded groups"):
        write_rollout_page([work / "rft", tmp_path / "other"], tmp_path / "r.html")
    write_json(tmp_path / "other" / "run.json", {**read_json(tmp_path / "other" / "run.json"), "dataset_sha256": "f"})
    with pytest.raises(SurgeryR1Error, match="was not trained on this dataset"):
        write_rollout_page([tmp_path / "other"], tmp_path / "r.html", dataset=dataset)
    assert not (tmp_path / "r.html").exists()
