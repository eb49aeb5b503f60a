"""Mixtures: several rewards as one number, each part also reported apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.rewards.components import reward_named
from surgery_r1.rewards.truth import Truth


@dataclass(frozen=True)
class Mixture:
    """Rewards with weights.

    The total is the weighted mean over the parts that apply. Every part lives in [0, 1] and the weights of the applying
    parts are scaled to sum to 1, so that no kind of reward drowns another by its scale and a prompt to which one part
    does not apply is worth as much as the others.

    With TRL's GRPOTrainer, give the parts apart rather than the total, so that it logs each::

        reward_funcs=trl_rewards(mixture.names), reward_weights=mixture.weights_normalised,
        multi_objective_aggregation="normalize_then_sum"

    ``normalize_then_sum`` (GDPO, arXiv 2601.05242) standardises each reward within its group before weighting and
    summing them: the "normalise each, then sum" that keeps one reward from collapsing the others. TRL's default,
    ``sum_then_normalize``, lets the reward with the largest spread rule. A reward that is None (NaN there) adds
    nothing, to every completion of its group alike. ``scale_rewards`` is not used in that mode: advantages are divided
    by the batch's standard deviation. A part that hardly varies within a group is blown up to unit spread as well, so
    leave out what no longer varies.

    Attributes:
        weights: name of a reward -> weight >= 0, at least one of them positive.

    Raises:
        SurgeryR1Error: for an unknown name or an unusable weight.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            reward_named(name)
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise SurgeryR1Error(f"weight {weight!r} of reward {name!r}", fix="give a number of 0 or more")
        if not any(self.weights.values()):
            raise SurgeryR1Error(f"no reward with a positive weight in {dict(self.weights)}", fix="weight at least one")

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order given."""
        return tuple(self.weights)

    @property
    def weights_normalised(self) -> list[float]:
        """Weights in the order of :attr:`names`, summing to 1."""
        whole = math.fsum(self.weights.values())
        return [weight / whole for weight in self.weights.values()]

    def total(self, text: str, truth: Truth) -> tuple[float, dict[str, float | None]]:
        """Total in [0, 1], and every part by name (None where it does not apply).

        The total is 0 where no part applies; which parts apply is the same for all replies to a prompt.
        """
        parts = {name: reward_named(name)(text, truth) for name in self.weights}
        applying = {name: value for name, value in parts.items() if value is not None}
        whole = math.fsum(self.weights[name] for name in applying)
        if whole == 0:
            return 0.0, parts
        value = math.fsum(self.weights[name] * part for name, part in applying.items()) / whole
        return min(1.0, max(0.0, value)), parts


#: Mixtures by name. ``no_coherence`` is the table's "SFT + RFT, no coherence reward"; weights are ours.
MIXTURES: dict[str, Mixture] = {
    "no_coherence": Mixture({"format": 0.5, "answer": 1.0, "box": 1.0}),
    "coherence": Mixture({"format": 0.5, "answer": 1.0, "box": 1.0, "coherence": 1.0}),
    "dense": Mixture({"format": 0.5, "answer": 1.0, "box_dense": 1.0, "coherence": 1.0}),
    "referent": Mixture({"format": 0.5, "answer": 1.0, "box": 1.0, "referent": 1.0}),
    "spatial": Mixture({"format": 0.5, "answer": 1.0, "box": 1.0, "coherence": 1.0, "spatial": 1.0}),
}
