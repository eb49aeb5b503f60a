"""One writer at a time: who is refused, what a dead holder leaves, and that nothing else is in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from surgery_r1._util.locks import held
from surgery_r1.errors import SurgeryR1Error

HOLD = """
import sys
from pathlib import Path
from surgery_r1._util.locks import held
with held(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """A function that starts a process which holds a path until it is killed."""
    started = []

    def hold(path):
        child = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout.readline() == "held\n"
        return child

    yield hold
    for child in started:
        child.kill()
        child.communicate()


def test_another_process_is_refused_by_name(holder, tmp_path):
    run = tmp_path / "deep" / "run"
    child = holder(run)
    with pytest.raises(SurgeryR1Error, match=rf"run: process {child.pid} on .* is already training here; wait"):
        held(run, "training").__enter__()
    child.communicate()
    assert child.returncode == 0 and list(run.parent.iterdir()) == [], "given back, it leaves nothing behind"


def test_a_killed_holder_blocks_nobody(holder, tmp_path):
    child = holder(tmp_path / "run")
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert (tmp_path / ".run.lock").read_text().split()[0] == str(child.pid)
    with held(tmp_path / "run", "training"):
        assert (tmp_path / ".run.lock").read_text().split()[0] == str(os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_who_waits_is_let_in_when_the_holder_has_ended(holder, tmp_path):
    child = holder(tmp_path / "run")
    entered = []

    def wait():
        with held(tmp_path / "run", "training", wait=True):
            entered.append((tmp_path / ".run.lock").read_text().split()[0])

    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive() and entered == []
    child.kill()
    waiting.join(60)
    assert entered == [str(os.getpid())] and list(tmp_path.iterdir()) == []


def test_two_names_of_one_folder_are_one_lock(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path)
    with held(tmp_path / "run", "training"):
        for name in ("run", "run/../run", "link"):
            with pytest.raises(SurgeryR1Error, match=f"process {os.getpid()}"), held(tmp_path / name, "training"):
                pass
        with held(tmp_path / "run2", "training"):
            pass
    with pytest.raises(RuntimeError), held(tmp_path / "run", "training"):
        raise RuntimeError
    with held(tmp_path / "link", "training"):
        pass


def test_a_lock_that_its_holder_has_just_removed_is_taken_anew(tmp_path, monkeypatch):
    """The holder ends between our opening of the file and our locking of it: our file has no name any more."""
    import fcntl

    plain, calls = fcntl.flock, []

    def flock(file, how):
        if not calls:
            (tmp_path / ".run.lock").unlink()
        calls.append(file)
        plain(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path / "run", "training"):
        assert len(calls) == 2
        with pytest.raises(SurgeryR1Error, match="already training"), held(tmp_path / "run", "training"):
            pass


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SurgeryR1Error, match=r"run: cannot write: .*check path"), held(tmp_path / "file" / "run", "x"):
        pass
