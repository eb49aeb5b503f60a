"""Attention over a prefix tree (:mod:`surgery_r1.models.sharing.prefix_tree`), for transformers' models.

On a CPU by torch's flash kernel (:mod:`surgery_r1.models.sharing.flash_tree`), elsewhere by flex attention.
"""

from __future__ import annotations

import logging
from functools import cache, lru_cache
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.sharing.flash_tree import TreeAttention, flash, merge
from surgery_r1.models.sharing.growing_cache import SharedKeys
from surgery_r1.models.sharing.prefix_tree import TreeLayout

logger = logging.getLogger(__name__)

#: Model families whose language model sees frames and text by plain causal attention and M-RoPE.
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

#: The name under which the attention is registered with transformers.
ATTENTION = "surgery_r1_tree"


def _shared_attention(query: Any, key: SharedKeys, value: Any, mask: Any, scale: float) -> Any:
    """Attention of rows to beginnings that they share, read once for all of them, and to the rest of each row.

    Args:
        query: (rows, H, n, d).
        value: (rows, K, own tokens, d).
        mask: (rows, 1, n, tokens) of True where a query sees a key; None where it sees all of them, of its own tokens
            up to itself.

    Returns:
        (rows, H, n, d).
    """
    rows, heads, n, width = query.shape
    groups, begun = value.shape[1], key.shared.shape[2]
    beginnings, most = key.sharers.of_shared.shape
    # Queries of all rows with one beginning, and of all heads with one key, stand side by side.
    by_group = query.view(rows, groups, heads // groups, n, width)
    side = by_group[key.sharers.of_shared].transpose(1, 2).reshape(beginnings, groups, -1, width)
    seen = None
    if mask is not None and not mask[:, :, -1, :begun].all():
        # What is padded in a beginning is padded for all of its rows.
        first = mask[key.sharers.of_shared[:, 0], :, -1:, :begun]
        seen = _additive(first, query.dtype).expand(-1, 1, side.shape[2], -1)
    out, lse = flash(side, key.shared, key.shared_values, 0.0, False, attn_mask=seen, scale=scale)
    precise = torch.promote_types(query.dtype, torch.float32)
    out, lse = (
        part.reshape(beginnings, groups, most, heads // groups, n, -1)
        .transpose(1, 2)
        .flatten(0, 1)[key.sharers.of_row]
        .reshape(rows * groups, heads // groups, n, -1)
        .to(precise)
        for part in (out, lse.unsqueeze(-1))
    )
    own = key.own.shape[2]
    shape = (rows * groups, heads // groups, own, width)
    own_key, own_value = (part.flatten(0, 1).unsqueeze(1).expand(shape) for part in (key.own, value))
    own_mask = None
    if mask is not None:
        own_mask = _additive(mask[..., begun:], query.dtype).expand(rows, groups, n, own).reshape(-1, 1, n, own)
    part, part_lse = flash(
        by_group.flatten(0, 1), own_key, own_value, 0.0, mask is None and n > 1, attn_mask=own_mask, scale=scale
    )
    lse = lse.squeeze(-1)
    merge(out, lse, part, part_lse.to(precise))
    return out.to(query.dtype).view(query.shape)


def _additive(mask: Any, dtype: torch.dtype) -> Any:
    """A mask of True and False as one to add. It is finite: a query that sees nothing of one part is no NaN."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def takes_flex(device: torch.device) -> bool:
    """Whether a device computes prefix trees with flex attention; a CPU has the flash kernel above."""
    return device.type != "cpu"


@lru_cache(maxsize=8)
def _block_mask(layout: TreeLayout, device: torch.device) -> Any:
    """The tree as a mask for flex attention: a token is seen by its own node from it on, and by the descendants."""
    from torch.nn.attention.flex_attention import create_block_mask

    ends = torch.empty(layout.size, dtype=torch.long)
    for start, stop, end in layout.spans:
        ends[start:stop] = end
    ends = ends.to(device)

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (query < ends[key])

    return create_block_mask(sees, None, None, layout.size, layout.size, device=str(device))


def forget_masks() -> None:
    """Drop the masks of layouts seen so far, which a benchmark that repeats a layout would get for nothing."""
    _block_mask.cache_clear()


def flex_tree_attention(query: Any, key: Any, value: Any, layout: TreeLayout, scale: float) -> Any:
    """The same attention with torch's flex attention, compiled where there is a GPU. Shapes as in the CPU's way."""
    attend = _flex_attention(compiled=query.is_cuda)
    mask = _block_mask(layout, query.device)
    return attend(query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])


@cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def tree_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: TreeLayout | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Attention function for transformers: a prefix tree where the forward got ``tree``, else plain SDPA.

    Args:
        query, key, value: (1, heads, N, d), keys and values with as many heads or fewer. In generation key may be a
            :class:`surgery_r1.models.sharing.growing_cache.SharedKeys`.
        tree: layout of the packed sequence.

    Returns:
        Output (1, N, heads, d), and None for the weights.
    """
    if isinstance(key, SharedKeys):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = _shared_attention(query.to(value.dtype), key, value, attention_mask, scale)
        return out.transpose(1, 2).contiguous(), None
    if tree is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if query.shape[0] != 1 or query.shape[2] != tree.size:
        raise SurgeryR1Error(
            f"a prefix tree of {tree.size} tokens met a batch of {query.shape[0]} sequences of {query.shape[2]}",
            fix="pack the whole micro-batch into one sequence",
        )
    if dropout:
        raise SurgeryR1Error(
            f"attention dropout of {dropout} with shared frames", fix="set it to 0, or switch sharing off"
        )
    # Under autocast rotary embeddings leave queries and keys in another precision than values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = flex_tree_attention if takes_flex(query.device) else TreeAttention.apply
    out = attend(query, key, value, tree, scale)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, tree_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def obstacle(model: Any) -> str | None:
    """Why rows of this model cannot share their beginnings, or None where they can."""
    config = core(model).config
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is not one of {', '.join(FAMILIES)}"
    text = config.get_text_config()
    kinds = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention"})
    if kinds:
        return f"it has layers of {', '.join(kinds)}"
    if getattr(text, "attention_dropout", 0.0):
        return "it drops attention weights"
    return None


def can_share(model: Any) -> bool:
    """Whether rows of this model can share their beginnings; where not, one warning says why."""
    reason = obstacle(model)
    if reason is not None:
        _warn(f"frames are not shared, rows are computed one by one: {reason}")
    return reason is None


@cache
def _warn(message: str) -> None:
    """Once a process."""
    logger.warning(message)


def enable(model: Any) -> bool:
    """Let the language model of ``model`` (with a LoRA adapter or without) take prefix trees, see :func:`can_share`."""
    if not can_share(model):
        return False
    core(model).config.get_text_config()._attn_implementation = ATTENTION
    return True


def enabled(model: Any) -> bool:
    """Whether the language model of ``model`` takes prefix trees; one that does not would ignore the layout."""
    return core(model).config.get_text_config()._attn_implementation == ATTENTION


def core(model: Any) -> Any:
    """The model itself, without an adapter around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
