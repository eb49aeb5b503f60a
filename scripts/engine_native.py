"""``predict --prompt native`` held to its schema by a real vLLM server.

A part of ``scripts/test_engines.py``. The tiny base was not made for this: what it answers is worth nothing, and no
figure of it is kept. What counts is that the server takes the schemas, obeys the impossible one, and that every reply
has the form; what the same model writes when nothing holds it stands beside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine_servers import lines, ours, served

from surgery_r1.vocab import ANSWERS

QUESTIONS = 12
WAYS = {
    "with reasoning": [],
    "without reasoning, one example": ["--no-reasoning", "--few-shot", "1"],
}


def native(dataset: Path, folder: Path, environment: Path) -> Iterator[dict[str, Any]]:
    """A row for each way of asking."""
    folder.mkdir()
    exported = folder / "exported"
    ours("export", "tiny", exported)
    asked = ["--prompt", "native", "--model", exported, "--box-space", "pixels", "--data", dataset, "--split", "val"]
    asked += ["--limit", str(QUESTIONS)]
    free = {}
    for number, (way, more) in enumerate(WAYS.items()):
        free[way] = folder / f"free{number}.jsonl"
        ours("predict", *asked, *more, "--max-new-tokens", "64", "--out", free[way])
    with served("vllm serve", environment, exported, folder / "vllm.log") as server:
        for number, (way, more) in enumerate(WAYS.items()):
            out = folder / f"held{number}.jsonl"
            ours("predict", *asked, *more, "--endpoint", server.endpoint, "--out", out)
            found, unheld = lines(out), lines(free[way])
            parsed, constraints = sum(map(is_reply, found)), sorted({line["asked"]["constraint"] for line in found})
            yield {
                "asked": way,
                "constraints": constraints,
                "questions": len(found),
                "parsed": parsed,
                "problems": counted(found),
                "parsed_free": sum(map(is_reply, unheld)),
                "as_expected": constraints == ["structured_outputs"] and parsed == len(found) == QUESTIONS,
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
