"""``predict --prompt native`` held to its schema by a real vLLM server.

A part of ``scripts/test_engines.py``. The tiny base was not made for this: what it answers is worth nothing, and no
figure of it is kept. What counts is that the server takes the schemas, obeys the impossible one, and that every reply
has the form; what the same model writes when nothing holds it stands beside. Where the schema lets it, this model
writes blanks without end: vLLM as it comes must be refused with that reason, and is told to leave them out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine_servers import lines, ours, served

from surgery_r1.vocab import ANSWERS

QUESTIONS = 12
#: Of the tiny tokenizer a rationale of 600 characters, the most that the schema takes, can have as many tokens.
WAYS = {
    "with reasoning": ["--max-new-tokens", "704"],
    "without reasoning, one example": ["--no-reasoning", "--few-shot", "1"],
}
NO_BLANKS = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')


def native(dataset: Path, folder: Path, environment: Path) -> dict[str, Any]:
    """Both ways of asking, and the server as it comes."""
    folder.mkdir()
    exported = folder / "exported"
    ours("export", "tiny", exported)
    asked = ["--prompt", "native", "--model", exported, "--box-space", "pixels", "--data", dataset, "--split", "val"]
    asked += ["--limit", str(QUESTIONS)]
    with served("vllm serve", environment, exported, folder / "vllm0.log") as server:
        words = ["predict", *asked, "--endpoint", server.endpoint, "--out", folder / "blanks.jsonl"]
        done = subprocess.run([sys.executable, "-m", "surgery_r1", *map(str, words)], capture_output=True, text=True)
    said = re.sub(r"^surgery-r1: --endpoint \S+ ", "", (done.stderr.strip().splitlines() or [""])[-1])
    told = done.returncode == 2 and "writes blanks" in said
    rows = []
    with served("vllm serve", environment, exported, folder / "vllm1.log", *NO_BLANKS) as server:
        for number, (way, more) in enumerate(WAYS.items()):
            held, free = (folder / f"{name}{number}.jsonl" for name in ("held", "free"))
            ours("predict", *asked, *more, "--endpoint", server.endpoint, "--out", held)
            ours("predict", *asked, *more, "--max-new-tokens", "64", "--out", free)
            rows.append(row(way, lines(held), lines(free)))
    as_expected = told and all(each["as_expected"] for each in rows)
    return {"rows": rows, "as_it_comes": {"status": done.returncode, "said": said}, "good": as_expected}


def row(way: str, held: list[dict[str, Any]], free: list[dict[str, Any]]) -> dict[str, Any]:
    """How many replies have the form, with the schema and without."""
    parsed, constraints = sum(map(is_reply, held)), sorted({line["asked"]["constraint"] for line in held})
    problems = counted(held)
    return {
        "asked": way,
        "constraints": constraints,
        "questions": len(held),
        "parsed": parsed,
        "problems": problems,
        "parsed_free": sum(map(is_reply, free)),
        # What the schema cannot say, or does not: corners the wrong way round, and numbers beyond any frame.
        "as_expected": constraints == ["structured_outputs"]
        and parsed == len(held) == QUESTIONS
        and set(problems) <= {"inverted_box", "bad_box"},
    }


def is_reply(line: dict[str, Any]) -> bool:
    """Whether a reply is the JSON object that was asked for and nothing else, read by no code of this project."""
    try:
        found = json.loads(line["reply"])
    except ValueError:
        return False
    keys = [*(["reasoning"] if line["asked"]["reasoning"] else []), "label", "bbox_2d"]
    if not isinstance(found, dict) or list(found) != keys or not isinstance(found["bbox_2d"], list):
        return False
    numbers = [number for number in found["bbox_2d"] if type(number) is int]
    return len(numbers) == len(found["bbox_2d"]) == 4 and found["label"] in ANSWERS


def counted(found: list[dict[str, Any]]) -> dict[str, int]:
    """How often each problem of a reply occurs."""
    problems = [problem for line in found for problem in line["reply_problems"]]
    return {problem: problems.count(problem) for problem in sorted(set(problems))}
