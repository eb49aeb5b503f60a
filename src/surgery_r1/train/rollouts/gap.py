"""How far the log-probabilities of the sampler lie from the trainer's: on the very tokens that are trained."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)

#: Mean gap in nats a token above which a run stops, where ``rft.gap_bound`` is 0: float32, and formats of 16 bit.
BOUND_32, BOUND_16 = 0.01, 0.1
#: A gap that grows by so much, and is above rounding, comes from weights that do not all reach the sampler.
_GROWTH, _ROUNDING = 10.0, 1e-3


@dataclass(frozen=True, slots=True)
class Gap:
    """Absolute differences of log-probabilities in nats: mean and largest over tokens."""

    mean: float
    largest: float


class GapMeter:
    """Gathers the gap of a step, pass by pass."""

    def __init__(self) -> None:
        self._total = torch.zeros(3, dtype=torch.float64)
        self._first: float | None = None

    def add(self, sampled: torch.Tensor, trained: torch.Tensor, mask: torch.Tensor) -> None:
        """Count the tokens of a pass.

        Args:
            sampled, trained: log-probabilities (rows, C).
            mask: 1 where there is a token.
        """
        gap = (sampled - trained.detach()).abs()[mask.bool()].double().cpu()
        if len(gap):
            total, count, largest = self._total.tolist()
            # A NaN stays one: it is above every bound.
            self._total = torch.tensor(
                [total + gap.sum().item(), count + len(gap), torch.maximum(gap.max(), torch.tensor(largest)).item()],
                dtype=torch.float64,
            )

    def take(self, gathered: Callable[[torch.Tensor], torch.Tensor]) -> Gap | None:
        """The gap over all processes since the last call; None where no token was counted.

        Args:
            gathered: the values of all processes, one after the other.
        """
        of_all = gathered(self._total[None].float())
        self._total = torch.zeros_like(self._total)
        total, count, largest = of_all[:, 0].sum().item(), of_all[:, 1].sum().item(), of_all[:, 2].max().item()
        if not count:
            return None
        gap = Gap(total / count, largest)
        self._watch(gap)
        return gap

    def _watch(self, gap: Gap) -> None:
        first = self._first = gap.mean if self._first is None else self._first
        if gap.mean > max(_GROWTH * first, _ROUNDING):
            logger.warning(
                "sampler and trainer differ by %.2g nats a token, %.2g at the first step: do all weights reach the "
                "server?",
                gap.mean,
                first,
            )
