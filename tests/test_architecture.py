"""Import directions: who may import whom, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import surgery_r1

ROOT = Path(surgery_r1.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

#: The rooms, low to high. A module belongs to the longest name here that its own begins with; it imports from lower
#: levels, and from its own level only where it is the same room.
LEVELS: list[set[str]] = [
    {"errors"},
    {"__init__", "vocab"},
    {"_util", "geometry"},
    {"chat", "records", "synthetic"},
    {"codec", "prompts", "train.config", "train.run_folder", "data.paraphrases", "data.mirroring"},
    {"matching", "data.recipe"},
    {"data.formats", "data.rationales"},
    {"data.location_rule"},
    {"data", "data.assemble"},
    {"rewards"},
    {"models"},
    {"evaluate"},
    {"train"},
    {"data.export"},
    {"report", "bench", "doctor"},
    {"inference"},
    {"stages"},
    {"demo", "reproduce", "serve"},
    {"cli"},
    {"__main__"},
]
LEVEL = {unit: level for level, units in enumerate(LEVELS) for unit in units}
#: Libraries that take seconds to import.
HEAVY = {
    "bitsandbytes",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "huggingface_hub",
}
LONGEST_FILE = 330
LONGEST_FUNCTION = 60


def unit_of(module: str) -> str:
    parts = module.split(".") if module else ["__init__"]
    return next((name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in LEVEL), parts[0])


def imports(path: Path) -> list[tuple[str, bool]]:
    """Absolute names that a file imports, and whether at import time (not in a function or under TYPE_CHECKING)."""
    found = []

    def walk(node: ast.AST, at_import: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                found.extend((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    inner = whole.removeprefix("surgery_r1.")
                    is_module = whole.startswith("surgery_r1.") and inner in MODULES
                    found.append((whole if is_module else str(child.module), at_import))
            walk(child, at_import and not inside)

    walk(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def test_every_unit_has_a_level():
    assert {unit_of(module) for module in MODULES} == set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    unit = unit_of(module)
    for name, _ in imports(MODULES[module]):
        if name.split(".")[0] != "surgery_r1":
            continue
        other = unit_of(name.removeprefix("surgery_r1").removeprefix("."))
        assert other == unit or LEVEL[other] < LEVEL[unit], f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if LEVEL[unit_of(m)] <= LEVEL["rewards"]])
def test_up_to_rewards_nothing_heavy_is_imported(module):
    heavy = [(name, at) for name, at in imports(MODULES[module]) if name.split(".")[0] in HEAVY]
    # Seeding needs torch and does so lazily: the one exception.
    assert not heavy or (module == "train.run_folder" and heavy == [("torch", False)])


@pytest.mark.parametrize(
    "module", [m for m in MODULES if unit_of(m) in ("cli", "__main__", "demo", "inference", "reproduce", "stages")]
)
def test_commands_import_nothing_heavy_before_they_run(module):
    heavy = {name for name, at_import in imports(MODULES[module]) if at_import and name.split(".")[0] in HEAVY}
    assert not heavy


def test_what_help_imports_is_light():
    """Everything that importing the command line imports, however far down."""
    seen: set[str] = set()
    todo = ["cli"]
    while todo:
        module = todo.pop()
        if module in seen or module not in MODULES:
            continue
        seen.add(module)
        for name, at_import in imports(MODULES[module]):
            if at_import:
                assert name.split(".")[0] not in HEAVY, f"{module} imports {name}"
                todo.append(name.removeprefix("surgery_r1").removeprefix("."))
    assert len(seen) > 5


def names_in(path: Path) -> set[str]:
    """Dotted names that a file uses."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("module", MODULES)
def test_arguments_and_environment_are_read_by_cli_alone(module):
    used = names_in(MODULES[module])
    if unit_of(module) not in ("cli", "__main__"):
        # The run folder notes the command of a run; the switches that keep libraries offline are in the environment,
        # as is what launchers tell the processes of a run.
        assert "sys.argv" not in used or module == "train.run_folder"
        assert not used & {"os.environ", "os.getenv"} or module in ("_util.offline", "_util.launcher")
        assert "sys.exit" not in used


def test_the_report_computes_no_metric():
    allowed = {"evaluate.tables", "evaluate.metrics", "evaluate.compare", "evaluate", "evaluate.plain_table"}
    computing = {"evaluate.score", "evaluate.intervals", "evaluate.floor", "matching", "rewards", "evaluate.predict"}
    for module in (m for m in MODULES if unit_of(m) == "report"):
        used = {name.removeprefix("surgery_r1.") for name, _ in imports(MODULES[module])}
        assert not used & computing and not {u for u in used if u.startswith("evaluate")} - allowed, module
        source = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        called = {ast.unparse(node.func).split(".")[-1] for node in ast.walk(source) if isinstance(node, ast.Call)}
        assert not called & {"iou", "match", "parse", "read", "paired", "intervals", "summarise"}, module


@pytest.mark.parametrize("module", MODULES)
def test_a_file_can_be_read_in_one_sitting(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_every_file_says_what_it_is(module):
    if MODULES[module].read_text().strip():
        assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))


@pytest.mark.slow
def test_every_doctest_is_collected():
    """A folder whose name a tool takes for generated files would be passed over in silence."""
    import subprocess
    import sys

    written = {path for path in MODULES.values() if ">>> " in path.read_text(encoding="utf-8")}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=--doctest-modules", str(ROOT)]
    done = subprocess.run(command, cwd=ROOT.parents[1], capture_output=True, text=True, check=False)
    collected = {ROOT.parents[1] / line.split("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert written and collected >= written, sorted(map(str, written - collected))


def test_functions_can_be_seen_on_one_screen():
    long = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{module}.{node.name}: {lines} lines")
    assert not long
