"""The report as a file: what stands in it, that model text cannot act in it, and that frames can be left out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from test_score import make_dataset, truth

from surgery_r1._util.files import read_json, write_jsonl
from surgery_r1.cli.evaluate import Report, Score
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.score import score_predictions
from surgery_r1.report import write_report
from surgery_r1.report.curves import panels
from surgery_r1.report.drawing import draw_boxes
from surgery_r1.report.gallery import gallery
from surgery_r1.report.inputs import read_inputs
from surgery_r1.report.pictures import thumbnails

EVIL = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A dataset with images, two scored systems on val, and the logs of two stages."""
    root = tmp_path_factory.mktemp("report")
    dataset = make_dataset(root / "data", 12)
    for frame in dataset.frames.values():
        path = dataset.image_path(frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((320, 256)).convert("RGB").save(path)
    val = dataset.split("val")
    for name, right in (("sft", 8), ("rft", 16)):
        lines = [truth(s) if i < right else truth(s) | {"answer": "Idle"} for i, s in enumerate(val)]
        lines[-1] = {"id": val[-1].id, "text": f"<think>{EVIL}</think><answer>{EVIL}</answer>", "box_space": "source"}
        lines[-2] = {"id": val[-2].id, "text": EVIL, "box_space": "source"}
        write_jsonl(root / f"{name}.jsonl", lines)
        score_predictions(root / f"{name}.jsonl", dataset, "val", root / "scores" / name)
        log = [{"step": i, "stage": name, "loss": 1 / i, "rewards/box/mean": i / 50} for i in range(1, 50)]
        write_jsonl(root / "runs" / name / "metrics.jsonl", [*log, {"step": 50, "stage": name, "dev/acc": 0.5}])
    return root


def sources(work: Path) -> list[Path]:
    return [work / part / name for part in ("runs", "scores") for name in ("sft", "rft")]


class Page(HTMLParser):
    """Tags with their attributes, and text by the tag it stands in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and data.strip():
            self.texts.setdefault(self.tags[-1][0], []).append(data.strip())


@pytest.fixture(scope="module")
def page(work):
    result = write_report(sources(work), work / "report.html", dataset=make_dataset(work / "data", 12))
    return result, (work / "report.html").read_text(encoding="utf-8")


def island(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def test_tables_curves_and_gallery_stand_in_one_file(work, page):
    result, text = page
    read = Page(text)
    assert result["questions"] == 24 and result["pictures"] == 12 and result["bytes"] == len(text.encode())
    sft = read_json(work / "scores" / "sft" / "metrics.json")
    assert f"<b>{sft['acc']:.3f}</b>".replace("0.", ".") in text
    low, high = sft["ci95"]["acc"]
    assert f"[{low:.3f}, {high:.3f}]".replace("0.", ".") in text
    assert {"no-image floor", "sft", "rft", "rft − sft", "seq_1", "left-top", "organ", "location"} <= set(
        read.texts["th"]
    )
    assert "With 2 blocks the intervals are rough" in text
    assert text.count('<svg role="img"') == 2 * 3  # loss, reward parts and dev of two stages
    assert len([1 for tag, a in read.tags if tag == "rect" and a.get("class") == "predicted"]) > 0
    assert text.count("data:image/jpeg;base64,") == 12  # each frame once, whatever the number of questions


def test_every_question_of_every_model_is_in_the_gallery(page):
    data = island(page[1])
    assert data["models"] == [["sft", "rft"]] and data["kinds"] == ["organ", "location"]
    assert len({item["id"] for item in data["items"]}) == 24
    assert sum(one["right"] for item in data["items"] for one in item["by"]) == 8 + 16
    assert {item["frame"] for item in data["items"]} == set(data["pictures"])
    outcomes = [item["by"][-1]["outcome"] for item in data["items"]]
    assert set(outcomes[:3]) == {"coherent", "wrong answer, right box", "both wrong"}


def test_the_page_loads_nothing_and_runs_only_its_own_script(page):
    text = page[1]
    for tag, attributes in Page(text).tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name) or ""
            assert not value or value.startswith("#"), (tag, name, value)
    assert not re.search(r"url\((?!data:image/jpeg;base64,|#)", text)
    assert "default-src 'none'" in text and re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", text)


def test_model_text_is_inert(page):
    text = page[1]
    assert EVIL not in text and "<img" not in text and "onerror=alert" in text
    kinds = [attributes.get("type", "own") for tag, attributes in Page(text).tags if tag == "script"]
    assert kinds == ["application/json", "own"]
    evil = [one for item in island(text)["items"] for one in item["by"] if one.get("text") == EVIL]
    assert len(evil) == 2 and evil[0]["answer"] is None


def test_no_frames_holds_no_picture(work):
    out = work / "none.html"
    result = write_report(sources(work), out, dataset=make_dataset(work / "data", 12), frames=False)
    text = out.read_text(encoding="utf-8")
    assert result["pictures"] == 0 and "data:image" not in text and "base64," not in text
    assert len(island(text)["items"]) == 24 and "left out on request" in text


def test_same_input_same_bytes(work, page):
    write_report(sources(work), work / "again.html", dataset=make_dataset(work / "data", 12))
    assert (work / "again.html").read_text(encoding="utf-8") == page[1]


def test_what_is_left_out_is_said(work):
    out = work / "few.html"
    result = write_report(sources(work), out, dataset=make_dataset(work / "data", 12), max_items=3)
    assert (result["pictures"], result["pictures_left_out"]) == (3, 9)
    assert "9 frames have no picture" in out.read_text(encoding="utf-8")
    groups, _ = read_inputs(sources(work))
    small = gallery(groups, most=10)
    assert (len(small.items), small.left_out) == (10, 14)
    # The last system has eight failures; none of them was left out.
    assert sum(item["by"][-1]["outcome"] != "coherent" for item in small.items) == 8


def test_pictures_keep_to_their_budget(tmp_path):
    paths = []
    for i in range(6):
        path = tmp_path / f"{i}.png"
        Image.effect_noise((400, 320), 80).convert("RGB").save(path)
        paths.append((f"f{i}", path))
    (tmp_path / "torn.png").write_bytes(paths[0][1].read_bytes()[:2000])
    result = thumbnails([("torn", tmp_path / "torn.png"), *paths], budget=40_000)
    assert sum(map(len, result.uris.values())) <= 40_000
    assert result.unreadable == 1 and len(result.uris) + result.left_out == 6 and result.left_out > 0


def test_sources_are_found_below_and_named_apart(work, tmp_path):
    groups, runs = read_inputs([work])
    assert [scored.name for scored in groups[0].scored] == ["sft", "rft"] and len(groups) == 1
    assert [run.stage for run in runs] == ["sft", "rft"]
    for place in ("a/scores-val", "b/val", "c/val-scores", "d/sft-val"):
        shutil.copytree(work / "scores" / "sft", tmp_path / place)
    assert sorted(s.name for s in read_inputs([tmp_path])[0][0].scored) == ["a", "b", "c", "sft"]


def test_bad_sources_are_named(work, tmp_path):
    with pytest.raises(SurgeryR1Error, match="no such folder"):
        read_inputs([tmp_path / "none"])
    with pytest.raises(SurgeryR1Error, match=r"neither scores\.jsonl nor metrics\.jsonl"):
        read_inputs([tmp_path])
    shutil.copytree(work / "scores" / "sft", tmp_path / "s")
    (tmp_path / "s" / "metrics.json").write_text('{"n": 1}')
    with pytest.raises(SurgeryR1Error, match="no acc, f_score"):
        read_inputs([tmp_path / "s"])
    other = make_dataset(tmp_path / "data", 12)
    other.manifest["sha256"]["samples.jsonl"] = "other"
    with pytest.raises(SurgeryR1Error, match="nothing here was scored on this dataset"):
        write_report(sources(work), tmp_path / "r.html", dataset=other)
    assert not (tmp_path / "r.html").exists()


def test_curves_take_finite_numbers_and_the_last_of_a_step():
    records = [
        {"step": 1, "loss": 2.0, "reward": float("nan"), "rewards/box/mean": 0.5, "rewards/box/std": 0.1, "note": "x"},
        {"step": 1, "loss": 1.5, "train_loss": 9.0},
        {"step": 2, "loss": float("inf"), "kl": 0.1, "dev/miou": 0.3, "dev/n": 10, "loss_ok": True},
        {"step": 2, "dev/rationale_right": 0.8, "dev/rationale_unsupported": 0.1},
    ]
    assert panels(records) == {
        "loss": {"loss": [(1.0, 1.5)]},
        "reward parts": {"box": [(1.0, 0.5)]},
        "KL": {"kl": [(2.0, 0.1)]},
        "dev": {"miou": [(2.0, 0.3)]},
        "agreement on dev": {"rationale_right": [(2.0, 0.8)]},
    }


def test_commands_score_and_report(work, tmp_path, monkeypatch, capsys):
    dataset = make_dataset(work / "data", 12)
    monkeypatch.setattr("surgery_r1.data.dataset.open_dataset", lambda *args, **kwargs: dataset)
    out = tmp_path / "scores" / "sft"
    assert Score(work / "sft.jsonl", work / "data", "val", out).run() == 0
    assert "no-image floor" in capsys.readouterr().out
    assert Score(work / "sft.jsonl", work / "data", "val", out, json=True).run() == 0
    assert json.loads(capsys.readouterr().out) == read_json(out / "metrics.json")
    assert Report((out,), tmp_path / "r.html", data=work / "data", no_frames=True).run() == 0
    assert "24 questions, 0 pictures" in capsys.readouterr().out and (tmp_path / "r.html").is_file()


@pytest.mark.parametrize("size", [(320, 256), (1280, 1024)])
def test_boxes_are_drawn_where_they_are(size):
    image = Image.new("RGB", size, "black")
    w, h = size
    drawn = draw_boxes(image, (w * 0.25, h * 0.25, w * 0.75, h * 0.75), None, true_label="kidney", caption="Where?")
    assert drawn.width >= 900 and image.getbbox() is None  # the original is untouched
    factor = drawn.width / w
    assert drawn.getpixel((round(w * 0.25 * factor) + 1, round(h * 0.5 * factor))) == (0x22, 0xC5, 0x5E)
    assert drawn.getpixel((round(w * 0.5 * factor), round(h * 0.5 * factor))) == (0, 0, 0)


@pytest.mark.parametrize(
    "box", [None, (-50, -50, -10, -10), (-1e9, 0, 1e9, 50), (float("nan"), 0, 1, 1), (319.5, 1, 320, 9)]
)
def test_any_predicted_box_can_be_drawn(box):
    image = Image.new("RGB", (320, 256), "black")
    plain = draw_boxes(image, (10, 10, 60, 60))
    drawn = draw_boxes(image, (10, 10, 60, 60), box, predicted_label="Tissue_Manipulation " * 20)
    assert ImageChops.difference(plain, drawn).getbbox() is not None


def test_the_script_runs_in_a_browser(work, page):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: the page's script is not run")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    url = (work / "report.html").as_uri()
    done = subprocess.run([chromium, *options, url], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0 or "</html>" not in done.stdout:
        pytest.skip(f"chromium did not start here: {done.stderr[-200:]}")
    read = Page(done.stdout)
    assert "Surgery-R1 report" in read.texts["title"] and "24 questions match; 24 shown." in done.stdout
    # Both systems side by side, failures of the last one first.
    assert len([1 for tag, a in read.tags if tag == "figure" and a["class"] == "system"]) == 48
    outcomes = [a["class"] for tag, a in read.tags if tag == "h4" and a.get("class", "").startswith("went")]
    assert outcomes[1::2] == ["went-wrong"] * 8 + ["went-right"] * 16
    pressed = {a["data-key"]: a["data-value"] for tag, a in read.tags if a.get("aria-pressed") == "true"}
    assert pressed.pop("view") == "side by side" and pressed.pop("model") == "1" and set(pressed.values()) == {"all"}


def test_what_changed_between_two_systems_can_be_filtered(work, page, browser):
    """Of 24 questions SFT has 8 right and RFT 16, among them all that SFT has."""
    shown = browser.new_page()
    shown.set_default_timeout(120_000)
    shown.goto((work / "report.html").as_uri())

    def found(change: str, **pressed: str) -> list[str]:
        for key, value in {**pressed, "change": change}.items():
            shown.locator(f'button[data-key="{key}"][data-value="{value}"]').click()
        return shown.locator("#cards .id").all_inner_texts()

    count = lambda change: len(found(change))  # noqa: E731
    changes = ("wrong → right", "right → right", "wrong → wrong", "right → wrong")
    assert [count(change) for change in changes] == [8, 8, 8, 0]
    first = found("wrong → right")
    assert shown.locator(".system h4.went-wrong").all_inner_texts() == ["sft"] * 8
    assert "sft → rft" in shown.locator("#filters").inner_text()
    # The other way round the same questions were lost; one system alone shows them too.
    assert sorted(found("right → wrong", model="0", view="one")) == sorted(f"{name} · sft" for name in first)
