"""Sizes and tensor names of published models, written down here apart from what transformers calls them.

Sizes: ``config.json`` of Qwen/Qwen2.5-VL-3B-Instruct, Qwen/Qwen2.5-VL-7B-Instruct and Qwen/Qwen3-VL-8B-Instruct on the
Hugging Face hub. Names: the ``weight_map`` of their ``model.safetensors.index.json``, which lists 824, 729 and 750
tensors.
"""

from __future__ import annotations

from typing import Any

#: Tensors in the published index.
COUNTS = {"qwen2_5_vl_3b": 824, "qwen2_5_vl_7b": 729, "qwen3_vl_8b": 750}

_QWEN2_5_TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
_SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "qwen2_5_vl_3b": (
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "vocab_size": 151936}
        | {"num_attention_heads": 16, "num_key_value_heads": 2},
        _QWEN2_5_TOWER | {"out_hidden_size": 2048},
        True,
    ),
    "qwen2_5_vl_7b": (
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
        | {"num_attention_heads": 28, "num_key_value_heads": 4},
        _QWEN2_5_TOWER | {"out_hidden_size": 3584},
        False,
    ),
    "qwen3_vl_8b": (
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "vocab_size": 151936}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16}
        | {"out_hidden_size": 4096, "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]},
        False,
    ),
}


def meta_model(name: str) -> Any:
    """The model at its published size, without memory for its weights."""
    import torch
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen3VLConfig

    text, vision, tied = _SIZES[name]
    kind = Qwen3VLConfig if name.startswith("qwen3") else Qwen2_5_VLConfig
    config = kind(text_config=text | {"tie_word_embeddings": tied}, vision_config=vision, tie_word_embeddings=tied)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def _with(prefix: str, modules: str, *kinds: str) -> set[str]:
    return {f"{prefix}.{module}.{kind}" for module in modules.split() for kind in kinds}


def published_names(name: str) -> set[str]:
    """Names of the tensors in the published folder."""
    text, vision, tied = _SIZES[name]
    new = name.startswith("qwen3")
    tower, language = ("model.visual", "model.language_model") if new else ("visual", "model")
    names = {f"{tower}.patch_embed.proj.weight", f"{language}.embed_tokens.weight", f"{language}.norm.weight"}
    names |= set() if tied else {"lm_head.weight"}
    for i in range(vision["depth"]):
        block = f"{tower}.blocks.{i}"
        names |= _with(block, "norm1 norm2", "weight", *(["bias"] if new else []))
        mlp = "mlp.linear_fc1 mlp.linear_fc2" if new else "mlp.gate_proj mlp.up_proj mlp.down_proj"
        names |= _with(block, f"attn.qkv attn.proj {mlp}", "weight", "bias")
    if new:
        names |= {f"{tower}.patch_embed.proj.bias", f"{tower}.pos_embed.weight"}
        names |= _with(f"{tower}.merger", "norm linear_fc1 linear_fc2", "weight", "bias")
        for i in range(len(vision["deepstack_visual_indexes"])):
            names |= _with(f"{tower}.deepstack_merger_list.{i}", "norm linear_fc1 linear_fc2", "weight", "bias")
    else:
        names |= {f"{tower}.merger.ln_q.weight", *_with(f"{tower}.merger", "mlp.0 mlp.2", "weight", "bias")}
    for i in range(text["num_hidden_layers"]):
        layer = f"{language}.layers.{i}"
        names |= _with(layer, "input_layernorm post_attention_layernorm self_attn.o_proj", "weight")
        names |= _with(layer, "mlp.gate_proj mlp.up_proj mlp.down_proj", "weight")
        biases = [] if new else ["bias"]
        names |= _with(layer, "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "weight", *biases)
        names |= _with(layer, "self_attn.q_norm self_attn.k_norm", "weight") if new else set()
    return names
