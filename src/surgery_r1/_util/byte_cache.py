"""A cache that is bounded by the bytes of what it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from cachetools import LRUCache

K = TypeVar("K")
V = TypeVar("V")


class ByteCache(LRUCache[K, V], Generic[K, V]):
    """What was used longest ago is dropped first. A value that is larger than the whole cache is not kept.

    Args:
        limit: bytes.
        size: bytes of a value.

    >>> cache = ByteCache(4, len)
    >>> cache["a"], cache["b"], cache["c"], cache["d"] = b"1", b"22", b"33", b"55555"
    >>> sorted(cache), cache.currsize
    (['b', 'c'], 4)
    """

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        super().__init__(limit, size)

    def __setitem__(self, key: K, value: V) -> None:
        if self.getsizeof(value) <= self.maxsize:
            super().__setitem__(key, value)
        else:
            self.pop(key, None)
