"""RFT with rollouts from a real vLLM server, against the same with our own sampler; and servers that are not right.

A part of ``scripts/test_engines.py``. The model is the tiny base after a short SFT, in float32. Its output layer is
made a weight of its own first: vLLM's CPU build does not reload one that is shared with the token embeddings.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine_servers import Server, lines, ours, served

SFT_STEPS, STEPS, KEPT = 120, 10, 4
SETTINGS = [
    "rft.prompts=8", "rft.generations=8", f"rft.max_steps={STEPS}", f"rft.eval_every={STEPS}", "eval.dev_samples=20",
    "rft.max_completion=48", "eval.max_new_tokens=48",
]  # fmt: skip
#: Full weights learn at the shipped rate, an adapter at a larger one: what is synchronised must matter.
WAYS = {
    "full weights": ["lora.enabled=false", "rft.learning_rate=8e-5"],
    "LoRA": ["lora.enabled=true", "lora.rank=8", "rft.learning_rate=1e-3"],
    "LoRA, bfloat16": ["lora.enabled=true", "lora.rank=8", "rft.learning_rate=1e-3", "model.dtype=bfloat16"],
}
#: On a CPU vLLM draws from seeds only where it reads prompts whole.
WHOLE = ("--no-enable-chunked-prefill",)
LORA_SERVER = ("--enable-lora", "--max-lora-rank", "8", *WHOLE)


def prepare(dataset: Path, folder: Path) -> Path:
    """A tiny model with an output layer of its own, after a short SFT."""
    import torch

    from surgery_r1.models.load import from_pretrained
    from surgery_r1.models.save import save_model

    bundle = from_pretrained("tiny", dtype="float32", device="cpu")
    model = bundle.model
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    save_model(model, bundle.processor, bundle.info, folder / "untied")
    short = [
        "--set",
        f"sft.max_steps={SFT_STEPS}",
        f"sft.eval_every={SFT_STEPS}",
        "eval.dev_samples=20",
        "sft.batch_size=2",
    ]
    run = folder / "sft"
    ours(
        "train",
        "sft",
        "--config",
        "tiny",
        "--data",
        dataset,
        "--model",
        folder / "untied",
        "--out",
        run,
        "--json",
        *short,
    )
    ours("export", run, folder / "start")
    return folder / "start"


def train(dataset: Path, model: Path, out: Path, way: str, *more: str | Path) -> subprocess.Popen[str]:
    """An RFT run that has begun."""
    command = ["train", "rft", "--config", "tiny", "--data", dataset, "--model", model, "--out", out, "--json", *more]
    kind = "server" if "--endpoint" in more else "colocate" if "--vllm" in more else "trainer"
    chosen = [*SETTINGS, *WAYS[way], f"rft.rollouts={kind}"]
    words = [sys.executable, "-m", "surgery_r1", *map(str, command), "--set", *chosen]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finished(run: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and last line of a run, which ends with this script."""
    try:
        said = run.communicate()[1].strip().splitlines()
    finally:
        run.kill()
    return run.returncode, said[-1] if said else ""


def steps(out: Path) -> list[dict[str, Any]]:
    """What a run has logged of its steps."""
    path = out / "metrics.jsonl"
    return [line for line in lines(path) if "reward" in line] if path.is_file() else []


def compare(way: str, dataset: Path, model: Path, folder: Path, environment: Path) -> dict[str, Any]:
    """Ten steps with our sampler, ten with the server's, and ten with an engine that the run starts itself."""
    stem, dtype = stem_and_dtype(way)
    code, said = finished(train(dataset, model, folder / f"{stem}.trainer", way))
    if code:
        sys.exit(said)
    more = LORA_SERVER if "LoRA" in way else WHOLE
    with served("vllm serve", environment, model, folder / f"{stem}.log", *more, dtype=dtype) as server:
        code, said = finished(train(dataset, model, folder / f"{stem}.server", way, "--endpoint", server.endpoint))
    if code:
        sys.exit(said)
    command = environment / "bin" / "vllm"
    code, said = finished(train(dataset, model, folder / f"{stem}.colocate", way, "--vllm", command))
    if code:
        sys.exit(said)
    return measured(way, folder)


def stem_and_dtype(way: str) -> tuple[str, str]:
    """What the folders of a way begin with, and its numbers."""
    sixteen = "16" in way
    return way.split()[0].strip(",").lower() + ("16" if sixteen else ""), "bfloat16" if sixteen else "float32"


