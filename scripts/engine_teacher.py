"""The teacher of ``data build`` against real servers: what it asks is taken, and what they send is read.

A part of ``scripts/test_engines.py``. The tiny model writes no reasoning that passes the checks; what counts is that
every request is answered, every reply is read (``<think>`` in the text or moved beside it) and kept, and every
rationale that is dropped is counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine_rollouts import WHOLE
from engine_servers import lines, ours, served

#: How servers are started: with a reasoning parser, vLLM moves what was thought beside the reply, as transformers does.
SERVERS = {
    "vllm serve": ("vllm serve", WHOLE),
    "vllm serve --reasoning-parser": ("vllm serve", (*WHOLE, "--reasoning-parser", "deepseek_r1")),
    "transformers serve": ("transformers serve", ()),
}
FRAMES = 14


def recipe(path: Path, endpoint: str, model: str) -> Path:
    """A recipe whose rationales a teacher writes, one attempt each."""
    table = {"endpoint": endpoint, "model": model, "max_tokens": 48, "concurrency": 4}
    teacher = "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    path.write_text(f'[reasoning]\nwriters = ["teacher"]\nattempts = 1\n[teacher]\n{teacher}\n')
    return path


def teacher(model: Path, folder: Path, environment: Path) -> Iterator[dict[str, Any]]:
    """A row for each server."""
    folder.mkdir()
    ours("data", "make-scenes", folder / "scenes", "--frames", str(FRAMES), "--workers", "1")
    for number, (name, (engine, more)) in enumerate(SERVERS.items()):
        out = folder / f"dataset{number}"
        with served(engine, environment, model, folder / f"{number}.log", *more) as server:
            config = recipe(folder / f"{number}.toml", server.endpoint, str(model))
            ours("data", "build", folder / "scenes", "--config", config, "--out", out)
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        (counted,) = manifest["reasoning"].values()
        replies = lines(next(folder.glob(f"dataset{number}*repl*")))
        yield {
            "server": name,
            "replies": len(replies),
            "with_think": sum("<think>" in reply["text"] and "</think>" in reply["text"] for reply in replies),
            "empty": sum(not reply["text"] for reply in replies),
            "counted_tokens": sum(bool(reply["completion_tokens"]) for reply in replies),
            **{key: counted[key] for key in ("asked", "accepted", "dropped", "rejected")},
        }
