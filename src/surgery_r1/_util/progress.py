"""One style of progress: a bar in place on a terminal, a line every half minute elsewhere; on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tqdm import tqdm

#: Called with what is done and what there is in all.
Progress = Callable[[int, int], None]

#: Seconds between lines where standard error is no terminal, such as a log file.
_BETWEEN_LINES = 30.0


#: Seconds before anything is shown: what takes no longer needs no bar.
_DELAY = 0.5


class _LogFile:
    """Standard error that is a log file: each state of a bar is a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(total: int | None, description: str, unit: str, *, initial: int = 0, quiet: bool = False) -> tqdm:
    """A bar on standard error.

    Args:
        total: None where it is not known yet.
        initial: what was done before, by an interrupted run.
        quiet: show nothing.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        initial=initial,
        disable=quiet,
        file=sys.stderr if terminal else _LogFile(),
        delay=_DELAY,
        mininterval=0.1 if terminal else _BETWEEN_LINES,
        maxinterval=10.0 if terminal else 2 * _BETWEEN_LINES,
        dynamic_ncols=True,
    )


class ProgressBar:
    """:func:`progress_bar` as a function of what is done and what there is in all; it ends itself.

    Args:
        details: what stands behind the bar, asked for at every call.
    """

    def __init__(self, description: str, unit: str, details: Callable[[], str] | None = None) -> None:
        self._bar, self._details = progress_bar(None, description, unit), details

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total
        if self._details is not None:
            self._bar.set_postfix_str(self._details(), refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        # What is told of an error stands below the bar.
        self.close()

    def close(self) -> None:
        """End the bar's line."""
        self._bar.close()
