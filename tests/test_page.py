"""The page of ``surgery-r1 serve`` as people use it: a real browser, answers that are made up, no port and no model."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
from browser import PAGE, SIZE, URL, Answers
from PIL import Image, ImageStat

EVIL = '</script><img src=x onerror="document.title=1"><b>owned</b>'
SIZES = [(1280, 800), (390, 844)]


@pytest.fixture
def server():
    return Answers()


@pytest.fixture
def open_page(browser, server):
    """``open_page(width, height, scheme)`` -> the page with its frames. At the end nothing may have gone wrong."""
    contexts, wrong = [], []

    def opened(width=1280, height=800, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.route("**/*", server)
        page.goto(URL)
        page.locator(".frame").first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    # A browser writes down every request that fails; that the page tells it is what the tests look at.
    assert [text for text in wrong if not text.startswith("Failed to load resource")] == []
    assert server.strangers == []


def ask(page, key="2", panes=1):
    page.keyboard.press(key)
    page.locator(f".of{panes} .pane:nth-child({panes})[aria-busy=false]").wait_for()
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")


def place(page, selector):
    """Where an element lies in the first picture, in shares of it."""
    return page.evaluate(
        """(selector) => {
            const [a, b] = [selector, '.shot'].map((name) => document.querySelector(name).getBoundingClientRect());
            const x = (value) => (value - b.left) / b.width, y = (value) => (value - b.top) / b.height;
            return [x(a.left), y(a.top), x(a.right), y(a.bottom)];
        }""",
        selector,
    )


def shares(box):
    return pytest.approx([box[0] / SIZE[0], box[1] / SIZE[1], box[2] / SIZE[0], box[3] / SIZE[1]], abs=0.005)


def pixels(image):
    """An image of the page, as it is shown."""
    data = image.evaluate(
        """(image) => {
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext('2d').drawImage(image, 0, 0);
            return canvas.toDataURL('image/png').split(',')[1];
        }"""
    )
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_question_is_answered_in_every_window(open_page, server, width, height, scheme):
    page = open_page(width, height, scheme)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 25)"
    assert dark == (scheme == "dark")
    ask(page)
    seen = server.scenes["scene-1"][1][1]
    assert server.posted == [
        {"sample": "scene-1", "question": f"Where is {seen['name']} located?", "model": "rft"},
    ]
    assert page.locator(".answer").inner_text() == seen["location"]
    assert place(page, ".predicted") == shares(seen["box_px"])
    assert page.locator(".true").count() == 1 and f"drawn: {seen['location']}" in page.locator(".pane").inner_text()
    assert "confidence .93" in page.locator(".pane").inner_text()
    assert (
        f"rft: {seen['location']}, confidence .93. Rationale, answer and box agree."
        in page.get_by_role("status").text_content()
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for scroll in (0, 10_000):
        page.evaluate("(y) => scrollTo(0, y)", scroll)
        notice = page.get_by_text("Research use only. Not a medical device.").bounding_box()
        assert notice["y"] >= 0 and notice["y"] + notice["height"] <= height and notice["width"] > 100


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_what_the_rationale_names_points_into_the_picture(open_page, server, width, height):
    page = open_page(width, height)
    ask(page)
    seen = server.scenes["scene-1"][1][1]
    tool, corner = page.locator("button.named").all()
    assert page.locator(".pointed").is_hidden()
    tool.focus()
    page.wait_for_timeout(200)
    assert page.locator(".pointed").is_visible() and place(page, ".pointed") == shares(seen["box_px"])
    corner.focus()
    page.wait_for_timeout(200)
    x, y = (0 if "left" in seen["location"] else 160), (0 if "top" in seen["location"] else 128)
    assert place(page, ".pointed") == shares([x, y, x + 160, y + 128])
    page.locator("#question").focus()
    assert page.locator(".pointed").is_hidden()
    tool.hover()
    assert page.locator(".pointed").is_visible()


def test_a_tool_is_found_by_an_earlier_question_on_the_frame(open_page, server):
    first = server.scenes["scene-1"][1][1]
    text = f"beside the {first['name']}"
    span = {"start": 11, "end": len(text), "kind": "tool", "name": first["name"], "box_px": None}
    server.change = {"rft": {"rationale": text, "spans": [span]}}
    page = open_page()
    ask(page, "3")
    assert page.locator("button.named").count() == 0 and page.locator("span.named").inner_text() == first["name"]
    server.change = {}
    ask(page, "2")
    page.keyboard.press("[")
    page.locator("button.named").focus()
    page.wait_for_timeout(200)
    assert place(page, ".pointed") == shares(first["box_px"])


def test_where_parts_disagree_the_page_says_so_in_words(open_page, server):
    flags = {"rationale_answer": False, "answer_box": False, "rationale_box": True, "names_subject": False}
    disagree = [name for name, good in flags.items() if not good]
    agreement = {"conclusion": "left-top", "box_place": "left-bottom", "disagree": disagree} | flags
    server.change = {"rft": {"answer": "right-top", "agreement": agreement, "subject": "stapler"}}
    page = open_page()
    ask(page)
    assert page.locator(".mark.disagree").inner_text().split("\n") == [
        "Its parts disagree",
        "The rationale ends at left-top, the answer is right-top.",
        "The answer is right-top, the box lies left-bottom.",
        "The rationale does not name stapler, which was asked about.",
    ]
    assert "its parts disagree" in page.locator(".past").inner_text()
    assert "Its parts disagree" in page.get_by_role("status").text_content()


def test_a_torn_reply_is_shown_for_what_it_is(open_page, server):
    server.change = {
        "rft": {"answer": None, "box_px": None, "rationale": None, "spans": [], "confidence": None, "known_form": False}
        | {"problems": ["no_answer", "several_boxes"], "text": "<think>the"}
        | {"agreement": {"conclusion": None, "box_place": None, "rationale_answer": None, "disagree": []}}
    }
    page = open_page()
    ask(page)
    text = page.locator(".pane").inner_text()
    assert page.locator(".answer").inner_text() == "no answer" and "confidence" not in text
    assert "no answer, several boxes" in text and "never asked in training" in text and "Nothing to compare" in text
    assert page.locator(".predicted").count() == 0 and page.get_by_role("button", name="Cover the box").count() == 0


def test_text_of_models_and_files_is_inert(open_page, server):
    span = {"start": 0, "end": 9, "kind": "tool", "name": EVIL, "box_px": [0, 0, 9, 9]}
    server.change = {"rft": {"answer": EVIL, "rationale": EVIL, "spans": [span], "problems": [EVIL], "text": EVIL}}
    page = open_page()
    png = server.scenes["scene-2"][0]
    page.locator("#file").set_input_files({"name": f"{EVIL}.png", "mimeType": "image/png", "buffer": png})
    page.locator(".frame").nth(2).wait_for()
    page.locator("#question").fill(EVIL)
    ask(page, "Enter")
    assert page.locator(".answer").inner_text() == EVIL and page.locator("blockquote").inner_text() == EVIL
    assert page.title() == "Surgery-R1: ask a frame" and page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_checkpoints_stand_side_by_side(open_page, server, width, height):
    server.models = ("rft", "sft", "base", "rft-2")
    page = open_page(width, height)
    chips = page.locator("#models button")
    chips.nth(0).click()
    assert page.get_by_role("status").inner_text() == "One checkpoint at least is asked."
    for i in (1, 2, 3):
        chips.nth(i).click()
    assert "3 checkpoints at most" in page.get_by_role("status").inner_text()
    assert [chip.get_attribute("aria-pressed") for chip in chips.all()] == ["true"] * 3 + ["false"]
    server.change = {"sft": {"answer": "right-bottom"}, "base": {"error": (503, "busy", "the queue is full", "wait")}}
    ask(page, panes=3)
    assert {asked["model"] for asked in server.posted} == {"rft", "sft", "base"}
    assert [pane.get_attribute("aria-label") for pane in page.locator(".pane").all()] == ["rft", "sft", "base"]
    assert page.locator(".answer").nth(1).inner_text() == "right-bottom"
    assert "The queue is full. Wait." in page.locator(".pane").nth(2).inner_text()
    tops = {round(pane.bounding_box()["y"]) for pane in page.locator(".pane").all()}
    assert len(tops) == (1 if width > 1000 else 3)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("same", [True, False])
def test_the_box_is_covered_and_asked_again_in_one_click(open_page, server, same):
    page = open_page()
    ask(page)
    seen = server.scenes["scene-1"][1][1]
    if not same:
        server.change = {"rft": {"answer": "right-bottom", "box_px": [0, 0, 20, 20]}}
    page.get_by_role("button", name="Cover the box and ask again").click()
    page.keyboard.press("c")  # once is enough
    page.locator(".mark.cover").wait_for()
    first, again = server.posted
    assert json.loads(again.pop("cover")) == [list(seen["box_px"])] and again == first
    words = page.locator(".mark.cover").inner_text()
    if same:
        assert f"Same answer with the box covered: {seen['location']}" in words and "still points" in words
    else:
        assert f"{seen['location']} → right-bottom" in words and "points elsewhere" in words
    assert page.locator(".pane").count() == 2 and page.locator(".answer").first.inner_text() == seen["location"]
    # What is shown is the frame with that area in its mean colour, and nothing else changed.
    shown = pixels(page.locator(".shot img").nth(1))
    frame = Image.open(io.BytesIO(server.scenes["scene-1"][0])).convert("RGB")
    x1, y1, x2, y2 = seen["box_px"]
    mean = [round(value) for value in ImageStat.Stat(frame).mean]
    assert shown.size == SIZE and list(shown.getpixel((int(x1 + x2) // 2, int(y1 + y2) // 2))) == pytest.approx(
        mean, abs=1
    )
    corner = (2, 250) if not (x1 <= 2 and y2 >= 250) else (318, 2)
    assert shown.getpixel(corner) == frame.getpixel(corner)


def names(page):
    """What the keyboard reaches from the top to the end, by name."""
    page.evaluate("() => { const top = document.querySelector('h1'); top.tabIndex = -1; top.focus(); }")
    found = []
    while True:
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => {
                const node = document.activeElement;
                const name = node === document.body ? '' : node.ariaLabel || node.innerText || node.id;
                return [name, getComputedStyle(node).outlineStyle];
            }"""
        )
        if not name:
            return found
        assert outline == "solid", f"no focus style on {name}"
        found.append(name.split("\n")[0])


