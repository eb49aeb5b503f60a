"""Attention over a prefix tree (:mod:`surgery_r1.models.sharing.prefix_tree`) on a CPU, with torch's flash kernel.

It needs no mask and copies no keys for the rows that share them: a node is one causal call of all queries from its
first token to the end of its subtree against its own keys. Nodes of one depth and of about one size are one call
together. Results of a token's ancestors are merged by their log-sum-exp, as in ring attention; the backward pass of a
part takes the merged output and log-sum-exp and is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from surgery_r1.models.sharing.prefix_tree import TreeLayout

#: Output and log-sum-exp; query i sees keys up to i, those behind the last key all of them.
flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class TreeAttention(torch.autograd.Function):
    """Softmax attention of a prefix tree; float32, float64, bfloat16 and float16.

    Query (1, H, N, d), key and value (1, K, N, d) with H a multiple of K. Memory beyond the inputs: output, one number
    a token and head; while it runs, what one call takes, padded to less than twice its size.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, layout: TreeLayout, scale: float) -> Any:
        q, k, v = (_by_token(t) for t in (query, key, value))
        # Parts are merged in at least float32.
        precise = torch.promote_types(q.dtype, torch.float32)
        out, lse = q.new_empty(q.shape, dtype=precise), q.new_empty(q.shape[:2], dtype=precise)
        for call in _calls(layout):
            keys = [call.keys.rows(t, q.shape[1]) for t in (k, v)]
            part, part_lse = flash(call.queries.rows(q), *keys, 0.0, True, scale=scale)
            part, part_lse = call.queries.flat(part), call.queries.flat(part_lse.unsqueeze(-1)).squeeze(-1)
            if not call.first:
                seen, seen_lse = call.queries.take(out), call.queries.take(lse)
                merge(seen, seen_lse, part, part_lse)
                part, part_lse = seen, seen_lse
            call.queries.put(out, part)
            call.queries.put(lse, part_lse)
        out = out.to(q.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out.transpose(0, 1)[None]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        query, key, value, out, lse = ctx.saved_tensors
        q, k, v, grad = (_by_token(t) for t in (query, key, value, grad))
        heads, groups = q.shape[1], k.shape[1]
        dq = q.new_empty(q.shape, dtype=lse.dtype)
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        for call in _calls(ctx.layout):
            keys = [call.keys.rows(t, heads) for t in (k, v)]
            part_grad, asked, seen, seen_lse = (call.queries.rows(t) for t in (grad, q, out, lse.unsqueeze(-1)))
            part_q, *parts = flash_backward(
                call.queries.without_padding(part_grad),
                asked,
                *keys,
                seen,
                seen_lse[..., 0],
                0.0,
                True,
                scale=ctx.scale,
            )
            part_q = call.queries.flat(part_q).to(dq.dtype)
            call.queries.put(dq, part_q if call.first else part_q.add_(call.queries.take(dq)))
            for whole, part in zip((dk, dv), parts, strict=True):
                # Query heads of a group share their key.
                call.keys.put(whole, call.keys.flat(part).unflatten(1, (groups, -1)).sum(2))
        return *(t.transpose(0, 1)[None] for t in (dq.to(q.dtype), dk, dv)), None, None


class _Rows:
    """Runs of a sequence of tokens as B rows of W places; behind a run's end its last token comes again.

    It holds no tensors: it is kept, and those of a plan (:mod:`surgery_r1.train.planning`) have no data.

    Args:
        runs: start and stop of each.
    """

    def __init__(self, runs: Sequence[tuple[int, int]]) -> None:
        starts, stops = np.array(runs).T[:, :, None]
        places = starts + np.arange((stops - starts).max())
        inside = places < stops
        self.shape = places.shape
        self.place = np.minimum(places, stops - 1).ravel()
        self.tokens = self.place[inside.ravel()]
        self.padding = None if inside.all() else ~inside[:, None, :, None]
        self.slots = np.flatnonzero(inside)
        #: One run is a view.
        self.run = slice(*runs[0]) if len(runs) == 1 else None

    def rows(self, values: torch.Tensor, heads: int = 0) -> torch.Tensor:
        """(N, K, d) of the sequence as (B, K, W, d), or (B, ``heads``, W, d) with each of the K several times."""
        rows = values[self.run] if self.run is not None else values.index_select(0, torch.as_tensor(self.place))
        if heads > rows.shape[1]:
            rows = rows.repeat_interleave(heads // rows.shape[1], 1)
        return rows.view(*self.shape, *rows.shape[1:]).transpose(1, 2)

    def flat(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, H, W, d) as (tokens of the runs, H, d), without padding."""
        flat = rows.transpose(1, 2).flatten(0, 1)
        return flat if self.padding is None else flat.index_select(0, torch.as_tensor(self.slots))

    def without_padding(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, H, W, d) with zeros behind the runs."""
        return rows if self.padding is None else rows.masked_fill(torch.as_tensor(self.padding), 0)

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """(N, ...) of the sequence as (tokens of the runs, ...)."""
        return values[self.run] if self.run is not None else values.index_select(0, torch.as_tensor(self.tokens))

    def put(self, values: torch.Tensor, of_runs: torch.Tensor) -> None:
        """The way back of :meth:`take`."""
        if self.run is not None:
            values[self.run] = of_runs
        else:
            values.index_copy_(0, torch.as_tensor(self.tokens), of_runs)


class _Call(NamedTuple):
    """Nodes that are attended to in one call.

    Attributes:
        queries: from a node's first token to the end of its subtree. Padding sees what a subtree's last token sees:
            nothing overflows, and without a gradient nothing comes back from it.
        keys: the nodes' own tokens.
        first: whether the nodes have no ancestors.
    """

    queries: _Rows
    keys: _Rows
    first: bool


@lru_cache(maxsize=8)
def _calls(layout: TreeLayout) -> list[_Call]:
    """The calls of a tree, ancestors first. Descendants would see padded keys: nodes that have some are together where
    they have as many tokens. Leaves are padded, since the padding stands behind all that looks."""
    alike: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
    ends: list[int] = []
    for start, stop, end in layout.spans:
        while ends and ends[-1] <= start:
            ends.pop()
        own = stop - start if stop < end else 0
        alike.setdefault((len(ends), own, (end - start - 1).bit_length()), []).append((start, stop, end))
        ends.append(end)
    return [
        _Call(
            _Rows([(start, end) for start, _, end in spans]),
            _Rows([(start, stop) for start, stop, _ in spans]),
            depth == 0,
        )
        for (depth, _, _), spans in sorted(alike.items())
    ]


def _by_token(values: torch.Tensor) -> torch.Tensor:
    """(1, H, N, d) as (N, H, d)."""
    return values[0].transpose(0, 1).contiguous()


def merge(out: Any, lse: Any, part: Any, part_lse: Any) -> None:
    """Take attention over further keys into ``out`` and ``lse`` in place."""
    total = torch.logaddexp(lse, part_lse)
    out.mul_((lse - total).exp_().unsqueeze(-1)).addcmul_(part.to(out.dtype), (part_lse - total).exp_().unsqueeze(-1))
    lse.copy_(total)
