"""Reasoning by a teacher behind a real server over loopback: faults, privacy, resumption, and nothing asked twice."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import label_folders as lf
import pytest
from served import only_this_machine, serving

from surgery_r1.chat import endpoint as where
from surgery_r1.chat.client import Client
from surgery_r1.chat.endpoint import check_endpoint, on_this_machine
from surgery_r1.chat.trouble import Refusals
from surgery_r1.cli import main
from surgery_r1.cli.teacher_progress import teacher_progress
from surgery_r1.data.assemble import build_dataset
from surgery_r1.data.dataset import open_dataset
from surgery_r1.data.rationales.teacher import prompt
from surgery_r1.data.rationales.teacher.response_cache import ResponseCache, TeacherResponse
from surgery_r1.data.recipe import load_recipe
from surgery_r1.errors import SurgeryR1Error

pytest.importorskip("openai", reason="pip install 'surgery-r1[teacher]'")
SERVER = Path(__file__).with_name("teacher_server.py")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    yield from only_this_machine(monkeypatch)


@pytest.fixture
def serve(tmp_path):
    yield from serving(SERVER, tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four frames of a training and a dev sequence, with 20 questions, and two val frames that need no reasoning."""
    return lf.small_set(tmp_path_factory.mktemp("labels"))


def recipe_file(path: Path, endpoint: str, **changes) -> Path:
    settings = {"concurrency": 3, "retries": 2, "timeout": 1.0, "cot": 1, "attempts": 2, "writers": '["teacher"]'}
    settings |= changes
    teacher = "".join(
        f"{key} = {settings[key]}\n"
        for key in ("concurrency", "retries", "timeout", "requests_per_minute")
        if key in settings
    )
    path.write_text(
        f"[rows]\ncot = {settings['cot']}\n[reasoning]\nwriters = {settings['writers']}\n"
        f'attempts = {settings["attempts"]}\n[teacher]\nendpoint = "{endpoint}"\nmodel = "m"\n{teacher}'
    )
    return path


def build(folder: Path, out: Path, recipe: Path, *args: str) -> int:
    return main(["data", "build", str(folder), "--config", str(recipe), "--out", str(out), *args])


def fails(capsys, *args, match: str) -> None:
    import re

    assert build(*args) == 2
    error = capsys.readouterr().err
    assert re.search(match, error), error


def test_a_teacher_writes_the_reasoning(folder, serve, tmp_path, capsys):
    server = serve()
    recipe = recipe_file(tmp_path / "r.toml", server.endpoint, cot=2)
    assert build(folder, tmp_path / "ds", recipe, "--stats") == 0
    output = capsys.readouterr()
    dataset = open_dataset(tmp_path / "ds")
    rows = [row for row in dataset.rows if row.task == "cot"]
    assert len(rows) == 40 and {row.writer for row in rows} == {"teacher:m"}
    assert all(row.reasoning.startswith("Looking at") and "Answer" not in row.reasoning for row in rows)
    assert len({(row.sample_id, row.reasoning) for row in rows}) == 40
    about = dataset.manifest["recipe"]["writers"]["teacher:m"]
    assert about["sent"] == [f"frames and annotations to {server.endpoint} (this machine)"]
    assert (about["replies"], about["prompt_tokens"], about["completion_tokens"]) == (40, 4000, 800)
    card = (tmp_path / "ds/README.md").read_text()
    assert f"teacher:m was sent: frames and annotations to {server.endpoint} (this machine)." in card
    assert ": 40 requests" in output.err and "4,800 tokens spent" in output.err
    assert "rejected" not in output.out and "accepted" in output.out
    assert len(server.requests) == 40 and all(request["image"] for request in server.requests)


def test_what_lies_in_the_environment_is_not_sent(folder, serve, tmp_path, monkeypatch):
    server = serve()
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "BASE_URL"):
        monkeypatch.setenv(f"OPENAI_{name}", "precious")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-secret: precious")
    monkeypatch.setenv("SURGERY_R1_TEACHER_KEY", "meant\n")
    assert build(folder, tmp_path / "ds", recipe_file(tmp_path / "r.toml", server.endpoint)) == 0
    for request in server.requests:
        assert request["headers"]["authorization"] == "Bearer meant" and "precious" not in str(request["headers"])


