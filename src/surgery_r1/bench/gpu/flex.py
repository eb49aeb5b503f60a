"""Flex attention on prefix trees of ever other sizes: graphs compiled after the first steps, time that masks take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from surgery_r1.bench.gpu.sizes import Shape, in_fresh_process, work_of
from surgery_r1.bench.shapes import Work

#: Steps, and how many of them may compile: the first its shapes, the second the same with sizes left open.
STEPS, COMPILING = 10, 2

#: The largest share of a step that masks may take.
MASK_SHARE = 0.02


def measure(shape: Shape, device: str) -> dict[str, Any]:
    """RFT updates whose completions differ in length from step to step, as those of a real run do."""
    work = work_of("rft", shape, device, questions=2)
    return {"config": work.__dict__, **in_fresh_process(steps, work)}


def steps(work: Work) -> dict[str, Any]:
    """Seconds and graphs of each step. On a CPU flex attention has no backward pass: forward passes alone."""
    from torch._dynamo.utils import counters
    from torch.nn.attention import flex_attention

    from surgery_r1.bench.training import RftBenchmark

    benchmark = RftBenchmark(work, "optimised")
    benchmark.clock.wrap(flex_attention, "create_block_mask", "masks")
    lengths = np.random.default_rng(2).integers(work.completion_tokens // 2, work.completion_tokens + 1, STEPS)
    lines = []
    with contextlib.nullcontext() if benchmark.clock.cuda else _forward_alone(benchmark):
        whole = benchmark.replies
        for length in lengths.tolist():
            benchmark.replies = [reply[:length] for reply in whole]
            seconds = benchmark.run()
            graphs = counters["stats"]["unique_graphs"]
            tokens = sum(layout.size for layout in benchmark.layouts)
            line = {"tokens": tokens, "seconds": seconds["step"], "masks": seconds["masks"], "graphs": graphs}
            lines.append(line)
    late = lines[COMPILING:]
    share = sum(line["masks"] for line in late) / sum(line["seconds"] for line in late)
    again = lines[-1]["graphs"] - lines[COMPILING - 1]["graphs"]
    found = {"steps": lines, "compiled_later": again, "mask_share": share}
    return {**found, "reached": bool(lines[0]["graphs"] and not again and share < MASK_SHARE)}


@contextlib.contextmanager
def _forward_alone(benchmark: Any) -> Iterator[None]:
    import torch

    from surgery_r1._util.overriding import overriding
    from surgery_r1.models.sharing import attention

    accelerator = benchmark.trainer.accelerator
    with (
        torch.no_grad(),
        overriding(attention, "takes_flex", lambda _: True),
        overriding(accelerator, "backward", lambda *_, **__: None),
        overriding(benchmark, "_compared", lambda seconds: seconds),
    ):
        yield
