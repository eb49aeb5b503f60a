"""Model folders that lie in a run folder: what the run knows of them where they do not say it themselves."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.info import INFO_FILE, ModelInfo

#: In the folder of a model that writes no text (:mod:`surgery_r1.models.specialist`).
SPECIALIST_FILE = "specialist.json"


def run_of(folder: Path) -> Path | None:
    """The run folder that a model folder (``best``, ``checkpoints/checkpoint-N``) lies in, if any."""
    parents = list(folder.resolve().parents)[:2]
    return next((parent for parent in parents if (parent / "run.json").is_file()), None)


def recorded_info(folder: Path) -> ModelInfo | None:
    """What ``surgery_r1.json`` says of a model folder, or its run says of a trainer checkpoint; None where it is not
    of this project.

    Raises:
        SurgeryR1Error: for a trained folder of which nothing is said: the defaults of its family may be wrong.
    """
    # Also where it cannot be read: a model that says something of itself is never taken for a base model.
    if os.path.lexists(folder / INFO_FILE):
        return ModelInfo.read(folder)
    run = run_of(folder)
    if run is None:
        if (folder / "trainer_state.json").is_file():
            raise SurgeryR1Error(
                f"a trainer's checkpoint without {INFO_FILE}: which box space and pixel limits it was trained with is "
                "not known",
                where=str(folder),
                fix=f"put {INFO_FILE} of its run's best model beside it, or name the checkpoint in its run",
            )
        return None
    step = re.fullmatch(r"checkpoint-(\d+)", folder.resolve().name)
    if step and (run / "best" / INFO_FILE).is_file():
        return replace(ModelInfo.read(run / "best"), step=int(step[1]))
    raise SurgeryR1Error(
        f"has no {INFO_FILE}, and its run does not say which box space and pixel limits it was trained with",
        where=str(folder),
        fix="go on with --resume until the run has a best model" if step else "train again",
    )
