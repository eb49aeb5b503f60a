"""A frozen vision tower reads each frame once: its features are kept by the frame's content.

Trainers pass a frame again for every completion of a group, every pass and every epoch. While the tower is frozen its
output cannot change, so it is computed for the distinct frames of a batch and kept within a size limit.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from surgery_r1.models.tree_attention import core

#: Families whose tower returns merged tokens alone. Qwen3-VL's also feeds deeper layers, and is left as it is.
_PLAIN_TOWERS = ("qwen2_vl", "qwen2_5_vl")


def content_keys(pixel_values: torch.Tensor, grids: torch.Tensor) -> list[bytes]:
    """One key per image of a flat patch tensor: equal keys mean equal pixels and size.

    Args:
        pixel_values: patches of all images, (sum of grid products, patch dimension).
        grids: (images, 3): temporal, height and width in patches.
    """
    sizes = grids.prod(-1).tolist()
    keys = []
    for pixels, grid in zip(torch.split(pixel_values, sizes), grids.tolist(), strict=True):
        digest = hashlib.blake2b(repr((grid, str(pixels.dtype))).encode(), digest_size=16)
        digest.update(pixels.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        keys.append(digest.digest())
    return keys


class VisionCache:
    """Features by content, the least recently used dropped beyond ``limit`` bytes.

    Attributes:
        computed, reused: images that went through the tower, and images that did not have to.
    """

    def __init__(self, tower: Any, limit: int) -> None:
        self._forward = tower.forward
        self._merge = tower.spatial_merge_size**2
        self._tower = tower
        self._limit = limit
        self._bytes = 0
        self._kept: dict[bytes, torch.Tensor] = {}
        self.computed = self.reused = 0

    def __call__(self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if self._sharded:
            # Every rank must run the tower in every pass, or the others wait for its shards for ever.
            self.forget()
        keys = content_keys(hidden_states, grid_thw)
        fresh = [i for i, key in enumerate(keys) if key not in self._kept and key not in keys[:i]]
        self.computed += len(fresh)
        self.reused += len(keys) - len(fresh)
        batch = {key: self._kept.pop(key) for key in dict.fromkeys(keys) if key in self._kept}
        if fresh:
            sizes = grid_thw.prod(-1).tolist()
            pixels = torch.split(hidden_states, sizes)
            # Tensors made in inference mode could not be used in a later backward pass.
            with torch.inference_mode(False), torch.no_grad():
                chosen = torch.cat([pixels[i] for i in fresh]).clone()
                output = self._forward(chosen, grid_thw=grid_thw[fresh].clone(), **kwargs).pooler_output
            parts = torch.split(output, [sizes[i] // self._merge for i in fresh])
            batch |= {keys[i]: part.clone() for i, part in zip(fresh, parts, strict=True)}
        self._keep(batch)
        return BaseModelOutputWithPooling(pooler_output=torch.cat([batch[key] for key in keys]))

    def forget(self) -> None:
        """Drop all features."""
        self._kept.clear()
        self._bytes = 0

    @property
    def _sharded(self) -> bool:
        """Whether the tower's weights are spread over ranks (FSDP, ZeRO-3)."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return False
        return any(
            type(parameter).__name__ in ("DTensor", "FlatParameter") or hasattr(parameter, "ds_id")
            for parameter in self._tower.parameters()
        ) or any(type(module).__name__ == "FullyShardedDataParallel" for module in self._tower.modules())

    def _keep(self, batch: dict[bytes, torch.Tensor]) -> None:
        self._kept.update(batch)
        self._bytes = sum(part.nbytes for part in self._kept.values())
        while self._bytes > self._limit and len(self._kept) > len(batch):
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes


def keep_frozen_features(model: Any, limit: int = 256 * 2**20) -> VisionCache | None:
    """Make a model's frozen vision tower read each distinct image once; None where that cannot be done.

    Only for a tower whose weights do not change any more in this process. The caller sees to that: gradients do not
    reach the tower afterwards.

    Args:
        model: a Qwen2-VL or Qwen2.5-VL model, with or without a LoRA adapter on its language model.
        limit: bytes of features to keep.
    """
    base = core(model)
    if base.config.model_type not in _PLAIN_TOWERS:
        return None
    tower = base.model.visual
    if isinstance(tower.forward, VisionCache):
        return tower.forward
    cache = VisionCache(tower, limit)
    tower.forward = cache
    return cache
