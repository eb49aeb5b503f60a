"""The tables of docs/engines.md, from docs/engines.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path("docs/engines.md")


def texts(result: dict[str, Any]) -> Iterator[str]:
    yield "| engine | torch, transformers | model | characters a reply | identical |"
    yield "|---|---|---|---|---|"
    for row in result["rows"]:
        libraries = f"{row['torch']}, {row['transformers']}"
        same = f"**{row['identical']} of {row['questions']}**"
        engine = f"`{row['engine']}` {row['version']}"
        yield f"| {engine} | {libraries} | `{row['model']}` | {row['characters']} | {same} |"


def serve(result: dict[str, Any]) -> Iterator[str]:
    yield f"| `{result['model']}`, a reply | answers | with a box | with a rationale | the same in every part |"
    yield "|---|---|---|---|---|"
    for row in result["rows"]:
        same = f"**{row['identical']} of {row['questions']}**"
        yield f"| {row['form']} | {row['questions']} | {row['with_box']} | {row['with_rationale']} | {same} |"
    dead = result["killed"]
    (first, then), (waited, again) = dead["statuses"], dead["seconds"]
    yield ""
    yield "| vLLM is killed while it writes | status | seconds |"
    yield "|---|---|---|"
    yield f"| the request under way: {dead['said']} | {first} | {waited} |"
    yield f"| the next one | {then} | {again} |"
    yield f"| `/healthz` then | {dead['healthz']} | |"


def native(result: dict[str, Any]) -> Iterator[str]:
    yield "| asked | held by | replies | of the form asked for | of these a box of no use | the same model, not held |"
    yield "|---|---|---|---|---|---|"
    for row in result["rows"]:
        held = ", ".join(f"`{name}`" for name in row["constraints"])
        counts = f"{row['questions']} | **{row['parsed']}** | {sum(row['problems'].values())} | {row['parsed_free']}"
        yield f"| {row['asked']} | {held} | {counts} |"
    yield ""
    yield f"`vllm serve` as it comes, with this model: the run stops: {result['as_it_comes']['said'].split(';')[0]}."


def rollouts(result: dict[str, Any]) -> Iterator[str]:
    yield "| ten steps of RFT | reward, our sampler | reward, the server | gap: mean of a step | largest | weights in |"
    yield "|---|---|---|---|---|---|"
    # A result of before has no engine beside the trainer.
    beside = [way for way in result["ways"] if "gap_mean_colocate" in way]
    for way in result["ways"]:
        first, last = min(way["gap_mean"]), max(way["gap_mean"])
        rewards = f"{way['reward_trainer']:.3f} | {way['reward_server']:.3f}"
        gaps = f"{first:.1e} to **{last:.1e}** | {way['gap_max']:.1e}"
        yield f"| {way['way'].split(',')[0]}, {way['dtype']} | {rewards} | {gaps} | {way['sync_seconds']:.2f} s |"
    if beside:
        yield ""
        yield "| beside the trainer | reward | gap: mean of a step | largest |"
        yield "|---|---|---|---|"
    for way in beside:
        first, last = min(way["gap_mean_colocate"]), max(way["gap_mean_colocate"])
        gaps = f"{first:.1e} to **{last:.1e}** | {way['gap_max_colocate']:.1e}"
        yield f"| {way['way'].split(',')[0]}, {way['dtype']} | {way['reward_colocate']:.3f} | {gaps} |"


def faults(result: dict[str, Any]) -> Iterator[str]:
    yield "| a server that is not right | the run |"
    yield "|---|---|"
    for case in result["wrong_servers"]:
        said = re.sub(r"^surgery-r1: (--endpoint \S+?:? )?", "", case["said"]).split(";")[0]
        yield f"| {case['server']} | stops: {said} |"
    dead = result["killed"]
    kept = f"keeps {dead['steps_done']} steps; resumed it ends with {dead['steps_after_resume']}"
    same = f"{dead['rewards_as_uninterrupted']} of them with the reward of the run that nobody stopped"
    yield f"| killed in the middle | {kept}, {same} |"


def adapters(result: dict[str, Any]) -> Iterator[str]:
    yield "| identical of 100 | adapter and merged, served | merged, served and ours | adapter served and ours | base |"
    yield "|---|---|---|---|---|"
    for row in result["rows"]:
        counts = (row[name] for name in ("adapter_as_merged", "merged_as_ours", "adapter_as_ours", "ours_as_base"))
        yield f"| {row['dtype']} | {' | '.join(map(str, counts))} |"


def teacher(result: dict[str, Any]) -> Iterator[str]:
    yield "| server | asked | replies | with `<think>` | refused | rationales that pass |"
    yield "|---|---|---|---|---|---|"
    for row in result["rows"]:
        counts = (row["asked"], row["replies"], row["with_think"], row["rejected"].get("refused", 0), row["accepted"])
        yield f"| `{row['server']}` | {' | '.join(map(str, counts))} |"


TABLES = {
    "texts": texts,
    "serve": serve,
    "native": native,
    "rollouts": rollouts,
    "faults": faults,
    "adapters": adapters,
    "teacher": teacher,
}


def made(result: dict[str, Any]) -> str:
    """When, where and with what."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    # Results of before do not say how long they took.
    took = f", load {result['load']} at the start, {result['minutes']} minutes" if "minutes" in result else ""
    return f"{result['date']}, {result['machine']}{took}; {versions}."


def write_page(result: dict[str, Any]) -> None:
    """Put each part's table between its marks."""
    page = PAGE.read_text(encoding="utf-8")
    for part, table in TABLES.items():
        if part in result:
            body = "\n".join([*table(result[part]), "", made(result[part])])
            head, tail = f"<!-- engines: {part} -->", f"<!-- /engines: {part} -->"
            page = re.sub(f"{head}.*?{tail}", lambda _, b=body, h=head, t=tail: f"{h}\n{b}\n{t}", page, flags=re.DOTALL)
    PAGE.write_text(page, encoding="utf-8")
