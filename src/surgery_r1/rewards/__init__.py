"""Rewards for reinforcement fine-tuning: pure functions of a reply and the truth, mixtures, and trainer adapters.

Reward and evaluation share one parser (:mod:`surgery_r1.codec`) and one comparison (:mod:`surgery_r1.matching`).
No module here imports torch.
"""

from surgery_r1.rewards.bindings import compute_score, compute_score_easyr1, trl_reward, trl_rewards
from surgery_r1.rewards.components import (
    REWARDS,
    answer_reward,
    box_dense_reward,
    box_reward,
    coherence_all,
    coherence_joint,
    coherence_referent,
    coherence_spatial,
    format_reward,
    random_reward,
    rationale_reward,
    reward_named,
)
from surgery_r1.rewards.custom import Reward
from surgery_r1.rewards.mixture import MIXTURES, Mixture
from surgery_r1.rewards.truth import MIN_AGREEMENT, Truth

__all__ = [
    "MIN_AGREEMENT",
    "MIXTURES",
    "REWARDS",
    "Mixture",
    "Reward",
    "Truth",
    "answer_reward",
    "box_dense_reward",
    "box_reward",
    "coherence_all",
    "coherence_joint",
    "coherence_referent",
    "coherence_spatial",
    "compute_score",
    "compute_score_easyr1",
    "format_reward",
    "random_reward",
    "rationale_reward",
    "reward_named",
    "trl_reward",
    "trl_rewards",
]
