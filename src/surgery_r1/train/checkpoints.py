"""Checkpoints of TRL's trainers: what they hold, which one a run resumes from, and that full weights really load."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers.trainer
from transformers import TrainerState

from surgery_r1._util.files import read_json
from surgery_r1._util.overriding import overriding
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.info import INFO_FILE, ModelInfo
from surgery_r1.models.quiet import without_progress_bars
from surgery_r1.models.save import recover, refuse_empty
from surgery_r1.train import ranks, shards, zero
from surgery_r1.train.callbacks import DevCallback
from surgery_r1.train.log_state import RestoreLogs, restore_logs, save_logs
from surgery_r1.train.rollouts.files import prune_rollouts
from surgery_r1.train.run_folder import prune_metrics

logger = logging.getLogger(__name__)


def resume_point(out: Path, dev: DevCallback, *, resume: bool, cycle: int = 1) -> str | None:
    """The checkpoint to resume from, None to begin; brings ``metrics.jsonl``, ``best`` and ``dev`` back to it."""
    if not resume:
        return None

    def brought_back() -> tuple[Path | None, list[dict[str, Any]], int | None]:
        checkpoint = last_checkpoint(out / "checkpoints", cycle)
        records = prune_metrics(out, _step_of(checkpoint) if checkpoint else -1)
        prune_rollouts(out, _step_of(checkpoint) if checkpoint else 0)
        recover(out / "best")
        info = ModelInfo.read(out / "best") if (out / "best" / INFO_FILE).is_file() else None
        return checkpoint, records, info.step if info else None

    checkpoint, records, kept_step = ranks.first(brought_back)
    if checkpoint:
        with ranks.told_once():
            ranks.wait_for(checkpoint / "trainer_state.json")
    dev.restore(records, kept_step)
    return str(checkpoint) if checkpoint else None


def run_trainer(trainer: Any, dev: DevCallback, checkpoint: str | None) -> int:
    """Train to the end; the steps done in all.

    A run whose last checkpoint already is the end of training is only finished: the trainer would take another step.
    """
    done = _step_of(Path(checkpoint)) if checkpoint else 0
    if checkpoint and (done >= trainer.args.max_steps or dev.out_of_patience):
        _finish(trainer, Path(checkpoint))
    else:
        trainer.add_callback(RestoreLogs(trainer, checkpoint))
        # transformers would show one for every checkpoint, in the middle of ours.
        with without_progress_bars():
            trainer.train(resume_from_checkpoint=checkpoint)
    return int(trainer.state.global_step)


def _finish(trainer: Any, checkpoint: Path) -> None:
    """What the trainer does after its last step, of which the kill came before or in the middle."""
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    # As in the file, every process would be the one that writes.
    trainer.state.is_world_process_zero = trainer.is_world_process_zero()
    restore_logs(trainer, checkpoint)
    trainer._total_loss_scalar += trainer._tr_loss.item()
    # TRL keeps its metrics by the mode that the model is in.
    trainer.model.train()
    trainer.log({"total_flos": trainer.state.total_flos, "train_loss": 0.0})
    trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)


def resumable(kind: type) -> type:
    """A trainer class whose checkpoints are models of their own, load, and go on with the logs where they were.

    transformers saves Qwen-VL models under the published tensor names but loads a trainer checkpoint by the names in
    memory, finds none of them, and goes on with the weights of the base after a mere warning.
    """

    class Resumable(kind):  # type: ignore[misc, valid-type]
        #: Adds to the weights in a folder what makes them a model (processor, ``surgery_r1.json``), given their step.
        describe: Callable[[Path, int], None]

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            """The trainer writes its state after this: a checkpoint that has it has all of this too."""
            with contextlib.ExitStack() as stack:
                if shards.spread(self.model) or self.is_deepspeed_enabled:
                    state = lambda *_: shards.whole_state(self.model)  # noqa: E731
                    stack.enter_context(overriding(self.accelerator, "get_state_dict", state))
                super().save_model(output_dir, _internal_call)
            if output_dir is not None and self.args.should_save:
                refuse_empty(Path(output_dir))
                self.describe(Path(output_dir), self.state.global_step)
            if output_dir is not None:
                save_logs(self, Path(output_dir))

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "train_loss" in logs:
                # transformers divides by the steps since the run was resumed.
                logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
            super().log(logs, start_time)

        def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
            plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
            if plugin is not None and plugin.zero_stage == 3:
                zero.to_parts(self.model, plugin)
            with shards.output_layer_with_the_rest(self.model) if self.is_fsdp_enabled else contextlib.nullcontext():
                return super()._prepare_for_training(*args, **kwargs)

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            # transformers would write the weights of FSDP a second time, in a form that only FSDP reads.
            with overriding(transformers.trainer, "save_fsdp_model", lambda *_, **__: None):
                super()._save_optimizer_and_scheduler(output_dir)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            target, folder = model or self.model, Path(resume_from_checkpoint)
            if hasattr(target, "load_checkpoint"):
                target.load_checkpoint(folder)
            elif shards.spread(target):
                shards.load_whole_state(target, _saved_state(target, folder) if ranks.index() == 0 else {})
            elif hasattr(target, "peft_config"):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                target.load_state_dict(_saved_state(target, folder))

    Resumable.__name__ = Resumable.__qualname__ = kind.__name__
    return Resumable


def _saved_state(model: Any, checkpoint: Path) -> dict[str, Any]:
    """The weights in a checkpoint by their names in ``model``; those of its adapter where it has one."""
    if hasattr(model, "peft_config"):
        from safetensors.torch import load_file

        own = f".{model.active_adapter}.weight"
        saved = load_file(checkpoint / "adapter_model.safetensors")
        return {name.removesuffix(".weight") + own: tensor for name, tensor in saved.items()}
    from transformers import AutoModelForImageTextToText

    with without_progress_bars():
        loaded = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=model.dtype, use_safetensors=True, local_files_only=True
        )
    state: dict[str, Any] = loaded.state_dict()
    return state


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
    """Whether the save came to its end on every rank: the trainer writes its state last."""
    try:
        state = read_json(checkpoint / "trainer_state.json")
    except SurgeryR1Error:
        return False
    # One process's random state has no number.
    saved = len(list(checkpoint.glob("rng_state*.pth")))
    return state.get("global_step") == _step_of(checkpoint) and saved == ranks.count()
