"""How far a teacher is, on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery_r1._util.progress import ProgressBar

if TYPE_CHECKING:
    from surgery_r1.data.rationales.teacher.writer import TeacherWriter


def teacher_progress(teacher: TeacherWriter) -> ProgressBar:
    """A bar over frames, with what the teacher was asked and what that cost."""

    def details() -> str:
        return f"{teacher.asked:,} requests, {teacher.reused:,} kept replies, {teacher.tokens:,} tokens spent"

    return ProgressBar("rationales", "frames", details)
