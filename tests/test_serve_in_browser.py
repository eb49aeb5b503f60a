"""Page, server and model together: a browser asks the shipped base through ``surgery-r1 serve``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from browser import CSP, launched
from served import only_this_machine

pytestmark = pytest.mark.slow
TOKEN = "only-for-this-test-0123456789"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    yield from only_this_machine(monkeypatch)


@pytest.fixture
def serve():
    """``serve(*arguments)`` -> the address of a server that is stopped at the end."""
    running = []

    def start(*arguments, **environment):
        command = [sys.executable, "-m", "surgery_r1", "serve", "--model", "tiny", "--port", "0", *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
        )
        running.append(process)
        for line in process.stdout:
            if found := re.search(r"http://[\d.]+:(\d+)/", line):
                return f"http://127.0.0.1:{found[1]}/"
        raise AssertionError("the server ended before it served")

    yield start
    for process in running:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_drawn_scene_is_asked_and_its_box_covered(serve, token):
    beyond = ("--host", "0.0.0.0") if token else ()
    url = serve(*beyond, **({"SURGERY_R1_SERVE_TOKEN": token} if token else {}))
    with urllib.request.urlopen(url) as response:
        assert response.headers["Content-Security-Policy"] == CSP
    with launched() as browser:
        page = browser.new_page()
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith((url, "blob:")) or wrong.append(request.url))
        page.goto(url)
        if token:
            page.locator("#token-text").fill(token)
            page.keyboard.press("Enter")
        page.locator(".frame").nth(5).wait_for()
        page.locator(".frame").first.click()
        page.keyboard.press("2")
        page.locator(".pane[aria-busy=false]").wait_for()
        # The base was never taught to answer; it points.
        assert (
            page.locator(".answer").inner_text() == "no answer"
            and "no answer" in page.locator(".problems").inner_text()
        )
        page.locator(".predicted").wait_for()
        page.keyboard.press("c")
        page.locator(".of2 .pane:nth-child(2)[aria-busy=false] .mark.cover").wait_for()
        assert page.locator(".mark.disagree").count() == 0 and wrong == []
