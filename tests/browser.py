"""A browser for tests of pages, or the reason why there is none; and a server that exists in the browser alone."""

from __future__ import annotations

import io
import json
import mimetypes
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import surgery_r1
from surgery_r1.synthetic import draw_random_scene

PAGE = Path(surgery_r1.__file__).parent / "serve" / "page"
URL = "http://localhost:9/"
#: As the server sends it.
CSP = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
SIZE = (320, 256)


@contextmanager
def launched() -> Iterator[Any]:
    """A Chromium: Debian's, or one that Playwright has installed. Skips the test where there is neither."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        path = found or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no Chromium on this machine: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@cache
def scene(seed: int) -> tuple[bytes, tuple[dict, ...]]:
    """A drawn frame as PNG, and its objects."""
    drawn = draw_random_scene(random.Random(seed), SIZE, style_seed=seed)
    data = io.BytesIO()
    drawn.image.save(data, "PNG")
    objects = [{"name": o.name, "state": o.state, "location": o.location, "box_px": o.box_px} for o in drawn.objects]
    return data.getvalue(), tuple(objects)


def questions_on(objects: tuple[dict, ...]) -> list[dict]:
    forms = {"location": "Where is {} located?", "state": "What is the state of {}?"}
    tools = [seen["name"] for seen in objects if seen["name"] != "kidney"]
    asked = [{"question": f.format(name), "kind": kind, "subject": name} for kind, f in forms.items() for name in tools]
    return [{"question": "What organ is being operated?", "kind": "organ", "subject": "kidney"}, *asked]


class Answers:
    """Answers the page's requests inside the browser, as ``surgery-r1 serve`` would: no port, no model.

    Attributes:
        posted: fields of every question that was asked.
        change: what is changed in the next answers, by model: keys of an answer, or ``error`` with (status, code, ...).
        token: what the server wants, None for nothing.
    """

    def __init__(self, models: tuple[str, ...] = ("rft", "sft"), seeds: tuple[int, ...] = (11, 5)) -> None:
        self.models, self.seeds = models, seeds
        self.posted: list[dict[str, Any]] = []
        self.strangers: list[str] = []
        self.change: dict[str, dict[str, Any]] = {}
        self.token: str | None = None
        self.scenes = {f"scene-{i + 1}": scene(seed) for i, seed in enumerate(seeds)}

    def __call__(self, route: Any) -> None:
        request = route.request
        if not request.url.startswith(URL):
            if not request.url.startswith(("blob:", "data:")):
                self.strangers.append(request.url)
            return route.continue_()
        name = request.url.removeprefix(URL)
        if name.startswith("v1/") and self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return self._json(route, {"error": {"code": "token", "message": "no token", "fix": "send one"}}, 401)
        if name.startswith("v1/"):
            return self._json(route, *getattr(self, f"_{name.removeprefix('v1/')}")(request))
        if name.startswith("samples/"):
            return route.fulfill(body=self.scenes[Path(name).stem][0], content_type="image/png")
        path = PAGE / (name.removeprefix("page/") or "index.html")
        kind = mimetypes.guess_type(path.name)[0]
        return route.fulfill(body=path.read_bytes(), content_type=kind, headers={"Content-Security-Policy": CSP})

    def _json(self, route: Any, body: Any, status: int = 200, **headers: str) -> None:
        route.fulfill(status=status, body=json.dumps(body), content_type="application/json", headers=headers)

    def _models(self, _: Any) -> tuple[dict]:
        models = [{"id": name, "stage": name.split("-")[0], "rationale": True, "direct": False} for name in self.models]
        return ({"models": models, "default": self.models[0], "limits": {"body_bytes": 2**20, "question_chars": 500}},)

    def _samples(self, _: Any) -> tuple[dict]:
        samples = [
            {"id": name, "title": f"Drawn scene {name[-1]}", "url": f"/samples/{name}.png", "objects": objects}
            | {"width": SIZE[0], "height": SIZE[1], "questions": questions_on(objects)}
            for name, (_, objects) in self.scenes.items()
        ]
        return ({"samples": samples},)

    def _suggest(self, _: Any) -> tuple[dict]:
        names = ("suction", "stapler", "bipolar_forceps")
        return ({"questions": questions_on(tuple({"name": name} for name in names))},)

    def _answer(self, request: Any) -> tuple:
        asked = fields(request)
        self.posted.append(asked)
        change = self.change.get(asked["model"], {})
        if "error" in change:
            status, code, message, fix = change["error"]
            return {"error": {"code": code, "message": message, "fix": fix}}, status
        one = self._one(asked) | change
        reply = {"model": asked["model"], "stage": asked["model"], "answers": [one], "ms": 310.0}
        return (reply | {"image": {"width": SIZE[0], "height": SIZE[1]}},)

    def _one(self, asked: dict[str, Any]) -> dict:
        objects = self.scenes.get(asked.get("sample", ""), (b"", self.scenes["scene-1"][1]))[1]
        about = next((q for q in questions_on(objects) if q["question"] == asked["question"]), None)
        seen = next((o for o in objects if about and o["name"] == about["subject"]), objects[0])
        kind = about["kind"] if about else None
        answer = {"location": seen["location"], "state": seen["state"]}.get(str(kind), seen["name"])
        place = seen["location"] or "left-top"
        rationale = f"the {seen['name']} is seen in the {place}, so it is {answer}"
        half = [0 if "left" in place else 160, 0 if "top" in place else 128]
        spans = [
            {"kind": "tool", "name": seen["name"], "box_px": list(seen["box_px"])},
            {"kind": "place", "name": place, "box_px": [*half, half[0] + 160, half[1] + 128]},
        ]
        for span in spans:
            start = rationale.index(span["name"])
            span |= {"start": start, "end": start + len(span["name"])}
        flags = {"rationale_answer": True, "answer_box": True if kind == "location" else None, "names_subject": True}
        return {
            "question": asked["question"],
            "kind": kind,
            "subject": about["subject"] if about else None,
            "known_form": kind is not None,
            "answer": answer,
            "box_px": list(seen["box_px"]),
            "box_norm": None,
            "rationale": rationale,
            "spans": spans,
            "confidence": 0.93,
            "sampled": None,
            "agreement": {"conclusion": answer, "box_place": place, "rationale_box": None, "disagree": []} | flags,
            "problems": [],
            "text": f"<think>{rationale}</think>",
        }


def fields(request: Any) -> dict[str, Any]:
    """Fields of a posted form, the image as its bytes."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    found = {}
    for part in BytesParser(policy=HTTP).parsebytes(head + request.post_data_buffer).iter_parts():
        name = re.search(r'name="(\w+)"', str(part["Content-Disposition"]))[1]
        data = part.get_payload(decode=True)
        found[name] = data if name == "image" else data.decode().strip()
    return found
