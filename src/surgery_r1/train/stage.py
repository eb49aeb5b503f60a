"""One training stage, from a config and a dataset to a run folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from surgery_r1._util.files import read_json, write_json
from surgery_r1._util.offline import stay_offline
from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models import four_bit
from surgery_r1.models.info import ModelInfo
from surgery_r1.models.load import Bundle, from_pretrained, is_adapter, merged, resolve, weights_sha256
from surgery_r1.models.reply_forms import trained_further
from surgery_r1.models.save import save_description, save_model
from surgery_r1.models.sharing.vision_features import keep_frozen_features
from surgery_r1.rewards.custom import reward_files
from surgery_r1.train import ranks, shards
from surgery_r1.train.config import FREE, Kept, RanksConfig, TrainConfig
from surgery_r1.train.datasets import training_rows
from surgery_r1.train.dev import dev_evaluator
from surgery_r1.train.fit import FitOptions, TrainResult
from surgery_r1.train.options import Permissions, check_lora_targets
from surgery_r1.train.planning.plan import Plan
from surgery_r1.train.planning.stage import plan_stage, telling_what_fits, this_machine
from surgery_r1.train.rft import refuse_too_few, rft_arguments, train_rft
from surgery_r1.train.rollouts.sampling import RolloutOptions, Sampling, open_sampling
from surgery_r1.train.run_folder import seed_everything, start_run
from surgery_r1.train.sft import sft_arguments, train_sft

logger = logging.getLogger(__name__)

Stage = Literal["sft", "rft"]


def train(
    stage: Stage,
    config: TrainConfig,
    dataset: Dataset,
    out: Path,
    *,
    base: str | Path | None = None,
    include_dev: bool = False,
    resume: bool = False,
    allowed: Permissions | None = None,
    quiet: bool = False,
    rollouts: RolloutOptions | None = None,
) -> TrainResult:
    """Run one training stage into the run folder ``out``; ``out/best`` is the model that dev chose, or the last.

    Args:
        base: model to start from; None takes ``model.base`` of the config. RFT starts from a run of SFT.
        include_dev: train on the dev sequences too, for a final run after everything has been chosen. Dev can then
            neither choose nor stop: the last model is kept.
        resume: go on with the run in ``out``.
        allowed: what may leave the machine; nothing by default.
        quiet: no progress bar.
        rollouts: the server that samples the rollouts of RFT, where the config says so.

    Raises:
        SurgeryR1Error: for bad input, a server that cannot be used, a run folder that is taken or that another process
            is training into, or nothing to resume.
    """
    allowed = allowed or Permissions()
    # Also for callers from Python: TRL's trainers send telemetry unless they are told not to.
    stay_offline(allowed.hub)
    ranks.join()
    # First what needs no model and leaves no trace: a wrong option must not cost a load or a taken run folder.
    with ranks.told_once():
        config = replace(config, ranks=RanksConfig(shards.asked_for(config.ranks.shard)))
        arguments, held_off = (sft_arguments if stage == "sft" else rft_arguments)(config, out, allowed)
        _refuse_layout(config, arguments)
    sampling = open_sampling(config, arguments, rollouts, out) if stage == "rft" else None
    machine = this_machine()

    def smaller() -> Plan:
        start: dict[str, Any] = {"base": base, "include_dev": include_dev, "allowed": allowed}
        return plan_stage(stage, config, dataset, machine, failed=True, **start)

    # One process writes the run folder; the others of a distributed run are part of it.
    with ranks.held_by_first(out, "training"), ranks.losing_nobody(), telling_what_fits(smaller):
        result = _train(stage, config, dataset, out, arguments, base, include_dev, resume, allowed, quiet, sampling)
        result = replace(result, held_off=tuple(held_off))
        ranks.first(lambda: write_json(out / "result.json", result.to_json()))
    return result


def _refuse_layout(config: TrainConfig, arguments: Any) -> None:
    """What would train in a way that nobody has asked for, or not at all."""
    if config.ranks.shard in shards.SPREAD_WEIGHTS and (config.model.vision_cache or config.model.offload_vision):
        raise SurgeryR1Error(
            f"model.vision_cache and model.offload_vision need a whole vision tower; {config.ranks.shard} spreads it",
            fix="leave them out, or set ranks.shard = 'zero2'",
        )
    if config.model.load_in_4bit:
        four_bit.refuse_uninstalled("model.load_in_4bit")
        if config.ranks.shard != "none":
            raise SurgeryR1Error(
                f"model.load_in_4bit with ranks.shard = {config.ranks.shard!r}: weights in 4 bit are not spread",
                fix="leave one of them out: with 4 bit each process holds the whole model",
            )
    if config.ranks.shard != "none" and getattr(arguments, "use_vllm", False):
        raise SurgeryR1Error(
            f"rft.trl.use_vllm with ranks.shard = {config.ranks.shard!r} has not been tried",
            fix="leave one of them out",
        )
    if config.ranks.shard != "none" and getattr(arguments, "beta", None) and not config.lora.enabled:
        raise SurgeryR1Error(
            f"rft.trl.beta = {arguments.beta} needs a second model, which is not spread",
            fix="set it to 0, or lora.enabled = true: without its adapter the model is the second one",
        )
    visible = arguments.n_gpu
    if visible > 1:
        # It would copy the model to and fro at every step (``nn.DataParallel``).
        raise SurgeryR1Error(
            f"{visible} GPUs are visible to one process",
            fix=f"start one for each: torchrun --nproc_per_node {visible} -m surgery_r1 train ...; or show it one: "
            "CUDA_VISIBLE_DEVICES=0",
        )


def _train(
    stage: Stage,
    config: TrainConfig,
    dataset: Dataset,
    out: Path,
    arguments: Any,
    base: str | Path | None,
    include_dev: bool,
    resume: bool,
    allowed: Permissions,
    quiet: bool,
    sampling: Sampling | None,
) -> TrainResult:
    """:func:`train` with TRL's ``arguments``, into a run folder that nobody else writes."""
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_everything(config.seed)
    with ranks.told_once():
        bundle = _load(config, base, allowed)
        # The next stage gets an adapter of its own on top of the merged weights.
        model = merged(bundle.model)
        check_lora_targets(model, config)
        rows = training_rows(stage, config, dataset, bundle.processor, bundle.info.box_space, include_dev)
        if stage == "rft":
            refuse_too_few(arguments, len(rows))
        _keep_vision_features(model, config)
        info = _described(stage, config, dataset, bundle.info)
        evaluate = dev_evaluator(config.eval, dataset, replace(bundle, info=info, model=None))
    ranks.first(lambda: _start(stage, config, dataset, bundle, out, resume, rows=len(rows), include_dev=include_dev))
    with ranks.told_once():
        ranks.wait_for(out / "run.json")
    if config.lora.enabled:
        # An adapter names its base by path; a merged SFT model is kept beside it, so that the run is whole.
        folder = _kept_base(model, bundle, out)
        bundle.model = None
        if config.model.load_in_4bit and not four_bit.in_4bit(model):
            with ranks.told_once():
                ranks.wait_for(folder / "config.json")
                model = _load(config, folder, allowed).model
                _keep_vision_features(model, config)
        model.name_or_path = model.config._name_or_path = str(folder.resolve())

    loaded_as = model.dtype

    def keep(chosen: Any, step: int) -> None:
        state = shards.whole_state(chosen)
        if state is not None and not config.lora.enabled:
            # Trained in float32 where passes are made in less.
            state = {name: tensor.to(loaded_as) for name, tensor in state.items()}
        ranks.first(lambda: save_model(chosen, bundle.processor, replace(info, step=step), out / "best", state))

    def describe(folder: Path, step: int) -> None:
        save_description(bundle.processor, model.config.model_type, replace(info, step=step), folder)

    choose: Kept = "last" if include_dev else config.eval.choose
    options = FitOptions(out, evaluate, keep, describe, resume, quiet, choose, sampling)
    train_stage = train_sft if stage == "sft" else train_rft
    with shards.arranged(config.ranks.shard, arguments):
        return train_stage(config, arguments, model, bundle.processor, rows, options)


