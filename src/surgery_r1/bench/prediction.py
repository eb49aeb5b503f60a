"""Prediction, by transformers' ``generate`` (baseline) and with shared frames, on the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery_r1 import prompts
from surgery_r1.bench.job import BOX_SPACE, Benchmark
from surgery_r1.bench.operations import row_pairs
from surgery_r1.bench.shapes import Work


class PredictionBenchmark(Benchmark):
    """Greedy replies to all questions of a frame."""

    def __init__(self, work: Work, variant: str) -> None:
        super().__init__(work, variant)
        from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
        from surgery_r1.models.encode import Prompt

        path = Path(self.folder.name) / "frame.png"
        self.image.save(path)
        self.prompts = [Prompt((path,), prompts.user_text(text)) for text in self.texts]
        self.engine = TransformersEngine(
            self.model,
            self.processor,
            BOX_SPACE,
            GenerationOptions(work.questions, work.completion_tokens),
            share_frames=self.optimised,
        )
        self.clock.wrap(self.engine.encoder, "tokens", "preprocess")
        self.clock.wrap(self.model, "forward", lambda ids: "decode" if ids.shape[1] == 1 else "prefill")
        self.replies: list[str] = []

    def _run(self) -> None:
        self.replies = [text for batch in self.engine.generate(self.prompts) for text in batch]

    def output(self) -> list[Any]:
        return list(self.replies)

    def counts(self) -> dict[str, int]:
        n, new = self.work.questions, self.work.completion_tokens
        prefix = self.row_length - new - self.work.prompt_tokens
        # The last token of a reply is not fed back.
        length = self.row_length - 1
        repeats = (n - 1) if self.optimised else 0
        tokens, pairs = n * length - repeats * prefix, n * row_pairs([length]) - repeats * row_pairs([prefix])
        return {"tokens": tokens, "pairs": pairs, "heads": n * new, "images": 1 if self.optimised else n}
