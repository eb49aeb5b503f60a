"""The documents: what they link to, name, cite and command is there, and the map is the one that the tests hold to."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from test_architecture import LEVELS

from surgery_r1.cli import main
from surgery_r1.data.rationales.checks import CHECKS
from surgery_r1.records import Frame, Sample, TrainingRow
from surgery_r1.rewards import REWARDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "surgery_r1"
FIRST_SCREEN = 45
#: Flags that every command has, beside those of the snapshot.
GLOBAL_FLAGS = {"--help", "--debug", "--version"}


@cache
def tracked() -> frozenset[str]:
    """Files of the repository, relative to its root; nothing outside a checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return frozenset()
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    return frozenset(name for name in done.stdout.split("\0") if name and (ROOT / name).exists())


if not tracked():
    pytest.skip("not a git checkout", allow_module_level=True)

DOCUMENTS = sorted(name for name in tracked() if name.endswith(".md"))
SCRIPTS = sorted(name for name in tracked() if re.fullmatch(r"runs/[^/]+\.sh", name))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def is_tracked(path: Path) -> bool:
    """Whether a file, or a folder with files, is in the repository; links are followed."""
    path = path.resolve()
    if not path.is_relative_to(ROOT):
        return False
    name = path.relative_to(ROOT).as_posix()
    return name in tracked() or any(other.startswith(f"{name}/") for other in tracked())


