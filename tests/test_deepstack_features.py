"""Qwen3-VL's tower feeds several layers: its kept features give the loss and gradients that the tower gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from test_grpo_sharing import batch, both
from test_prefix_tree import qwen3

from surgery_r1 import codec, prompts
from surgery_r1.models.processor import load_processor
from surgery_r1.models.save import save_processor
from surgery_r1.models.sharing import attention
from surgery_r1.models.sharing.vision_features import keep_frozen_features
from surgery_r1.models.tiny import architecture as tiny
from surgery_r1.models.tiny import text as tiny_text
from surgery_r1.train.sharing.sft_packing import FramePackCollator, pack_rows


@pytest.fixture
def network():
    """A random Qwen3-VL model with a frozen tower, and the tokenizer."""
    tokenizer = tiny.build_tokenizer(tiny_text.corpus())
    model = qwen3(tokenizer)
    assert attention.enable(model) and model.config.vision_config.deepstack_visual_indexes == [0, 1]
    model.model.visual.requires_grad_(False)
    return model, tokenizer


def assert_same(left, right):
    assert left.keys() == right.keys()
    largest = max(value.abs().max().item() for value in left.values())
    for name, value in left.items():
        assert (right[name] - value).abs().max() <= 1e-6 * largest, name


def test_rft(network):
    """Stock TRL and shared frames, with the cache and without."""
    model, tokenizer = network
    inputs, mask = batch(tokenizer)
    without = both(model, inputs, mask)
    cache = keep_frozen_features(model)
    assert cache is not None
    kept = both(model, inputs, mask)
    again = both(model, inputs, mask)
    # Two frames, however many rows show them.
    assert (cache.computed, cache.reused) == (2, 20)
    for (logps, entropies, grads), *others in zip(without, kept, again, strict=True):
        for ours, our_entropies, our_grads in others:
            torch.testing.assert_close(ours, logps, atol=1e-6, rtol=0)
            torch.testing.assert_close(our_entropies, entropies, atol=1e-6, rtol=0)
            assert_same(grads, our_grads)


def test_sft(network, tmp_path):
    """Packs of two frames; the features come from the tower, from memory, and from a folder."""
    model, tokenizer = network
    tokenizer.save_pretrained(tmp_path)
    tiny.build_image_processor().save_pretrained(tmp_path)
    save_processor(load_processor(tmp_path, "qwen3_vl"), "qwen3_vl", tmp_path)
    processor = load_processor(tmp_path, "qwen3_vl")
    rng = np.random.default_rng(0)
    rows = {"prompt": [], "completion": [], "images": [], "flips": []}
    for i in range(5):
        path = tmp_path / f"{'ab'[i % 2]}.png"
        if not path.exists():
            Image.fromarray(rng.integers(0, 255, (128, 160, 3), dtype=np.uint8)).save(path)
        system = {"role": "system", "content": prompts.system_text("norm1000")}
        rows["prompt"].append([system, {"role": "user", "content": prompts.user_text(f"Where is tool {i}?")}])
        reply = codec.render("it is seen", f"answer {i}", (i, 2, 50 + i, 60))
        rows["completion"].append([{"role": "assistant", "content": reply}])
        rows["images"].append([str(path)])
        rows["flips"].append(["none"])
    packs = pack_rows(Dataset.from_dict(rows), 3)
    collator = FramePackCollator(processor, prompts.system_text("norm1000"), model.model.get_rope_index)
    inputs = collator([packs[0], packs[1]])

    def passed():
        model.zero_grad()
        given = {name: value for name, value in inputs.items() if name not in ("labels", "shift_labels")}
        logits = model(**given).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, inputs["shift_labels"][0])
        loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **grads}

    without = passed()
    assert any("language_model.layers.0" in name for name in without) and not any("visual" in n for n in without)
    stock = model.model.visual.forward
    first = keep_frozen_features(model, folder=tmp_path / "features")
    results = [passed(), passed()]
    model.model.visual.forward = stock
    second = keep_frozen_features(model, folder=tmp_path / "features")
    results.append(passed())
    assert (first.computed, second.computed, second.reused) == (2, 0, 2)
    for result in results:
        assert_same(without, result)


def test_features_of_deeper_layers_matter(network):
    """Leaving them out, as a cache of merged tokens alone would, changes what the model says."""
    model, tokenizer = network
    inputs, mask = batch(tokenizer)
    ((logps, *_), _) = both(model, inputs, mask)
    cache = keep_frozen_features(model)
    both(model, inputs, mask)
    for features in cache._kept.values():
        features[1:] = 0
    cache._last = {}
    ((changed, *_), _) = both(model, inputs, mask)
    assert (changed - logps).abs().max() > 1e-3