def _described(stage: Stage, config: TrainConfig, dataset: Dataset, start: ModelInfo) -> ModelInfo:
    """What will be true of the models of this stage, their step aside."""
    sft = {"rationales": "cot" in config.sft.tasks, "direct_answers": config.sft.direct_answers}
    rft = {"rationales": config.rft.reasoning, "direct_answers": not config.rft.reasoning}
    taught = trained_further(start, **(sft if stage == "sft" else rft))
    return replace(taught, stage=stage, dataset_sha256=dataset.hash, load_in_4bit=config.model.load_in_4bit)


def _load(config: TrainConfig, base: str | Path | None, allowed: Permissions) -> Bundle:
    names = ("dtype", "attention", "min_pixels", "max_pixels", "box_space")
    settings: dict[str, Any] = {name: getattr(config.model, name) or None for name in names}
    name = base or config.model.base
    # An adapter is merged into its base as that was saved; what comes of it is loaded in 4 bit then.
    merging = config.model.load_in_4bit and is_adapter(resolve(name, allow_hub=allowed.hub))
    settings["load_in_4bit"] = config.model.load_in_4bit and not merging
    # A model that will be spread goes to the GPUs in parts.
    settings["device"] = "cpu" if merging or config.ranks.shard != "none" else None
    with shards.first_loads(config.ranks.shard):
        return from_pretrained(name, **settings, allow_hub=allowed.hub)


