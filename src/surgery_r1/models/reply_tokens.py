"""Tokens that no reply may hold: what a prompt puts around a frame, and padding.

A policy that samples an image token has written of an image that is not there: tokens and features of the row then
differ in number, and training ends (or, in other trainers, goes on with frames in the wrong places).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from surgery_r1.models.load import Bundle, generation_config

#: Of the Qwen-VL families.
_FRAMES = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")


def banned_tokens(tokenizer: Any, ends: int | Iterable[int] | None) -> tuple[int, ...]:
    """Ids of :data:`_FRAMES` as far as a tokenizer has them, and of padding where it does not end a reply.

    Args:
        ends: ids that end a reply: some published models end one with their padding token too.

    >>> from surgery_r1.models import from_pretrained
    >>> tokenizer = from_pretrained("tiny", with_model=False).tokenizer
    >>> tokenizer.convert_ids_to_tokens(banned_tokens(tokenizer, tokenizer.eos_token_id))[:2]
    ['<|endoftext|>', '<|vision_start|>']
    """
    ending = {ends} if isinstance(ends, int) else set(ends or ())
    known = tokenizer.added_tokens_encoder
    found = {known[name] for name in _FRAMES if name in known} | {tokenizer.pad_token_id}
    return tuple(
        sorted(token for token in found if token is not None and token not in ending | {tokenizer.eos_token_id})
    )


def banned_for(bundle: Bundle) -> tuple[int, ...]:
    """:func:`banned_tokens` of a model whose weights are elsewhere: at a server, or in another engine."""
    return banned_tokens(bundle.tokenizer, generation_config(bundle.folder, bundle.tokenizer).eos_token_id)