def without_code(text: str) -> str:
    """A document without what stands in code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE))


# ------------------------------------------------------------------------------------------------------ citations


def test_nothing_cites_a_document_that_is_not_here():
    """Working papers by their names; constants of that name are code."""
    cited = re.compile(r"\b(?:FACTS|DESIGN|STYLE)(?:\.md\b|,?\s+(?:sections?\s+|§\s*)?\d|\s+of\s+the\s+task)")
    found = []
    for name in sorted(tracked() - {"tests/test_docs.py"}):
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" in data:
            continue
        text = data.decode("utf-8", errors="replace")
        found += [f"{name}:{text.count(chr(10), 0, m.start()) + 1}: {m[0]!r}" for m in cited.finditer(text)]
    assert not found, "\n".join(found)


# ---------------------------------------------------------------------------------------------------------- links


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a document."""
    headings = re.findall(r"^#+ +(.*?) *$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_of_the_repository(name):
    broken = []
    for target in re.findall(r"\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)", without_code(read(name))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        if not is_tracked(there) or (anchor and anchor not in anchors(there.read_text(encoding="utf-8"))):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_a_document_names_exist(name):
    """Paths with a folder: below the root, the package or the document."""
    places = (ROOT, PACKAGE, (ROOT / name).parent)
    named = set(re.findall(r"(?<![\w./{<-])((?:[\w.-]+/)+[\w-]+\.(?:py|sh|toml|txt|cff))\b(?!/)", read(name)))
    # Capitals stand for a path of the reader's; a label file is an example.
    named = {path for path in named if not re.search(r"(?:^|/)[A-Z_]+/|/seq|^seq|frame\d", path)}
    assert not sorted(path for path in named if not any(is_tracked(place / path) for place in places))


def names_exist(dotted: str) -> bool:
    """Whether ``surgery_r1.x.y`` is a module, or a name in the source of one."""
    parts = dotted.split(".")[1:]
    for length in range(len(parts), -1, -1):
        base = PACKAGE.joinpath(*parts[:length])
        files = [path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()]
        if files and (length or files[0].name == "__init__.py"):
            return all(re.search(rf"\b{part}\b", files[0].read_text(encoding="utf-8")) for part in parts[length:])
    return False


@pytest.mark.parametrize("name", DOCUMENTS)
def test_modules_that_a_document_names_exist(name):
    dotted = set(re.findall(r"(?<![\w/])surgery_r1(?:\.[A-Za-z_]\w*)+", read(name))) - {"surgery_r1.json"}
    assert not sorted(item for item in dotted if not names_exist(item))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_figure_is_left_out(name):
    """Figures that a run must give are written as words in double braces until it has."""
    assert not re.findall(r"\{\{[A-Z_]+\}\}", read(name))


# ---------------------------------------------------------------------------------------- what mirrors the source


def test_first_screen_of_the_readme():
    lines = read("README.md").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    end = next(i for i in range(first, len(lines)) if not lines[i].startswith("|"))
    assert end <= FIRST_SCREEN, f"the first table ends at line {end}"


def test_the_map_is_the_one_that_imports_are_held_to():
    expected = "\n".join("  ".join(sorted(level)) for level in LEVELS)
    found = re.search(r"<!-- map -->\n+```\w*\n(.*?)\n```\n+<!-- /map -->", read("docs/architecture.md"), re.DOTALL)
    assert found and found[1] == expected, f"write between the markers of docs/architecture.md:\n{expected}"


@pytest.mark.parametrize(
    ("file", "record"), [("samples.jsonl", Sample), ("frames.jsonl", Frame), ("rows.jsonl", TrainingRow)]
)
def test_example_records_are_read_by_the_source(file, record):
    section = re.search(rf"`{re.escape(file)}`[^\n]*\n+```json\n(.*?)\n```", read("docs/architecture.md"), re.DOTALL)
    assert section, f"docs/architecture.md shows no line of {file}"
    data = json.loads(section[1])
    assert record.from_json(data).to_json() == data


def test_rewards_and_checks_are_all_explained():
    architecture, data = read("docs/architecture.md"), read("docs/data.md")
    assert not [name for name in REWARDS if f"`{name}`" not in architecture]
    assert not [name for name, _ in CHECKS if f"`{name}`" not in data]


def test_keys_of_manifest_and_metrics_are_all_explained(dataset, dataset_folder, tmp_path):
    architecture, empty = read("docs/architecture.md"), tmp_path / "predictions.jsonl"
    empty.write_text("")
    command = ["score", empty, "--data", dataset_folder, "--split", "val", "--out", tmp_path]
    assert main([str(word) for word in command]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert not [key for key in (*dataset.manifest, *metrics) if f"`{key}`" not in architecture]


# ------------------------------------------------------------------------------------------------------- commands


class Command(NamedTuple):
    """What the snapshot of flags says of a command: flag -> (metavar, required), and its positionals likewise."""

    flags: dict[str, tuple[str, bool]]
    positionals: list[tuple[str, bool]]


@cache
def commands() -> dict[tuple[str, ...], Command]:
    known: dict[tuple[str, ...], Command] = {}
    for line in read("tests/flags.txt").splitlines():
        match = re.fullmatch(r"([a-z -]+): (.*?) \((required|repeatable|default: .*)\)", line)
        assert match, line
        command = known.setdefault(tuple(match[1].split()), Command({}, []))
        names = [word.rstrip(",") for word in match[2].split() if word.startswith("-")]
        metavar = " ".join(word for word in match[2].split() if not word.startswith("-"))
        required = match[3] == "required"
        command.flags.update(dict.fromkeys(names, (metavar, required)))
        if not names:
            command.positionals.append((metavar, required))
    return known


def allows(metavar: str, value: str) -> bool:
    """Whether a value is one of the choices, where there are any. Words in capitals stand for a value."""
    choices = re.fullmatch(r"\{([^}]*)\}", metavar)
    return not choices or value in choices[1].split(",") or value.isupper() or value.startswith("$")


def problem_of(words: list[str], whole: bool) -> str | None:
    """What is wrong with the words after ``surgery-r1``; a part of a command (not ``whole``) may lack what it needs."""
    if words and set(words) <= GLOBAL_FLAGS:
        return None
    name = next((tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in commands()), None)
    if name is None:
        is_group = not whole and any(command[: len(words)] == tuple(words) for command in commands())
        return None if is_group else f"no such command: {' '.join(words[:2])}"
    command, given, positionals = commands()[name], set(), list(commands()[name].positionals)
    rest = [word for word in words[len(name) :] if word not in GLOBAL_FLAGS]
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if not positionals:
                return f"{' '.join(name)}: {word!r} is one too many"
            # Several values may follow where the snapshot has dots.
            metavar, _ = positionals[0] if "..." in positionals[0][0] else positionals.pop(0)
            if not allows(metavar, word):
                return f"{word!r}: not one of {metavar}"
            continue
        flag, _, value = word.partition("=")
        if flag not in command.flags:
            return f"{' '.join(name)} has no {flag}"
        given.add(flag)
        metavar = command.flags[flag][0]
        values = [value] if value else []
        while metavar and rest and not rest[0].startswith("--") and (not values or "..." in metavar):
            values.append(rest.pop(0))
        if metavar and not values and whole:
            return f"{flag} without a value"
        if not all(allows(metavar, value) for value in values):
            return f"{flag} {' '.join(values)}: not one of {metavar}"
    missing = [flag for flag, (_, required) in command.flags.items() if required and flag not in given]
    missing += [metavar for metavar, required in positionals if required]
    return f"{' '.join(name)} without {', '.join(missing)}" if whole and missing else None


def alternatives(words: list[str]) -> Iterator[list[str]]:
    """``sft|rft`` stands for each of them."""
    place = next((i for i, word in enumerate(words) if "|" in word), None)
    if place is None:
        yield words
        return
    for choice in words[place].split("|"):
        yield from alternatives([*words[:place], choice, *words[place + 1 :]])


def called(line: str) -> Iterator[list[str]]:
    """Words after ``surgery-r1`` of each call in a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    part: list[str] = []
    for word in [*lexer, ";"]:
        if word and set(word) <= set(";&|()"):
            while part and re.fullmatch(r"\w+=.*|do|then|else|if|time|!", part[0]):
                part.pop(0)
            if part and Path(part[0]).name == "surgery-r1":
                yield part[1:]
            elif "-m" in part and part[part.index("-m") + 1 :][:1] == ["surgery_r1"]:
                yield part[part.index("-m") + 2 :]
            part = []
        elif word and set(word) <= set("<>"):
            part.append("2>")
        else:
            part.append(word)


def code_lines(name: str) -> Iterator[str]:
    """Lines of shell: of a script all, of a document those that stand in code blocks; broken lines are joined."""
    text = read(name).replace("\\\n", " ")
    if name.endswith(".sh"):
        yield from (line for line in text.splitlines() if not line.lstrip().startswith("#"))
        return
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif (fenced or line.startswith("    ")) and re.search(r"surgery-r1 |-m surgery_r1 ", line):
            yield line.strip().removeprefix("$ ")


def test_there_are_commands_to_look_at():
    assert SCRIPTS and sum(len([*called(line)]) for name in SCRIPTS for line in code_lines(name)) > 5


@pytest.mark.parametrize("name", [*DOCUMENTS, *SCRIPTS])
def test_commands_parse(name):
    wrong = []
    for line in code_lines(name):
        wrong += [f"{line}: {problem}" for words in called(line) if (problem := problem_of(words, whole=True))]
    if name.endswith(".md"):
        for quoted in re.findall(r"`(?:[\w./]*/)?surgery-r1 +([^`\n]+)`", read(name)):
            problems = [problem_of(words, whole=False) for words in alternatives(shlex.split(quoted))]
            wrong += [f"`{quoted}`: {problem}" for problem in problems if problem]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound(name):
    assert os.access(ROOT / name, os.X_OK), "chmod +x"
    assert "set -euo pipefail" in read(name)
    if shutil.which("bash"):
        done = subprocess.run(["bash", "-n", str(ROOT / name)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