def _keep_vision_features(model: Any, config: TrainConfig) -> None:
    if config.ranks.shard in shards.SPREAD_WEIGHTS:
        # A rank that knows its frames would not send its part of the tower to those that do not.
        if config.model.freeze_vision and ranks.index() == 0:
            logger.warning("%s spreads the vision tower: a frame is read in every pass", config.ranks.shard)
    elif config.model.freeze_vision:
        own = config.model
        memory, disk = own.vision_memory_mib * 2**20, own.vision_cache_gib * 2**30
        folder = Path(own.vision_cache) if own.vision_cache else None
        keep_frozen_features(model, memory, folder=folder, offload=own.offload_vision, disk=disk)


def _start(
    stage: Stage, config: TrainConfig, dataset: Dataset, bundle: Bundle, out: Path, resume: bool, **facts: Any
) -> None:
    """Take the run folder, or go on with the run that it holds, which must agree in ``facts``."""
    hashes = {"base_sha256": weights_sha256(bundle.folder), "dataset_sha256": dataset.hash}
    facts = {"stage": stage, **hashes, **facts}
    if stage == "rft" and (files := reward_files(config.rft.rewards)):
        facts["reward_files"] = files
    notes = {"base": str(bundle.folder), "dataset": str(dataset.root), "seed": config.seed}
    # Random numbers, rows and counts of a checkpoint belong to its ranks.
    notes["processes"] = ranks.count()
    if resume:
        _refuse_other_processes(out)
    start_run(out, config.to_json(), facts, notes, resume=resume, free=(*FREE, f"{stage}.max_steps"))


def _refuse_other_processes(out: Path) -> None:
    path = out / "run.json"
    begun_with = read_json(path).get("processes", 1) if path.is_file() else ranks.count()
    if begun_with != ranks.count():
        raise SurgeryR1Error(
            f"was started with {begun_with} processes, now with {ranks.count()}",
            where=out,
            fix=f"resume it with {begun_with}, such as torchrun --nproc_per_node {begun_with} -m surgery_r1 train ..., "
            "or start anew from its best model: --model, and another --out",
        )


def _kept_base(model: Any, bundle: Bundle, out: Path) -> Path:
    """The folder of the weights that an adapter stands on: what was loaded, or, merged, ``out/base``."""
    if not is_adapter(bundle.folder):
        return bundle.folder
    base = out / "base"

    def keep() -> None:
        if not base.exists():
            save_model(model, bundle.processor, replace(bundle.info, load_in_4bit=False), base)

    ranks.first(keep)
    return base
