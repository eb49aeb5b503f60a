"""While TRL prepares a batch, an image is its number: TRL copies patches for every completion, three times over.

A frame of 1,280 tokens is 24 MB of patches. TRL holds them once for each completion of a group, in the batch, in its
shuffled copy and in the micro-batches. A column of numbers of the same length passes through the same code; the
patches themselves are kept once, and are put back where the model reads them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import BatchFeature

from surgery_r1.models.processor import image_key
from surgery_r1.models.sharing.prefill import ImagePatches


class ImageIds:
    """Stands in for a processor's image processor; everything else is asked of the real one.

    Attributes:
        prepared: images that the real image processor has resized, since the start.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._kept: dict[int, ImagePatches] = {}
        self._number: dict[bytes, int] = {}
        self._next = self.prepared = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, images: Any, return_tensors: Any = None, **settings: Any) -> BatchFeature:
        """As the real one, but ``pixel_values`` is (patches, 1): for each patch the number of its image.

        Args:
            images: PIL images or arrays, in lists of any depth.
        """
        shown = list(_flat(images))
        # A group shows one object again and again: it is hashed once.
        of_object = {id(image): image_key(image, settings) for image in {id(image): image for image in shown}.values()}
        keys = [of_object[id(image)] for image in shown]
        fresh = {key: image for key, image in zip(keys, shown, strict=True) if key not in self._number}
        # Resizing is numpy and Pillow, which let other threads run.
        with ThreadPoolExecutor(max(1, min(len(fresh), os.cpu_count() or 1))) as pool:
            done = list(pool.map(lambda image: self._prepare(image, settings), fresh.values()))
        for key, image in zip(fresh, done, strict=True):
            self._number[key], self._kept[self._next] = self._next, image
            self._next += 1
        self.prepared += len(fresh)
        numbers = [self._number[key] for key in keys]
        grids = torch.stack([self._kept[number].grid for number in numbers])
        values = torch.repeat_interleave(torch.tensor(numbers), grids.prod(-1))[:, None]
        return BatchFeature({"pixel_values": values, "image_grid_thw": grids})

    def _prepare(self, image: Any, settings: dict[str, Any]) -> ImagePatches:
        done = self._inner(images=[image], return_tensors="pt", **settings)
        return ImagePatches(done["pixel_values"], done["image_grid_thw"][0])

    def kept(self, numbers: Iterable[int]) -> dict[int, ImagePatches]:
        """The images ``numbers``."""
        return {number: self._kept[number] for number in numbers}

    def patches(self, numbers: Iterable[int], device: torch.device) -> torch.Tensor:
        """Patches of the images ``numbers``, one after the other."""
        return torch.cat([self._kept[number].patches.to(device) for number in numbers])

    def restored(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Model inputs with patches in place of numbers; inputs without images as they are."""
        numbers, grids = inputs.get("pixel_values"), inputs.get("image_grid_thw")
        if numbers is None or grids is None:
            return inputs
        return {**inputs, "pixel_values": self.patches(image_ids_of(numbers, grids), numbers.device)}

    def forget(self) -> None:
        """Drop what is kept: batches prepared before can no longer be read."""
        self._kept.clear()
        self._number.clear()


def image_ids_of(pixel_values: torch.Tensor, grids: torch.Tensor) -> list[int]:
    """The number of each image of a column of numbers.

    >>> image_ids_of(torch.tensor([[7], [7], [3]]), torch.tensor([[1, 1, 2], [1, 1, 1]]))
    [7, 3]
    """
    firsts = grids.prod(-1).cumsum(0) - grids.prod(-1)
    return pixel_values[firsts.to(pixel_values.device), 0].tolist()


def _flat(images: Any) -> Iterator[Any]:
    if isinstance(images, Sequence):
        for image in images:
            yield from _flat(image)
    else:
        yield images
