"""Caches of keys and values for generation: tokens are written where they belong, and what rows share stands once.

transformers' dynamic cache copies all keys and values for every token. Its static cache does not, but attention then
runs over the whole room. :func:`growing_cache` gives attention what the dynamic cache gives, to the last bit.
:func:`shared_cache` gives it a shared beginning and the rest apart, which :mod:`surgery_r1.models.sharing.attention`
reads; results are the same to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache, DynamicLayer

#: Tokens of room that are made at a time.
ROOM = 64


class GrowingLayer(DynamicLayer):
    """Keys and values (rows, heads, tokens, d) of one layer: views of tensors with room for more tokens."""

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self._rooms: Any = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add keys and values of further tokens; those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = DynamicLayer.get_seq_length(self)
        stop = start + key_states.shape[-2]
        rooms = self._rooms
        # Selecting or repeating rows makes new tensors.
        if rooms is None or rooms[0].data_ptr() != self.keys.data_ptr() or stop > rooms[0].shape[-2]:
            shape = (*key_states.shape[:-2], stop + ROOM)
            rooms = tuple(states.new_empty((*shape, states.shape[-1])) for states in (key_states, value_states))
            if start:
                rooms[0][:, :, :start], rooms[1][:, :, :start] = self.keys, self.values
            self._rooms = rooms
        rooms[0][:, :, start:stop], rooms[1][:, :, start:stop] = key_states, value_states
        self.keys, self.values = (room[:, :, :stop] for room in rooms)
        return self.keys, self.values


class Sharers(NamedTuple):
    """Which rows share a beginning.

    Attributes:
        of_shared: (beginnings, most rows of one): numbers of their rows; a beginning of fewer rows has its first row
            several times.
        of_row: (rows,): where a row stands in ``of_shared``, flattened.
    """

    of_shared: torch.Tensor
    of_row: torch.Tensor


class SharedKeys(NamedTuple):
    """What attention gets instead of keys: those of the shared beginnings, and of the rest of each row.

    Attributes:
        shared, shared_values: (beginnings, heads, tokens, d).
        own: (rows, heads, further tokens, d); the values that belong to them are given as values.
    """

    shared: torch.Tensor
    shared_values: torch.Tensor
    own: torch.Tensor
    sharers: Sharers


class _SharedLayer(GrowingLayer):
    """Keys and values of one layer behind beginnings that rows share. Its own keys and values are the rest."""

    def __init__(self, begun: Any, sharers: Sharers) -> None:
        super().__init__()
        self._begun = begun
        self._sharers = sharers

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add keys and values of further tokens; :class:`SharedKeys` of all of them, and the values of the rest."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return SharedKeys(self._begun.keys, self._begun.values, keys, self._sharers), values

    def get_seq_length(self) -> int:
        return self._begun.get_seq_length() + super().get_seq_length()


def growing_cache() -> Cache:
    """An empty cache for generation without gradients."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def shared_cache(cache: Cache, rows: Sequence[int]) -> Cache:
    """A cache of as many rows as ``rows``, of which row i begins with row ``rows[i]`` of ``cache``.

    It can be read by :func:`surgery_r1.models.sharing.attention.tree_attention` alone, and its rows cannot be chosen
    anew, as beam search does.
    """
    layers: list[Any] = cache.layers
    keys = layers[0].keys
    of_shared: list[list[int]] = [[] for _ in range(len(keys))]
    for number, shared in enumerate(rows):
        of_shared[shared].append(number)
    most = max(map(len, of_shared))
    of_row = torch.tensor([shared * most + of_shared[shared].index(number) for number, shared in enumerate(rows)])
    # Every beginning has a row.
    padded = torch.tensor([numbers + numbers[:1] * (most - len(numbers)) for numbers in of_shared])
    sharers = Sharers(padded.to(keys.device), of_row.to(keys.device))
    return Cache(layers=[_SharedLayer(layer, sharers) for layer in layers])
