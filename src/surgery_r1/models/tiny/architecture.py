"""The tiny base model: Qwen2.5-VL's architecture class at under 2 M parameters, for a laptop without a GPU.

The shipped weights lie in the package (``models/tiny/base``); ``scripts/pretrain_tiny.py`` makes them. Beside them lies
what ``surgery-r1 demo`` makes of them (``models/tiny/rft``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

#: The shipped base: model, tokenizer, processor and ``surgery_r1.json``.
TINY_BASE = Path(__file__).with_name("base")
#: The same after both stages of the demo: it can do the task, on drawn scenes (docs/tiny_rft).
TINY_RFT = Path(__file__).with_name("rft")
#: Shipped models by the name that stands for them wherever a model is asked for.
SHIPPED = {"tiny": TINY_BASE, "tiny-rft": TINY_RFT}

BOX_SPACE = "norm100"
PATCH, MERGE = 14, 2
#: Multiples of the 28 x 28 pixels of an image token. A 5:4 frame becomes 168 x 140 pixels, 6 x 5 = 30 tokens: with a
#: limit of 30 or 31 tokens it would lose a row, because its sides are rounded down one by one.
MIN_PIXELS, MAX_PIXELS = 28 * 28, 32 * 28 * 28

#: Qwen's special tokens, in its order.
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
#: Tags and the numbers 0 to 100 are single tokens, unlike in Qwen2.5-VL, which writes digit by digit: four number
#: tokens a box instead of eight, which the demo's minutes need.
TAG_TOKENS = ("<think>", "</think>", "<answer>", "</answer>", "<box>", "</box>")
NUMBER_TOKENS = tuple(str(number) for number in range(101))

#: Qwen2.5-VL's conversation format, with images as placeholders, and no default system text.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(corpus: list[str], vocab_size: int = 1024) -> Any:
    """Byte-level BPE trained on ``corpus``: any UTF-8 text survives a round trip."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Words keep their underscores and hyphens, so that tool names and places become single tokens.
    # ``, `` between two numbers of a box (tokens of their own) is one token.
    words = Regex(r", \z| ?[\p{L}][\p{L}_\-]*| ?[^\s\p{L}\p{N}]+|\p{N}|\s+(?!\S)|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(TAG_TOKENS) - len(NUMBER_TOKENS) + 10,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    # Tags and numbers are cut out so that no merge spans them; they become tokens of their own below.
    tags = re.compile("|".join((*map(re.escape, TAG_TOKENS), r"[0-9]+")))
    tokenizer.train_from_iterator((part for line in corpus for part in tags.split(line)), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in (*TAG_TOKENS, *NUMBER_TOKENS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|endoftext|>", "<|im_end|>")],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_config(tokenizer: Any) -> Any:
    """The architecture: 4 vision layers of width 96, 4 language layers of width 128."""
    from transformers import Qwen2_5_VLConfig

    ids = tokenizer.convert_tokens_to_ids
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            # Rows and columns turn fast enough to tell the tokens of a 6 x 5 grid apart, and most of the columns' pairs
            # slowly enough to find a token by what it shows, however far away: without those a name is not found.
            "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "mrope_section": [2, 4, 10]},
            **tokens,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 96,
            "num_heads": 4,
            "intermediate_size": 288,
            "out_hidden_size": 128,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": PATCH * MERGE * 4,
            "fullatt_block_indexes": [0, 1, 2, 3],
            "tokens_per_second": 2,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
        **tokens,
    )


def build_model(config: Any, seed: int = 0) -> Any:
    """A model of ``config`` with seeded random weights, in float32."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model


def build_image_processor() -> Any:
    """Qwen2.5-VL's image processor (PIL, without torchvision) with the tiny model's pixel limits."""
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    )
