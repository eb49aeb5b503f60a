"""Random numbers of RFT's sampling belong to completions: alike on any number of processes, and rightly distributed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GenerationConfig

from surgery_r1.models.sharing.attention import enable
from surgery_r1.models.tiny import architecture as tiny
from surgery_r1.models.tiny import text as tiny_text
from surgery_r1.train import ranks
from surgery_r1.train.draws import InverseDraw, drawing, server_seed, uniforms
from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer, WholeModelGRPOTrainer, generate_shared
from surgery_r1.train.sharing.image_ids import ImageIds

TOKENS, COPIES = 12, 4


def drawn(scores: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
    """The tokens that one call finds."""
    return InverseDraw(numbers)(torch.empty(0), scores).argmax(-1)


def test_numbers_belong_to_seed_step_and_completion():
    whole = uniforms(3, 7, range(8), TOKENS)
    assert whole.shape == (8, TOKENS) and whole.dtype == np.float64
    assert (uniforms(3, 7, range(4, 8), TOKENS) == whole[4:]).all()
    assert (uniforms(3, 7, [5], 4) == whole[5, :4]).all()
    assert len(np.unique(np.concatenate([whole, uniforms(4, 7, range(8), 12), uniforms(3, 8, range(8), 12)]))) == 288
    seeds = [server_seed(seed, step, place) for seed in range(3) for step in range(3) for place in (0, 8)]
    assert len(set(seeds)) == 18 and all(0 <= seed < 2**31 for seed in seeds)


def test_numbers_are_uniform_and_independent():
    numbers = np.stack([uniforms(0, step, range(32), 32) for step in range(40)])
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 0.01
    for shifted in (numbers[1:], numbers[:, 1:], numbers[:, :, 1:]):
        before = numbers[tuple(slice(size) for size in shifted.shape)]
        assert abs(np.corrcoef(before.ravel(), shifted.ravel())[0, 1]) < 4 / shifted.size**0.5


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_tokens_are_as_frequent_as_the_model_says(spread):
    """Chi-square over tokens that are expected five times or more, the others in one class."""
    draws = 40_000
    scores = spread * torch.randn(60, generator=torch.Generator().manual_seed(1))
    scores[[0, 17, 59]] = -torch.inf
    tokens = drawn(scores.expand(draws, -1), uniforms(0, 0, range(draws), 1))
    expected = draws * torch.softmax(scores.double(), -1).numpy()
    found = np.bincount(tokens, minlength=60)
    assert not found[[0, 17, 59]].any()
    often = expected >= 5
    classes = [(values[often], values[~often].sum()) for values in (found, expected)]
    counted, due = (np.append(many, few) if few else many for many, few in classes)
    assert stats.chisquare(counted, due).pvalue > 0.01


def test_no_token_of_probability_zero_is_drawn():
    scores = torch.tensor([-torch.inf, 0.3, -torch.inf, 0.1, -torch.inf])
    # Also where float32 holds no number between the last and 1, in a vocabulary of true size.
    large = torch.full((150_000,), -torch.inf).index_fill(0, torch.tensor([40, 99_999]), 0.0)
    for few, first, last in ((scores, 1, 3), (large, 40, 99_999)):
        ends = np.array([[0.0], [np.nextafter(1, 0)]])
        assert drawn(few.expand(2, -1), ends).tolist() == [first, last]


def test_what_is_no_number_is_an_error():
    with pytest.raises(RuntimeError, match="not a number"):
        drawn(torch.tensor([[0.0, torch.nan]]), np.array([[0.5]]))


@pytest.fixture(scope="module")
def model():
    tokenizer = tiny.build_tokenizer(tiny_text.corpus())
    model = tiny.build_model(tiny.build_config(tokenizer), seed=3).eval()
    assert enable(model)
    return model, tokenizer


@pytest.fixture(scope="module")
def prompts(model):
    """Two frames with two questions each, ``COPIES`` rows of each, as TRL gives them; and their images."""
    network, tokenizer = model
    texts = [f"<|vision_start|>{'<|image_pad|>' * 4}<|vision_end|>{text}" for text in ("Where?", "What is it?")] * 2
    rows = [text for text in texts for _ in range(COPIES)]
    asked = dict(tokenizer(rows, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False))
    frames = torch.randn(2, 16, 1176, generator=torch.Generator().manual_seed(0))
    grids = torch.tensor([[1, 4, 4]] * 2)
    images = ImageIds(lambda images, **_: {"pixel_values": images[0], "image_grid_thw": grids[:1]})
    numbers = images([[frame] for frame in frames])["pixel_values"].view(2, 16, 1)
    shown = numbers.repeat_interleave(2 * COPIES, 0)
    asked["mm_token_type_ids"] = (asked["input_ids"] == network.config.image_token_id).int()
    return asked, shown, images


def sampled(model, prompts, rows: range, *, share: bool, **settings) -> list[list[int]]:
    """Completions of some rows, drawn with their own numbers."""
    network, tokenizer = model
    asked, shown, images = prompts
    given = {name: values[rows.start : rows.stop] for name, values in asked.items()}
    given["pixel_values"] = shown[rows.start : rows.stop].flatten(0, 1)
    given["image_grid_thw"] = torch.tensor([[1, 4, 4]] * len(rows))
    settings = {"max_new_tokens": TOKENS, "do_sample": True, "top_k": 0, **settings}
    config = GenerationConfig(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **settings)
    with torch.no_grad(), drawing(network, uniforms(0, 2, rows, TOKENS)):
        if share:
            done = generate_shared(network, network.generate, images, generation_config=config, **given)
        else:
            done = network.generate(**images.restored(given), generation_config=config)
    return done[:, -TOKENS:].tolist()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.5}])
def test_a_completion_is_the_same_beside_any_others(model, prompts, settings):
    """All at once and in parts, with shared frames and without; torch's own numbers are left alone."""
    before = torch.get_rng_state()
    whole = sampled(model, prompts, range(4 * COPIES), share=True, **settings)
    assert len(set(map(tuple, whole))) > 2 * COPIES
    for size in (1, 2 * COPIES):
        for share in (True, False) if size > 1 else (True,):
            parts = [
                sampled(model, prompts, range(at, at + size), share=share, **settings)
                for at in range(0, 4 * COPIES, size)
            ]
            assert [row for part in parts for row in part] == whole
    assert torch.get_rng_state().equal(before)


