"""The stages as functions: what the commands, the demo and ``reproduce`` call. Each meets the next through files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surgery_r1._util.files import write_json
from surgery_r1.codec import read_reply
from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.predict import evenly_spaced, predict, prompt_of
from surgery_r1.evaluate.score import score_predictions
from surgery_r1.matching import match
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.run_folder import metrics_writer, seed_everything, start_run, stay_offline

if TYPE_CHECKING:
    from surgery_r1.models.load import Bundle
    from surgery_r1.train.options import Permissions

Progress = Callable[[int, int], None]


def dev_evaluator(config: TrainConfig, dataset: Dataset, bundle: Bundle) -> Callable[[Any], dict[str, float]]:
    """A function model -> acc, miou, joint, joint_at_iou50 and parse failures on dev (all in [0, 1]).

    ``joint`` is the mean over questions of the IoU where the answer is right, else 0.

    Raises:
        SurgeryR1Error: when the dataset has no dev questions.
    """
    from surgery_r1.evaluate.generation import TransformersEngine
    from surgery_r1.models.processor import view_of

    samples = evenly_spaced(dataset.split("dev"), config.eval.dev_samples)
    if not samples:
        raise SurgeryR1Error(
            "the dataset has no dev questions to choose on",
            where=str(dataset.root),
            fix="build it from label folders that hold the dev sequences (see surgery_r1.vocab.DEV_SEQUENCES)",
        )
    reasoning = config.rft.reasoning
    prompts = [prompt_of(sample, dataset, reasoning=reasoning) for sample in samples]
    space = bundle.info.box_space

    def evaluate(model: Any) -> dict[str, float]:
        engine = TransformersEngine(
            model,
            bundle.processor,
            space,
            batch_size=config.eval.batch_size,
            max_new_tokens=config.eval.max_new_tokens,
        )
        texts = [text for batch in engine.generate(prompts) for text in batch]
        readings = [
            read_reply(text, space, view_of(bundle.processor, s.width, s.height))
            for text, s in zip(texts, samples, strict=True)
        ]
        matches = [match(reading, s.accepted) for reading, s in zip(readings, samples, strict=True)]
        n = len(matches)
        return {
            "acc": sum(j.answer_right for j in matches) / n,
            "miou": sum(j.iou for j in matches) / n,
            "joint": sum(j.joint for j in matches) / n,
            "joint_at_iou50": sum(j.joint_at_iou50 for j in matches) / n,
            "parse_failure_rate": sum(r.answer is None or r.box_px is None for r in readings) / n,
        }

    return evaluate


def train(
    stage: Literal["sft", "rft"],
    config: TrainConfig,
    dataset: Dataset,
    out: Path,
    *,
    base: str | Path | None = None,
    include_dev: bool = False,
    resume: bool = False,
    allowed: Permissions | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run one training stage into the run folder ``out``; ``out/best`` is the model that dev chose.

    Args:
        base: model to start from; None takes ``model.base`` of the config. RFT starts from a run of SFT.
        include_dev: train on the dev sequences too, for a final run after everything has been chosen. Dev can then
            neither choose nor stop: the last model is kept.

    Raises:
        SurgeryR1Error: for bad input, a run folder that is taken, or nothing to resume.
    """
    allow_hub = allowed is not None and allowed.hub
    # Also for callers from Python: TRL's trainers send telemetry unless they are told not to.
    stay_offline(allow_hub)

    import torch

    from surgery_r1.models.load import from_pretrained, weights_sha256
    from surgery_r1.models.save import save_model
    from surgery_r1.models.sharing.vision_features import keep_frozen_features
    from surgery_r1.train.datasets import rft_dataset, sft_dataset
    from surgery_r1.train.options import Permissions
    from surgery_r1.train.rft import rft_arguments, train_rft
    from surgery_r1.train.sft import sft_arguments, train_sft

    allowed = allowed or Permissions()
    # First what needs no model and leaves no trace: a wrong option must not cost a load or a taken run folder.
    arguments, held = (sft_arguments if stage == "sft" else rft_arguments)(config, out, allowed)
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_everything(config.seed)
    m = config.model
    bundle = from_pretrained(
        base or m.base,
        dtype=m.dtype,
        attention=m.attention,
        min_pixels=m.min_pixels or None,
        max_pixels=m.max_pixels or None,
        box_space=m.box_space or None,
        allow_hub=allow_hub,
    )
    model = bundle.model
    if hasattr(model, "merge_and_unload"):
        # The next stage gets an adapter of its own on top of the merged weights.
        model = model.merge_and_unload()
    space = bundle.info.box_space
    if stage == "sft":
        rows = sft_dataset(
            dataset,
            bundle.processor,
            space,
            tasks=config.sft.tasks,
            direct_answers=config.sft.direct_answers,
            include_dev=include_dev,
            flips=config.sft.flips,
            seed=config.seed,
        )
    else:
        rows = rft_dataset(
            dataset,
            bundle.processor,
            space,
            reasoning=config.rft.reasoning,
            include_dev=include_dev,
            flips=config.rft.flips,
            questions_per_frame=config.rft.questions_per_frame,
            seed=config.seed,
        )
    if m.freeze_vision:
        keep_frozen_features(
            model,
            m.vision_memory_mib * 2**20,
            folder=Path(m.vision_cache) if m.vision_cache else None,
            offload=m.offload_vision,
            disk=m.vision_cache_gib * 2**30,
        )
    evaluate = dev_evaluator(config, dataset, bundle)
    facts = {
        "stage": stage,
        "base_sha256": weights_sha256(bundle.folder),
        "dataset_sha256": dataset.hash,
        "rows": len(rows),
        "include_dev": include_dev,
    }
    free = {"threads", "tracker", "eval.batch_size", f"{stage}.max_steps", "sft.patience"}
    # Where features are kept changes no result.
    free |= {"model.vision_cache", "model.vision_cache_gib", "model.vision_memory_mib", "model.offload_vision"}
    notes = {"base": str(bundle.folder), "dataset": str(dataset.root), "seed": config.seed}
    start_run(out, config.to_json(), facts, notes, resume=resume, free=free)
    info = replace(bundle.info, stage=stage, dataset_sha256=dataset.hash)
    if config.lora.enabled:
        # An adapter names its base by path; a merged SFT model is kept beside it, so that the run is whole.
        _keep_base(model, bundle, out)

    def keep(chosen: Any, step: int) -> None:
        save_model(chosen, bundle.processor, replace(info, step=step), out / "best")

    common: dict[str, Any] = {
        "evaluate": evaluate,
        "keep": keep,
        "write": metrics_writer(out),
        "resume": resume,
        "quiet": quiet,
        "last": include_dev or config.eval.choose == "last",
    }
    run_stage = train_sft if stage == "sft" else train_rft
    result = run_stage(config, arguments, model, bundle.processor, rows, out, **common) | {"held_off": held}
    write_json(out / "result.json", result)
    return result


