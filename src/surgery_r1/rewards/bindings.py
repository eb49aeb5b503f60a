"""The rewards as other trainers call them: TRL by name, verl and EasyR1 as ``<path of this file>:<function>``.

This file can be loaded by its path, as those trainers do, when the package is installed. It therefore imports
absolutely and defines no dataclass (verl leaves the module out of ``sys.modules``, where dataclasses look).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.rewards.components import random_reward, reward_named
from surgery_r1.rewards.custom import short_name
from surgery_r1.rewards.mixture import MIXTURES, Mixture
from surgery_r1.rewards.truth import Truth

# A group shares its truth, and each reward function reads it again. Replies are not cached: parsing one is cheap, and
# a megabyte of text must not stay in memory.
_truth = functools.lru_cache(maxsize=2048)(Truth.from_json)

#: The mixture that verl and EasyR1 use unless told otherwise.
DEFAULT_MIXTURE = "coherence"

#: What EasyR1 reads from the file of a reward function; it has no option for either.
REWARD_NAME, REWARD_TYPE = "surgery_r1", "batch"


def completion_text(completion: Any) -> str:
    """The text of a completion: a string, or a conversation whose last message is the reply.

    A message's content is a string, None, or a list of parts of which the texts count. Where the trainer has split the
    reasoning off (TRL does where a tokenizer brings a response template), it is put back.

    >>> completion_text([{"role": "assistant", "content": [{"type": "text", "text": "<answer>Idle</answer>"}]}])
    '<answer>Idle</answer>'
    """
    if isinstance(completion, str):
        return completion
    message = completion[-1] if completion else {}
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text") or "" for part in content)
    reasoning = message.get("reasoning_content")
    return f"<think>{reasoning}</think>{content}" if reasoning else content


def trl_reward(name: str, *, seed: int = 0) -> Callable[..., list[float | None]]:
    """A reward function for TRL's GRPOTrainer that reads the dataset's ``truth`` column (:meth:`Truth.to_json`).

    TRL logs it by its ``__name__``: ``name``, or the function's name for one of one's own. How to weight several: see
    :class:`Mixture`.

    Args:
        name: a key of :data:`surgery_r1.rewards.REWARDS`, or ``path.py:function``.
        seed: of the random control.

    Raises:
        SurgeryR1Error: for an unknown name.
    """
    reward = functools.partial(random_reward, seed=seed) if name == "random" else reward_named(name)

    def score(completions: list[Any], truth: list[str], **_: Any) -> list[float | None]:
        return [
            reward(completion_text(completion), _truth(item))
            for completion, item in zip(completions, truth, strict=True)
        ]

    score.__name__ = score.__qualname__ = short_name(name)
    return score


def trl_rewards(names: Iterable[str], *, seed: int = 0) -> list[Callable[..., list[float | None]]]:
    """:func:`trl_reward` for each name."""
    return [trl_reward(name, seed=seed) for name in names]


def _mixture(mixture: str | Mapping[str, float]) -> Mixture:
    if not isinstance(mixture, str):
        return Mixture(mixture)
    if mixture not in MIXTURES:
        raise SurgeryR1Error(f"unknown mixture {mixture!r}", fix=f"one of {', '.join(MIXTURES)}, or name -> weight")
    return MIXTURES[mixture]


def compute_score(
    data_source: str | None,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    mixture: str | Mapping[str, float] = DEFAULT_MIXTURE,
    **_: Any,
) -> dict[str, float]:
    """verl's custom reward function: ``reward.custom_reward_function.path`` = this file, ``.name`` = ``compute_score``.

    Args:
        data_source, extra_info: not used.
        solution_str: the reply.
        ground_truth: :meth:`Truth.to_json` of the prompt, in the row's ``reward_model.ground_truth``.
        mixture: a key of :data:`MIXTURES` or name -> weight, through ``reward.custom_reward_function.reward_kwargs``.

    Returns:
        ``score`` in [0, 1] and every part by name. verl wants the same keys in every row, so a part that does not apply
        is 0 here; it takes no part in ``score``. Whether it applies depends on the truth alone, so all replies to a
        prompt have that 0, and an advantage that compares them (GRPO, or GDPO on each part) gets nothing from it:
        what TRL makes of None. NaN would spread through the whole batch in GDPO's whitening. In verl's log the mean
        of such a part counts these rows as 0.
    """
    total, parts = _mixture(mixture).total(solution_str, _truth(ground_truth))
    return {"score": total, **{name: 0.0 if value is None else value for name, value in parts.items()}}


def compute_score_easyr1(
    reward_inputs: list[dict[str, Any]], *, mixture: str | Mapping[str, float] = DEFAULT_MIXTURE, **_: Any
) -> list[dict[str, float]]:
    """EasyR1's reward function: ``worker.reward.reward_function=<this file>:compute_score_easyr1``.

    EasyR1 (since November 2025) takes from this file that it is called with a whole batch
    (:data:`REWARD_TYPE`), and refuses an option ``reward_type``.

    Args:
        reward_inputs: dicts with ``response`` and ``ground_truth`` (:meth:`Truth.to_json` of the prompt).
        mixture: a key of :data:`MIXTURES` or name -> weight, through ``worker.reward.reward_function_kwargs``.

    Returns:
        For each input ``overall`` in [0, 1] and the parts that apply; EasyR1 averages each key over the rows that
        have it. Its ``algorithm.filter_key`` must be ``overall``, the default, which every row has.
    """
    chosen = _mixture(mixture)
    scores = []
    for item in reward_inputs:
        total, parts = chosen.total(item["response"], _truth(item["ground_truth"]))
        scores.append({"overall": total, **{name: value for name, value in parts.items() if value is not None}})
    return scores
