"""ZeRO-2 and ZeRO-3 with real DeepSpeed on this CPU: what ``tests/test_shards.py`` holds of them.

    scripts/setup_deepspeed.sh && python scripts/test_deepspeed.py [--out docs/deepspeed.json]

About fifteen minutes on two cores. ``make test-engines`` does it, and updates docs/deepspeed.json and the table of
docs/several_gpus.md. Exit status 1 where a test fails.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

PAGE = Path("docs/several_gpus.md")
MARKS = "<!-- deepspeed -->", "<!-- /deepspeed -->"
VERSIONS = "import importlib.metadata as m, sys; print(*[m.version(name) for name in sys.argv[1:]])"
PACKAGES = ("deepspeed", "torch", "accelerate", "transformers", "trl")
#: What pytest is asked for.
TESTS = ["-m", "pytest", "-m", "slow", "tests/test_shards.py", "-k", "zero"]


def tested(environment: Path) -> list[dict[str, Any]]:
    """A row for each test: its name, whether it passed, its seconds."""
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str((environment / "extensions").resolve()),
    }
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.xml"
        command = [str(environment / "bin" / "python"), *TESTS, f"--junitxml={report}"]
        subprocess.run(command, env=variables, check=False)
        return rows(report)


def rows(report: Path) -> list[dict[str, Any]]:
    """The rows of a report of pytest."""
    cases = ElementTree.parse(report).iter("testcase")
    return [
        {
            "test": case.attrib["name"].removeprefix("test_"),
            "passed": not list(case),
            "seconds": round(float(case.attrib["time"])),
        }
        for case in cases
        if "zero" in case.attrib["name"]
    ]


def table(result: dict[str, Any]) -> str:
    """The rows of docs/several_gpus.md."""
    lines = ["| test | passed | seconds |", "|---|---|---|"]
    lines += [
        f"| `{row['test']}` | {'yes' if row['passed'] else '**no**'} | {row['seconds']} |" for row in result["rows"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    took = f", load {result['load']} at the start, {result['minutes']} minutes" if "minutes" in result else ""
    return "\n".join([*lines, "", f"{result['date']}, {result['machine']}{took}, float32; {versions}."])


def write_page(result: dict[str, Any]) -> None:
    """Put the table between the marks of the page."""
    head, tail = MARKS
    text = PAGE.read_text(encoding="utf-8")
    new = re.sub(f"{head}.*?{tail}", lambda _: f"{head}\n{table(result)}\n{tail}", text, flags=re.DOTALL)
    PAGE.write_text(new, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, default=Path(".venv-deepspeed"), help="made by setup_deepspeed.sh")
    parser.add_argument("--reports", type=Path, nargs="+", help="what pytest has written (--junitxml); runs nothing")
    parser.add_argument("--note", default="", help="what is to be known of the run, such as other work on the machine")
    parser.add_argument("--out", type=Path, default=Path("docs/deepspeed.json"))
    args = parser.parse_args()
    python = args.environment / "bin" / "python"
    if not python.is_file():
        sys.exit(f"{args.environment} is not there: run scripts/setup_deepspeed.sh")
    began, load = time.monotonic(), round(os.getloadavg()[0], 1)
    found = [row for report in args.reports for row in rows(report)] if args.reports else tested(args.environment)
    done = subprocess.run([str(python), "-c", VERSIONS, *PACKAGES], check=True, capture_output=True, text=True)
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": ", ".join(filter(None, [f"{os.cpu_count()} CPU cores", args.note])),
        **({} if args.reports else {"load": load, "minutes": round((time.monotonic() - began) / 60, 1)}),
        "command": " ".join(["python", *TESTS]),
        "versions": dict(zip(PACKAGES, done.stdout.split(), strict=True)),
        "rows": found,
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_page(result)
    return 0 if found and all(row["passed"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