def test_all_can_be_reached_and_done_with_the_keyboard(open_page, server):
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type("Where is stapler located?")
    ask(page, "Enter")
    page.keyboard.press("Escape")
    reached = names(page)
    wanted = ["Drawn scene 1", "Open a frame", "rft", "sft", "question", "Ask", "What organ is being operated?"]
    wanted += [
        "Save picture",
        "Save JSON",
        "Cover the box and ask again",
        "Where is stapler located?",
        "Forget all",
        "Keys",
    ]
    assert [name for name in wanted if name not in reached] == []
    page.keyboard.press("n")
    assert page.locator(".frame").nth(1).get_attribute("aria-pressed") == "true"
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("c")  # no key acts behind the dialog
    page.locator("#keys-on").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.keyboard.press("[")
    assert len(server.posted) == 1 and page.get_by_role("dialog").count() == 0


def test_keys_do_nothing_while_a_question_is_written(open_page, server):
    page = open_page()
    page.locator("#question").press_sequentially("1c?s/")
    assert page.locator("#question").input_value() == "1c?s/" and server.posted == []


def test_earlier_questions_are_kept_in_the_window_and_can_be_forgotten(open_page, server):
    page = open_page()
    for key in "213":
        ask(page, key)
    asked = [fields["question"] for fields in server.posted]
    assert [text.split("\n")[0] for text in page.locator(".past").all_inner_texts()] == asked[::-1]
    page.keyboard.press("[")
    assert page.locator("#question").input_value() == asked[1] == page.locator("#result h2").inner_text()
    page.keyboard.press("]")
    assert page.locator("#result h2").inner_text() == asked[2]
    page.locator(".past").nth(2).click()
    assert page.locator("#result h2").inner_text() == asked[0] and len(server.posted) == 3
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.get_by_role("button", name="Forget all").click()
    assert page.locator(".past").count() == 0 and page.locator(".answer").count() == 0


