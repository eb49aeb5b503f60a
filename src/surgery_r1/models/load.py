"""Load a model folder: weights, tokenizer, processor and what ``surgery_r1.json`` says of them.

Works on the shipped tiny base, on plain Qwen2-VL, Qwen2.5-VL and Qwen3-VL folders, on checkpoints of this project and
on LoRA adapters (the base they name is loaded first).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surgery_r1 import codec
from surgery_r1._util.files import read_json, sha256_file
from surgery_r1.errors import SurgeryR1Error, explained
from surgery_r1.models import four_bit
from surgery_r1.models.info import FAMILIES, ModelInfo
from surgery_r1.models.runs import SPECIALIST_FILE, recorded_info, run_of
from surgery_r1.models.tiny.architecture import SHIPPED


@dataclass(slots=True)
class Bundle:
    """A loaded model with all that goes with it. ``model`` is None when only the processor was asked for."""

    model: Any
    processor: Any
    info: ModelInfo
    folder: Path

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer


def resolve(name: str | Path, *, allow_hub: bool = False) -> Path:
    """The folder that a model name stands for: ``tiny``, ``tiny-rft``, a model folder, or a run folder (its ``best``).

    Raises:
        SurgeryR1Error: when there is none. A hub name is an error unless ``allow_hub``.
    """
    if shipped := SHIPPED.get(str(name)):
        if not (shipped / "config.json").is_file():
            raise SurgeryR1Error(f"the shipped model {name} is missing", where=shipped, fix="install the package again")
        return shipped
    path = Path(name)
    # A run folder holds its own resolved config.json, which has no model type.
    candidates = (path / "best",) if (path / "run.json").is_file() else (path, path / "best")
    for folder in candidates:
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    if any((folder / SPECIALIST_FILE).is_file() for folder in (path, path / "best")):
        raise SurgeryR1Error(
            "a specialist writes no text and cannot be asked, exported or trained further",
            where=path,
            fix="give it to surgery-r1 predict --model, and another model here",
        )
    if path.exists():
        raise SurgeryR1Error(
            "holds neither a model nor a run with a best one",
            where=path,
            fix="check the path, or finish the run with --resume",
        )
    if allow_hub and re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        from huggingface_hub import snapshot_download

        fix = "check name and network, or give a folder"
        with explained("cannot be downloaded from the hub", where=name, fix=fix):
            return Path(snapshot_download(str(name)))
    raise SurgeryR1Error(
        f"no model at {str(name)!r}",
        fix="give a folder with config.json, a run folder, 'tiny', 'tiny-rft', or a hub name with --allow-hub",
    )


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds a LoRA adapter alone."""
    return (folder / "adapter_config.json").is_file()


def base_of(folder: Path, allow_hub: bool) -> Path:
    """The base model that an adapter folder names, or the one that its run keeps beside it."""
    path = folder / "adapter_config.json"
    if not is_adapter(folder):
        return folder
    name = read_json(path).get("base_model_name_or_path")
    beside = (run_of(folder) or folder.parent) / "base"
    if beside.is_dir() and not Path(str(name)).exists():
        return resolve(beside)
    if not name or not isinstance(name, str):
        what = f"base_model_name_or_path = {name!r:.80}" if name else "names no base_model_name_or_path"
        raise SurgeryR1Error(what, where=path, fix="write the base model's folder")
    return resolve(name, allow_hub=allow_hub)


