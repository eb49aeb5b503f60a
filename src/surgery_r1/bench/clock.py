"""Seconds by part of a benchmark."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch


class Clock:
    """Seconds by part, of calls that are wrapped.

    Attributes:
        parts: seconds on the wall.
        cpu: seconds of all cores that this process used, user and system.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.parts: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, owner: Any, name: str, part: str | Callable[[Any], str]) -> None:
        """Count the time in ``owner.name`` as ``part``, or as what ``part`` makes of the call's input_ids."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            key = part if isinstance(part, str) else part(kwargs["input_ids"])
            start, before = self.now(), time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.parts[key] = self.parts.get(key, 0.0) + self.now() - start
                self.cpu[key] = self.cpu.get(key, 0.0) + time.process_time() - before

        setattr(owner, name, timed)
