"""Fixtures of all tests. No test may reach the network."""

from __future__ import annotations

import os
import socket

import pytest

from surgery_r1.data.assemble import build_dataset
from surgery_r1.data.dataset import open_dataset
from surgery_r1.synthetic import make_scenes

# Before any library reads them: two threads on a busy machine are slower than one, and results are the same each time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Offline must be the package's own doing.
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.pop(_name, None)


def refuse_network(monkeypatch) -> list:
    """Every connection and name look-up fails; the list says which were tried."""
    tried: list = []

    def refuse(*args, **_):
        tried.append(args)
        raise AssertionError(f"a test reached for the network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    return tried


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fails the test even where a library swallowed the refusal."""
    tried = refuse_network(monkeypatch)
    yield
    assert not tried, f"a test reached for the network: {tried}"


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A drawn label folder of domain 18: 28 frames, two for each sequence."""
    out = tmp_path_factory.mktemp("scenes") / "scenes18"
    make_scenes(out, domain=18, frames=28, size=(160, 128), workers=1)
    return out


@pytest.fixture(scope="session")
def dataset_folder(scenes, tmp_path_factory):
    """The dataset folder of :func:`scenes`: 106 training, 28 dev and 38 val questions."""
    out = tmp_path_factory.mktemp("datasets") / "dataset"
    build_dataset([scenes], out)
    return out


@pytest.fixture(scope="session")
def dataset(dataset_folder):
    return open_dataset(dataset_folder)


@pytest.fixture(scope="session")
def tiny():
    """The tiny base; tests must not change it."""
    from surgery_r1.models import from_pretrained

    return from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def browser():
    """Chromium, or the reason why there is none.

    Not for the whole session: while it is open Playwright runs an event loop here, in which no other may be run.
    """
    from browser import launched

    with launched() as found:
        yield found