def test_picture_and_json_are_saved(open_page, server):
    page = open_page()
    ask(page)
    page.keyboard.press("c")
    page.locator(".mark.cover").wait_for()
    with page.expect_download() as saving:
        page.get_by_role("button", name="Save picture").click()
    seen = server.scenes["scene-1"][1][1]
    name = f"surgery-r1_Drawn_scene_1_Where_is_{seen['name']}_located_"
    assert saving.value.suggested_filename == f"{name}.png"
    sheet = Image.open(saving.value.path()).convert("RGB")
    assert sheet.width > 1200 and sheet.height > 640
    colours = dict(map(reversed, sheet.getcolors(sheet.width * sheet.height)))
    assert colours[(255, 159, 28)] > 2000 and colours[(11, 15, 20)] > 100_000  # boxes, and the ground of the captions
    with page.expect_download() as saving:
        page.keyboard.press("j")
    saved = json.loads(saving.value.path().read_text())
    assert (
        saved["notice"] == "Research use only. Not a medical device."
        and saving.value.suggested_filename == f"{name}.json"
    )
    assert saved["frame"] == {"name": "Drawn scene 1", "width": SIZE[0], "height": SIZE[1]}
    assert [reply["covered_px"] for reply in saved["replies"]] == [None, list(seen["box_px"])]
    assert saved["replies"][0]["answers"][0]["answer"] == seen["location"]


