"""The work of each measurement on each shape, and processes of their own to do it in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, Literal, TypeVar

from surgery_r1.bench.shapes import Work
from surgery_r1.errors import SurgeryR1Error

T = TypeVar("T")

#: Shapes to measure; ``tiny`` tries the commands, on a CPU too, and says nothing of speed.
Shape = Literal["3b", "7b", "tiny"]

_TINY = Work(shape="cpu", image_tokens=30, prompt_tokens=80, completion_tokens=12, generations=2, threads=1)


def work_of(name: str, shape: Shape, device: str, **changes: Any) -> Work:
    """A step of ``name`` (rft, sft or predict) as a 7B run takes it: bfloat16, LoRA, recomputed activations."""
    if shape == "tiny":
        base = replace(_TINY, dtype="bfloat16", lora=True, device=device)
        changes = {key: min(value, 2) if key == "questions" else value for key, value in changes.items()}
    else:
        base = Work(shape=shape, dtype="bfloat16", lora=True, checkpointing=True, device=device)
    return replace(base, **changes).of(name)


def in_fresh_process(do: Callable[..., T], *args: Any) -> T:
    """``do(*args)`` in a process that begins with an empty GPU and gives all of it back.

    Raises:
        SurgeryR1Error: when the system ends the process.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_quietly) as pool:
        try:
            return pool.submit(do, *args).result()
        except BrokenProcessPool:
            raise SurgeryR1Error("the process was ended by the system", fix="it may have run out of memory") from None


def _quietly() -> None:
    import warnings

    from surgery_r1._util.offline import stay_offline

    stay_offline(False)
    # Of trl and transformers, about one another.
    warnings.simplefilter("ignore", FutureWarning)