def test_what_sampling_leaves_is_drawn_from(model, prompts):
    """The first token by hand, from the temperature and the best three."""
    network, _ = model
    asked, shown, images = prompts
    given = {name: values[:1] for name, values in asked.items()} | {"pixel_values": shown[0]}
    with torch.no_grad():
        logits = network(**images.restored({**given, "image_grid_thw": torch.tensor([[1, 4, 4]])})).logits[0, -1]
    best = logits.topk(3).indices
    kept = torch.full_like(logits, -torch.inf).index_copy(0, best, logits[best] / 2)
    below = kept.double().softmax(-1).cumsum(-1)
    expected = [int((below <= number).sum()) for number in uniforms(0, 2, range(COPIES), 1)[:, 0]]
    rows = sampled(model, prompts, range(COPIES), share=True, top_k=3, temperature=2.0)
    assert [row[0] for row in rows] == expected and len(set(expected)) > 1


@pytest.mark.parametrize("kind", [WholeModelGRPOTrainer, SharedFrameGRPOTrainer])
@pytest.mark.parametrize(("count", "passes", "generations"), [(1, 1, 1), (2, 2, 1), (2, 4, 2), (4, 2, 2)])
def test_every_completion_of_a_step_has_a_place(monkeypatch, kind, count, passes, generations):
    """Over processes, passes, and rollouts made several times in a step."""
    monkeypatch.setattr(ranks, "count", lambda: count)
    rows = 48 // count // generations
    arguments = SimpleNamespace(gradient_accumulation_steps=passes, steps_per_generation=passes // generations)
    trainer = kind.__new__(kind)
    trainer.args = arguments
    places = []
    for step in range(2 * passes):
        trainer._step = step
        for rank in range(count) if step % arguments.steps_per_generation == 0 else ():
            monkeypatch.setattr(ranks, "index", lambda rank=rank: rank)
            places += trainer._places(rows)
    assert places == [*range(48), *range(48)]
