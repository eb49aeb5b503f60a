"""Checkpoints of TRL's trainers: which one a run resumes from, and that full weights really load."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from surgery_r1._util.files import read_json
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.info import INFO_FILE, ModelInfo
from surgery_r1.models.quiet import without_progress_bars
from surgery_r1.models.save import recover
from surgery_r1.train.callbacks import DevCallback
from surgery_r1.train.run_folder import prune_metrics

logger = logging.getLogger(__name__)


def resume_point(out: Path, dev: DevCallback, *, resume: bool, cycle: int = 1) -> str | None:
    """The checkpoint to resume from, None to begin; brings ``metrics.jsonl``, ``best`` and ``dev`` back to it."""
    if not resume:
        return None
    checkpoint = last_checkpoint(out / "checkpoints", cycle)
    step = _step_of(checkpoint) if checkpoint else -1
    recover(out / "best")
    info = ModelInfo.read(out / "best") if (out / "best" / INFO_FILE).is_file() else None
    dev.restore(prune_metrics(out, step), info.step if info else None)
    return str(checkpoint) if checkpoint else None


def run_trainer(trainer: Any, dev: DevCallback, checkpoint: str | None) -> int:
    """Train to the end; the steps done in all.

    A run whose last checkpoint already is the end of training is only finished: the trainer would take another step.
    """
    done = _step_of(Path(checkpoint)) if checkpoint else 0
    if done >= trainer.args.max_steps or dev.out_of_patience:
        trainer._load_from_checkpoint(checkpoint)
        trainer.state.global_step = done
        dev.on_train_end(trainer.args, trainer.state, trainer.control, model=trainer.model)
    else:
        # transformers would show one for every checkpoint, in the middle of ours.
        with without_progress_bars():
            trainer.train(resume_from_checkpoint=checkpoint)
    return int(trainer.state.global_step)


def resumable(kind: type) -> type:
    """A trainer class whose full-weight checkpoints load.

    transformers saves Qwen-VL models under the published tensor names but loads a trainer checkpoint by the names in
    memory, finds none of them, and goes on with the weights of the base after a mere warning.
    """

    class Resumable(kind):  # type: ignore[misc, valid-type]
        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            from transformers import AutoModelForImageTextToText

            target = model or self.model
            if hasattr(target, "peft_config"):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
                return
            with without_progress_bars():
                loaded = AutoModelForImageTextToText.from_pretrained(
                    resume_from_checkpoint, dtype=target.dtype, use_safetensors=True, local_files_only=True
                )
            target.load_state_dict(loaded.state_dict())

    Resumable.__name__ = Resumable.__qualname__ = kind.__name__
    return Resumable


def last_checkpoint(folder: Path, cycle: int = 1) -> Path | None:
    """The newest whole trainer checkpoint below ``folder``; a torn one is passed over with a warning.

    Args:
        cycle: steps between places where training can resume; a checkpoint in between is passed over.
    """
    for path in sorted(folder.glob("checkpoint-[0-9]*"), key=_step_of, reverse=True):
        if not _whole(path):
            logger.warning("%s is incomplete and is passed over", path)
        elif _step_of(path) % cycle:
            logger.warning("%s lies inside a generation cycle and is passed over", path)
        else:
            return path
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _whole(checkpoint: Path) -> bool:
    """Whether the save came to its end: the trainer writes its state last."""
    try:
        state = read_json(checkpoint / "trainer_state.json")
    except SurgeryR1Error:
        return False
    return state.get("global_step") == _step_of(checkpoint) and any(checkpoint.glob("rng_state*.pth"))