def _keep_base(model: Any, bundle: Bundle, out: Path) -> None:
    from surgery_r1.models.save import save_model

    if (bundle.folder / "adapter_config.json").is_file():
        folder = out / "base"
        if not folder.exists():
            save_model(model, bundle.processor, bundle.info, folder)
    else:
        folder = bundle.folder
    model.name_or_path = str(folder.resolve())
    model.config._name_or_path = str(folder.resolve())


def predict_and_score(
    model: str | Path,
    dataset: Dataset,
    split: str,
    out: Path,
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    reasoning: bool = True,
    limit: int = 0,
    name: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Predict a split with a model, where ``out`` holds no predictions yet, and score it into ``out``; the metrics."""
    predictions = out / "predictions.jsonl"
    if not predictions.exists():
        run_predict(
            model,
            dataset,
            split,
            predictions,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            reasoning=reasoning,
            limit=limit,
            name=name,
            progress=progress,
        )
    return score_predictions(predictions, dataset, split, out)


def run_predict(
    model: str | Path,
    dataset: Dataset,
    split: str,
    out: Path,
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    reasoning: bool = True,
    limit: int = 0,
    dtype: str = "auto",
    name: str | None = None,
    allow_hub: bool = False,
    progress: Progress | None = None,
) -> int:
    """Load a model and write ``predictions.jsonl``; the number of predictions made in this call."""
    from surgery_r1.evaluate.generation import TransformersEngine
    from surgery_r1.models.load import from_pretrained, weights_sha256
    from surgery_r1.models.sharing.vision_features import keep_frozen_features

    bundle = from_pretrained(model, dtype=dtype, allow_hub=allow_hub)
    keep_frozen_features(bundle.model)
    engine = TransformersEngine(
        bundle.model, bundle.processor, bundle.info.box_space, batch_size=batch_size, max_new_tokens=max_new_tokens
    )
    return predict(
        dataset,
        split,
        engine,
        bundle.info,
        out,
        model_name=name or str(model),
        weights_sha256=weights_sha256(bundle.folder),
        settings={"max_new_tokens": max_new_tokens, "dtype": dtype},
        reasoning=reasoning,
        limit=limit,
        progress=progress,
    )


def export(run: Path, out: Path, *, allow_hub: bool = False) -> Path:
    """Merge an adapter (or copy a full model) into a folder that vLLM and transformers serve, with a model card.

    Raises:
        SurgeryR1Error: when ``out`` is not empty or ``run`` holds no model.
    """
    from surgery_r1.models.card import model_card
    from surgery_r1.models.load import from_pretrained
    from surgery_r1.models.save import save_model

    if out.exists() and any(out.iterdir()):
        raise SurgeryR1Error("is not empty", where=str(out), fix="give another folder")
    bundle = from_pretrained(run, allow_hub=allow_hub)
    model = bundle.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if out.exists():
        out.rmdir()
    save_model(model, bundle.processor, bundle.info, out)
    (out / "README.md").write_text(model_card(bundle.info, run), encoding="utf-8")
    if (run / "run.json").is_file():
        for name in ("run.json", "config.json"):
            shutil.copyfile(run / name, out / f"training_{name}")
    return out
