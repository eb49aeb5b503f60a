"""What the documents print is run: every command and Python example that has no excuse in ``doc_commands.py``.

Each page is gone through from top to bottom in a folder of its own, in which lies what a reader has got by then, under
the names that the pages use (:data:`GIVEN`). What a command writes takes the place of that.

Commands run in processes of their own, forked from one that has imported torch and TRL: importing them for each of some
seventy commands would take ten minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from doc_commands import (
    DATA,
    GIVEN,
    NOT_RUN,
    REPLACED,
    ROOT,
    SHELL,
    SMALLER,
    Block,
    Command,
    blocks,
    commands,
    pages,
    replaced,
)
from served import Served, only_this_machine

from surgery_r1.cli import main
from surgery_r1.synthetic import make_scenes

BLOCKS = [block for page in pages() for block in blocks(page) if block.language not in DATA]
COMMANDS = [command for block in BLOCKS if block.language in SHELL for command in commands(block)]
PAGES = sorted(
    {b.page for b in BLOCKS if b.language == "python"} | {c.where.split(":")[0] for c in COMMANDS if not c.excuse}
)
#: Programs that are run here.
PROGRAMS = ("surgery-r1", "curl")
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["surgery_r1.cli", "surgery_r1.train.stage", "surgery_r1.evaluate.run"])


def is_run(block: Block) -> bool:
    return block.language == "python" or any(not command.excuse for command in commands(block))


# ------------------------------------------------------------------------------------------- every block is looked at


def test_every_command_is_run_or_has_an_excuse(capsys):
    unknown = [f"{c.where}: {c}" for c in COMMANDS if not c.excuse and c.words[0] not in PROGRAMS]
    assert not unknown, "neither run nor excused (NOT_RUN in tests/doc_commands.py):\n" + "\n".join(unknown)
    run = [block for block in BLOCKS if is_run(block)]
    excused = Counter(c.excuse for c in COMMANDS if c.excuse)
    said = [f"\n{len(run)} of {len(BLOCKS)} blocks are run, {len(COMMANDS) - excused.total()} commands; not run are:"]
    said += [f"{number:4} {reason}" for reason, number in excused.items()]
    with capsys.disabled():
        sys.stdout.write("\n".join([*said, ""]))
    assert len(run) >= 35 and len(COMMANDS) - excused.total() >= 60


def test_placeholders_stand_for_something():
    """Words in capitals are given to a page, or written by a command of it before."""
    unknown, known = [], set()
    for command in COMMANDS:
        known |= {(command.where.split(":")[0], name) for name in command.writes}
        places = {word for word in command.words if re.fullmatch(r"[A-Z][A-Z0-9_]+", word) and replaced(word) == word}
        there = {word for word in places if word in GIVEN or (command.where.split(":")[0], word) in known}
        if not command.excuse and places - there:
            unknown.append(f"{command.where}: {places - there}")
    assert not unknown, "in GIVEN of tests/doc_commands.py is nothing for\n" + "\n".join(unknown)


def test_blocks_are_in_a_language_that_is_known_here():
    assert not [f"{b.page}:{b.line}: {b.language}" for b in BLOCKS if b.language not in (*SHELL, "python")]


def test_whatever_is_said_of_commands_holds_for_some():
    texts = [str(command) for command in COMMANDS]
    patterns = [pattern for pattern, _ in (*NOT_RUN, *SMALLER)]
    assert not [pattern for pattern in patterns if not any(re.match(pattern, text) for text in texts)]
    every = "\n".join(token for command in COMMANDS for token in command.words)
    every += "".join(block.text for page in pages() for block in blocks(page) if block.language == "toml")
    assert not [pattern for pattern, _ in REPLACED if not re.search(pattern, every, re.M)]


def test_excuses_name_tests_that_are_there():
    named = re.findall(r"\b(?:tests|docs)/\w+\.\w+", " ".join(reason for _, reason in NOT_RUN))
    assert named and not [name for name in named if not (ROOT / name).is_file()]


# ------------------------------------------------------------------------------------------------------- running them


def _forked(words: tuple[str, ...], folder: Path, log: Path) -> None:
    """In a process of its own: a command of ours, with its output in ``log``."""
    os.chdir(folder)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = list(words)
    with pytest.MonkeyPatch.context() as patch:
        guard = only_this_machine(patch)
        next(guard)
        status = main(words[1:]) if words[0] == "surgery-r1" else runpy.run_path(words[1]) and 0
        next(guard, None)
    sys.exit(status)


def forked(words: tuple[str, ...], folder: Path, log: Path) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=_forked, args=(words, folder, log))
    process.start()
    return process


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Reader:
    """Who goes through a page, in a folder of their own."""

    def __init__(self, folder: Path, endpoint: str = "") -> None:
        self.folder, self.log = folder, folder / "printed.log"
        self.endpoint, self.port, self.server = endpoint, 0, None

    def values(self, text: str) -> str:
        return text.replace("ENDPOINT", self.endpoint).replace("PORT", str(self.port))

    def command(self, command: Command) -> None:
        """Run it; it must end well. A server goes on until the next one, or the end of the page."""
        for path in (self.folder / name for name in command.writes):
            if path.is_symlink():
                path.unlink()
        if command.words[0] == "curl":
            self._curl(command)
        elif command.words[:2] == ("surgery-r1", "serve"):
            self._serve(command)
        else:
            self._ends_well(command.run_as, command.where)

    def python(self, block: Block) -> None:
        """Its file has it at the line of the page, for tracebacks."""
        script = self.folder / "example.py"
        script.write_text("\n" * (block.line - 1) + block.text)
        self._ends_well(("python", script.name), f"{block.page}:{block.line}")

    def _start(self, words: tuple[str, ...]) -> multiprocessing.process.BaseProcess:
        self.log.write_bytes(b"")
        return forked(tuple(self.values(word) for word in words), self.folder, self.log)

    def _ends_well(self, words: tuple[str, ...], where: str) -> None:
        process = self._start(words)
        process.join()
        assert process.exitcode == 0, f"{where}: {' '.join(words)}\n{self.log.read_text()}"

    def _curl(self, command: Command) -> None:
        if shutil.which("curl") is None:
            pytest.skip(f"{command.where}: there is no curl")
        words = [self.values(word) for word in command.run_as]
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command.where}: {done.stderr}{done.stdout}"
        assert json.loads(done.stdout)["answers"], command.where

    def _serve(self, command: Command) -> None:
        self.stop()
        self.port = free_port()
        self.server = self._start(command.run_as)
        while f"http://127.0.0.1:{self.port}/" not in self.log.read_text():
            assert self.server.is_alive(), f"{command.where}: {command}\n{self.log.read_text()}"
            time.sleep(0.05)

    def close(self) -> None:
        """Leave no server behind."""
        if self.server is not None:
            self.server.kill()
            self.server.join()

    def stop(self) -> None:
        """Stop the server, if there is one; it must end well."""
        server, self.server = self.server, None
        if server is not None:
            server.terminate()
            server.join()
            assert server.exitcode == 0, f"serve was told to stop\n{self.log.read_text()}"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    yield from only_this_machine(monkeypatch)


def _train(folder: Path) -> None:
    """Two steps of each stage from the shipped model, whose replies are short, and a run with LoRA."""
    reader = Reader(folder)
    for name, stage in (
        ("sft", "sft --model tiny-rft"),
        ("rft", "rft --model tiny-rft"),
        ("lora", "sft --set lora.enabled=true lora.rank=4"),
    ):
        words = f"surgery-r1 train {stage} --config tiny --data dataset --out {name}".split()
        reader.command(Command(f"given: {name}", tuple(words)))


@pytest.fixture(scope="module")
def given(scenes, dataset_folder, dataset, tmp_path_factory) -> Path:
    """The folder with what :data:`GIVEN` names."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import make_model_folder

    folder = tmp_path_factory.mktemp("given")
    frame = min(scenes.glob("seq_1/left_frames/*.png"))
    for name, source in (("frame.png", frame), ("dataset", dataset_folder), ("examples", ROOT / "examples")):
        (folder / name).symlink_to(source)
    make_scenes(folder / "scenes17", domain=17, frames=10, size=(160, 128), workers=1)
    # Labels and frames of EndoVis-18 come as two downloads.
    shutil.copytree(scenes, folder / "labels18", ignore=shutil.ignore_patterns("left_frames"))
    shutil.copytree(scenes, folder / "frames18", ignore=shutil.ignore_patterns("vqla"))
    make_model_folder.write_folder("qwen2_5_vl_7b", folder / "shape_of_7b", weights=False)
    # Predictions by a system of somebody else's, which is always right.
    lines = [{"id": s.id, "answer": s.answer, "box_px": list(s.box_px)} for s in dataset.split("val")]
    (folder / "theirs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _train(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    server = Served(Path(__file__).with_name("teacher_server.py"), tmp_path_factory.mktemp("teacher") / "log.jsonl")
    yield server.endpoint
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_prints_works(page, given, teacher, tmp_path):
    for name, source in GIVEN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(given / source)
    with closing(Reader(tmp_path, teacher)) as reader:
        for block in blocks(page):
            # A config that the words above it give a name to is written under that name.
            named = re.search(r"`(\w+\.toml)`:$", block.above)
            if block.language == "toml" and named:
                (tmp_path / named[1]).write_text(reader.values(replaced(block.text)))
            elif block.language == "python":
                reader.python(block)
            elif block.language in SHELL:
                for command in commands(block):
                    if not command.excuse:
                        reader.command(command)
        reader.stop()
