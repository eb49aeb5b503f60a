"""Generation from prompts that share frames: each frame, and each repeated prompt, is read into the cache once.

Only the start of generation is ours. What a frame's prompts share is computed for each distinct frame, its keys and
values are copied to the prompts, and ``model.generate`` goes on from there: text is what it would have been, to
rounding of the logits.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from surgery_r1.models.sharing.attention import core, enabled
from surgery_r1.models.sharing.growing_cache import growing_cache, shared_cache


class ImagePatches(NamedTuple):
    """One image as the vision tower takes it: patches (patches, dimension) and grid (3,)."""

    patches: torch.Tensor
    grid: torch.Tensor


class PromptTokens(NamedTuple):
    """One prompt: tokens with every image expanded, and the key of each image in order."""

    ids: Sequence[int]
    images: tuple[Hashable, ...]


def prefix_length(prompt: PromptTokens, image_token: int) -> int:
    """Tokens up to the end of the prompt's last image; 0 without one."""
    ids = list(prompt.ids)
    return len(ids) - ids[::-1].index(image_token) if prompt.images else 0


@torch.no_grad()
def prefill(
    model: Any,
    prompts: Sequence[PromptTokens],
    images: Mapping[Any, ImagePatches],
    pad: int,
    width: int = 0,
    *,
    share: bool = False,
) -> dict[str, Any]:
    """Read what the prompts share; arguments for ``model.generate``, one row a prompt, padded before the question.

    Args:
        prompts: with prefixes (see :func:`prefix_length`) of one length, of at least one token.
        images: every image that the prompts name.
        pad: the padding token.
        width: pad to at least that many tokens.
        share: let decoding read what rows share once for all of them, where the model takes prefix trees and runs on
            a CPU; else each row gets a copy. The sums of attention are then taken in another order.

    Returns:
        input_ids and attention_mask (rows, L), and past_key_values that hold less than L tokens. The first L columns
        of what is generated are the prompts.
    """
    base = core(model)
    device = base.device
    token = base.config.image_token_id
    size = prefix_length(prompts[0], token)
    prefixes = list(dict.fromkeys((tuple(p.ids[:size]), p.images) for p in prompts))
    cache = _read(model, prefixes, images)
    deltas = base.model.rope_deltas
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    distinct = list(dict.fromkeys((tuple(p.ids), p.images) for p in prompts))
    begins = [number[ids[:size], keys] for ids, keys in distinct]
    cache = _continued(model, cache, begins, share=share and len(distinct) == len(prompts))
    deltas = deltas[begins]
    length = max(width, *(len(ids) for ids, _ in distinct))
    padded = [[*ids[:size], *[pad] * (length - len(ids)), *ids[size:]] for ids, _ in distinct]
    seen = [[1] * size + [0] * (length - len(ids)) + [1] * (len(ids) - size) for ids, _ in distinct]
    tokens, mask = torch.tensor(padded, device=device), torch.tensor(seen, device=device)
    if len(distinct) < len(prompts):
        # All but the last token of a prompt that is continued several times.
        if length - size > 1:
            # Text counts on behind the image, padding aside.
            positions = (mask.cumsum(-1) - 1 + deltas)[:, size:-1]
            output = model(
                input_ids=tokens[:, size:-1],
                attention_mask=mask[:, :-1],
                position_ids=positions.expand(3, -1, -1),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
        place = {prompt: i for i, prompt in enumerate(distinct)}
        rows = [place[tuple(p.ids), p.images] for p in prompts]
        cache = _continued(model, cache, rows, share=share)
        tokens, mask, deltas = tokens[rows], mask[rows], deltas[rows]
    base.model.rope_deltas = deltas
    return {"input_ids": tokens, "attention_mask": mask, "past_key_values": cache}


def _read(model: Any, prefixes: Sequence[tuple[Any, Any]], images: Mapping[Any, ImagePatches]) -> Any:
    """The cache of prefixes of one length, each tokens and keys of images; the model keeps their ``rope_deltas``."""
    device, token = core(model).device, core(model).config.image_token_id
    ids = torch.tensor([prefix for prefix, _ in prefixes], device=device)
    shown = [images[key] for _, keys in prefixes for key in keys]
    return model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == token).int(),
        pixel_values=torch.cat([image.patches for image in shown]).to(device),
        image_grid_thw=torch.stack([image.grid for image in shown]).to(device),
        past_key_values=growing_cache(),
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values


def _continued(model: Any, cache: Any, rows: Sequence[int], *, share: bool) -> Any:
    """A cache whose row i goes on from row ``rows[i]`` of ``cache``: shared where that saves something, else copied."""
    keys = cache.layers[0].keys
    # Two parts cost more than one where few rows share.
    if share and keys.device.type == "cpu" and enabled(model) and len(rows) >= 2 * len(keys):
        return shared_cache(cache, rows)
    cache.batch_select_indices(torch.tensor(rows, device=keys.device))
    return cache
