"""The one thread that owns the models: requests wait here, those that can go together are answered together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.inference import Reply
from surgery_r1.serve.engines import Asked, Engine
from surgery_r1.serve.limits import Limits
from surgery_r1.serve.refusal import Refusal, busy, stopping, unexpected

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Answered:
    """The replies to a request.

    Attributes:
        samples: of each question.
        waited, in_model: seconds.
        batch: questions that were answered together.
    """

    replies: list[Reply]
    samples: list[list[Reply]]
    waited: float
    in_model: float
    batch: int


@dataclass(eq=False, slots=True)
class Job:
    """A request that waits.

    Attributes:
        key: equal for equal frames, which are then read once.
    """

    model: str
    frame: Image
    key: bytes
    questions: Sequence[str]
    reasoning: bool
    samples: int
    done: Future[Answered] = field(default_factory=Future)
    abandoned: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def pixels(self) -> int:
        return self.frame.width * self.frame.height


class Worker:
    """Answers jobs, oldest first, with those behind it that ask the same model in the same form.

    Args:
        engines: by the model's name.
    """

    def __init__(self, engines: Mapping[str, Engine], limits: Limits) -> None:
        self.engines = dict(engines)
        self._limits = limits
        self._waiting: deque[Job] = deque()
        self._pixels = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """Whether nothing new is taken."""
        return self._stopping

    def submit(self, job: Job) -> None:
        """Let a job wait.

        Raises:
            Refusal: 503 when too much is waiting, or the server stops.
        """
        with self._changed:
            if self._stopping:
                raise stopping()
            if self._pixels and self._pixels + job.pixels > self._limits.waiting_pixels:
                raise busy(f"frames of {self._pixels / 1e6:.0f} million pixels are waiting")
            self._pixels += job.pixels
            self._waiting.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """Take nothing new; what waits is still answered."""
        # Called by a signal handler too, which must not wait for a lock that its own thread may hold.
        self._stopping = True

    def join(self, seconds: float) -> bool:
        """Wait until what waits is answered; whether it was."""
        self.stop()
        with self._changed:
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                jobs = self._take()
            if not jobs and self._stopping:
                return
            try:
                self._answer([job for job in jobs if not job.abandoned])
            finally:
                with self._changed:
                    self._pixels -= sum(job.pixels for job in jobs)
            # What an idle thread still names is not freed.
            del jobs

    def _take(self) -> list[Job]:
        """The oldest job, and others that go with it, up to a batch of questions."""
        taken: list[Job] = []
        asked = 0
        for job in list(self._waiting):
            if job.abandoned:
                self._waiting.remove(job)
                self._pixels -= job.pixels
                continue
            fits = not taken or (
                (job.model, job.reasoning) == (taken[0].model, taken[0].reasoning)
                and asked + len(job.questions) <= self._limits.batch
            )
            if fits:
                taken.append(job)
                asked += len(job.questions)
                self._waiting.remove(job)
        return taken

    def _answer(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        try:
            self._together(jobs)
        except Exception as error:
            if len(jobs) > 1:
                # One of them may have spoilt it for the others.
                for job in jobs:
                    if not job.done.done():
                        self._answer([job])
                return
            failure = error if isinstance(error, Refusal) else _failure(error)
            if not jobs[0].done.done():
                jobs[0].done.set_exception(failure)

    def _together(self, jobs: Sequence[Job]) -> None:
        engine, reasoning = self.engines[jobs[0].model], jobs[0].reasoning
        started = time.monotonic()

        # Equal frames become one object, which is read once.
        frames = {job.key: job.frame for job in jobs}
        asked: list[Asked] = [(frames[job.key], question) for job in jobs for question in job.questions]
        replies = iter(engine.replies(asked, reasoning=reasoning, sampled=False, stop=partial(_given_up, jobs)))
        greedy = [[next(replies) for _ in job.questions] for job in jobs]

        def finish(number: int, samples: list[list[Reply]]) -> None:
            job, now = jobs[number], time.monotonic()
            if not job.done.done():
                job.done.set_result(Answered(greedy[number], samples, started - job.since, now - started, len(asked)))

        # Those that want nothing more need not wait for the others.
        for number, job in enumerate(jobs):
            if not job.samples:
                finish(number, [[] for _ in job.questions])
        for number, job in enumerate(jobs):
            if job.samples and not job.abandoned:
                again: list[Asked] = [(job.frame, question) for question in job.questions for _ in range(job.samples)]
                drawn = iter(engine.replies(again, reasoning=reasoning, sampled=True, stop=partial(_given_up, [job])))
                finish(number, [[next(drawn) for _ in range(job.samples)] for _ in job.questions])


def _given_up(jobs: Sequence[Job]) -> bool:
    return all(job.abandoned for job in jobs)


def _failure(error: Exception) -> Refusal:
    """What the engine raised, as a response."""
    if isinstance(error, SurgeryR1Error):
        return Refusal(502, "engine", error.what, error.fix or "see to the engine, and ask again")
    return unexpected(error)
