"""Real engines against our own: the exported folder served in float32, the same questions asked, texts compared.

    scripts/setup_engines.sh && python scripts/test_engines.py [--models tiny demo/rft] [--out docs/engines.json]

About three minutes a model on two cores. ``make test-engines`` does it, and updates docs/engines.json and the table of
docs/engines.md. Exit status 1 where a text differs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine_servers import ENGINES, ours, served, texts, versions

PAGE = Path("docs/engines.md")
MARKS = "<!-- engines -->", "<!-- /engines -->"
QUESTIONS = 100
MAX_NEW_TOKENS = 128


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
        with served(engine, environment, exported, folder / f"{stem}.log") as server:
            ours("predict", *asked, "--endpoint", server.endpoint, "--out", folder / f"{stem}.jsonl")
        found = texts(folder / f"{stem}.jsonl")
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
