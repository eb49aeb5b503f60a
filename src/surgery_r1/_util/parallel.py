"""Work on a stream in several threads, results in order, memory bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_A = TypeVar("_A")
_B = TypeVar("_B")


def ordered_map(
    function: Callable[[_A], _B], items: Iterable[_A], workers: int, stop: Callable[[], None] = lambda: None
) -> Iterator[tuple[_A, _B]]:
    """Each item with ``function(item)``, in the order of the items, a few items ahead of what is taken.

    When a call raises, or the iterator is closed, ``stop`` is called, what has begun is let finish, and the rest is not
    begun.

    >>> list(ordered_map(len, ["a", "bb"], workers=2))
    [('a', 1), ('bb', 2)]
    """
    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[_A, Future[_B]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
