"""Replies as tokens with their log-probabilities, as vLLM gives them: what is trained is what was sampled."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from surgery_r1.chat.reply import NoCompletion

#: What is added to the score of a token that is banned; the protocol takes no less. No model's scores lie as far apart.
BAN = -100.0


def against(banned: Iterable[int]) -> dict[str, float]:
    """``logit_bias`` of a request whose replies may not hold some tokens.

    >>> against([7, 8])
    {'7': -100.0, '8': -100.0}
    """
    # transformers serve fails at whole numbers.
    return {str(token): BAN for token in banned}


@dataclass(frozen=True, slots=True)
class TokenReply:
    """A sampled reply.

    Attributes:
        ids: its tokens, the one that ends it among them.
        log_probs: of each token, nats.
        finish: why it ended: ``stop`` or ``length`` (cut off).
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish: str


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """The replies to one prompt.

    Attributes:
        prompt: the tokens that the server read, images expanded; empty where it does not tell.
        replies: in the server's order; empty where it gives text alone.
    """

    prompt: tuple[int, ...]
    replies: tuple[TokenReply, ...]


def read_tokens(done: Any) -> TokenGroup:
    """The tokens in a chat completion.

    Raises:
        NoCompletion: for what is no chat completion, or tokens and log-probabilities that differ in number.
    """
    try:
        data = done.model_dump()
        choices = sorted(data["choices"], key=lambda choice: int(choice["index"]))
        replies = [_reply(choice) for choice in choices if choice.get("token_ids") and choice.get("logprobs")]
        prompt = tuple(map(int, data.get("prompt_token_ids") or ()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NoCompletion(f"answers what is no chat completion with tokens: {error}") from None
    return TokenGroup(prompt, tuple(replies) if len(replies) == len(choices) else ())


def _reply(choice: dict[str, Any]) -> TokenReply:
    ids = tuple(map(int, choice["token_ids"]))
    log_probs = tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
    if len(ids) != len(log_probs):
        raise ValueError(f"{len(ids)} tokens and {len(log_probs)} log-probabilities")
    if not all(map(math.isfinite, log_probs)):
        raise ValueError("a log-probability that is no number")
    return TokenReply(ids, log_probs, str(choice.get("finish_reason") or "stop"))