@pytest.mark.parametrize("seeds", [True, False])
def test_seeds_are_sent_unless_the_recipe_says_no(folder, serve, tmp_path, monkeypatch, seeds):
    given, ask = [], Client.ask

    def noted(self, model, messages, seed=None):
        given.append(seed)
        return ask(self, model, messages, seed)

    monkeypatch.setattr(Client, "ask", noted)
    recipe = recipe_file(tmp_path / "r.toml", serve().endpoint)
    recipe.write_text(f"{recipe.read_text()}seeds = {str(seeds).lower()}\n")
    assert build(folder, tmp_path / "dataset", recipe) == 0
    assert given and all((seed is None) != seeds for seed in given)


def test_a_server_that_dies_at_a_seed_is_explained(folder, tmp_path, capsys):
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    recipe = recipe_file(tmp_path / "r.toml", f"http://127.0.0.1:{port}/v1", retries=0)
    fails(
        capsys, folder, tmp_path / "dataset", recipe, match="--no-enable-chunked-prefill, or set teacher.seeds = false"
    )


@pytest.mark.parametrize("key", ["two words", "schl\u00fcssel", "a\nb"])
def test_an_odd_key_is_not_shown(folder, serve, tmp_path, monkeypatch, capsys, key):
    monkeypatch.setenv("SURGERY_R1_TEACHER_KEY", key)
    assert build(folder, tmp_path / "ds", recipe_file(tmp_path / "r.toml", serve().endpoint)) == 2
    error = capsys.readouterr().err
    assert "SURGERY_R1_TEACHER_KEY has blanks or odd characters" in error and key not in error


def test_nothing_is_asked_twice(folder, serve, tmp_path, capsys):
    server = serve()
    recipe = recipe_file(tmp_path / "r.toml", server.endpoint)
    replies = ["--replies", str(tmp_path / "kept.jsonl")]
    assert build(folder, tmp_path / "a", recipe, *replies) == 0
    server.stop()
    # The server is gone, and all is there.
    assert build(folder, tmp_path / "b", recipe, *replies) == 0
    assert "0 requests" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert max(Counter(request["body"] for request in server.requests).values()) == 1


