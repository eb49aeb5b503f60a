"""A model folder for other engines: adapter merged, with a model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.card import model_card
from surgery_r1.models.load import from_pretrained, merged
from surgery_r1.models.save import save_model


def export(run: Path, out: Path, *, allow_hub: bool = False) -> Path:
    """Merge an adapter (or copy a full model) into a folder that vLLM and transformers serve, with a model card.

    Args:
        run: a run folder or checkpoint.
        out: a folder that is empty or not there; returned.

    Raises:
        SurgeryR1Error: when ``out`` is not empty or ``run`` holds no model.
    """
    if out.exists() and any(out.iterdir()):
        raise SurgeryR1Error("is not empty", where=out, fix="give another folder")
    bundle = from_pretrained(run, allow_hub=allow_hub)
    model = merged(bundle.model)
    if out.exists():
        out.rmdir()
    save_model(model, bundle.processor, bundle.info, out)
    (out / "README.md").write_text(model_card(bundle.info, run), encoding="utf-8")
    if (run / "run.json").is_file():
        for name in ("run.json", "config.json"):
            shutil.copyfile(run / name, out / f"training_{name}")
    return out
