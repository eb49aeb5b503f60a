"""Prediction, by transformers' ``generate`` (baseline) and with shared frames, on the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery_r1 import prompts
from surgery_r1.bench.job import BOX_SPACE, Benchmark
from surgery_r1.bench.operations import rollout_counts
from surgery_r1.bench.shapes import Work


class PredictionBenchmark(Benchmark):
    """Greedy replies to all questions of all frames, in one batch."""

    def __init__(self, work: Work, variant: str) -> None:
        super().__init__(work, variant)
        from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
        from surgery_r1.models.encode import Prompt

        self.prompts = []
        for number, image in enumerate(self.images):
            path = Path(self.folder.name) / f"frame{number}.png"
            image.save(path)
            self.prompts += [Prompt((path,), prompts.user_text(text)) for text in self.texts]
        self.engine = TransformersEngine(
            self.model,
            self.processor,
            BOX_SPACE,
            GenerationOptions(work.asked, work.completion_tokens),
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
        return rollout_counts(self.work, self.optimised, copies=1)
