"""How far a teacher is, and what it has cost, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from surgery_r1._util.progress import ProgressBar
from surgery_r1.cli.messages import logger

if TYPE_CHECKING:
    from surgery_r1.data.rationales.teacher.writer import TeacherWriter


@contextmanager
def teacher_progress(teacher: TeacherWriter) -> Iterator[ProgressBar]:
    """A bar over frames; what was asked and spent stands behind it, and is told at the end, also after an error."""

    def cost() -> str:
        return f"{teacher.asked:,} requests, {teacher.reused:,} kept replies, {teacher.tokens:,} tokens spent"

    try:
        with ProgressBar("rationales", "frames", cost) as progress:
            yield progress
    finally:
        logger.info("%s: %s", teacher.name, cost())
