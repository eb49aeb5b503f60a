"""How probable a model finds its own answer: the product over the answer's tokens, as they are written."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surgery_r1 import codec


@dataclass(frozen=True, slots=True)
class Written:
    """A reply as it was written.

    Attributes:
        ids: its tokens, padding behind the end among them; empty for a sampled one.
        log_probs: of each token (nats), given all before it.
    """

    text: str
    ids: Sequence[int] = ()
    log_probs: Sequence[float] = ()


class GreedyProbabilities:
    """Notes the log-probability of the most probable token of each row and step, as ``generate`` asks for scores.

    Where decoding is greedy and nothing bends the scores, that token is the one written. Tokens that no reply may
    hold are left out before: what the model gives to them is shared out among the others. Keeping the scores
    themselves would take gigabytes for a vocabulary of 150,000.
    """

    def __init__(self) -> None:
        self._steps: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        wide = scores.float()
        self._steps.append(wide.amax(-1) - wide.logsumexp(-1))
        return scores

    def rows(self, count: int) -> list[list[float]]:
        """Of each row, a number a step."""
        import torch

        return torch.stack(self._steps, 1).tolist() if self._steps else [[] for _ in range(count)]


def answer_probability(written: Written, tokenizer: Any) -> float | None:
    """The model's probability of writing exactly this answer after all that it wrote before it, in [0, 1].

    The product over the tokens of the answer and the one that ends it: a longer answer that begins alike is another.
    It is not calibrated, and after a rationale that has already concluded it is close to 1.

    Returns:
        None where the reply has no answer, or its tokens are not known.
    """
    span = codec.answer_span(written.text)
    if span is None or not written.ids:
        return None

    def length(tokens: int) -> int:
        return len(tokenizer.decode(written.ids[:tokens], skip_special_tokens=True))

    counts = range(len(written.ids) + 1)
    # The token that writes a character is the first after which the text is longer than the character's place.
    first = bisect_right(counts, span[0], key=length) - 1
    last = bisect_left(counts, span[1] + 1, key=length) - 1
    return math.exp(min(0.0, sum(written.log_probs[first : last + 1])))
