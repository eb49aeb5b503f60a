"""A model folder for other engines, merged or as a LoRA adapter, with a model card."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

from surgery_r1._util.files import read_json, write_json
from surgery_r1._util.folders import replacing_folder
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.card import AdapterFacts, model_card
from surgery_r1.models.load import Bundle, base_of, from_pretrained, merged
from surgery_r1.models.save import save_description, save_model

_WEIGHTS, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def export(run: Path, out: Path, *, adapter_only: bool = False, allow_hub: bool = False) -> Path:
    """Write a folder that vLLM and transformers serve without this package; whole or not at all.

    Args:
        run: a run folder or checkpoint.
        out: a folder that is empty or not there; returned.
        adapter_only: the LoRA adapter alone, for ``vllm serve BASE --enable-lora``; else an adapter is merged, into the
            weights of its base's folder, also where training has held them in 4 bit.

    Raises:
        SurgeryR1Error: when ``out`` is not empty, ``run`` holds no model, or no adapter where one is asked for.
    """
    with replacing_folder(out) as folder:
        bundle = from_pretrained(run, allow_hub=allow_hub, with_model=not adapter_only, load_in_4bit=False)
        if adapter_only:
            adapter = _write_adapter(bundle, folder, allow_hub)
        else:
            adapter = None
            save_model(merged(bundle.model), bundle.processor, replace(bundle.info, load_in_4bit=False), folder)
            _greedy(folder)
        card = model_card(bundle.info, bundle.processor, run, adapter)
        (folder / "README.md").write_text(card, encoding="utf-8")
        if (run / "run.json").is_file():
            for name in ("run.json", "config.json"):
                shutil.copyfile(run / name, folder / f"training_{name}")
    return out


def _greedy(folder: Path) -> None:
    """Make greedy replies the default: vLLM ignores ``do_sample`` and samples at 1.0 where no temperature is set."""
    path = folder / "generation_config.json"
    write_json(path, {**read_json(path), "do_sample": False, "temperature": 0.0})


def _write_adapter(bundle: Bundle, folder: Path, allow_hub: bool) -> AdapterFacts:
    """The adapter's weights as they are, its settings with modules by their own names and a base that others find."""
    source = bundle.folder
    if not (source / _SETTINGS).is_file():
        raise SurgeryR1Error("holds no adapter: all weights were trained", where=source, fix="leave out --adapter-only")
    base = base_of(source, allow_hub)
    for name in (_WEIGHTS, _SETTINGS):
        shutil.copyfile(source / name, folder / name)
    name = _name_for_others(base)
    modules = name_modules(folder, base_model_name_or_path=name)
    save_description(bundle.processor, read_json(base / "config.json")["model_type"], bundle.info, folder)
    rank = read_json(folder / _SETTINGS)["r"]
    return AdapterFacts(base=name, rank=rank, tower=any(".visual." in module for module in modules))


def name_modules(folder: Path, **settings: str) -> list[str]:
    """Let the settings of an adapter folder name each module that it changes; these names.

    Some engines read a pattern of modules letter by letter; names are read by all.

    Args:
        settings: to change with them.
    """
    from safetensors import safe_open

    with safe_open(folder / _WEIGHTS, framework="np") as tensors:
        modules = sorted({name.removeprefix("base_model.model.").split(".lora_")[0] for name in tensors.keys()})  # noqa: SIM118
    changed = {**settings, "target_modules": modules, "inference_mode": True}
    write_json(folder / _SETTINGS, {**read_json(folder / _SETTINGS), **changed})
    return modules


def _name_for_others(base: Path) -> str:
    """A base model's name on the hub, or its whole path: other engines know neither ``tiny`` nor run folders.

    >>> _name_for_others(Path("/cache/models--Qwen--Qwen2.5-VL-3B-Instruct/snapshots/0123abcd"))
    'Qwen/Qwen2.5-VL-3B-Instruct'
    """
    cached = re.search(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/", base.as_posix())
    return f"{cached[1]}/{cached[2]}" if cached else str(base.resolve())
