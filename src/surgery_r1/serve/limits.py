"""What a server takes before it says no."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server, all of them checked before the model sees anything.

    Attributes:
        body_bytes: of a request.
        pixels: of a frame, checked in its header before anything is decoded.
        waiting_pixels: of all frames that wait or run, which bounds memory whatever the number of requests.
        questions, question_chars: in a request, and of each question.
        samples, replies: sampled replies to a question, and replies to a request in all: questions x (1 + samples).
        covers: boxes that are painted over.
        waiting: requests that are read, wait or run.
        reading: bodies that are read at a time.
        seconds: from the first byte to the reply.
        body_seconds: for the body to arrive.
        batch: questions that the model is given at a time.
        new_tokens: of a reply.
    """

    body_bytes: int = 20 * 2**20
    pixels: int = 25_000_000
    waiting_pixels: int = 200_000_000
    questions: int = 16
    question_chars: int = 500
    samples: int = 16
    replies: int = 64
    covers: int = 8
    waiting: int = 64
    reading: int = 8
    seconds: float = 60.0
    body_seconds: float = 20.0
    batch: int = 16
    new_tokens: int = 256

    def shown(self) -> dict[str, float]:
        """Those that whoever asks should know."""
        names = ("body_bytes", "pixels", "questions", "question_chars", "samples", "replies", "covers", "seconds")
        return {**{name: getattr(self, name) for name in names}, "waiting": self.waiting}
