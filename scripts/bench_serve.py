"""How long `surgery-r1 serve` takes to come up and to answer, on drawn scenes; the server runs as a process of its own.

    python scripts/bench_serve.py --model demo/rft

Prints one JSON object: seconds until the page is there, milliseconds of answers (with a rationale) as a client sees
them, of eight questions about one frame, and of eight frames with a question each, one after the other and all at
once; memory of the server in MiB before and after; load of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from surgery_r1.synthetic.placement import plan_sequence
from surgery_r1.synthetic.render import objects_of, render_scene
from surgery_r1.synthetic.statistics import sequence_records
from surgery_r1.synthetic.write import style_of

SIZE, SEED, SEQUENCE = (640, 512), 78, 5


def drawn(count: int) -> list[tuple[bytes, list[str]]]:
    """Frames that the server does not know, each with eight questions about it."""
    style = style_of(18, SEQUENCE, SEED)
    plans = plan_sequence(sequence_records(18, SEED)[SEQUENCE], SIZE[0] / SIZE[1], style, 18, SEED, SEQUENCE)
    found = []
    for plan in plans[:count]:
        data = io.BytesIO()
        render_scene(plan, style, SIZE).save(data, "PNG")
        tools = [seen.name for seen in objects_of(plan, style, SIZE)[1:]]
        asked = ["What organ is being operated?"]
        asked += [form.format(tool) for tool in tools for form in ("Where is {} located?", "What is the state of {}?")]
        found.append((data.getvalue(), [asked[i % len(asked)] for i in range(8)]))
    return found


async def timed(client: httpx.AsyncClient, data: bytes, questions: list[str]) -> float:
    """Seconds of a request."""
    started = time.perf_counter()
    response = await client.post("/v1/answer", files={"image": data}, data={"question": questions})
    response.raise_for_status()
    return time.perf_counter() - started


async def measured(address: str, rounds: int, cpu: Callable[[], float]) -> dict[str, float]:
    """Medians over rounds; the ways are taken in turn, so that other work on the machine meets all of them."""
    single: list[float] = []
    shared, one_by_one, at_once, used = [], [], [], []
    frames = drawn(8 * rounds)
    async with httpx.AsyncClient(base_url=address, timeout=300) as client:
        for number in range(rounds):
            eight = frames[8 * number : 8 * number + 8]
            shared.append(await timed(client, *eight[0]))
            before = cpu()
            each = [await timed(client, data, asked[i : i + 1]) for i, (data, asked) in enumerate(eight)]
            used.append((cpu() - before) / len(each))
            single += each
            one_by_one.append(sum(each))
            started = time.perf_counter()
            await asyncio.gather(*(timed(client, data, asked[i : i + 1]) for i, (data, asked) in enumerate(eight)))
            at_once.append(time.perf_counter() - started)
    ways = {"answer": single, "eight_questions_one_frame": shared, "eight_frames": one_by_one}
    ways["eight_frames_at_once"] = at_once
    found = {f"{name}_ms": round(1000 * statistics.median(times)) for name, times in ways.items()}
    ratios = [a / b for a, b in zip(shared, one_by_one, strict=True)]
    at_once_ratios = [a / b for a, b in zip(shared, at_once, strict=True)]
    return {
        **found,
        "answers": len(single),
        "answer_cpu_ms": round(1000 * statistics.median(used)),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_at_once": round(statistics.median(at_once_ratios), 3),
    }


def cpu_seconds(pid: int) -> float:
    """That a process has used so far: on a busy machine they say more than the clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Resident MiB of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) // 1024  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    load, started = os.getloadavg()[0], time.perf_counter()
    command = [sys.executable, "-m", "surgery_r1", "serve", "--model", args.model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            httpx.get(address).raise_for_status()
            up, used, before = time.perf_counter() - started, cpu_seconds(server.pid), memory(server.pid)
            found = asyncio.run(measured(address, args.rounds, lambda: cpu_seconds(server.pid)))
            found |= {
                "page_s": round(up, 1),
                "page_cpu_s": round(used, 1),
                "memory_before_mib": before,
                "memory_after_mib": memory(server.pid),
            }
        finally:
            server.send_signal(signal.SIGTERM)
    loads = {"load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1), "cpus": os.cpu_count()}
    print(json.dumps({"model": args.model, **found, **loads}, indent=2))


if __name__ == "__main__":
    main()