def measured(way: str, folder: Path) -> dict[str, Any]:
    """What the three runs of a way have logged."""
    stem, dtype = stem_and_dtype(way)
    theirs, mine, beside = (steps(folder / f"{stem}.{kind}") for kind in ("server", "trainer", "colocate"))
    return {
        "way": way,
        "dtype": dtype,
        "steps": len(theirs),
        "rewards_trainer": [round(step["reward"], 4) for step in mine],
        "rewards_server": [round(step["reward"], 4) for step in theirs],
        "reward_trainer": round(sum(step["reward"] for step in mine) / len(mine), 4),
        "reward_server": round(sum(step["reward"] for step in theirs) / len(theirs), 4),
        "gap_mean": [step["sampler/gap_mean"] for step in theirs],
        "gap_max": max(step["sampler/gap_max"] for step in theirs),
        "reward_colocate": round(sum(step["reward"] for step in beside) / len(beside), 4),
        "steps_colocate": len(beside),
        "gap_mean_colocate": [step["sampler/gap_mean"] for step in beside],
        "gap_max_colocate": max(step["sampler/gap_max"] for step in beside),
        "sync_seconds": round(sorted(step["sampler/sync_seconds"] for step in theirs)[len(theirs) // 2], 3),
    }


def alike(way: dict[str, Any]) -> bool:
    """Whether mean rewards lie together as far as other draws allow; a prompt that is read wrongly earns nothing."""
    return all(abs(way[f"reward_{kind}"] - way["reward_trainer"]) <= 0.05 for kind in ("server", "colocate"))


def refused(dataset: Path, model: Path, folder: Path, environment: Path) -> Iterator[dict[str, Any]]:
    """Servers that are not right, what the run says, and what it must say."""
    cases = {
        "another model": (folder / "untied", LORA_SERVER, "LoRA", r"step 1: .* nats a token .* above 0\.01"),
        "other pixel limits": (
            model, ("--mm-processor-kwargs", '{"max_pixels": 12000}'), "full weights",
            r"reads \d+ tokens \(\d+ of images\) in a prompt that has \d+ tokens \(\d+ of images\) here",
        ),
        "no adapters": (model, (), "LoRA", r"LoRA is not enabled"),
    }  # fmt: skip
    for number, (case, (at_server, more, way, wanted)) in enumerate(cases.items()):
        with served("vllm serve", environment, at_server, folder / f"wrong{number}.log", *more) as server:
            out = folder / f"wrong{number}"
            code, said = finished(train(dataset, model, out, way, "--endpoint", server.endpoint, "--retries", "1"))
        yield {"server": case, "status": code, "said": said, "as_expected": code == 2 and bool(re.search(wanted, said))}


def killed(dataset: Path, model: Path, folder: Path, environment: Path) -> dict[str, Any]:
    """A server that is killed in the middle: the run stops and keeps what is done; resumed, it ends like the whole."""
    way, out = "LoRA", folder / "killed"
    with served("vllm serve", environment, model, folder / "killed0.log", *LORA_SERVER) as server:
        run = train(dataset, model, out, way, "--endpoint", server.endpoint, "--retries", "1")
        _kill_after(KEPT, out, run, server)
        code, said = finished(run)
    kept = sorted(int(path.name.rpartition("-")[2]) for path in (out / "checkpoints").glob("checkpoint-*"))
    logged = len(steps(out))
    with served("vllm serve", environment, model, folder / "killed1.log", *LORA_SERVER, port=server.port) as again:
        resumed, _ = finished(train(dataset, model, out, way, "--endpoint", again.endpoint, "--resume"))
    whole, found = steps(folder / "lora.server"), steps(out)
    return {
        "status": code,
        "said": said,
        "steps_done": logged,
        "checkpoints": kept,
        "resumed_status": resumed,
        "steps_after_resume": len(found),
        "rewards_as_uninterrupted": sum(a["reward"] == b["reward"] for a, b in zip(whole, found, strict=False)),
        "as_expected": code == 2 and kept == [logged] and not resumed and len(found) == STEPS,
    }


def _kill_after(count: int, out: Path, run: subprocess.Popen[str], server: Server) -> None:
    while run.poll() is None and len(steps(out)) < count:
        time.sleep(0.05)
    server.kill()


def rollouts(dataset: Path, model: Path, folder: Path, environment: Path) -> dict[str, Any]:
    """Every way, and whether all is as it should be.

    Args:
        model: what :func:`prepare` has made in ``folder``.
    """
    ways = []
    for way in WAYS:
        ways.append(compare(way, dataset, model, folder, environment))
        sys.stdout.write(f"rollouts, {way}: {json.dumps(ways[-1])}\n")
        sys.stdout.flush()
    return judged(ways)


def judged(ways: list[dict[str, Any]]) -> dict[str, Any]:
    """Ways, and whether all is as it should be."""
    gaps = [max(*way["gap_mean"], *way["gap_mean_colocate"]) for way in ways if way["dtype"] == "float32"]
    good = max(gaps) <= 0.01 and all(way["steps"] == STEPS == way["steps_colocate"] and alike(way) for way in ways)
    return {"ways": ways, "good": good}


def faults(dataset: Path, model: Path, folder: Path, environment: Path) -> dict[str, Any]:
    """Servers that are not right, and one that dies; after :func:`rollouts`, whose whole run that one is held to."""
    wrong = list(refused(dataset, model, folder, environment))
    death = killed(dataset, model, folder, environment)
    return {"wrong_servers": wrong, "killed": death, "good": all(w["as_expected"] for w in [*wrong, death])}
