"""Several processes that train one model: what one of them does for all, and what they agree on.

A launcher (torchrun) starts the processes; each has a rank, its number from 0. The first rank alone writes the run
folder. Every function here is called by all ranks in the same order, and costs nothing where there is one process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from surgery_r1._util import launcher
from surgery_r1._util.locks import held
from surgery_r1.errors import OtherProcessFailed, SurgeryR1Error

T = TypeVar("T")

#: How long ranks wait for one another: one may save a large model, or generate long replies, while the others wait.
PATIENCE = timedelta(minutes=30)


def join() -> None:
    """Become one of the processes that a launcher has started, if one has. Safe to call again."""
    from accelerate import PartialState
    from torch.distributed import is_torchelastic_launched

    if is_torchelastic_launched() and not several():
        try:
            PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        except dist.DistError as error:
            place = f"{launcher.told('MASTER_ADDR')}:{launcher.told('MASTER_PORT')}"
            raise SurgeryR1Error(
                f"the processes cannot meet at {place} ({str(error).splitlines()[0]})",
                fix="another run may hold the port: give torchrun --standalone on one machine, else --master_port",
            ) from error
        atexit.register(_hang_up)


def leave() -> None:
    """Part from the others, when all have come to the end."""
    if several():
        # What DDP leaves in reference cycles holds the group, whose threads would abort the process at its end.
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


def _hang_up() -> None:
    """After an error, for the same reason. NCCL has no such threads; it would wait for those that wait for it."""
    if several() and dist.get_backend() == "gloo":
        # The interpreter keeps what nobody has caught, and with it every object on the way.
        for name in ("last_exc", "last_value", "last_traceback"):
            vars(sys).pop(name, None)
        gc.collect()
        dist.destroy_process_group()


def several() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if several() else 1


def index() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if several() else 0


def first(work: Callable[[], T]) -> T:
    """What ``work`` returns: done by the first rank alone, and told to the others.

    Raises:
        OtherProcessFailed: on the other ranks, when it raises an error on the first.
    """
    if count() == 1:
        return work()
    told: list[Any] = [None, None]
    mine: Exception | None = None
    if index() == 0:
        try:
            told[0] = work()
        except Exception as error:
            mine, told[1] = error, str(error)
    dist.broadcast_object_list(told, src=0)
    if mine is not None:
        raise mine
    if told[1] is not None:
        raise OtherProcessFailed(told[1])
    result: T = told[0]
    return result


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """An error inside the block on any rank is an error of all: one rank raises it, the others know that it is told.

    Nothing inside the block may wait for other ranks.

    Raises:
        OtherProcessFailed: on the ranks that have nothing to tell.
    """
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    failed = [rank for rank, bad in enumerate(gathered([mine is not None])) if bad]
    if mine is not None and failed[0] == index():
        raise mine
    if failed:
        raise OtherProcessFailed(f"process {failed[0]} of this run has failed") from mine


@contextlib.contextmanager
def held_by_first(folder: Path, what: str) -> Iterator[None]:
    """:func:`surgery_r1._util.locks.held`, taken by the first rank for all."""
    with contextlib.ExitStack() as stack:
        first(lambda: stack.enter_context(held(folder, what)))
        yield


@contextlib.contextmanager
def losing_nobody() -> Iterator[None]:
    """What the network says inside the block when another rank has gone becomes a sentence; the first rank tells it.

    Raises:
        OtherProcessFailed: then.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo has no exception type of its own.
        lost = isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        if not (several() and lost):
            raise
        raise OtherProcessFailed(
            "another process of this run has ended: what it said stands above, or the system has killed it, as when "
            "memory runs out; start the run again with --resume",
            tell=index() == 0,
        ) from error


def gathered(mine: Sequence[T]) -> list[T]:
    """The items of all ranks, in the order of their ranks."""
    if count() == 1:
        return list(mine)
    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, list(mine))
    return [item for part in parts for item in part]


def wait_for(path: Path, seconds: float = 60) -> None:
    """Wait until a file of the first rank is seen here: a shared disk may show it late, and another disk never.

    Raises:
        SurgeryR1Error: after so many seconds.
    """
    end = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > end:
            raise SurgeryR1Error(
                f"process {index()} does not see it {seconds:g} seconds after the first process wrote it",
                where=path,
                fix="give an --out on a disk that all machines share",
            )
        time.sleep(0.1)


def share(items: Sequence[T]) -> Sequence[T]:
    """This rank's items: neighbours, as many as the others have or one more or less."""
    ends = [round(len(items) * rank / count()) for rank in range(count() + 1)]
    return items[ends[index()] : ends[index() + 1]]


def anywhere(flag: bool) -> bool:
    """Whether ``flag`` is set on any rank."""
    if count() == 1:
        return flag
    told = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told.item())