DROP = """([data, name, kind]) => {
    const files = new DataTransfer();
    files.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type: 'image/png' }));
    const more = { bubbles: true, cancelable: true, clipboardData: files, dataTransfer: files };
    document.body.dispatchEvent(kind === 'paste' ? new ClipboardEvent(kind, more) : new DragEvent(kind, more));
}"""


@pytest.mark.parametrize("way", ["pick", "drop", "paste"])
def test_a_frame_of_ones_own_is_sent_as_it_is(open_page, server, way):
    page, png = open_page(), server.scenes["scene-2"][0]
    data = base64.b64encode(png).decode()
    if way == "pick":
        page.locator("#file").set_input_files({"name": "own.png", "mimeType": "image/png", "buffer": png})
    else:
        if way == "drop":
            page.evaluate(DROP, [data, "own.png", "dragenter"])
            assert page.locator("#drop").is_visible()
        page.evaluate(DROP, [data, "own.png", way])
    page.get_by_text("own.png, 320 × 256 pixels").wait_for()
    assert page.locator("#drop").is_hidden() and page.locator("#suggested button").count() == 7
    page.keyboard.type("What organ is being operated?")
    ask(page, "Enter")
    assert server.posted == [{"image": png, "question": "What organ is being operated?", "model": "rft"}]
    assert page.locator(".truth").count() == 0
    page.get_by_role("button", name="Forget all").click()
    assert page.locator(".frame").count() == 2 and page.locator(".past").count() == 0


def test_a_frame_that_was_taken_turned_is_shown_upright(open_page, server):
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (320, 256)).save(turned, "JPEG", exif=exif)
    page = open_page()
    page.locator("#file").set_input_files({"name": "turned.jpg", "mimeType": "image/jpeg", "buffer": turned.getvalue()})
    page.get_by_text("turned.jpg, 256 × 320 pixels").wait_for()
    shown = page.locator(".shot").bounding_box()
    assert shown["width"] / shown["height"] == pytest.approx(0.8, abs=0.01)


def test_what_cannot_be_used_is_said_in_plain_words(open_page, server):
    page = open_page()
    status = page.get_by_role("status")
    page.locator("#file").set_input_files({"name": "torn.png", "mimeType": "image/png", "buffer": b"\x89PNG no"})
    page.get_by_text("torn.png is no picture that this browser can read").wait_for()
    page.locator("#file").set_input_files({"name": "big.png", "mimeType": "image/png", "buffer": bytes(3 * 2**20)})
    assert status.inner_text() == "big.png has 3.0 MiB; the server takes 1."
    for error, words in {
        (
            422,
            "question",
            "the question has a control token",
            "leave it out",
        ): "The question has a control token. Leave it out.",
        (504, "timeout", "no reply within 60 s", "ask again"): "No reply within 60 s. Ask again.",
    }.items():
        server.change = {"rft": {"error": error}}
        ask(page)
        assert words in page.locator(".mark.failed").inner_text() and words in status.text_content()
    page.unroute("**/*")
    page.route("**/*", lambda route: route.abort())
    page.keyboard.press("2")
    page.get_by_text("The server does not answer. Is surgery-r1 serve still running?").first.wait_for()


def test_a_token_is_asked_for_once_and_kept_in_memory(open_page, server):
    page = open_page()
    server.token = "s3cret"
    page.locator("#models button").nth(1).click()
    page.keyboard.press("2")
    page.locator("#token-text").fill("s3cret")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.answer:not(.none)').length === 2")
    ask(page, "3", panes=2)
    assert page.get_by_role("dialog").count() == 0
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_from_its_ground_in_light_and_dark():
    """Contrast of at least 4.5, as WCAG 2.2 asks for text (1.4.3)."""
    schemes = re.findall(r":root\{([^}]*--bg[^}]*)\}", (PAGE / "page.css").read_text())
    assert len(schemes) == 2
    for scheme in schemes:
        tokens = {
            k: v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:])
            for k, v in re.findall(r"--(\w+):(#\w+)", scheme)
        }
        for ink, ground in (
            *((ink, ground) for ink in ("ink", "soft", "wrong") for ground in ("bg", "card", "shade")),
            *(("true", "card"), ("wrong", "down"), ("ink", "down"), ("card", "accent")),
        ):
            light, dark = sorted((luminance(tokens[ink]), luminance(tokens[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground, tokens[ink], tokens[ground])


def test_the_page_names_nothing_outside_itself():
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|url\(", text), path.name
        assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", text), path.name