def from_pretrained(
    name: str | Path = "tiny",
    *,
    dtype: str = "auto",
    device: str | None = None,
    attention: str = "sdpa",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    box_space: str | None = None,
    with_model: bool = True,
    allow_hub: bool = False,
    load_in_4bit: bool | None = None,
) -> Bundle:
    """Model, tokenizer and working processor of a folder, in one line.

    Args:
        name: see :func:`resolve`.
        dtype: ``auto`` (as saved), ``float32``, ``bfloat16`` or ``float16``.
        device: such as ``cuda``; None takes CUDA where there is one.
        attention: implementation name of transformers.
        min_pixels, max_pixels: pixel limits; None takes those of ``surgery_r1.json``, else of the folder.
        box_space: overrides the family's own for folders without ``surgery_r1.json``.
        allow_hub: fetch ``owner/name`` from the model hub.
        load_in_4bit: hold the base in 4 bit (:mod:`surgery_r1.models.four_bit`); None does so for an adapter that was
            trained on one, so that it is asked as dev asked it.

    Raises:
        SurgeryR1Error: no such folder, unknown family, torn weights, a version or template that does not fit, a folder
            of a run that nothing is known of, or 4 bit where they are not installed.

    >>> bundle = from_pretrained("tiny")
    >>> bundle.info.box_space, bundle.tokenizer.decode(bundle.tokenizer("<box>[1, 20, 3, 100]</box>")["input_ids"])
    ('norm100', '<box>[1, 20, 3, 100]</box>')
    """
    folder = resolve(name, allow_hub=allow_hub)
    base = base_of(folder, allow_hub)
    model_type = _family(base)
    four_bit.refuse_rounded(base)
    from surgery_r1.models.processor import load_processor

    recorded = recorded_info(folder)
    _check_box_space(box_space, recorded, folder)
    processor = load_processor(
        folder if (folder / "preprocessor_config.json").is_file() else base,
        model_type,
        min_pixels=min_pixels or (recorded.min_pixels if recorded else None),
        max_pixels=max_pixels or (recorded.max_pixels if recorded else None),
    )
    found = _info_of(processor, name, box_space or FAMILIES[model_type])
    info = _agreed(recorded, found, folder) if recorded else replace(found, base_sha256=weights_sha256(base))
    model = None
    if with_model:
        few_bits = info.load_in_4bit if load_in_4bit is None else load_in_4bit
        if few_bits:
            four_bit.refuse_uninstalled(f"{folder}, whose base is held in 4 bit,")
        generation = generation_config(base, processor.tokenizer)
        model = _load_model(base, folder, dtype, device, attention, generation, few_bits)
    return Bundle(model, processor, info, folder)


def _family(base: Path) -> str:
    """The model type of a folder, one of :data:`FAMILIES`."""
    model_type = read_json(base / "config.json").get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise SurgeryR1Error(
            f"unknown model family {model_type!r}", where=base / "config.json", fix=f"use one of {sorted(FAMILIES)}"
        )
    return model_type


def _check_box_space(box_space: str | None, recorded: ModelInfo | None, folder: Path) -> None:
    if box_space and (box_space not in codec.BOX_SPACES or (recorded and recorded.box_space != box_space)):
        what = f"reads boxes in {recorded.box_space!r}, not" if recorded else "unknown box space"
        raise SurgeryR1Error(
            f"{what} {box_space!r}", where=folder, fix=f"leave box_space empty, or one of {[*codec.BOX_SPACES]}"
        )


def _info_of(processor: Any, name: str | Path, box_space: str) -> ModelInfo:
    """What can be said of a model from its processor."""
    size = processor.image_processor.size
    template = processor.chat_template or processor.tokenizer.chat_template
    return ModelInfo(
        box_space=box_space,
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
        template_sha256=hashlib.sha256(str(template).encode()).hexdigest(),
        base_model=str(name),
        base_sha256="",
    )


def _agreed(recorded: ModelInfo, found: ModelInfo, folder: Path) -> ModelInfo:
    """What the checkpoint says of itself, with the pixel limits in force."""
    if recorded.template_sha256 != found.template_sha256:
        raise SurgeryR1Error(
            "the chat template is not the one that the model was trained with",
            where=folder,
            fix="restore chat_template.jinja and tokenizer_config.json of the checkpoint",
        )
    return replace(recorded, min_pixels=found.min_pixels, max_pixels=found.max_pixels)


