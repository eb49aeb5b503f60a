"""Attention over a prefix tree by calls of many nodes equals attention with the tree as a mask."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery_r1.models.sharing.flash_tree import TreeAttention, _calls
from surgery_r1.models.sharing.prefix_tree import TreeLayout


def layout_of(nodes, at=0):
    """Nested (own tokens, children) laid out depth first."""
    spans = []
    for own, children in nodes:
        below = layout_of(children, at + own) if children else ()
        end = max([at + own, *(span[2] for span in below)])
        spans += [(at, at + own, end), *below]
        at = end
    return tuple(spans)


def masked(q, k, v, spans, scale):
    """The same with one mask, in the inputs' own precision."""
    size = q.shape[2]
    sees = torch.zeros(size, size, dtype=torch.bool)
    for start, stop, end in spans:
        sees[start:end, start:stop] = True
    sees &= torch.ones_like(sees).tril()
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~sees, -math.inf)
    return scores.softmax(-1) @ v


TREES = st.recursive(
    st.tuples(st.integers(1, 40), st.just(())),
    lambda nodes: st.tuples(st.integers(1, 20), st.lists(nodes, max_size=5)),
    max_leaves=12,
)


@given(st.lists(TREES, min_size=1, max_size=3), st.sampled_from([1, 2, 4]), st.sampled_from([1.0, 60.0]))
@settings(max_examples=40, deadline=None)
def test_equals_one_mask(nodes, groups, sharpness):
    layout = TreeLayout(layout_of(nodes))
    generator = torch.Generator().manual_seed(layout.size)
    shapes = [(1, heads, layout.size, 8) for heads in (4, groups, groups)]
    # Scores of thousands: a padded place that saw what its row does not would overflow.
    given_tensors = [sharpness * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    weights = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    results = []
    for attend in (masked, lambda q, k, v, spans, scale: TreeAttention.apply(q, k, v, layout, scale)):
        q, k, v = (t.clone().requires_grad_() for t in given_tensors)
        out = attend(q, k, v, layout.spans, 0.3)
        results.append((out, *torch.autograd.grad((out * weights).sum(), (q, k, v))))
    for expected, ours in zip(*results, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, expected, atol=1e-9 * sharpness**3, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_merges_in_float32(dtype):
    layout = TreeLayout(layout_of([(30, [(9, [(20, ()), (33, ())]), (9, [(5, ())])])]))
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, layout.size, 16, generator=generator) for _ in range(3))
    ours = TreeAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype), layout, 0.25)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), masked(q, k, v, layout.spans, 0.25), atol=0.03, rtol=0.03)


def test_nodes_alike_are_one_call():
    """Twelve frames with six rows each: one call for the frames, one for their rows of each size."""
    frames = [(31, [(20 + row % 3, ()) for row in range(6)]) for _ in range(12)]
    layout = TreeLayout(layout_of([(51, frames)]))
    assert len(layout.spans) == 1 + 12 + 72
    assert len(_calls(layout)) == 3
