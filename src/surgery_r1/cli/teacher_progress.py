"""How far a teacher is, on standard error."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery_r1.data.rationales.teacher.writer import TeacherWriter


class TeacherProgress:
    """Called after each frame: frames, rate, tokens and time left, in place on a terminal, now and then elsewhere."""

    def __init__(self, teacher: TeacherWriter) -> None:
        self._teacher = teacher
        self._start = self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if done < total and now - self._shown < (0.5 if terminal else 20.0):
            return
        self._shown = now
        end = "\n" if done == total or not terminal else ""
        sys.stderr.write(("\r" if terminal else "") + self.line(done, total, now - self._start) + end)
        sys.stderr.flush()

    def line(self, done: int, total: int, seconds: float) -> str:
        """What is shown after ``seconds``."""
        teacher = self._teacher
        left = seconds / done * (total - done)
        rate = teacher.asked / seconds if seconds else 0.0
        return (
            f"frames {done:,} of {total:,}: {teacher.asked:,} requests ({rate:.1f}/s), "
            f"{teacher.reused:,} kept replies, {teacher.tokens:,} tokens spent, {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    """Time in words.

    >>> _duration(42), _duration(150), _duration(7300)
    ('42 s', '2 min', '2 h 1 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