def test_a_killed_build_goes_on_without_paying_twice(folder, serve, tmp_path):
    server = serve(delay=0.15)
    recipe = recipe_file(tmp_path / "r.toml", server.endpoint, concurrency=2)
    kept = tmp_path / "ds.replies.jsonl"
    code = "import sys; from surgery_r1.cli import main; sys.exit(main(sys.argv[1:]))"
    args = [sys.executable, "-c", code, "data", "build", str(folder), "--config", str(recipe), "--out"]
    first = subprocess.Popen([*args, str(tmp_path / "ds")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (kept.exists() and kept.read_bytes().count(b"\n") >= 5):
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    # As if it had been killed while a reply was written.
    done = kept.read_bytes()
    kept.write_bytes(done + b'{"key": "00')
    paid, before = done.count(b"\n"), len(server.requests)
    assert 5 <= paid < 20
    assert build(folder, tmp_path / "ds", recipe) == 0
    assert kept.read_bytes().startswith(done)
    # What had been answered was not asked for again; only what was under way when it was killed.
    assert len(server.requests) - before == 20 - paid
    assert before - paid <= 2
    fresh = serve()
    build_again = recipe_file(tmp_path / "again.toml", fresh.endpoint)
    assert build(folder, tmp_path / "whole", build_again) == 0
    for name in ("rows.jsonl", "samples.jsonl", "frames.jsonl"):
        assert (tmp_path / "ds" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("fault", ["429", "500", "cut", "html", "json", "torn", "timeout"])
def test_faults_that_pass_are_retried(folder, serve, tmp_path, fault):
    server = serve(plan=f"none,{fault},none,{fault}")
    recipe = recipe_file(tmp_path / "r.toml", server.endpoint)
    assert build(folder, tmp_path / "ds", recipe) == 0
    manifest = json.loads((tmp_path / "ds/manifest.json").read_text())
    assert manifest["rows"]["cot"] == 20 and manifest["reasoning"]["teacher:m"]["rejected"] == {}
    assert len(server.requests) == 22


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", "answers 500: .*planned 500.*2 retries.*run again"),
        ("cut", "cannot be reached"),
        ("html", "no chat completion"),
        ("json", "no chat completion"),
        ("timeout", r"took longer than teacher\.timeout = 1 s"),
    ],
)
def test_faults_that_stay_stop_the_build_and_keep_what_is_done(folder, serve, tmp_path, capsys, fault, message):
    server = serve(plan=",".join(["none"] * 4 + [fault] * 30))
    recipe = recipe_file(tmp_path / "r.toml", server.endpoint, concurrency=1)
    fails(capsys, folder, tmp_path / "ds", recipe, match=message)
    assert sorted(path.name for path in tmp_path.iterdir() if "ds" in path.name) == ["ds.replies.jsonl"]
    assert len(ResponseCache(tmp_path / "ds.replies.jsonl")) == 4
    server = serve()
    recipe = recipe_file(tmp_path / "r.toml", server.endpoint)
    assert build(folder, tmp_path / "ds", recipe) == 0
    assert len(server.requests) == 16


def test_what_no_retry_can_mend_stops_at_once(folder, serve, tmp_path, capsys):
    for plan, message in (
        ("401", "answers 401: .*SURGERY_R1_TEACHER_KEY"),
        ("404", "answers 404: .*check teacher.endpoint"),
        ("redirect", r"redirects to http://elsewhere\.invalid/v1/chat/completions: frames were not sent there"),
        ("none,402,none", "answers 402: .*run again"),
        (",".join(["400"] * 20), "refuses every request with 400"),
    ):
        server = serve(plan=plan)
        recipe = recipe_file(tmp_path / "r.toml", server.endpoint, concurrency=1)
        fails(capsys, folder, tmp_path / f"ds{plan[:4]}", recipe, match=message)
        assert len(server.requests) == {"4": 10, "n": 2}.get(plan[0] if len(plan) > 9 else "", 1)
        # Refusals are not kept: they may not stand when the server has been seen to.
        with closing(ResponseCache(tmp_path / f"ds{plan[:4]}.replies.jsonl")) as replies:
            assert len(replies) == ("none" in plan)
    server.stop()
    fails(capsys, folder, tmp_path / "gone", recipe, match="cannot be reached")


def test_bad_replies_are_tried_again_then_dropped(folder, serve, tmp_path, capsys):
    """In turn: another language, empty, nothing at all, cut off, refused, a tool that is not there, a wrong answer."""
    plan = "german,none,empty,none,null,none,length,none,none,400,none,wrong,wrong,abort,none,"
    plan += "thought,moved,oneline,surrogate"
    server = serve(plan=plan)
    recipe = recipe_file(tmp_path / "r.toml", server.endpoint, concurrency=1)
    assert build(folder, tmp_path / "ds", recipe, "--stats") == 0
    manifest = json.loads((tmp_path / "ds/manifest.json").read_text())
    counts = manifest["reasoning"]["teacher:m"]
    assert (counts["asked"], counts["accepted"], counts["dropped"]) == (20, 19, 1)
    rejected = counts["rejected"]
    assert {"language", "empty", "cut_off", "refused", "absent_tool", "own_answer"} <= set(rejected)
    assert rejected["empty"] == 2 and rejected["absent_tool"] == 2 and rejected["cut_off"] == 2
    assert manifest["skipped"] == {} and manifest["rows"]["cot"] == 19
    texts = [row.reasoning for row in open_dataset(tmp_path / "ds").rows if row.task == "cot"]
    assert not any("Answer:" in text or "think" in text for text in texts) and any(text[0] == "?" for text in texts)
    out = capsys.readouterr().out
    assert "rejected: absent_tool" in out and "1 of 20 rationales failed their checks and were dropped" in out


def test_a_second_attempt_is_told_what_was_wrong():
    from surgery_r1.data.rationales.writer import RationaleRequest
    from surgery_r1.records import AnnotatedObject, Frame, Sample

    head = ("endovis18", "train", "seq_2", "frame003", "x.png", 160, 128)
    sample = Sample("i", *head, "Where is suction located?", "location", "suction", "left-top", (1, 1, 9, 9))
    frame = Frame("f", "x.png", 160, 128, "00", (AnnotatedObject("suction", "Idle", "left-top", (1, 1, 9, 9)),))
    first = prompt.request_text(RationaleRequest(sample, frame), 4, 50)
    second = prompt.request_text(RationaleRequest(sample, frame, 1, 1, ("leak", "absent_tool")), 4, 50)
    assert "- suction: state Idle, place left-top, region [1, 1, 9, 9]" in first and "4 to 50 words" in first
    assert "earlier attempt" not in first and "name no instrument that is not listed" in second
    assert len({prompt.request_text(RationaleRequest(sample, frame, number), 4, 50) for number in range(4)}) == 4


def test_requests_are_spread_over_the_minute(folder, serve, tmp_path):
    server = serve()
    recipe = recipe_file(tmp_path / "r.toml", server.endpoint, requests_per_minute=1200)
    assert build(folder, tmp_path / "ds", recipe) == 0
    times = [request["time"] for request in server.requests]
    # 20 requests, one each 50 ms.
    assert len(times) == 20 and max(times) - min(times) > 0.85


def endpoint_of(address: str, allow_remote: bool = False):
    return check_endpoint(address, allow_remote, setting="teacher.endpoint", key_variable="KEY")


def test_frames_stay_on_this_machine(folder, tmp_path, capsys, no_network, monkeypatch):
    for host in ("192.0.2.7", "[2001:db8::1]"):
        recipe = recipe_file(tmp_path / "r.toml", f"http://{host}:8000/v1")
        fails(capsys, folder, tmp_path / "ds", recipe, match="not on this machine, and frames are private.*--allow-rem")
    assert no_network == [] and not (tmp_path / "ds.replies.jsonl").exists()
    for endpoint, message in (
        ("ftp://127.0.0.1/v1", "no http address"),
        ("127.0.0.1:8000", "no http address"),
        ("http://user:secret@127.0.0.1:8000/v1", "holds a user name or password"),
    ):
        recipe = recipe_file(tmp_path / "r.toml", endpoint)
        fails(capsys, folder, tmp_path / "ds", recipe, match=message)
    assert not endpoint_of("http://192.0.2.7/v1", True).local
    own, other = ((2, 1, 6, "", (address, 0)) for address in ("127.0.0.1", "192.0.2.7"))
    # A name counts as this machine only when all of its addresses do, and is not looked up again.
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [own, other])
    with pytest.raises(SurgeryR1Error, match="not on this machine"):
        endpoint_of("http://teacher.local:8000/v1")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [own])
    assert endpoint_of("http://teacher.local:8000/v1").address == "http://127.0.0.1:8000/v1"
    # Where anything can be bound to, that proves nothing.
    monkeypatch.setattr(where, "_BINDS_ANYTHING", (str(tmp_path / "on"),))
    (tmp_path / "on").write_text("1\n")
    assert not on_this_machine(ip_address("0.0.0.0")) and on_this_machine(ip_address("127.0.0.1"))


