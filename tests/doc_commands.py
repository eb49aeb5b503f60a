"""Code of the documents: what of it a test runs, what is not run and why, and what is changed before it runs.

A block in a document is code of the language that its fence names. An indented block, and a fence of ``sh`` or
``bash``, is for a shell. Every command of these either matches an excuse in :data:`NOT_RUN` or is run as it is printed,
but for :data:`REPLACED` and :data:`SMALLER`, by ``test_docs_commands.py``.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
SHELL = ("", "sh", "bash")
#: Fences of these are no code to run.
DATA = ("json", "text", "toml", "yaml")

#: What is not run: a pattern that a command begins with, and the reason. Every reason that names a test names one that
#: is there, and every pattern finds a command.
NOT_RUN = (
    (r"(?:git clone|cd surgery-r1|pip)\b", "installs from elsewhere"),
    (r"(?:make|\.ci/run)\b", "what this test is started by, or an environment of its own"),
    (r"(?:vllm|swift|export MIN_PIXELS|torchrun .*verl|python -m verl)\b", "a program of others, not installed here"),
    (r"surgery-r1 .*--engine vllm\b|surgery-r1 .*--vllm\b", "needs vLLM; tests/test_colocate.py has a stand-in"),
    (r"surgery-r1 serve .*--endpoint\b", "needs a chat server; tests/test_serve_process.py has one"),
    (r"surgery-r1 (?:predict|train rft) .*--endpoint\b", "needs a chat server; tests/test_endpoint.py has one"),
    (r"surgery-r1 bench .*--device cuda\b|surgery-r1 gpu (?!--device cpu)", "needs a GPU"),
    (r"surgery-r1 gpu --device cpu\b", "minutes; tests/test_gpu.py runs it with less"),
    (r"surgery-r1 bench rft --whole\b", "minutes; tests/test_bench.py runs it with less"),
    (r"surgery-r1 demo\b", "minutes; tests/test_predict.py runs its stages"),
    (r"surgery-r1 reproduce\b", "hours; tests/test_reproduce.py runs it with less"),
    (r"surgery-r1 doctor qwen2_5_vl_7b\b", "needs weights of 7B"),
    (r"(?:torchrun|accelerate launch)\b.* qwen2_5_vl_7b\b", "needs GPUs; tests/test_several_ranks.py trains tiny ones"),
    (r"(?:runs/\w+\.sh|sbatch)\b", "needs GPUs; tests/test_recipes.py runs the scripts"),
    (r"surgery-r1 predict --prompt native\b", "needs weights from a hub; tests/test_native.py has random ones"),
    (r"surgery-r1 train specialist .*=RESNET18_FOLDER\b", "needs weights from a hub; tests/test_specialist.py"),
    (r"python scripts/(?:pretrain|ship)_tiny\.py\b", "makes the models that are shipped, for hours"),
    (r"python scripts/(?:make_model_folder|run_true_shapes|true_shape_log_probs)\.py\b", "10 GiB; tests/test_plan.py"),
    (r"python scripts/count_causes\.py\b", "minutes, and figures of docs/causes.md"),
)

#: What stands for something else in what is run, and what the test puts in its place.
REPLACED = (
    (r"^CONFIG$", "tiny"),
    (r"127\.0\.0\.1:8765\b", "127.0.0.1:PORT"),
    (r"http://127\.0\.0\.1:8000/v1\b", "ENDPOINT"),
)

#: What lies in the folder in which a page is gone through, by the name that the page uses, and where the test has it.
GIVEN = {
    **dict.fromkeys(("dataset", "DATASET", "demo/dataset"), "dataset"),
    **dict.fromkeys(("runs/rft", "demo/rft"), "rft"),
    **dict.fromkeys(("theirs.jsonl", "runs/val/predictions.jsonl"), "theirs.jsonl"),
    **dict.fromkeys(("frame.png", "demo/scenes18/seq_1/left_frames/frame002.png"), "frame.png"),
    **dict.fromkeys(("FOLDER", "MY_SET"), "examples/own_frames"),
    "ENDOVIS17": "scenes17",
    "ENDOVIS18": "labels18",
    "FRAMES": "frames18",
    "MODEL": "rft/best",
    "MODEL_FOLDER": "shape_of_7b",
    "RUN": "lora",
    "examples": "examples",
    "my_rewards.py": "examples/custom_reward.py",
    "my_set.toml": "examples/own_frames/adapter.toml",
    "runs/sft": "sft",
}

_EVAL = "eval.dev_samples=4 eval.batch_size=4"
_SFT = "sft.max_steps=2 sft.eval_every=2 sft.batch_size=2"
_RFT = "rft.max_steps=2 rft.eval_every=2 rft.prompts=2 rft.generations=4 rft.rollouts_every=1"
#: What is put behind a command, so that a test can afford it.
SMALLER = (
    (r"surgery-r1 data make-scenes\b", "--frames 28 --size 160x128 --workers 1"),
    (r"surgery-r1 train sft (?!.*--plan)", f"--set {_SFT} {_EVAL}"),
    (r"surgery-r1 train rft (?!.*--plan)", f"--set {_RFT} {_EVAL}"),
    (
        r"surgery-r1 train specialist\b",
        "--set specialist.max_steps=2 specialist.eval_every=2 specialist.frames_per_step=2",
    ),
    (r"surgery-r1 predict\b", "--max-new-tokens 24"),
    (r"surgery-r1 doctor\b", f"--set {_SFT} {_RFT} {_EVAL}"),
    (r"surgery-r1 serve\b", "--port PORT --max-new-tokens 24"),
    (r"curl\b", "--silent --show-error --fail-with-body"),
)


class Block(NamedTuple):
    """A block of code, the line of its first line, and the words above it."""

    page: str
    line: int
    language: str
    text: str
    above: str


class Command(NamedTuple):
    """The words of a command as printed, apart from variables that are set before it."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def excuse(self) -> str | None:
        """Why it is not run."""
        return next((reason for pattern, reason in NOT_RUN if re.match(pattern, str(self))), None)

    @property
    def writes(self) -> list[str]:
        """Files and folders that it writes."""
        found = [value for flag, value in pairwise(self.words) if flag == "--out"]
        place = {("data", "make-scenes"): 3, ("export",): 3}
        return found + [self.words[n] for name, n in place.items() if self.words[1 : 1 + len(name)] == name]

    @property
    def run_as(self) -> tuple[str, ...]:
        """Its words, with what :data:`REPLACED` and :data:`SMALLER` say."""
        more = " ".join(smaller for pattern, smaller in SMALLER if re.match(pattern, str(self)))
        return tuple(replaced(word) for word in (*self.words, *more.split()))


