"""A frozen vision tower reads each frame once: its features are kept by the frame's content.

Trainers pass a frame again for every completion of a group, every pass and every epoch. While the tower is frozen its
output cannot change, so it is computed for the distinct frames of a batch and kept within a size limit: in memory, and
on request in a folder that later runs read. A tower whose frames are all known need not stay on the GPU.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from surgery_r1._util.byte_cache import ByteCache
from surgery_r1._util.files import atomic_write
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.sharing.attention import core

#: Families whose towers are known. Qwen3-VL's gives the first layers of the language model features of their own
#: ("deepstack") beside the merged tokens.
_TOWERS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


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


def tower_hash(tower: torch.nn.Module) -> str:
    """Hash of a tower's weights, their types and names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tower.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _FileSizes(ByteCache[Path, int]):
    """Sizes of files; what is dropped is deleted: the file that was written longest ago, or one too large at once."""

    def popitem(self) -> tuple[Path, int]:
        path, size = super().popitem()
        # Another process may have deleted it.
        path.unlink(missing_ok=True)
        return path, size

    def add(self, path: Path) -> None:
        """Count a file in."""
        self[path] = path.stat().st_size
        if path not in self:
            path.unlink(missing_ok=True)


class FeatureFolder:
    """Features on disk, one safetensors file for an image, under the hash of the tower's weights.

    Args:
        folder: may hold features of other towers too.
        tower: their hash names the sub-folder.
        limit: bytes; beyond them the files that were written longest ago are deleted.
    """

    def __init__(self, folder: Path, tower: torch.nn.Module, limit: int) -> None:
        self.folder = folder / tower_hash(tower)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SurgeryR1Error(
                f"no folder for vision features: {error.strerror}", where=folder, fix="change model.vision_cache"
            ) from None
        self._sizes = _FileSizes(limit, lambda size: size)
        for path in sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns):
            self._sizes.add(path)

    def get(self, key: bytes) -> torch.Tensor | None:
        """Features of an image; None when there are none, or the file is torn (it is then written again)."""
        try:
            return load_file(self._path(key))["features"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def put(self, key: bytes, features: torch.Tensor) -> None:
        """Keep the features of an image."""
        path = self._path(key)
        with atomic_write(path, "wb") as file:
            file.write(save({"features": features.detach().cpu().contiguous()}))
        self._sizes.add(path)

    def _path(self, key: bytes) -> Path:
        return self.folder / f"{key.hex()}.safetensors"


class VisionCache:
    """Features by content, the least recently used dropped beyond ``limit`` bytes.

    Args:
        tower: a frozen vision tower.
        limit: bytes of features to keep in memory.
        files: keep them on disk too.
        offload: move the tower to main memory whenever it has nothing to compute.

    Attributes:
        computed, reused: images that went through the tower, and images that did not have to.
    """

    def __init__(self, tower: Any, limit: int, files: FeatureFolder | None = None, offload: bool = False) -> None:
        self._forward = tower.forward
        self._merge = tower.spatial_merge_size**2
        self._tower = tower
        self._files = files
        self._offload = offload
        self._kept = ByteCache[bytes, torch.Tensor](limit, lambda part: part.nbytes)
        self._last: dict[bytes, torch.Tensor] = {}
        self.computed = self.reused = 0

    def __call__(self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs: Any) -> Any:
        if self._offload and _ranks() > 1:
            # What wraps the model would look for the tower's buffers on the device.
            raise SurgeryR1Error("model.offload_vision is for one process", fix="leave it out when several ranks train")
        files = self._files
        if self._sharded:
            # Every rank must run the tower in every pass, or the others wait for its shards for ever.
            self.forget()
            files = None
        keys = content_keys(hidden_states, grid_thw)
        if files is not None:
            # Autocast makes other features of the same pixels.
            device = hidden_states.device.type
            cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            keys = [hashlib.blake2b(key + str(cast).encode(), digest_size=16).digest() for key in keys]
        # Held here until they are joined, whatever the cache has room for.
        known = {key: self._known(key, files) for key in dict.fromkeys(keys)}
        batch = {key: part.to(hidden_states.device) for key, part in known.items() if part is not None}
        fresh = [i for i, key in enumerate(keys) if key not in batch and key not in keys[:i]]
        self.computed += len(fresh)
        self.reused += len(keys) - len(fresh)
        if fresh:
            computed = self._compute(hidden_states, grid_thw, fresh, kwargs)
            batch |= {keys[i]: part for i, part in zip(fresh, computed, strict=True)}
            if files is not None:
                for i in fresh:
                    files.put(keys[i], batch[keys[i]])
        if self._offload:
            self._tower.to("cpu")
        # Passes over one batch follow each other: the last one is kept whole, however large it is.
        self._last = batch
        self._kept.update(batch)
        return _output(torch.cat([batch[key] for key in keys], -2))

    def _known(self, key: bytes, files: FeatureFolder | None) -> torch.Tensor | None:
        """Features that need not be computed, from memory or from disk."""
        part = self._kept.get(key, self._last.get(key))
        return files.get(key) if part is None and files is not None else part

    def _compute(
        self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, images: list[int], kwargs: dict[str, Any]
    ) -> list[torch.Tensor]:
        """Features of the images with these numbers, by the tower: (tokens, channels) each, or, with those of deeper
        layers, (1 + layers, tokens, channels)."""
        sizes = grid_thw.prod(-1).tolist()
        pixels = torch.split(hidden_states, sizes)
        # Tensors made in inference mode could not be used in a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            chosen = torch.cat([pixels[i] for i in images]).clone()
            if self._offload:
                self._tower.to(chosen.device)
            output = self._forward(chosen, grid_thw=grid_thw[images].clone(), **kwargs)
            deeper = getattr(output, "deepstack_features", None)
            features = output.pooler_output if deeper is None else torch.stack([output.pooler_output, *deeper])
            return [part.clone() for part in torch.split(features, [sizes[i] // self._merge for i in images], -2)]

    def forget(self) -> None:
        """Drop all features."""
        self._kept.clear()
        self._last = {}

    @property
    def _sharded(self) -> bool:
        """Whether the tower's weights are spread over ranks (FSDP, ZeRO-3)."""
        if _ranks() == 0:
            return False
        return any(
            type(parameter).__name__ in ("DTensor", "FlatParameter") or hasattr(parameter, "ds_id")
            for parameter in self._tower.parameters()
        ) or any(type(module).__name__ == "FullyShardedDataParallel" for module in self._tower.modules())


def _output(features: torch.Tensor) -> Any:
    """What a tower returns, of features as :meth:`VisionCache._compute` has them."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    if features.dim() == 2:
        return BaseModelOutputWithPooling(pooler_output=features)
    return BaseModelOutputWithDeepstackFeatures(pooler_output=features[0], deepstack_features=list(features[1:]))


def _ranks() -> int:
    """Processes that train together; 0 when torch.distributed is not in use."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 0


def keep_frozen_features(
    model: Any, limit: int = 256 * 2**20, *, folder: Path | None = None, offload: bool = False, disk: int = 64 * 2**30
) -> VisionCache | None:
    """Make a model's frozen vision tower read each distinct image once; None where that cannot be done.

    Only for a tower whose weights do not change any more in this process. The caller sees to that: gradients do not
    reach the tower afterwards.

    Args:
        model: of the Qwen2-VL, Qwen2.5-VL or Qwen3-VL family, with or without a LoRA adapter on its language model.
        limit: bytes of features to keep in memory.
        folder: keep features there too, for later runs with the same tower, up to ``disk`` bytes.
        offload: let the tower leave the device while it has nothing to compute.

    Raises:
        SurgeryR1Error: when a folder or offloading is asked for, and the tower cannot do it.
    """
    base = core(model)
    if base.config.model_type not in _TOWERS:
        if folder is not None or offload:
            raise SurgeryR1Error(
                f"vision features of {base.config.model_type} cannot be kept: what its tower returns is not known",
                fix="leave out model.vision_cache and model.offload_vision",
            )
        return None
    tower = base.model.visual
    if isinstance(tower.forward, VisionCache):
        return tower.forward
    files = FeatureFolder(folder, tower, disk) if folder is not None else None
    tower.forward = VisionCache(tower, limit, files, offload)
    return tower.forward
