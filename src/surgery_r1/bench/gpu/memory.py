"""The smallest memory of an RFT step: fewer completions in a pass, then narrower tiles of the output projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from surgery_r1.bench.gpu.sizes import Shape, in_fresh_process, work_of
from surgery_r1.bench.shapes import Work

#: What a 7B step should fit into, in bytes: a card of 24 GB, less what driver and fragments take.
GOAL = 22 * 2**30

QUESTIONS = 4


def measure(shape: Shape, device: str) -> dict[str, Any]:
    """Every try in a process of its own; one that finds no room is noted, and the search goes on with less."""
    work = work_of("rft", shape, device, questions=QUESTIONS)
    tries = search(work, lambda micro, tile: in_fresh_process(peak, work, micro, tile))
    fitting = [line for line in tries if line["bytes"] is not None]
    best = min(fitting, key=lambda line: line["bytes"]) if fitting else None
    return {"config": work.__dict__, "tries": tries, "smallest": best, "reached": bool(best and best["bytes"] <= GOAL)}


def search(work: Work, peak_of: Callable[[int, int], int | None]) -> list[dict[str, Any]]:
    """Passes from all groups of a step down to one, then tiles from TRL's own down to a sixteenth.

    >>> def peak_of(micro, tile):
    ...     return None if micro > 16 else micro * 1000 + tile
    >>> [tuple(line.values()) for line in search(Work(questions=4, generations=8), peak_of)]  # doctest: +ELLIPSIS
    [(32, 32768, None), (16, 32768, 48768), (8, 32768, 40768), (8, 8192, 16192), (8, 2048, 10048)]
    """
    groups = [n for n in range(work.questions, 0, -1) if work.questions % n == 0]
    passes = [n * work.generations for n in groups]
    tile = _own_tile()
    plan = [*((micro, tile) for micro in passes), *((passes[-1], tile // part) for part in (4, 16))]
    return [{"micro_batch": micro, "tile": width, "bytes": peak_of(micro, width)} for micro, width in plan]


def _own_tile() -> int:
    from trl.trainer import utils

    return utils._CHUNKED_LOGPROB_CHUNK_SIZE


def peak(work: Work, micro: int, tile: int) -> int | None:
    """Most bytes in use in an update and an AdamW step from the second on, weights included; None for no room.

    Generation is left out: it holds no activations, and its cache of keys and values is smaller than those.

    Args:
        micro: completions in a pass.
        tile: columns of the vocabulary that are projected at a time.
    """
    import torch
    from trl.trainer import utils

    from surgery_r1._util.overriding import overriding
    from surgery_r1.bench.compare import peak_bytes, start_peak
    from surgery_r1.bench.training import RftBenchmark

    try:
        with overriding(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", tile):
            benchmark = RftBenchmark(work, "optimised", micro)
            trained = [p for p in benchmark.trainer.model.parameters() if p.requires_grad]
            optimiser = torch.optim.AdamW(trained)
            for _ in range(2):
                # What was used to set up, and in the first step, does not count.
                start_peak(work.device)
                benchmark.update()
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            return peak_bytes(work.device)
    except torch.cuda.OutOfMemoryError:
        return None
