"""Training a specialist with transformers' Trainer: from a config and a dataset to a run folder like any other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from surgery_r1._util.files import write_json
from surgery_r1._util.offline import stay_offline
from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.score import Scorer
from surgery_r1.evaluate.specialist import SpecialistEngine
from surgery_r1.models.specialist.encoders import Encoder, open_encoder
from surgery_r1.models.specialist.folder import SpecialistInfo, save_specialist
from surgery_r1.models.specialist.fusion import load_trunk
from surgery_r1.models.specialist.network import build_specialist
from surgery_r1.models.specialist.words import Words, vocabulary
from surgery_r1.train import ranks
from surgery_r1.train.config import Kept
from surgery_r1.train.dev import Metrics, dev_metrics, dev_samples
from surgery_r1.train.fit import FitOptions, TrainResult, fit
from surgery_r1.train.run_folder import seed_everything, start_run
from surgery_r1.train.specialist.config import SpecialistConfig
from surgery_r1.train.specialist.visits import Visits, batch_of

#: Config values that may differ when a run is resumed.
_FREE = ("threads", "specialist.patience")
#: Questions of a batch on dev.
_DEV_BATCH = 256


class SpecialistTrainer(Trainer):
    """The stock trainer, with the counts that checkpoints of this project keep."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
        self._total_train_tokens = 0


def train_specialist(
    config: SpecialistConfig,
    dataset: Dataset,
    out: Path,
    *,
    include_dev: bool = False,
    resume: bool = False,
    allow_hub: bool = False,
    quiet: bool = False,
) -> TrainResult:
    """Train into the run folder ``out``; ``out/best`` is the model that dev chose.

    Args:
        include_dev: train on dev too, for a final run; the last model is then kept.
        resume: go on with the run in ``out``.

    Raises:
        SurgeryR1Error: for bad input, backbones that are not there, a run folder that is taken or that another process
            is training into, several processes, or nothing to resume.
    """
    stay_offline(allow_hub)
    ranks.join()
    if ranks.count() > 1:
        raise SurgeryR1Error(f"{ranks.count()} processes for a specialist", fix="start one: it is small")
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_everything(config.seed)
    with ranks.held_by_first(out, "training"):
        result = _train(config, dataset, out, include_dev, resume, allow_hub, quiet)
        write_json(out / "result.json", result.to_json())
    return result


def _train(
    config: SpecialistConfig,
    dataset: Dataset,
    out: Path,
    include_dev: bool,
    resume: bool,
    allow_hub: bool,
    quiet: bool,
) -> TrainResult:
    own = config.specialist
    samples = dataset.train_samples(include_dev)
    if not samples:
        raise SurgeryR1Error("no training questions", where=dataset.root, fix="build it from the training sequences")
    trunk = load_trunk(Path(own.trunk), own.width) if own.design == "fusion" else None
    encoder = open_encoder(own.design, own.encoder, allow_hub=allow_hub)
    asked = [sample.question for sample in samples]
    asked += [row.question for sample in samples for row in dataset.rows_of.get(sample.id, ())]
    info = SpecialistInfo(
        design=own.design,
        classes=dataset.classes,
        words=vocabulary(asked),
        max_words=own.max_words,
        encoder=encoder.name,
        encoder_sha256=encoder.sha256,
        channels=encoder.channels,
        **{name: getattr(own, name) for name in ("width", "layers", "heads", "dropout")},
        dataset_sha256=dataset.hash,
        trunk=trunk.config.to_dict() if trunk is not None else {},
    )
    words = Words(info.words, info.max_words)
    model = build_specialist(info, len(words), trunk)
    evaluate = _dev_evaluator(dataset, own.dev_samples, encoder, words, info)
    visits = Visits(
        *(dataset, samples, encoder, words, info.classes),
        flips=own.flips,
        seed=config.seed,
        count=own.max_steps * own.frames_per_step,
    )
    facts: dict[str, Any] = {"stage": "specialist", "base_sha256": encoder.sha256, "dataset_sha256": dataset.hash}
    facts |= {"questions": len(samples), "include_dev": include_dev}
    notes = {"base": encoder.name, "dataset": str(dataset.root), "seed": config.seed, "processes": 1}
    start_run(out, config.to_json(), facts, notes, resume=resume, free=_FREE)

    def keep(chosen: Any, step: int) -> None:
        save_specialist(chosen, replace(info, step=step), out / "best")

    def describe(folder: Path, step: int) -> None:
        replace(info, step=step).save(folder)

    trainer = {"model": model, "args": _arguments(config, out), "train_dataset": visits, "data_collator": batch_of}
    choose: Kept = "last" if include_dev else "best"
    options = FitOptions(out, evaluate, keep, describe, resume, quiet, choose)
    return fit("specialist", SpecialistTrainer, trainer, options, every=own.eval_every, patience=own.patience)


def _arguments(config: SpecialistConfig, out: Path) -> TrainingArguments:
    own = config.specialist
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        per_device_train_batch_size=own.frames_per_step,
        # Visits are drawn by their number.
        train_sampling_strategy="sequential",
        learning_rate=own.learning_rate,
        weight_decay=own.weight_decay,
        warmup_steps=own.warmup_steps,
        lr_scheduler_type="cosine",
        max_steps=own.max_steps,
        save_strategy="steps",
        save_steps=own.eval_every,
        save_total_limit=2,
        logging_steps=max(1, own.eval_every // 20),
        seed=config.seed,
        report_to="none",
        push_to_hub=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["answers", "boxes"],
        use_cpu=not torch.cuda.is_available(),
    )


def _dev_evaluator(
    dataset: Dataset, count: int, encoder: Encoder, words: Words, info: SpecialistInfo
) -> Callable[[Any], Metrics]:
    """A function model -> metrics on dev, see :func:`surgery_r1.train.dev.dev_metrics`."""
    samples, scorer = dev_samples(dataset, count), Scorer(dataset)

    def evaluate(model: Any) -> Metrics:
        engine = SpecialistEngine(model, encoder, words, info.classes, dataset, _DEV_BATCH)
        readings = [reading for batch in engine.predictions(samples) for reading in batch]
        return dev_metrics([scorer.line(s, reading) for s, reading in zip(samples, readings, strict=True)])

    return evaluate