def merged(model: Any) -> Any:
    """The model with its LoRA adapter, if it has one, merged into its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def generation_config(folder: Path, tokenizer: Any) -> Any:
    """The token ids of a checkpoint's generation settings, and none of the others (a ``GenerationConfig``).

    How replies are made is said by what asks for them. A published checkpoint's sampling, penalties or beams would
    otherwise bend what is measured: transformers and TRL fill in whatever the model's own settings hold.

    Raises:
        SurgeryR1Error: for ids that are no whole numbers.
    """
    from transformers import GenerationConfig

    path = folder / "generation_config.json"
    saved = read_json(path) if path.is_file() else {}
    ids = {}
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        value = saved.get(name)
        found = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in found):
            raise SurgeryR1Error(f"{name} = {value!r}", where=str(path), fix="write token ids, whole numbers")
        own = getattr(tokenizer, name)
        # Several tokens may end a reply. The tokenizer's is among them: it is what training teaches.
        ends = [*dict.fromkeys([*found, *([] if own is None else [own])])]
        ids[name] = ends if name == "eos_token_id" and len(ends) > 1 else next(iter(ends), None)
    return GenerationConfig(**ids)


def _load_model(
    base: Path, folder: Path, dtype: str, device: str | None, attention: str, generation: Any, few_bits: bool
) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    from surgery_r1.models.quiet import without_progress_bars

    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    more = four_bit.loading(base, dtype, target) if few_bits else {}
    # Torn safetensors raise the Rust library's own exception type, missing shards an OSError.
    fix = "the checkpoint is torn or incomplete: copy it again or go back to an earlier one"
    with explained("the weights cannot be read", where=folder, fix=fix), without_progress_bars():
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            base,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            # Pickled weights can run code, and their bytes are not part of weights_sha256.
            use_safetensors=True,
            local_files_only=True,
            generation_config=generation,
            **more,
        )
        model, report = loaded
        # transformers fills what a checkpoint lacks with random numbers and only warns.
        _refuse_missing(report["missing_keys"])
        _make_room(model)
        four_bit.settle(model)
        if folder != base:
            from peft import PeftModel, get_peft_model_state_dict
            from safetensors.torch import load_file

            model = PeftModel.from_pretrained(model, folder)
            found = set(load_file(folder / "adapter_model.safetensors"))
            _refuse_missing(set(get_peft_model_state_dict(model)) - found)
    return model.to(target)


def _make_room(model: Any) -> None:
    """Give main memory to weights that were not loaded, as where another process will send them.

    accelerate tells parameters apart by where they lie, and weights without memory all lie at the same place. Pages
    that nobody writes take none.
    """
    import torch

    names = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    for name in names:
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        tensor = torch.empty_like(getattr(module, own), device="cpu")
        if own in module._parameters:
            module._parameters[own] = torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        else:
            module._buffers[own] = tensor
    if names:
        model.tie_weights()


def _refuse_missing(names: Iterable[str]) -> None:
    missing = sorted(names)
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")


def weights_sha256(folder: Path) -> str:
    """Hash over names and sha256 of the weight files and the configuration of a model or adapter folder."""
    digest = hashlib.sha256()
    configs = [folder / name for name in ("config.json", "adapter_config.json") if (folder / name).is_file()]
    for path in sorted([*folder.glob("*.safetensors"), *configs]):
        digest.update(json.dumps([path.name, sha256_file(path)]).encode())
    return digest.hexdigest()


def engine_sha256(bundle: Bundle) -> str:
    """Hash over what a reply depends on beside weights and prompt, as it was loaded: wherever the files lie.

    Tokenizer, its special tokens and chat template, the image processor with its pixel limits, and the token ids that
    begin, pad and end a reply.
    """
    tokenizer, images = bundle.tokenizer, bundle.processor.image_processor
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    # Set by the calls themselves.
    words = {key: value for key, value in words.items() if key not in ("padding", "truncation")}
    generation = bundle.model.generation_config.to_dict() if bundle.model is not None else {}
    generation.pop("transformers_version", None)
    parts = {
        "tokenizer": words,
        "special_tokens": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "chat_template": bundle.processor.chat_template or tokenizer.chat_template,
        "padding_side": tokenizer.padding_side,
        "image_processor": images.to_dict(),
        "generation": generation,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