def test_replies_kept_from_elsewhere_are_told_of(folder, serve, tmp_path):
    """Whoever answers the second time: the frames went where they went."""
    server = serve()
    recipe = recipe_file(tmp_path / "r.toml", server.endpoint)
    assert build(folder, tmp_path / "ds", recipe) == 0
    kept = tmp_path / "ds.replies.jsonl"
    kept.write_text(kept.read_text().replace("(this machine)", "(another machine)"))
    recipe_file(tmp_path / "r.toml", serve().endpoint)
    assert build(folder, tmp_path / "ds", recipe, "--overwrite") == 0
    assert "(another machine)" in (tmp_path / "ds/README.md").read_text()


def test_replies_are_not_kept_in_what_is_replaced(folder, tmp_path, capsys):
    recipe = recipe_file(tmp_path / "r.toml", "http://127.0.0.1:9/v1")
    replies = ["--replies", str(tmp_path / "ds/kept.jsonl")]
    fails(capsys, folder, tmp_path / "ds", recipe, *replies, match="keep it beside the dataset")


def test_proxies_get_nothing(folder, serve, tmp_path, monkeypatch):
    server = serve()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://192.0.2.9:3128")
    assert build(folder, tmp_path / "ds", recipe_file(tmp_path / "r.toml", server.endpoint)) == 0
    assert len(server.requests) == 20


def test_facts_alone(folder, serve, tmp_path):
    server = serve()
    recipe = recipe_file(tmp_path / "r.toml", server.endpoint)
    recipe.write_text(recipe.read_text() + "send_frames = false\n")
    assert build(folder, tmp_path / "ds", recipe) == 0
    assert not any(request["image"] for request in server.requests)
    assert "was sent: annotations to" in (tmp_path / "ds/README.md").read_text()


def test_one_reasoning_by_template_and_one_by_teacher(folder, serve, tmp_path):
    server = serve()
    recipe = recipe_file(tmp_path / "r.toml", server.endpoint, cot=2, writers='["template", "teacher"]')
    assert build(folder, tmp_path / "ds", recipe) == 0
    writers = Counter(row.writer for row in open_dataset(tmp_path / "ds").rows if row.task == "cot")
    assert writers == {"template-1": 20, "teacher:m": 20}


