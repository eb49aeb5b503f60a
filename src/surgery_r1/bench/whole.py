"""A whole step of RFT: rollouts, rewards, update and optimiser, by stock TRL and with shared frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from surgery_r1.bench.job import BOX_SPACE
from surgery_r1.bench.operations import rollout_counts
from surgery_r1.bench.shapes import Work
from surgery_r1.bench.training import RftBenchmark
from surgery_r1.codec import View
from surgery_r1.rewards import MIXTURES, Truth, trl_rewards


class WholeRftBenchmark(RftBenchmark):
    """A GRPO step with its own rollouts; all of it is compared.

    Completions have the length asked for, and come from one seed. The optimiser takes steps of length 0, so that all
    runs start from the same weights.
    """

    def __init__(self, work: Work, variant: str) -> None:
        self._mixture = MIXTURES["coherence"]
        super().__init__(work, variant)

    def _options(self) -> dict[str, Any]:
        special = self.processor.tokenizer.all_special_ids
        return {
            "learning_rate": 0.0,
            # No reply ends early, and none holds an image token.
            "generation_kwargs": {"suppress_tokens": special},
            "reward_weights": self._mixture.weights_normalised,
            "multi_objective_aggregation": "normalize_then_sum",
        }

    def _columns(self) -> dict[str, Any]:
        width, height = self.images[0].size
        truth = Truth(
            sample_id="frame/1",
            task="cot",
            reasoning=True,
            kind="organ",
            subject="kidney",
            accepted=(("kidney", (1.0, 1.0, width / 2, height / 2)),),
            width=width,
            height=height,
            objects=(),
            location_rule=None,
            agreement=None,
            view=View(width, height, width, height),
            box_space=BOX_SPACE,
        )
        return {"truth": truth.to_json()}

    def _rewards(self) -> list[Callable[..., list[float | None]]]:
        return trl_rewards(self._mixture.names)

    def _prepare(self, trainer: Any) -> None:
        inner: Callable[..., Any] = trainer._generate_single_turn

        def noted(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            self.replies = result[0]
            return result

        trainer._generate_single_turn = noted
        trainer.create_optimizer()
        self.clock.wrap(trainer, "_generate_single_turn", "generation")
        self.clock.wrap(trainer, "_calculate_rewards", "rewards")
        self.clock.wrap(trainer.optimizer, "step", "optimiser")

    def _run(self) -> None:
        torch.manual_seed(0)
        super()._run()
        trainer = self.trainer
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()

    def _compared(self, seconds: dict[str, float]) -> float:
        return seconds["step"]

    def output(self) -> list[Any]:
        return [" ".join(map(str, reply)) for reply in self.replies]

    def counts(self) -> dict[str, int]:
        update = super().counts()
        if self.optimised:
            # Features of the rollouts' frames are kept.
            update["images"] = 0
        rollouts = rollout_counts(self.work, self.optimised, self.work.generations)
        return {**update, **{f"rollout_{part}": count for part, count in rollouts.items()}}
