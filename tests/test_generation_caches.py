"""Caches of generation: what they hold and what attention makes of it is what transformers' own gives."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from surgery_r1.models.sharing import growing_cache as caches
from surgery_r1.models.sharing.attention import enable, tree_attention
from surgery_r1.models.sharing.growing_cache import growing_cache, shared_cache
from surgery_r1.models.sharing.prefill import ImagePatches, PromptTokens, prefill
from surgery_r1.models.tiny import architecture as tiny
from surgery_r1.models.tiny import text as tiny_text

HEADS, WIDTH = 2, 8


def states(rows: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, HEADS, tokens, WIDTH, generator=random) for _ in range(2))


def test_it_holds_what_the_dynamic_cache_holds(monkeypatch):
    """Token by token, beyond its room, and after rows were chosen anew."""
    monkeypatch.setattr(caches, "ROOM", 3)
    ours, plain = growing_cache(), DynamicCache()
    rows = 2
    for step in range(12):
        if step == 5:
            for cache in (ours, plain):
                cache.batch_select_indices(torch.tensor([1, 0, 0, 1]))
            rows = 4
        if step == 8:
            for cache in (ours, plain):
                cache.crop(-2)
        given = states(rows, 4 if step == 0 else 1, step)
        for got, expected in zip(ours.update(*given, 0), plain.update(*given, 0), strict=True):
            assert got.equal(expected)
        assert ours.get_seq_length() == plain.get_seq_length()


def test_a_token_copies_nothing():
    cache = growing_cache()
    cache.update(*states(2, 10, 0), 0)
    place = cache.layers[0].keys.data_ptr()
    for step in range(caches.ROOM):
        cache.update(*states(2, 1, step), 0)
    assert cache.layers[0].keys.data_ptr() == place and cache.get_seq_length() == 10 + caches.ROOM


class _Module(torch.nn.Module):
    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [[0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1]])
def test_attention_to_shared_beginnings(groups, masked, rows):
    """Beginnings of unequally many rows, several queries and then one, with padding or without."""
    begun, plain = growing_cache(), DynamicCache()
    given = states(2, 7, 0)
    for cache in (begun, plain):
        cache.update(*given, 0)
    ours = shared_cache(begun, rows)
    plain.batch_select_indices(torch.tensor(rows))
    seen = torch.ones(len(rows), 7 + 4 + 1, dtype=torch.bool)
    if masked:
        # Padding in a beginning, the same for its rows; and rows that begin late.
        seen[[row == 1 for row in rows], 5:7] = False
        seen[0, 7:9] = seen[4, 7:8] = False
    for start, n in ((7, 4), (11, 1)):
        query = torch.randn(len(rows), HEADS * groups, n, WIDTH, generator=torch.Generator().manual_seed(n))
        new = states(len(rows), n, n)
        causal = torch.arange(start + n) <= torch.arange(start, start + n)[:, None]
        mask = causal & seen[:, None, None, : start + n]
        keys, values = ours.update(*new, 0)
        out, _ = tree_attention(_Module(groups), query, keys, values, mask if masked else None)
        expected, _ = sdpa_attention_forward(_Module(groups), query, *plain.update(*new, 0), mask)
        # What padding asks is nobody's business, as long as it is a number.
        asks = seen[:, start : start + n]
        torch.testing.assert_close(out[asks], expected[asks], atol=1e-6, rtol=0)
        assert out.isfinite().all() and ours.get_seq_length() == plain.get_seq_length() == start + n


@pytest.fixture(scope="module")
def model():
    tokenizer = tiny.build_tokenizer(tiny_text.corpus())
    model = tiny.build_model(tiny.build_config(tokenizer), seed=3).eval()
    assert enable(model)
    return model, tokenizer


@pytest.mark.parametrize("copies", [1, 3])
def test_generation_goes_on_from_what_is_shared(model, copies):
    """Replies and logits with shared keys are those with copied keys; where few rows share, keys are copied."""
    network, tokenizer = model
    grid = torch.tensor([1, 4, 4])
    random = torch.Generator().manual_seed(0)
    images = {key: ImagePatches(torch.randn(16, 1176, generator=random), grid) for key in "ab"}
    head = "<|vision_start|>" + "<|image_pad|>" * 4
    asked = [
        (f"{head}<|vision_end|>{question}", key) for key in "ab" for question in ("Where?", "What is it?", "Is it?")
    ]
    prompts = [
        PromptTokens(tokenizer(text, add_special_tokens=False)["input_ids"], (key,))
        for text, key in asked
        for _ in range(copies)
    ]
    results, kinds = [], []
    for share in (False, True):
        with torch.inference_mode():
            inputs = prefill(network, prompts, images, tokenizer.pad_token_id, share=share)
            kinds.append(type(inputs["past_key_values"].layers[0]))
            settings = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
            results.append(network.generate(**inputs, **settings, output_logits=True))
    assert kinds[0] is caches.GrowingLayer and kinds[1] is caches._SharedLayer
    plain, ours = results
    assert ours.sequences.equal(plain.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(plain.logits), atol=2e-5, rtol=0)
    alone = [prompts[0], prompts[-1]]
    inputs = prefill(network, alone, images, tokenizer.pad_token_id, share=True)
    assert type(inputs["past_key_values"].layers[0]) is caches.GrowingLayer
