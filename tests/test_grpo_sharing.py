"""Shared frames give TRL's own log-probabilities, entropies and gradients; a cached frame gives the same features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.sharing import attention as tree_attention
from surgery_r1.models.sharing import vision_features as vision_cache
from surgery_r1.models.sharing.vision_features import content_keys, keep_frozen_features
from surgery_r1.models.tiny import architecture as tiny
from surgery_r1.models.tiny import text as tiny_text
from surgery_r1.train.sharing.image_ids import ImageIds

C = 7


@pytest.fixture(scope="module")
def model():
    """Random weights: what is compared does not depend on what a model has learned."""
    torch.manual_seed(0)
    tokenizer = tiny.build_tokenizer(tiny_text.corpus())
    model = tiny.build_model(tiny.build_config(tokenizer), seed=3)
    assert tree_attention.enable(model)
    return model, tokenizer


def batch(tokenizer):
    """Two frames, three prompts of different length, groups of different size, rows shuffled."""
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (140, 168, 3), dtype=np.uint8)) for _ in range(2)]
    image = tiny.build_image_processor()(images=frames, return_tensors="pt")
    pixels = torch.split(image["pixel_values"], 120)
    pad = "<|image_pad|>" * 30
    prompts = [(0, "Where?"), (0, "What is the state of stapler?"), (1, "Where?")]
    rows = [(p, k) for p, count in zip(prompts, (3, 4, 2), strict=True) for k in range(count)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    texts = [
        f"<|im_start|>user\n<|vision_start|>{pad}<|vision_end|>{question}<|im_end|>\n" for (_, question), _ in rows
    ]
    prompt = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    completion = torch.from_numpy(rng.integers(300, 900, (len(rows), C)))
    mask = torch.arange(C) < torch.from_numpy(rng.integers(1, C + 1, len(rows)))[:, None]
    ids = torch.cat([prompt["input_ids"], completion.masked_fill(~mask, tokenizer.pad_token_id)], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.cat([prompt["attention_mask"], mask.long()], 1),
        "logits_to_keep": C,
        "compute_entropy": True,
        "pixel_values": torch.cat([pixels[frame] for (frame, _), _ in rows]),
        "image_grid_thw": image["image_grid_thw"][[frame for (frame, _), _ in rows]],
        "num_images": [1] * len(rows),
        "mm_token_type_ids": (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int(),
    }, mask


def numbered(inputs):
    """The inputs with numbers for images of 120 patches, and what the numbers stand for."""
    images = ImageIds(lambda images, **_: {"pixel_values": images[0], "image_grid_thw": inputs["image_grid_thw"]})
    values = images([*torch.split(inputs["pixel_values"], 120)])["pixel_values"]
    return {**inputs, "pixel_values": values}, images


def both(model, inputs, mask):
    """Log-probabilities, entropies and gradients of the stock method and of ours, on the same model."""
    from accelerate import Accelerator
    from trl import GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer

    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    results = []
    for kind in (GRPOTrainer, SharedFrameGRPOTrainer):
        trainer = kind.__new__(kind)
        trainer.accelerator = Accelerator(cpu=True)
        model.zero_grad()
        given = inputs
        if kind is SharedFrameGRPOTrainer:
            given, trainer._images = numbered(inputs)
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(model, **given)
        (logps * mask).sum().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((logps.detach() * mask, entropies.detach() * mask, grads))
    return results


def test_equal_to_stock(model):
    network, tokenizer = model
    inputs, mask = batch(tokenizer)
    (logps, entropies, grads), (ours, our_entropies, our_grads) = both(network, inputs, mask)
    assert logps.abs().max() > 1
    torch.testing.assert_close(ours, logps, atol=2e-5, rtol=0)
    torch.testing.assert_close(our_entropies, entropies, atol=2e-5, rtol=0)
    assert grads.keys() == our_grads.keys()
    largest = max(grad.abs().max().item() for grad in grads.values())
    for name, grad in grads.items():
        assert (our_grads[name] - grad).abs().max() < 1e-5 * largest, name


def test_equal_in_micro_batches(model):
    network, tokenizer = model
    inputs, mask = batch(tokenizer)
    (logps, entropies, _), (ours, our_entropies, _) = both(network, {**inputs, "batch_size": 4}, mask)
    torch.testing.assert_close(ours, logps, atol=2e-5, rtol=0)
    torch.testing.assert_close(our_entropies, entropies, atol=2e-5, rtol=0)


@pytest.mark.parametrize("sample", [False, True])
def test_generates_the_same_text(model, sample):
    """Frames and prompts read once, completions of one seed."""
    from transformers import GenerationConfig

    from surgery_r1.train.sharing.grpo import generate_shared

    network, tokenizer = model
    inputs, _ = batch(tokenizer)
    size = inputs["input_ids"].shape[1] - C
    prompts = {
        **{name: inputs[name][:, :size] for name in ("input_ids", "attention_mask", "mm_token_type_ids")},
        **{name: inputs[name] for name in ("pixel_values", "image_grid_thw")},
    }
    settings = GenerationConfig(
        do_sample=sample,
        max_new_tokens=12,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(7)
    plain = network.generate(**prompts, generation_config=settings)
    torch.manual_seed(7)
    given, images = numbered(prompts)
    ours = generate_shared(network, network.generate, images, generation_config=settings, **given)
    assert ours.sequences[:, size:].equal(plain.sequences[:, size:])
    first, expected = torch.stack(ours.logits), torch.stack(plain.logits)
    torch.testing.assert_close(first, expected, atol=1e-4, rtol=0)
    # Two frames, three prompts: what is compared differs.
    assert expected[0].std(0).max() > 1e-3


def test_groups_stay_whole_when_rows_are_shuffled():
    from surgery_r1.train.sharing.grpo import shuffle_groups

    torch.manual_seed(0)
    rows = torch.arange(24)
    mixed = shuffle_groups({"a": rows, "b": rows.tolist(), "n": torch.tensor(5), "none": None}, 4)
    assert mixed["a"].tolist() == mixed["b"] != rows.tolist()
    assert mixed["a"].view(6, 4).sort(0).values.equal(rows.view(6, 4))
    assert mixed["n"] == 5 and mixed["none"] is None


def test_rows_that_share_nothing_are_equal_too(model):
    network, tokenizer = model
    inputs, mask = batch(tokenizer)
    single = {k: v[:1] for k, v in inputs.items() if k not in ("logits_to_keep", "compute_entropy", "pixel_values")}
    single |= {"logits_to_keep": C, "compute_entropy": True, "pixel_values": inputs["pixel_values"][:120]}
    (logps, _, _), (ours, _, _) = both(network, single, mask[:1])
    torch.testing.assert_close(ours, logps, atol=2e-5, rtol=0)


def test_a_batch_without_a_completion_to_score(model):
    """As mask_truncated_completions leaves it: nothing to learn, and nothing breaks."""
    network, tokenizer = model
    inputs, mask = batch(tokenizer)
    attention = inputs["attention_mask"].clone()
    attention[:, -C:] = 0
    (_, _, grads), (ours, entropies, our_grads) = both(network, {**inputs, "attention_mask": attention}, mask)
    assert not ours.any() and not entropies.any()
    assert grads.keys() == our_grads.keys() and not any(grad.any() for grad in our_grads.values())


def test_two_images_a_row(model):
    network, tokenizer = model
    inputs, mask = batch(tokenizer)
    pad = "<|image_pad|>" * 30
    image = f"<|vision_start|>{pad}<|vision_end|>"
    prompt = tokenizer([f"{image}{image}Where?"] * 3, return_tensors="pt")
    ids = torch.cat([prompt["input_ids"], inputs["input_ids"][:3, -C:]], 1)
    attention = torch.cat([prompt["attention_mask"], inputs["attention_mask"][:3, -C:]], 1)
    two = {
        "input_ids": ids,
        "attention_mask": attention,
        "logits_to_keep": C,
        "compute_entropy": True,
        "pixel_values": torch.cat(
            [inputs["pixel_values"][:240], inputs["pixel_values"][:240].flip(0), inputs["pixel_values"][:240]]
        ),
        "image_grid_thw": inputs["image_grid_thw"][:6],
        "num_images": [2] * 3,
        "mm_token_type_ids": (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int(),
    }
    (logps, _, _), (ours, _, _) = both(network, two, mask[:3])
    torch.testing.assert_close(ours, logps, atol=2e-5, rtol=0)


def test_what_cannot_be_shared_goes_to_stock(model, monkeypatch):
    from trl import GRPOTrainer

    from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer

    inputs, _ = batch(model[1])
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", lambda *_, **given: given)
    trainer = SharedFrameGRPOTrainer.__new__(SharedFrameGRPOTrainer)
    given, trainer._images = numbered(inputs)
    for change in ({"num_images": None}, {"compute_aux_loss": True}):
        stock = trainer._get_per_token_logps_and_entropies(model[0], **{**given, **change})
        torch.testing.assert_close(stock["pixel_values"], inputs["pixel_values"])
    stock = trainer._get_per_token_logps_and_entropies(model[0], **{**given, "pixel_values": None})
    assert stock["pixel_values"] is None


def test_cached_features_are_the_towers_own(model):
    network, tokenizer = model
    inputs, _ = batch(tokenizer)
    pixels, grids = inputs["pixel_values"], inputs["image_grid_thw"]
    plain = network.model.visual(pixels, grid_thw=grids).pooler_output
    assert len(set(content_keys(pixels, grids))) == 2
    stock = network.model.visual.forward
    try:
        cache = keep_frozen_features(network)
        assert cache is not None and keep_frozen_features(network) is cache
        with torch.inference_mode():
            first = network.model.visual(pixels, grid_thw=grids).pooler_output
        again = network.model.visual(pixels, grid_thw=grids).pooler_output
        assert (cache.computed, cache.reused) == (2, 16)
        torch.testing.assert_close(first, plain, atol=1e-5, rtol=0)
        torch.testing.assert_close(again, plain, atol=1e-5, rtol=0)
        assert not again.is_inference()
    finally:
        network.model.visual.forward = stock


def test_cache_stays_within_its_limit(model):
    network, tokenizer = model
    inputs, _ = batch(tokenizer)
    stock = network.model.visual.forward
    try:
        cache = keep_frozen_features(network, limit=1)
        for _ in range(2):
            network.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        # The last batch is always kept whole: 2 frames of 30 tokens.
        assert not cache._kept and len(cache._last) == 2 == cache.computed
        network.model.visual(torch.zeros(120, 1176), grid_thw=torch.tensor([[1, 10, 12]]))
        assert not cache._kept and len(cache._last) == 1 and cache.computed == 3
        one = cache._last.popitem()[1].nbytes
        network.model.visual.forward = stock
        cache = keep_frozen_features(network, limit=one)
        network.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        assert len(cache._kept) == 1
    finally:
        network.model.visual.forward = stock


@pytest.fixture
def pixels(model):
    """Patches of two images, and the tower, put back as it was afterwards."""
    inputs, _ = batch(model[1])
    tower = model[0].model.visual
    stock = tower.forward
    yield inputs["pixel_values"], inputs["image_grid_thw"], tower
    tower.forward = stock


def test_features_outlive_the_process(model, pixels, tmp_path):
    values, grids, tower = pixels
    first = keep_frozen_features(model[0], folder=tmp_path)
    expected = tower(values, grid_thw=grids).pooler_output
    tower.forward = first._forward
    second = keep_frozen_features(model[0], folder=tmp_path)
    again = tower(values, grid_thw=grids).pooler_output
    assert (first.computed, second.computed, second.reused) == (2, 0, len(grids))
    assert again.equal(expected)
    # A torn file is computed anew, and is whole afterwards.
    torn = sorted(second._files.folder.iterdir())[0]
    torn.write_bytes(torn.read_bytes()[:100])
    for computed in (1, 0):
        tower.forward = first._forward
        third = keep_frozen_features(model[0], folder=tmp_path)
        assert tower(values, grid_thw=grids).pooler_output.equal(expected) and third.computed == computed


def test_features_of_other_weights_are_not_taken(model, pixels, tmp_path):
    values, grids, tower = pixels
    stock = tower.forward
    keep_frozen_features(model[0], folder=tmp_path)
    tower(values, grid_thw=grids)
    tower.forward = stock
    weight = next(iter(tower.parameters()))
    with torch.no_grad():
        weight.mul_(2)
        cache = keep_frozen_features(model[0], folder=tmp_path)
        tower(values, grid_thw=grids)
        weight.div_(2)
    assert cache.computed == 2 and len(list(tmp_path.iterdir())) == 2


def test_the_folder_stays_within_its_limit(model, pixels, tmp_path):
    values, grids, tower = pixels
    stock = tower.forward
    cache = keep_frozen_features(model[0], folder=tmp_path / "large")
    tower(values, grid_thw=grids)
    sizes = [path.stat().st_size for path in cache._files.folder.iterdir()]
    tower.forward = stock
    cache = keep_frozen_features(model[0], folder=tmp_path / "small", disk=max(sizes))
    tower(values, grid_thw=grids)
    assert len(sizes) == 2 == cache.computed and len(list(cache._files.folder.iterdir())) == 1


def test_the_tower_leaves_the_device_when_every_frame_is_known(model, pixels, monkeypatch):
    values, grids, tower = pixels
    moves = []
    monkeypatch.setattr(tower, "to", lambda device: moves.append(str(device)))
    keep_frozen_features(model[0], offload=True)
    tower(values, grid_thw=grids)
    tower(values, grid_thw=grids)
    assert moves == [str(values.device), "cpu", "cpu"]


def test_the_tower_stays_when_several_ranks_train(model, pixels, monkeypatch):
    values, grids, tower = pixels
    keep_frozen_features(model[0], offload=True)
    monkeypatch.setattr(vision_cache, "_ranks", lambda: 2)
    with pytest.raises(SurgeryR1Error, match="one process"):
        tower(values, grid_thw=grids)


def test_an_image_is_prepared_once_however_often_it_is_shown():
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (140, 168, 3), dtype=np.uint8)) for _ in range(2)]
    processor = tiny.build_image_processor()
    images = ImageIds(processor)
    shown = [[frames[0]], [frames[1]], [frames[0].copy()]]
    plain, ours = processor(images=shown, return_tensors="pt"), images(images=shown, return_tensors="pt")
    assert images.prepared == 2 and ours["pixel_values"].shape == (3 * 120, 1)
    torch.testing.assert_close(images.restored(dict(ours))["pixel_values"], plain["pixel_values"])
    assert ours["image_grid_thw"].equal(plain["image_grid_thw"])
    assert images.merge_size == processor.merge_size
    images.forget()
    with pytest.raises(KeyError):
        images.restored(dict(ours))


def test_images_that_do_not_fit_their_tokens_are_not_trained_on(monkeypatch):
    """TRL drops the images of such a batch and trains on without them."""
    from types import SimpleNamespace

    from trl import GRPOTrainer

    from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", lambda *_: {"input_ids": torch.zeros(2, 3)})
    trainer = SharedFrameGRPOTrainer.__new__(SharedFrameGRPOTrainer)
    trainer._images, trainer.model = ImageIds(None), SimpleNamespace(training=True)
    trainer.processing_class = SimpleNamespace(image_processor=None)
    with pytest.raises(SurgeryR1Error, match="seq_2/frame003/1"):
        trainer._generate_and_score_completions([{"id": "endovis18/seq_2/frame003/1", "images": [object()]}] * 2)
