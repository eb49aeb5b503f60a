"""Work on a stream in several threads, memory bounded: results in order, or as they are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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


def finished_map(
    function: Callable[[_A], _B], items: Iterable[_A], workers: int, stop: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, _B]]:
    """The number of each item with ``function(item)``, as they are done; items are taken as workers come free.

    When a call raises, ``stop`` is called and nothing more is begun; what has begun is let finish and comes out too,
    then the error is raised.

    >>> sorted(finished_map(len, ["a", "bb"], workers=2))
    [(0, 1), (1, 2)]
    """
    pool = ThreadPoolExecutor(workers)
    numbered = enumerate(items)
    running: dict[Future[_B], int] = {}
    failure: BaseException | None = None
    try:
        while True:
            while failure is None and len(running) < workers and (item := next(numbered, None)) is not None:
                running[pool.submit(function, item[1])] = item[0]
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, error = running.pop(future), future.exception()
                if error is None:
                    yield number, future.result()
                elif failure is None:
                    failure = error
                    stop()
        if failure is not None:
            raise failure
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
