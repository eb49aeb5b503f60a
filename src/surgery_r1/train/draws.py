"""Random numbers of RFT's sampling, which belong to completions: who computes them, and beside whom, changes nothing.

A token is found by the inverse of the cumulative distribution. The number that it is found by depends on the run's
seed, the step, the completion's place in the step and the token's place in the completion alone, so that one process
samples what two do, to rounding of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from surgery_r1._util.overriding import overriding


def uniforms(seed: int, step: int, places: Sequence[int], count: int) -> np.ndarray:
    """Numbers in [0, 1), float64 (places, count): those of the first ``count`` tokens of some completions of a step.

    >>> two = uniforms(0, 3, [4, 5], 2)
    >>> bool((uniforms(0, 3, [5], 9)[0, :2] == two[1]).all()), bool((two[0] == two[1]).any())
    (True, False)
    """
    return np.stack([np.random.Generator(np.random.Philox(_source(seed, step, p))).random(count) for p in places])


def server_seed(seed: int, step: int, place: int) -> int:
    """The seed that a server is given for the completions of a prompt, the first of which has this place; 31 bits."""
    return int(_source(seed, step, place).generate_state(1)[0] >> 1)


def _source(seed: int, step: int, place: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, step, place])


class InverseDraw(LogitsProcessor):
    """Raises one token of each row above all others: the one that the row's next number falls on.

    Args:
        numbers: in [0, 1), (rows, tokens); each call takes the next column.
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers, self._next = torch.from_numpy(numbers), 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (rows, tokens of the vocabulary) with one of each row infinite. None is drawn of probability 0."""
        number = self._numbers[:, self._next, None].to(scores.device)
        self._next += 1
        # In float32 the rounding of 150,000 sums would be as large as rare tokens are probable.
        below = torch.softmax(scores, -1, dtype=torch.float64).cumsum(-1)
        whole = below[:, -1:]
        torch._assert_async(whole.isfinite().all(), "what the model says of the next token is not a number")
        target = torch.minimum(number * whole, torch.nextafter(whole, torch.zeros_like(whole)))
        return scores.scatter(1, torch.searchsorted(below, target, right=True), torch.inf)


@contextmanager
def drawing(model: Any, numbers: np.ndarray) -> Iterator[None]:
    """Let ``model.generate`` draw by ``numbers`` (rows, tokens), from what temperature, top-k and top-p leave.

    Args:
        model: of transformers, without an adapter around it.
    """
    stock = model._get_logits_processor

    def with_draw(generation_config: Any, **kwargs: Any) -> LogitsProcessorList:
        processors = stock(generation_config, **kwargs)
        # Behind the processors of sampling, the largest score is the draw. This copy of the config ends with the call.
        generation_config.do_sample = False
        return LogitsProcessorList([*processors, InverseDraw(numbers)])

    with overriding(model, "_get_logits_processor", with_draw):
        yield