def test_replies_on_a_full_disk(tmp_path, monkeypatch):
    import os

    replies = ResponseCache(tmp_path / "r.jsonl")
    replies.put("aa", TeacherResponse("kept", "stop", 3, 4))
    whole = (tmp_path / "r.jsonl").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SurgeryR1Error, match="No space left on device; free some space"):
        replies.put("bb", TeacherResponse("lost", "stop"))
    monkeypatch.undo()
    replies.close()
    assert (tmp_path / "r.jsonl").read_bytes() == whole
    again = ResponseCache(tmp_path / "r.jsonl")
    assert again.get("aa") == TeacherResponse("kept", "stop", 3, 4) and again.get("bb") is None
    with pytest.raises(SurgeryR1Error, match="another build"):
        ResponseCache(tmp_path / "r.jsonl")
    again.close()
    for line in (b"nonsense\n", b'{"key": "xx"}\n', b'{"key": "00", "texxt": 1}\n', b"[]\n"):
        (tmp_path / "r.jsonl").write_bytes(whole + line)
        with pytest.raises(SurgeryR1Error, match=r"r\.jsonl:2: damaged reply"):
            ResponseCache(tmp_path / "r.jsonl")


def test_what_the_teacher_costs_is_shown(caplog):
    caplog.set_level("INFO")
    from types import SimpleNamespace

    teacher = SimpleNamespace(name="teacher:m", asked=50, reused=5, tokens=12_000)
    with teacher_progress(teacher) as progress:
        progress(1, 2)
        assert progress._bar.postfix == "50 requests, 5 kept replies, 12,000 tokens spent"
    assert caplog.messages == ["teacher:m: 50 requests, 5 kept replies, 12,000 tokens spent"]


def test_recipe_without_its_teacher(folder, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[reasoning]\nwriters = ["teacher"]\n')
    with pytest.raises(SurgeryR1Error, match=r"give teacher\.endpoint and teacher\.model"):
        load_recipe(path)
    path.write_text('[reasoning]\nwriters = ["techer"]\nattempt = 2\n')
    with pytest.raises(SurgeryR1Error, match=r"r\.toml:3: unknown key 'reasoning\.attempt'; did you mean"):
        load_recipe(path)
    for text, message in (
        ("[rows]\ncot = 3\n", "the template writer has 2 rationales"),
        ("[rows]\nvisual_qa = 9\n", "there are 3 paraphrases"),
        ("[rows]\nvisual_qa = 0\ngrounding_qa = 0\ncot = 0\n", "no row"),
        ("[reasoning]\nmin_words = 9\nmax_words = 3\n", "leaves no length"),
        ("[teacher]\ntimeout = 0\n", "seconds above 0"),
    ):
        path.write_text(text)
        with pytest.raises(SurgeryR1Error, match=message):
            load_recipe(path)
    with pytest.raises(SurgeryR1Error, match="one of surgery_r1_54k"):
        load_recipe("54k")
    assert build_dataset([folder], tmp_path / "ds", recipe=load_recipe("surgery_r1_54k"))["rows"]["total"] == 120


@pytest.mark.parametrize(
    ("events", "ends"),
    [
        # Three in a row, with nothing else under way.
        ("+1 x1 +2 x2 +3 x3", True),
        # A slow one is under way: it may be answered yet.
        ("+1 +2 x2 +3 x3 +4 x4 +5 x5 ok1 +6 x6 +7 x7", False),
        # The slow one is refused too.
        ("+1 +2 x2 +3 x3 +4 x4 x1", True),
        # An answer ends the run.
        ("+1 x1 +2 x2 +3 ok3 +4 x4 +5 x5", False),
    ],
)
def test_refusals_in_a_row_end_a_build_when_nothing_can_be_hoped_for(events, ends):
    """``+n``: request n goes out, ``xn``: it is refused, ``okn``: it is answered; the limit is three."""
    refusals, numbers, ended = Refusals(), {}, False
    for event in events.split():
        name = event.lstrip("+xok")
        if event.startswith("+"):
            numbers[name] = refusals.begin()
            continue
        if event.startswith("x"):
            ended |= refusals.too_many(numbers[name], 3)
        refusals.end(numbers[name], answered=event.startswith("ok"))
    assert ended == ends
