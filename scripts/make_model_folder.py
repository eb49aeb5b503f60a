"""Write a model folder of a published size: its config, random weights, and the tiny model's tokenizer.

    python scripts/make_model_folder.py qwen2_5_vl_3b OUT
    python scripts/make_model_folder.py qwen2_5_vl_7b OUT --config-only
    python scripts/make_model_folder.py qwen2_5_vl_3b OUT --layers 18

The model has learned nothing: the folder is for what its shape costs, in memory and time (``surgery-r1 train --plan``,
``scripts/run_true_shapes.py``). Weights are bfloat16, drawn by the seed and the tensor's name, and written in shards,
so that memory holds one of them at a time; tensors have the published names. The vocabulary has as many rows as the
published one, of which the tiny tokenizer knows the first thousand. ``--config-only`` leaves the weights out, which
is enough for a plan.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
)
from transformers.core_model_loading import revert_weight_conversion

from surgery_r1._util.files import write_json
from surgery_r1.bench.shapes import SHAPES
from surgery_r1.models.load import generation_config
from surgery_r1.models.processor import PROCESSORS
from surgery_r1.models.save import save_processor
from surgery_r1.models.tiny import architecture as tiny

SHARD = 2**30

#: What ``bench/shapes.toml`` leaves out, from ``config.json`` of Qwen/Qwen2.5-VL-3B-Instruct and -7B-Instruct.
_QWEN2_5_TEXT = {"max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
_QWEN2_5_TOWER = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112}
#: ``config.json`` of Qwen/Qwen3-VL-8B-Instruct.
_QWEN3_TEXT = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "vocab_size": 151936,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
_QWEN3_TOWER = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 4096,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}

MODELS = ("qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_8b")


def config_of(name: str, tokenizer: Any) -> Any:
    """The published config, with the token ids of ``tokenizer``."""
    if name == "qwen3_vl_8b":
        kind, text, tower, tied = Qwen3VLConfig, dict(_QWEN3_TEXT), dict(_QWEN3_TOWER), False
    else:
        shape = SHAPES[name.removeprefix("qwen2_5_vl_")]
        kind, text, tower = Qwen2_5_VLConfig, shape["text"] | _QWEN2_5_TEXT, shape["vision"] | _QWEN2_5_TOWER
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": text.pop("sections")}
        tower |= {"fullatt_block_indexes": tower.pop("full"), "out_hidden_size": text["hidden_size"]}
        tower["tokens_per_second"] = 2
        tied = name == "qwen2_5_vl_3b"
    ids = tokenizer.convert_tokens_to_ids
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = kind(
        text_config=text | ends | {"tie_word_embeddings": tied},
        vision_config=tower,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=tied,
        **ends,
    )
    config.architectures = [kind.__name__.removesuffix("Config") + "ForConditionalGeneration"]
    config.dtype = config.text_config.dtype = config.vision_config.dtype = "bfloat16"
    return config


def write_folder(name: str, out: Path, *, weights: bool = True, seed: int = 0, layers: int | None = None) -> None:
    """Write the folder of one of :data:`MODELS`; ``out`` must not hold anything yet.

    Args:
        layers: of the language model, where memory does not hold all of them.
    """
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty")
    out.mkdir(parents=True, exist_ok=True)
    bare = tiny.TINY_BASE
    tokenizer = AutoTokenizer.from_pretrained(bare, local_files_only=True)
    config = config_of(name, tokenizer)
    if layers is not None:
        config.text_config.num_hidden_layers = layers
        config.text_config.layer_types = config.text_config.layer_types[:layers]
    config.save_pretrained(out)
    patch = config.vision_config.patch_size
    # Limits of the published preprocessor_config.json.
    limits = (65536, 16777216) if name == "qwen3_vl_8b" else (3136, 12845056)
    image = Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, size=dict(zip(("shortest_edge", "longest_edge"), limits, strict=True))
    )
    processor = PROCESSORS[config.model_type](image, tokenizer, chat_template=tokenizer.chat_template)
    save_processor(processor, config.model_type, out)
    generation_config(bare, tokenizer).save_pretrained(out)
    if weights:
        _write_weights(config, out, seed)


def _write_weights(config: Any, out: Path, seed: int) -> None:
    """Shards of random weights, under the names that published folders have."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    state = revert_weight_conversion(model, model.state_dict())
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    shards = list(_shards(state))
    weight_map, total = {}, 0
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _random(name, state[name].shape, config.text_config.initializer_range, seed) for name in names}
        save_file(tensors, out / file, metadata={"format": "pt"})
        (out / file).chmod(0o644)
        weight_map |= dict.fromkeys(names, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
        print(f"{file}: {len(names)} tensors", flush=True)
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(state: dict[str, torch.Tensor]) -> Iterator[list[str]]:
    """Names of tensors of at most :data:`SHARD` bytes together, or of one that is larger."""
    names: list[str] = []
    room = SHARD
    for name, tensor in state.items():
        if names and tensor.nbytes > room:
            yield names
            names, room = [], SHARD
        names.append(name)
        room -= tensor.nbytes
    yield names


def _random(name: str, shape: torch.Size, spread: float, seed: int) -> torch.Tensor:
    """Matrices from a normal distribution, as transformers begins a model; norms 1, biases 0."""
    if len(shape) == 1:
        return torch.full(shape, float(name.endswith("weight")), dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(random.Random(f"{seed}:{name}").getrandbits(63))
    return torch.empty(shape).normal_(0.0, spread, generator=generator).to(torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config-only", action="store_true", help="no weights: enough for --plan")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, help="fewer layers of the language model than published")
    args = parser.parse_args()
    write_folder(args.name, args.out, weights=not args.config_only, seed=args.seed, layers=args.layers)
    print(json.dumps({"folder": str(args.out), "bytes": sum(path.stat().st_size for path in args.out.iterdir())}))


if __name__ == "__main__":
    main()