def replaced(text: str) -> str:
    """A word of a command, or a file, with :data:`REPLACED`."""
    for pattern, value in REPLACED:
        text = re.sub(pattern, value, text)
    return text


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """The blocks of code of a document, given relative to the repository, from top to bottom."""
    found, above = [], ""
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type == "inline":
            above = token.content
        elif token.type in ("fence", "code_block"):
            fenced = token.type == "fence"
            language = token.info.split()[0] if token.info.strip() else "none" if fenced else ""
            found.append(Block(page, token.map[0] + 1 + fenced, language, token.content, above))
    return tuple(found)


def lines(block: Block) -> Iterator[tuple[int, str]]:
    """Lines of shell with their numbers, broken ones joined. Where some have a prompt, the others are output."""
    session, joined, first = "$ " in {line[:2] for line in block.text.splitlines()}, "", 0
    for number, line in enumerate(block.text.splitlines(), block.line):
        first = first if joined else number
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1].rstrip() + " "
            continue
        if joined and (not session or joined.startswith("$ ")):
            yield first, joined.removeprefix("$ ")
        joined = ""


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block of shell. ``.venv/bin/surgery-r1`` is ``surgery-r1``."""
    for number, line in lines(block):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        part: list[str] = []
        for word in [*lexer, "&&"]:
            if word not in ("&&", ";"):
                # What is set for a command stands before it.
                if part or not re.match(r"[A-Z_]+=", word):
                    part.append(word.removeprefix(".venv/bin/"))
            elif part:
                yield Command(f"{block.page}:{number}", tuple(part))
                part = []


@cache
def pages() -> tuple[str, ...]:
    """The documents of the repository."""
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "*.md"], capture_output=True, text=True, check=True)
    return tuple(sorted(name for name in done.stdout.splitlines() if (ROOT / name).exists()))
