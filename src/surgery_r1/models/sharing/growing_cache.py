"""A cache of keys and values with room behind them: a token is written where it belongs, and nothing is copied.

transformers' dynamic cache copies all keys and values for every token. Its static cache does not, but attention then
runs over the whole room. This one gives attention what the dynamic cache gives, to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

#: Tokens of room that are made at a time.
ROOM = 64


class _GrowingLayer(DynamicLayer):
    """Keys and values (rows, heads, tokens, d) of one layer: views of tensors with room for more tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._rooms: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Add keys and values of further tokens; those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
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


def growing_cache() -> Cache:
    """An empty cache for generation, without gradients."""
    return Cache(layer_class_to_replicate=_GrowingLayer)
