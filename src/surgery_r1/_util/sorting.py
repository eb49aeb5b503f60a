"""Sorting names as people do: by their numbers, not by their digits."""

from __future__ import annotations

import re


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``seq_2`` before ``seq_10``.

    >>> sorted(["seq_10", "seq_2", "a", "12"], key=natural_key)
    ['12', 'a', 'seq_2', 'seq_10']
    """
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
