"""Write a model folder whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from surgery_r1._util.files import read_json, write_json
from surgery_r1.errors import SurgeryR1Error, explained
from surgery_r1.models.info import ModelInfo
from surgery_r1.models.processor import PROCESSORS
from surgery_r1.models.quiet import without_progress_bars

#: What transformers notes in a tokenizer's settings of the call that loaded it.
_HOW_IT_WAS_LOADED = ("is_local", "local_files_only")


def save_model(model: Any, processor: Any, info: ModelInfo, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Save a model (or LoRA adapter), its processor and ``surgery_r1.json`` as a plain HF folder.

    The folder is written beside its place and swapped in. A kill leaves the old one or the new one; in the moment
    between the two renames the old one lies at ``<folder>.old``, from where :func:`recover` brings it back.

    Args:
        state: weights to save, by their names in ``model``; None takes the model's own.

    Raises:
        SurgeryR1Error: when the disk is full or cannot be written, or a tensor would be empty.
    """
    partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    # safetensors reports a full disk as an exception type of its own.
    fix = "free some disk space and go on with --resume"
    with explained("the model could not be saved", where=folder, fix=fix), contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        recover(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with without_progress_bars():
            model.save_pretrained(partial, state_dict=state)
        refuse_empty(partial)
        save_description(processor, model.config.model_type, info, partial)
        for path in partial.iterdir():
            # safetensors writes for the owner alone; the one who serves a model may be another user.
            path.chmod(0o644)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def refuse_empty(folder: Path) -> None:
    """Look at the weight files of a folder.

    Raises:
        SurgeryR1Error: for a tensor without numbers, as of a model whose weights lie elsewhere.
    """
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as tensors:
            empty = [name for name in tensors.keys() if 0 in tensors.get_slice(name).get_shape()]  # noqa: SIM118
        if empty:
            raise SurgeryR1Error(
                f"{len(empty)} tensors would be saved empty, such as {empty[0]}",
                where=path,
                fix="go on from the last checkpoint with ranks.shard = 'none', and report this",
            )


def recover(folder: Path) -> None:
    """Bring back what a kill left at ``<folder>.old`` in the middle of :func:`save_model`; else remove it."""
    old = folder.with_name(folder.name + ".old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_description(processor: Any, model_type: str, info: ModelInfo, folder: Path) -> None:
    """What makes weights in ``folder`` a model folder of this project: processor files and ``surgery_r1.json``."""
    save_processor(processor, model_type, folder)
    # A trainer's own writing of the processor, under class names that no other engine knows.
    (folder / "processor_config.json").unlink(missing_ok=True)
    info.save(folder)


def save_processor(processor: Any, model_type: str, folder: Path) -> None:
    """Tokenizer, chat template and image processor under the stock names that every engine reads."""
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    stock = PROCESSORS[model_type].__bases__[-1].__name__
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        settings = {key: value for key, value in read_json(folder / name).items() if key not in _HOW_IT_WAS_LOADED}
        write_json(folder / name, {**settings, "processor_class": stock})
