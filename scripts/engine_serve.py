"""``surgery-r1 serve`` in front of a real vLLM server, against the same with the model in its own process.

A part of ``scripts/test_engines.py``. The shipped model after RFT, in float32. Both are sent the same requests, with a
rationale and without; then vLLM is killed while it answers, and started again.
"""

from __future__ import annotations

import base64
import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from engine_servers import Server, ours, served

MODEL, QUESTIONS, SAMPLES = "tiny-rft", 24, 3
#: What both must say alike; the server does not tell how probable an answer was.
PARTS = ("text", "answer", "box_px", "box_norm", "rationale", "spans", "agreement", "problems")
#: Seconds; far beyond what a request takes, and within the time limit of ``serve`` (60).
NO_HANG = 30


@contextlib.contextmanager
def answering(*arguments: str | Path) -> Iterator[httpx.Client]:
    """``surgery-r1 serve``, from when it answers until the block ends."""
    words = [sys.executable, "-m", "surgery_r1", "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = re.search(r"http://\S+", process.stdout.readline())
        if address is None:
            sys.exit(f"surgery-r1 serve does not serve; exit status {process.wait()}")
        with httpx.Client(base_url=address[0], timeout=120, trust_env=False) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)


def requests(dataset: Path) -> list[dict[str, Any]]:
    """A request for each frame of val, until they hold :data:`QUESTIONS` questions or more."""
    from surgery_r1.data.dataset import open_dataset

    opened = open_dataset(dataset)
    of_frame: dict[Path, list[str]] = {}
    for sample in opened.split("val"):
        of_frame.setdefault(opened.image_path(sample), []).append(sample.question)
    found: list[dict[str, Any]] = []
    for path, questions in of_frame.items():
        if sum(len(request["questions"]) for request in found) < QUESTIONS:
            found.append({"image": base64.b64encode(path.read_bytes()).decode(), "questions": questions})
    return found


def answers(client: httpx.Client, asked: list[dict[str, Any]], rationale: bool) -> list[dict[str, Any]]:
    """What comes back, question by question."""
    found = []
    for request in asked:
        response = client.post("/v1/answer", json={**request, "rationale": rationale}).raise_for_status()
        found += [{part: answer[part] for part in PARTS} for answer in response.json()["answers"]]
    return found


def compared(form: str, here: list[dict[str, Any]], there: list[dict[str, Any]]) -> dict[str, Any]:
    """How many answers are the same in every part."""
    return {
        "form": form,
        "questions": len(here),
        "identical": sum(a == b for a, b in zip(here, there, strict=True)),
        "with_box": sum(answer["box_px"] is not None for answer in here),
        "with_rationale": sum(bool(answer["rationale"]) for answer in here),
    }


def serve(dataset: Path, folder: Path, environment: Path) -> dict[str, Any]:
    """Both forms of reply, sampled replies, and a server that dies."""
    folder.mkdir()
    exported = folder / "exported"
    ours("export", MODEL, exported)
    asked, forms = requests(dataset), {"with a rationale": True, "without": False}
    with answering("--model", exported, "--dtype", "float32") as client:
        here = {form: answers(client, asked, rationale) for form, rationale in forms.items()}
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(served("vllm serve", environment, exported, folder / "vllm0.log"))
        client = stack.enter_context(answering("--model", exported, "--endpoint", first.endpoint))
        (model,) = client.get("/v1/models").json()["models"]
        there = {form: answers(client, asked, rationale) for form, rationale in forms.items()}
        drawn = client.post("/v1/answer", json={**asked[0], "samples": SAMPLES}).raise_for_status().json()["answers"]
        dead = killed(client, asked[0], first)
        log = folder / "vllm1.log"
        stack.enter_context(served("vllm serve", environment, exported, log, port=first.port))
        again = answers(client, asked, True)
    rows = [compared(form, here[form], there[form]) for form in forms]
    rows.append(compared("with a rationale, vLLM started again", here["with a rationale"], again))
    sampled = [answer["sampled"]["n"] for answer in drawn]
    alike = all(row["identical"] == row["questions"] >= QUESTIONS and row["with_box"] for row in rows)
    told = rows[0]["with_rationale"] > rows[1]["with_rationale"] == 0
    return {
        "model": MODEL,
        "engine": model["engine"],
        "rows": rows,
        "sampled": sampled,
        "killed": dead,
        "good": alike and told and dead["as_expected"] and sampled == [SAMPLES] * len(asked[0]["questions"]),
    }


def killed(client: httpx.Client, request: dict[str, Any], server: Server) -> dict[str, Any]:
    """vLLM is killed while it writes replies: what the request under way gets, the next one, and ``/healthz``."""
    got: list[tuple[int, Any, float]] = []

    def ask(**more: Any) -> None:
        response = client.post("/v1/answer", json={**request, **more})
        got.append((response.status_code, response.json(), time.monotonic()))

    # Many replies, so that some are under way for long enough.
    waiting = threading.Thread(target=ask, kwargs={"samples": 64 // len(request["questions"]) - 1})
    waiting.start()
    while waiting.is_alive() and not _running(server):
        time.sleep(0.02)
    server.kill()
    times = [time.monotonic()]
    waiting.join()
    times.append(time.monotonic())
    ask()
    seconds = [round(at - since, 1) for (_, _, at), since in zip(got, times, strict=True)]
    health = client.get("/healthz").status_code
    errors = [body.get("error", {}) for _, body, _ in got]
    statuses = [status for status, _, _ in got]
    clear = all(error.get("code") == "engine" and "cannot be reached" in error["message"] for error in errors)
    return {
        "statuses": statuses,
        "seconds": seconds,
        "said": re.sub(r":\d+", ":PORT", errors[0].get("message", "")),
        "healthz": health,
        "as_expected": statuses == [502, 502] and clear and max(seconds) < NO_HANG and health == 200,
    }


def _running(server: Server) -> bool:
    """Whether vLLM has requests under way."""
    address = f"{server.endpoint.removesuffix('/v1')}/metrics"
    with urllib.request.urlopen(address, timeout=5) as response:
        found = re.search(r"^vllm:num_requests_running\S* (\S+)", response.read().decode(), re.MULTILINE)
    return found is not None and float(found[1]) > 0
