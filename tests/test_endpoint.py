"""Prediction through a chat server: prompts and lines of the local engine, and every way that a server fails."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import re
import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image
from served import only_this_machine, serving

from surgery_r1 import prompts
from surgery_r1._util.parallel import finished_map
from surgery_r1.chat.frames import frame_url
from surgery_r1.cli import main
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.endpoint import ServerOptions
from surgery_r1.evaluate.generation import GenerationOptions
from surgery_r1.evaluate.predict import prompt_of
from surgery_r1.evaluate.vllm_engine import VllmEngine
from surgery_r1.models.encode import MemoryImage, Prompt, PromptEncoder
from surgery_r1.models.load import weights_sha256
from surgery_r1.models.reply_tokens import banned_tokens
from surgery_r1.models.tiny.architecture import TINY_BASE

pytest.importorskip("openai", reason="pip install 'surgery-r1[teacher]'")
SERVER = Path(__file__).with_name("chat_server.py")
QUESTIONS = 38


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    yield from only_this_machine(monkeypatch)


@pytest.fixture(scope="module")
def replies(tiny, dataset, tmp_path_factory) -> dict[str, tuple[str, int]]:
    """Prompt text -> reply and tokens, counted as the trainer does."""
    encoder, found = PromptEncoder(tiny.processor, "norm100"), {}
    for number, sample in enumerate(dataset.split("val")):
        prompt = prompt_of(sample, dataset)
        tokens = len(encoder.tokens([prompt])[0][0].ids)
        assert encoder.token_count(prompt) == tokens
        found[prompt.text] = (
            f"<think>as {number}</think><answer>kidney</answer><box>[1, 2, 3, {number + 9}]</box>",
            tokens,
        )
    return found


@pytest.fixture
def serve(tmp_path, replies):
    file = tmp_path / "replies.json"
    file.write_text(json.dumps(replies))
    yield from serving(SERVER, tmp_path, "--replies", str(file))


def predict(dataset_folder, out, endpoint, *args, model=TINY_BASE) -> int:
    common = ["--data", str(dataset_folder), "--split", "val", "--out", str(out), "--max-new-tokens", "24"]
    return main(["predict", "--model", str(model), "--endpoint", endpoint, "--retries", "2", *common, *args])


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fails(capsys, code: int, match: str) -> None:
    error = capsys.readouterr().err
    assert code == 2 and re.search(match, error), error


def banned(tiny) -> tuple[int, ...]:
    """What the engine of this process leaves out."""
    found = banned_tokens(tiny.tokenizer, tiny.model.generation_config.eos_token_id)
    assert tiny.processor.image_token_id in found
    return found


def shown(path: Path) -> str:
    """A frame as the tiny model reads it, which resizes all scenes alike; with Pillow, whatever the server has."""
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((168, 140), Image.Resampling.BICUBIC)
    return f"RGB (168, 140) {hashlib.sha256(resized.tobytes()).hexdigest()}"


def test_prompts_and_lines_are_those_of_the_local_engine(tiny, dataset, dataset_folder, replies, serve, tmp_path):
    server = serve()
    assert predict(dataset_folder, tmp_path / "p.jsonl", server.endpoint) == 0
    records = lines(tmp_path / "p.jsonl")
    samples = dataset.split("val")
    assert [r["id"] for r in records] == [s.id for s in samples] and len(records) == QUESTIONS
    assert [r["text"] for r in records] == [replies[prompt_of(s, dataset).text][0] for s in samples]
    local = tmp_path / "local.jsonl"
    args = ["--data", str(dataset_folder), "--split", "val", "--limit", "1", "--max-new-tokens", "24"]
    assert main(["predict", "--model", str(TINY_BASE), "--out", str(local), *args]) == 0
    ours, theirs = lines(local)[0], records[0]
    assert list(ours) == list(theirs)
    assert {key for key in ours if ours[key] != theirs[key]} == {"text", "engine_sha256", "dtype", "engine"}
    assert (theirs["engine"], theirs["dtype"], theirs["weights_sha256"]) == (
        "endpoint", None, weights_sha256(TINY_BASE)
    )  # fmt: skip
    asked = {(r["text"], r["sent"]) for r in server.requests}
    assert asked == {(prompt_of(s, dataset).text, shown(dataset.image_path(s))) for s in samples}
    for request in server.requests:
        assert request["system"] == [{"type": "text", "text": prompts.system_text("norm100")}]
        assert request["kinds"] == ["image_url", "text"]
        assert request["settings"] == {
            "model": str(TINY_BASE),
            "temperature": 0.0,
            "max_tokens": 24,
            "logit_bias": {str(token): -100 for token in banned(tiny)},
        }
    scores = ["--data", str(dataset_folder), "--split", "val", "--out", str(tmp_path / "scores")]
    assert main(["score", str(tmp_path / "p.jsonl"), *scores]) == 0


def test_what_a_server_moved_aside_is_put_back(dataset_folder, replies, serve, tmp_path):
    server = serve("moved,renamed,thinking," + "moved," * 10)
    assert predict(dataset_folder, tmp_path / "p.jsonl", server.endpoint, "--concurrency", "1") == 0
    texts, known = [r["text"] for r in lines(tmp_path / "p.jsonl")], {reply for reply, _ in replies.values()}
    assert texts[2] == "<think>the kidney is" and set(texts[:2] + texts[3:]) <= known


def test_a_server_that_bans_no_tokens_is_told_once_and_asked_without(dataset_folder, replies, serve, tmp_path, capsys):
    server = serve("unbiased," * 50)
    assert predict(dataset_folder, tmp_path / "p.jsonl", server.endpoint) == 0
    texts, known = [r["text"] for r in lines(tmp_path / "p.jsonl")], {reply for reply, _ in replies.values()}
    assert len(texts) == QUESTIONS and set(texts) <= known
    said = capsys.readouterr().err
    told = r"refuses a request with 422: .*planned 422.*; without logit_bias it answers\. .* the 6 tokens"
    assert len(re.findall(told, said)) == 1 == said.count("logit_bias"), said
    biased = ["logit_bias" in request["settings"] for request in server.requests]
    assert biased == [True, *[False] * QUESTIONS]


def test_trouble_that_passes_is_waited_out(dataset_folder, serve, tmp_path):
    server = serve("429,none,500,cut,html,timeout,torn,json")
    assert predict(dataset_folder, tmp_path / "p.jsonl", server.endpoint, "--timeout", "1") == 0
    assert len(lines(tmp_path / "p.jsonl")) == QUESTIONS
    assert {r["fault"] for r in server.requests} >= {"429", "500", "cut", "html", "timeout", "torn", "json"}


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("more", r"reads \d+ tokens in a prompt that has \d+ here: another model, chat template or pixel limits"),
        ("uncounted", "does not tell usage.prompt_tokens"),
        ("abort", "ended a reply with 'abort'"),
        ("short", r"cut a reply at 20 tokens, of the 24 .*--max-model-len"),
        ("redirect", "redirects to http://elsewhere.invalid.*frames were not sent there"),
        ("401", "answers 401: .*SURGERY_R1_ENDPOINT_KEY"),
        ("404", "answers 404: .*check --endpoint and --served-model"),
        ("400", "refuses a request with 400: .*planned 400"),
    ],
)
def test_a_wrong_server_is_told_after_one_frame(dataset_folder, serve, tmp_path, capsys, fault, match):
    # What is refused with banned tokens is tried without.
    asked = 2 if fault == "400" else 1
    server = serve(",".join([fault] * asked))
    fails(capsys, predict(dataset_folder, tmp_path / "p.jsonl", server.endpoint), match)
    assert len(server.requests) == asked and len({request["sent"] for request in server.requests}) == 1
    assert not (tmp_path / "p.jsonl").exists()


def test_pixel_limits_that_differ_for_some_frames_alone_are_noticed(dataset_folder, serve, tmp_path, capsys):
    server = serve("none," * 9 + "more")
    fails(capsys, predict(dataset_folder, tmp_path / "p.jsonl", server.endpoint), "pixel limits")
    assert 9 <= len(lines(tmp_path / "p.jsonl.partial")) < QUESTIONS


def test_a_server_that_dies_in_the_middle(dataset, dataset_folder, replies, serve, tmp_path, capsys):
    out, server = tmp_path / "p.jsonl", serve("none," * 12 + "dead")
    fails(capsys, predict(dataset_folder, out, server.endpoint), r"cannot be reached: .*\(2 retries\); .*run again")
    kept = {r["id"] for r in lines(tmp_path / "p.jsonl.partial")}
    assert 4 <= len(kept) <= 12 and not out.exists()
    again = serve("", 0.0, "--port", str(server.port))
    assert predict(dataset_folder, out, server.endpoint) == 0
    assert len(again.requests) == QUESTIONS - len(kept)
    assert [r["id"] for r in lines(out)] == [s.id for s in dataset.split("val")]
    assert [r["text"] for r in lines(out)] == [replies[prompt_of(s, dataset).text][0] for s in dataset.split("val")]


def test_local_and_served_lines_do_not_mix(dataset_folder, serve, tmp_path, capsys):
    server = serve("none,none,none,400")
    assert predict(dataset_folder, tmp_path / "p.jsonl", server.endpoint, "--concurrency", "1") == 2
    capsys.readouterr()
    args = ["--data", str(dataset_folder), "--split", "val", "--out", str(tmp_path / "p.jsonl")]
    code = main(["predict", "--model", str(TINY_BASE), "--max-new-tokens", "24", *args])
    fails(capsys, code, "was started with engine_sha256=")


def test_frames_stay_here(dataset_folder, tmp_path, capsys, no_network):
    out = tmp_path / "p.jsonl"
    fails(capsys, predict(dataset_folder, out, "http://192.0.2.7/v1"), "not on this machine.*--allow-remote-frames")
    fails(capsys, predict(dataset_folder, out, "http://a:b@127.0.0.1/v1"), "user name or password.*ENDPOINT_KEY")
    fails(capsys, predict(dataset_folder, out, "127.0.0.1:8000"), "--endpoint = .*no http address")
    assert not no_network


def test_flags_without_effect_are_refused(dataset_folder, tmp_path, capsys):
    args = ["predict", "--model", "tiny", "--data", str(dataset_folder), "--split", "val", "--out", str(tmp_path / "p")]
    fails(capsys, main([*args, "--served-model", "x"]), "--served-model without --endpoint")
    fails(capsys, main([*args, "--allow-remote-frames"]), "--allow-remote-frames without --endpoint")
    code = main([*args, "--endpoint", "http://127.0.0.1:1/v1", "--dtype", "float32"])
    fails(capsys, code, "--dtype float32 with --endpoint: the server decides")
    with pytest.raises(SurgeryR1Error, match="--concurrency 0"):
        ServerOptions("http://127.0.0.1:1/v1", concurrency=0)


def models(*entries: tuple[str, Path | str]) -> str:
    return json.dumps([{"id": name, "object": "model", "root": str(root)} for name, root in entries])


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> dict[str, Path]:
    """The tiny base again, with another byte in its configuration, and without its weights."""
    folder = tmp_path_factory.mktemp("copies")
    for name in ("same", "other", "bare"):
        shutil.copytree(TINY_BASE, folder / name)
    path = folder / "other" / "config.json"
    path.write_text(path.read_text() + "\n")
    (folder / "bare" / "model.safetensors").unlink()
    return {name: folder / name for name in ("same", "other", "bare")}


def one_line(dataset_folder, out, server, *args, model) -> dict:
    assert predict(dataset_folder, out, server.endpoint, "--limit", "1", *args, model=model) == 0
    return lines(out)[0]


def test_the_served_name_and_the_folder_find_each_other(dataset_folder, serve, tmp_path, copies):
    ours = weights_sha256(TINY_BASE)
    server = serve("", 0.0, "--models", models(("surgery", copies["same"])))
    asked = (("surgery", ours), (copies["same"], ours), (TINY_BASE, ours), (copies["bare"], None))
    for number, (model, weights) in enumerate(asked):
        line = one_line(dataset_folder, tmp_path / f"{number}.jsonl", server, model=model)
        assert (line["weights_sha256"], line["model"]) == (weights, str(model))
    assert {request["settings"]["model"] for request in server.requests} == {"surgery"}
    elsewhere = serve("", 0.0, "--models", models(("surgery", "/srv/models/surgery")))
    assert one_line(dataset_folder, tmp_path / "e", elsewhere, model=TINY_BASE)["weights_sha256"] is None
    two = serve("", 0.0, "--models", models(("a", "/srv/a"), ("b", "/srv/b")))
    assert one_line(dataset_folder, tmp_path / "f", two, "--served-model", "b", model=TINY_BASE)
    assert two.requests[0]["settings"]["model"] == "b"
    broken = serve("", 0.0, "--models", "500")
    assert one_line(dataset_folder, tmp_path / "g", broken, model=TINY_BASE)["weights_sha256"] == ours


def test_a_model_that_is_not_the_one_served(dataset_folder, serve, tmp_path, copies, capsys):
    out = tmp_path / "p.jsonl"
    server = serve("", 0.0, "--models", models(("surgery", copies["other"])))
    fails(capsys, predict(dataset_folder, out, server.endpoint), "whose weights are others than those of")
    two = serve("", 0.0, "--models", models(("a", "/srv/a"), ("b", "/srv/b")))
    fails(capsys, predict(dataset_folder, out, two.endpoint), "lists 2 models, none of them .*: a, b; .*--served-model")
    fails(capsys, predict(dataset_folder, out, two.endpoint, model="a"), "no folder here says how 'a' is asked")
    assert not server.requests and not two.requests


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_frames_are_sent_as_we_see_them(tmp_path):
    """Bytes as they are where every decoder agrees; else the PNG of our own reading."""
    rgb = Image.effect_noise((40, 30), 80).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    cases = {
        "a.png": (rgb, {}), "b.jpg": (rgb, {}), "grey.png": (rgb.convert("L"), {}), "tiff.tif": (rgb, {}),
        "alpha.png": (Image.merge("RGBA", (*rgb.split(), Image.new("L", rgb.size, 9))), {}),
        "turned.jpg": (rgb, {"exif": turned}), "clear.png": (rgb, {"transparency": (1, 2, 3)}),
    }  # fmt: skip
    for name, (image, options) in cases.items():
        image.save(tmp_path / name, **options)
        sent = decoded(frame_url(tmp_path / name))
        seen = Image.open(tmp_path / name).convert("RGB")
        assert sent.mode == "RGB" and sent.size == (40, 30) and sent.tobytes() == seen.tobytes(), name
        as_it_is = base64.b64encode((tmp_path / name).read_bytes()).decode() in frame_url(tmp_path / name)
        assert as_it_is == (name in ("a.png", "b.jpg")), name
    with pytest.raises(SurgeryR1Error, match="no such image"):
        frame_url(tmp_path / "none.png")


def test_tokens_are_counted_without_reading_images(tiny):
    encoder = PromptEncoder(tiny.processor, "norm100")
    for size in ((1280, 1024), (160, 128), (33, 900), (720, 576)):
        for images in (1, 2):
            prompt = Prompt(
                tuple(MemoryImage(Image.new("RGB", size)) for _ in range(images)), "Where is suction located?"
            )
            assert encoder.token_count(prompt) == len(encoder.tokens([prompt])[0][0].ids)


def test_work_that_has_begun_comes_out_when_other_work_fails():
    begun, fail = threading.Event(), threading.Event()

    def work(number: int) -> int:
        if number == 1:
            begun.wait(10)
            fail.set()
            raise ValueError("one")
        if number == 2:
            begun.set()
            fail.wait(10)
        return number

    done, stopped = [], []
    with pytest.raises(ValueError, match="one"):
        for pair in finished_map(work, iter(range(100)), 2, lambda: stopped.append(True)):
            done.append(pair)
    assert (0, 0) in done and (2, 2) in done and len(done) < 10 and stopped


def test_vllm_in_this_process_needs_vllm_and_no_server(dataset_folder, tmp_path, capsys):
    common = ["predict", "--model", str(TINY_BASE), "--data", str(dataset_folder), "--split", "val"]
    common += ["--out", str(tmp_path / "p.jsonl"), "--engine", "vllm"]
    if importlib.util.find_spec("vllm") is None:
        fails(capsys, main(common), r"--engine vllm: vLLM cannot be imported here .* pip install vllm .* --endpoint")
    fails(capsys, main([*common, "--endpoint", "http://127.0.0.1:9/v1"]), "--engine vllm with --endpoint")


def test_vllm_in_this_process_is_told_what_no_reply_may_hold(tiny, dataset, monkeypatch):
    """It is not installed here: the module that is imported says what it was asked."""
    prompt, seen = prompt_of(dataset.split("val")[0], dataset), []

    class LLM:
        def __init__(self, **_):
            pass

        def generate(self, requests, how, **_):
            seen.append(how)
            tokens = range(PromptEncoder(tiny.processor, "norm100").token_count(prompt))
            return [SimpleNamespace(prompt_token_ids=tokens, outputs=[SimpleNamespace(token_ids=[5])])] * len(requests)

    fake = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = LLM, lambda **settings: settings
    monkeypatch.setitem(sys.modules, "vllm", fake)
    engine = VllmEngine(tiny, GenerationOptions(max_new_tokens=7), "float32")
    [[(number, text)]] = engine.replies([prompt])
    assert (number, text) == (0, tiny.tokenizer.decode([5]))
    [how] = seen
    assert how.pop("logit_bias") == dict.fromkeys(banned(tiny), -100.0)
    assert (how["temperature"], how["max_tokens"]) == (0.0, 7)


def test_engines_that_expand_images_get_one_token_for_each(tiny, dataset):
    encoder, prompt = PromptEncoder(tiny.processor, "norm100"), prompt_of(dataset.split("val")[0], dataset)
    short, token = encoder.unexpanded(prompt), tiny.processor.image_token_id
    whole = list(encoder.tokens([prompt])[0][0].ids)
    at = short.index(token)
    assert short.count(token) == 1 and whole.count(token) > 1
    assert short == [*whole[:at], token, *whole[at + whole.count(token) :]]


def test_the_page_shows_the_last_result_of_the_real_engines(monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(root / "scripts")
    import engine_page
    import test_engines as script

    result = json.loads((root / "docs/engines.json").read_text())
    page = (root / engine_page.PAGE).read_text()
    assert set(result) == set(script.PARTS) and all(part["good"] for part in result.values())
    for part, table in engine_page.TABLES.items():
        assert f"<!-- engines: {part} -->\n" + "\n".join(table(result[part])) in page, part
    rows = result["texts"]["rows"]
    assert {row["engine"] for row in rows} == {*script.ENGINES, script.OFFLINE, script.BESIDE}
    assert all(row["identical"] == row["questions"] == script.QUESTIONS for row in rows)
