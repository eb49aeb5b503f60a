"""Memory that is freed at every step and needed again at the next."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

#: Of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 2**20


def keep_freed_memory(variables: Iterable[str]) -> None:
    """Have glibc keep up to 512 MiB of what is freed for the next tensors, where they are smaller than 256 MiB.

    By itself it gives large tensors back at once, and the kernel makes their pages anew at every step, which costs a
    step of the tiny model some 9 % (``docs/speed.md``). Nothing is done where one of the environment's ``variables``,
    given by name, says how to allocate, or where there is no glibc.
    """
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in variables):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 256 * _MIB)
    mallopt(_TRIM_THRESHOLD, 512 * _MIB)
