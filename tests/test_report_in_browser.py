"""The report as it is read: filters, keyboard, small windows, light and dark, in a real browser."""

from __future__ import annotations

import pytest
from PIL import Image
from test_report import EVIL, sources
from test_score import make_dataset, truth

from surgery_r1._util.files import write_jsonl
from surgery_r1.evaluate.compare import load_scores
from surgery_r1.evaluate.score import score_predictions
from surgery_r1.report import write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report on 40 questions of two systems: 12 and 30 answers are right, one reply is torn and hostile.

    Its address, the number of questions, and the scores of the first.
    """
    root = tmp_path_factory.mktemp("read")
    dataset = make_dataset(root / "data", 20)
    for frame in dataset.frames.values():
        path = dataset.image_path(frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((320, 256)).convert("RGB").save(path)
    val = dataset.split("val")
    for name, right in (("sft", 12), ("rft", 30)):
        lines = [truth(s) if i < right else truth(s) | {"answer": "Idle"} for i, s in enumerate(val)]
        lines[-1] = {"id": val[-1].id, "text": f"<answer>{EVIL}</answer>", "box_space": "source"}
        write_jsonl(root / f"{name}.jsonl", lines)
        score_predictions(root / f"{name}.jsonl", dataset, "val", root / "scores" / name)
        log = [{"step": i, "stage": name, "loss": 1 / i, "rewards/box/mean": i / 50} for i in range(1, 50)]
        write_jsonl(root / "runs" / name / "metrics.jsonl", log)
    write_report(sources(root), root / "report.html", dataset=dataset)
    return (root / "report.html").as_uri(), len(val), load_scores(root / "scores" / "sft")


@pytest.fixture
def read(browser, report):
    contexts, wrong = [], []

    def opened(width, height, scheme):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith("http") and wrong.append(request.url))
        page.goto(report[0])
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 800, "light"), (390, 844, "dark")])
def test_the_gallery_is_filtered_with_the_keyboard_alone(read, report, width, height, scheme):
    page, total = read(width, height, scheme), report[1]
    count = page.locator("#count")
    assert count.inner_text() == f"{total} questions match; 24 shown." and count.get_attribute("aria-live") == "polite"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 25)"
    assert dark == (scheme == "dark")

    def choose(key, value):
        button = page.locator(f'#filters button[data-key="{key}"][data-value="{value}"]')
        button.focus()
        page.keyboard.press("Enter")
        pressed = page.locator(f'#filters button[data-key="{key}"][aria-pressed=true]')
        assert pressed.get_attribute("data-value") == str(value)

    choose("answer", "wrong")
    assert count.inner_text() == "10 questions match; 10 shown." and page.locator(".card").count() == 10
    choose("model", 0)
    assert count.inner_text().startswith(f"{total - 12} questions match")
    choose("answer", "right")
    # Both systems stand on each card, and the other is right on these too.
    assert page.locator(".card").count() == 12
    assert page.locator(".chip.right").count() == 24 and page.locator(".chip.wrong").count() == 0
    choose("outcome", "unreadable")
    assert count.inner_text() == "0 questions match; 0 shown."
    choose("answer", "all")
    assert count.inner_text() == "1 questions match; 1 shown." and EVIL in page.locator(".card").inner_text()
    choose("outcome", "answer does not fit box")
    unlike = sum(line.answer_fits_box is False for line in report[2])
    assert unlike > 5 and count.inner_text().startswith(f"{unlike} questions match")
    choose("outcome", "all")
    choose("tool", "suction")
    assert count.inner_text().startswith(f"{total // 2} questions match")
    assert page.title() == "Surgery-R1 report" and page.locator("img").count() == 0


def test_more_cards_come_when_they_are_asked_for(read, report):
    page, total = read(1280, 800, "dark"), report[1]
    page.locator("#more").focus()
    page.keyboard.press("Space")
    assert page.locator(".card").count() == total and page.locator("#more").is_hidden()
    boxes = page.locator(".card svg rect.predicted")
    # Both systems stand side by side.
    assert boxes.count() == 2 * (total - 1) and boxes.first.bounding_box()["width"] > 10
