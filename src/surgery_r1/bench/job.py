"""What every benchmark needs: model, processor, texts, clock and counts."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch

from surgery_r1.bench import shapes
from surgery_r1.bench.clock import Clock
from surgery_r1.bench.shapes import Work
from surgery_r1.models.sharing import attention as tree_attention
from surgery_r1.models.sharing import prefix_tree
from surgery_r1.models.sharing.vision_features import keep_frozen_features

BOX_SPACE = "norm100"


class Benchmark:
    """One variant of one benchmark, set up and ready to be run again and again.

    Attributes:
        layouts: of the prefix trees of the last run of the optimised variant.
    """

    def __init__(self, work: Work, variant: str) -> None:
        self.work, self.optimised = work, variant == "optimised"
        if work.threads:
            torch.set_num_threads(work.threads)
        self.processor = shapes.build_processor(work, deduplicate=self.optimised)
        self.model = shapes.random_model(work, self.processor.tokenizer)
        if work.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.optimised:
            assert tree_attention.enable(self.model)
        # A frozen tower is read through its cache, which keeps nothing from run to run here.
        self.features = keep_frozen_features(self.model) if self.optimised else None
        self.clock = Clock(work.device)
        self.clock.wrap(self.model.model.visual, "forward", "vision")
        self.layouts: list[prefix_tree.TreeLayout] = []
        if self.optimised:
            build_prefix_tree = prefix_tree.build_prefix_tree

            def recorded(*args: Any, **kwargs: Any) -> prefix_tree.PrefixTree:
                tree = build_prefix_tree(*args, **kwargs)
                self.layouts.append(tree.layout)
                return tree

            prefix_tree.build_prefix_tree = recorded
        self.folder = tempfile.TemporaryDirectory()
        self.images = [shapes.frame(work, seed) for seed in range(work.frames)]
        self.texts = shapes.questions(work, self.processor)

    def run(self) -> dict[str, float]:
        """Run once; seconds in all ("step"), of what is compared ("compared", and "compared_cpu"), and by part."""
        seconds, cpu_seconds = self.update()
        self.model.zero_grad(set_to_none=True)
        parts, cpu = {**self.clock.parts, "step": seconds}, {**self.clock.cpu, "step": cpu_seconds}
        return {**parts, "compared": self._compared(parts), "compared_cpu": self._compared(cpu)}

    def update(self) -> tuple[float, float]:
        """Run once, and leave the gradients; seconds in all, of the clock and of the processor."""
        self.clock.parts.clear()
        self.clock.cpu.clear()
        self.layouts.clear()
        # What was kept from the run before would make this one cheaper than a step of training.
        self.processor.image_processor.__dict__.pop("_kept", None)
        tree_attention.forget_masks()
        if self.features is not None:
            self.features.forget()
        start, before = self.clock.now(), time.process_time()
        self._run()
        return self.clock.now() - start, time.process_time() - before

    def _run(self) -> None:
        raise NotImplementedError

    def _compared(self, seconds: dict[str, float]) -> float:
        """Seconds of what is compared, of those of the parts."""
        return seconds["step"]

    def output(self) -> list[Any]:
        """What both variants must agree on, of the last run."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Language-model tokens, query-key pairs, positions projected to the vocabulary, and images, of one run."""
        raise NotImplementedError

    @property
    def row_length(self) -> int:
        columns, rows = self.work.grid
        return columns * rows + self.work.prompt_tokens + self.work.completion_tokens
