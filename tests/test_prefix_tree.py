"""A prefix tree gives the log-probabilities and gradients of its rows computed one by one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.sharing import attention as tree_attention
from surgery_r1.models.sharing import flash_tree, prefix_tree
from surgery_r1.models.tiny import architecture as tiny
from surgery_r1.models.tiny import text as tiny_text

IMAGE, START, END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
#: Grids in patches of the two sizes of images that rows show: 4 and 6 image tokens.
GRIDS = ((1, 4, 4), (1, 4, 6))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_tokenizer(tiny_text.corpus())


def qwen2_5(tokenizer, **text):
    config = tiny.build_config(tokenizer)
    for name, value in text.items():
        setattr(config.text_config, name, value)
    return tiny.build_model(config, seed=3)


def qwen3(tokenizer):
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    base = tiny.build_config(tokenizer)
    ids = {name: getattr(base, name) for name in ("image_token_id", "video_token_id", "vision_start_token_id")}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        vision_end_token_id=base.vision_end_token_id,
        tie_word_embeddings=True,
        **ids,
    )
    torch.manual_seed(4)
    return Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")


@pytest.fixture(scope="module")
def models(tokenizer):
    from peft import LoraConfig, get_peft_model

    made = {
        "qwen2_5": qwen2_5(tokenizer),
        "grouped": qwen2_5(tokenizer, num_key_value_heads=2),
        "qwen3": qwen3(tokenizer),
    }
    torch.manual_seed(5)
    adapter = LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj|down_proj)", init_lora_weights=False)
    made["lora"] = get_peft_model(qwen2_5(tokenizer), adapter)
    for model in made.values():
        assert tree_attention.enable(model)
    return made


def pixels(number: int) -> torch.Tensor:
    """Patches of image ``number``; its size goes by its parity."""
    patches = int(np.prod(GRIDS[number % 2]))
    return torch.from_numpy(np.random.default_rng(number).normal(size=(patches, 1176)).astype(np.float32))


class Given:
    """A row with its images. ``masked``: places whose label is taken away."""

    def __init__(self, tokenizer, images, text, reply, masked=()):
        ids = tokenizer.convert_tokens_to_ids
        self.images = images
        tokens = [1, 7]
        for number in images:
            tokens += [ids(START), *[ids(IMAGE)] * (int(np.prod(GRIDS[number % 2])) // 4), ids(END)]
        labels = [-100] * (len(tokens) + len(text)) + list(reply)
        tokens += [*text, *reply]
        shifted = [*labels[1:], -100]
        self.row = prefix_tree.TokenSequence(
            tokens, [-100 if i in masked else x for i, x in enumerate(shifted)], images, "r"
        )

    @staticmethod
    def labels(images, text, reply, masked):
        """How many labels such a row has."""
        first = 1 + sum(2 + int(np.prod(GRIDS[number % 2])) // 4 for number in images) + len(text)
        return sum(first + i not in masked for i in range(len(reply)))

    def inputs(self, model, image_token):
        core = model.get_base_model() if hasattr(model, "get_base_model") else model
        ids = torch.tensor([self.row.ids])
        grid = torch.tensor([GRIDS[number % 2] for number in self.images])
        positions, _ = core.model.get_rope_index(ids, (ids == image_token).int(), image_grid_thw=grid)
        return ids, positions, grid


def one_by_one(model, given_rows, image_token):
    """Log-probabilities of each row's labels, computed from plain forwards with transformers' own attention."""
    result = []
    for one in given_rows:
        ids, positions, grid = one.inputs(model, image_token)
        logits = model(
            input_ids=ids,
            position_ids=positions,
            pixel_values=torch.cat([pixels(number) for number in one.images]).to(model.dtype),
            image_grid_thw=grid,
            use_cache=False,
        ).logits
        result.append(chosen(logits[0], torch.tensor(one.row.labels)))
    return torch.cat(result)


def together(model, given_rows, image_token, min_shared=1):
    rows = [one.row for one in given_rows]
    tree = prefix_tree.build_prefix_tree(rows, image_token, min_shared=min_shared)
    made = [one.inputs(model, image_token) for one in given_rows]
    inputs = prefix_tree.tree_inputs(tree, rows, [positions[:, 0] for _, positions, _ in made])
    labels = inputs.pop("shift_labels")
    shown = [given_rows[row].images[number] for row, number in tree.images]
    logits = model(
        **inputs,
        pixel_values=torch.cat([pixels(number) for number in shown]).to(model.dtype),
        image_grid_thw=torch.tensor([GRIDS[number % 2] for number in shown]),
        use_cache=False,
    ).logits
    result = []
    for i in range(len(rows)):
        result.append(chosen(tree.unpack(logits[0].T, i).T, tree.unpack(labels[0], i)))
    return torch.cat(result), tree


def chosen(logits, labels):
    there = labels != -100
    return logits[there].log_softmax(-1).gather(1, labels[there][:, None])[:, 0]


def gradients(model, values):
    model.zero_grad()
    weights = torch.linspace(0.5, 1.5, len(values), dtype=values.dtype)
    (values * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


TOKENS = st.integers(300, 305)


@st.composite
def row_sets(draw):
    """Rows as (images, text, reply, masked): a few frames, texts that begin alike, repeated and empty prompts."""
    frames = draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=2), min_size=1, max_size=3))
    stems = draw(st.lists(st.lists(TOKENS, max_size=5), min_size=1, max_size=3))
    rows = []
    for _ in range(draw(st.integers(1, 7))):
        text = draw(st.sampled_from(stems)) + draw(st.lists(TOKENS, max_size=3))
        reply = draw(st.lists(TOKENS, min_size=1, max_size=5))
        images = tuple(draw(st.sampled_from(frames)))
        # Places without a label: anywhere, and now and then everywhere.
        masked = draw(st.one_of(st.sets(st.integers(0, 40), max_size=6), st.just(range(1000))))
        rows.append((images, text, reply, masked))
    assume(any(Given.labels(*row) for row in rows))
    return rows


@pytest.mark.parametrize("name", ["qwen2_5", "grouped", "qwen3", "lora"])
@given(rows=row_sets(), min_shared=st.integers(1, 12))
@settings(max_examples=12, deadline=None)
def test_equals_row_by_row(models, tokenizer, name, rows, min_shared):
    model, image = models[name], tokenizer.convert_tokens_to_ids(IMAGE)
    given_rows = [Given(tokenizer, *row) for row in rows]
    plain = one_by_one(model, given_rows, image)
    ours, _ = together(model, given_rows, image, min_shared)
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-5)
    expected, got = gradients(model, plain), gradients(model, ours)
    assert (got - expected).abs().max() <= 2e-5 * max(1.0, expected.abs().max())


@given(rows=row_sets())
@settings(max_examples=6, deadline=None)
def test_equals_row_by_row_in_float64(models, tokenizer, rows):
    model, image = copy.deepcopy(models["grouped"]).double(), tokenizer.convert_tokens_to_ids(IMAGE)
    given_rows = [Given(tokenizer, *row) for row in rows]
    plain = one_by_one(model, given_rows, image)
    ours, _ = together(model, given_rows, image)
    assert (ours - plain).abs().max() <= 1e-9
    expected, got = gradients(model, plain), gradients(model, ours)
    # transformers keeps norms and rotary angles in float32.
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_shares_what_is_equal(tokenizer):
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    rows = [Given(tokenizer, (0,), [9, 9, 9, k // 2], [50 + k]) for k in range(6)]
    tree = prefix_tree.build_prefix_tree([one.row for one in rows], image, min_shared=1)
    prefix = 2 + 6 + 3
    # One prefix, three questions of one token that part at their last, which predicts: it is in every leaf.
    assert tree.layout.size == prefix + 6
    assert tree.images == ((0, 0),)
    spans = tree.layout.spans
    assert spans[0] == (0, prefix, prefix + 6)
    assert all(start < stop <= end for start, stop, end in spans)


def test_rows_that_share_nothing_are_a_plain_packed_batch(tokenizer):
    rows = [prefix_tree.TokenSequence([k, 7, 8], [-100, 8, -100]) for k in range(3)]
    tree = prefix_tree.build_prefix_tree(rows, 999, min_shared=1)
    assert tree.layout.spans == ((0, 2, 2), (2, 4, 4), (4, 6, 6))


def test_different_images_part(tokenizer):
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    rows = [Given(tokenizer, (k,), [9], [50]).row for k in (0, 2, 0)]
    tree = prefix_tree.build_prefix_tree(rows, image, min_shared=1)
    assert tree.images == ((0, 0), (1, 0))


def test_image_tokens_and_images_must_match(tokenizer):
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    row = Given(tokenizer, (0,), [9], [50]).row._replace(images=(), name="7/3/cot")
    with pytest.raises(SurgeryR1Error, match="7/3/cot has 1 runs of image tokens and 0 images"):
        prefix_tree.build_prefix_tree([row], image)


def test_a_forest_must_be_one_sequence(models):
    layout = prefix_tree.TreeLayout(((0, 4, 4),))
    q = torch.zeros(2, 4, 4, 8)
    with pytest.raises(SurgeryR1Error, match="batch of 2 sequences"):
        tree_attention.tree_attention(None, q, q, q, None, tree=layout)


def test_flex_mask_is_the_forest(tokenizer):
    """The mask that a GPU uses, run without one."""
    rows = [Given(tokenizer, (0,), [9, 9, 9, k // 2], [50 + k, 60]).row for k in range(6)]
    tree = prefix_tree.build_prefix_tree(rows, tokenizer.convert_tokens_to_ids(IMAGE), min_shared=1)
    n = tree.layout.size
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, n, 16, generator=generator)
    k, v = (torch.randn(1, 2, n, 16, generator=generator) for _ in range(2))
    with torch.no_grad():
        got = tree_attention.flex_tree_attention(q, k, v, tree.layout, 0.25)
        expected = flash_tree.TreeAttention.apply(q, k, v, tree.layout, 0.25)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_models_that_cannot_are_left_alone(tokenizer, caplog):
    model = qwen2_5(tokenizer, layer_types=["full_attention", "sliding_attention"] * 2)
    assert not tree_attention.enable(model)
    assert "layers of sliding_attention" in caplog.text
    assert model.config.text_config._attn_implementation == "sdpa"
