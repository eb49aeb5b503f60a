"""From a config and a dataset to a plan, without weights and without a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models import four_bit
from surgery_r1.models.load import Bundle, base_of, from_pretrained
from surgery_r1.models.sharing import attention
from surgery_r1.train import ranks
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.datasets import training_rows
from surgery_r1.train.options import Permissions, check_lora_targets, lora_of, precision_of
from surgery_r1.train.planning.passes import Counted
from surgery_r1.train.planning.plan import Machine, Plan, Planner, advice, visible_memory
from surgery_r1.train.planning.rows import Rows, image_tokens, rft_units, sft_units, trunk


def this_machine(*, gpu: bool | None = None, processes: int | None = None, memory: int | None = None) -> Machine:
    """The machine that a plan is for, by default this one. To be asked before a model is loaded.

    Args:
        gpu: plan for one; None: where one is visible.
        processes: that will train together; None: those that a launcher has started.
        memory: bytes that each may use; None: what is visible.
    """
    found = torch.cuda.is_available() if gpu is None else gpu
    return Machine(
        gpu=found,
        processes=processes or ranks.count(),
        memory=memory or visible_memory(found),
        libraries=psutil.Process().memory_info().rss,
    )


def plan_stage(
    stage: Literal["sft", "rft"],
    config: TrainConfig,
    dataset: Dataset,
    machine: Machine,
    *,
    seconds: float | None = None,
    failed: bool = False,
    **start: Any,
) -> Plan:
    """The plan of a stage as its config has it.

    Args:
        seconds: of a step, as measured.
        failed: it ran out of memory.
        start: of :func:`planner`.

    Raises:
        SurgeryR1Error: for what training would refuse too.
    """
    made = planner(stage, config, dataset, machine, **start)
    return made.plan(made.settings.micro_batch // made.each, seconds, failed=failed)


@contextmanager
def telling_what_fits(plan: Callable[[], Plan]) -> Iterator[None]:
    """Running out of memory inside the block is told with what fits.

    Raises:
        SurgeryR1Error: then.
    """
    try:
        yield
    except RuntimeError as error:
        # On a CPU torch has no exception type for it.
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise SurgeryR1Error("training ran out of memory", fix=advice(plan())) from error


def planner(
    stage: Literal["sft", "rft"],
    config: TrainConfig,
    dataset: Dataset,
    machine: Machine,
    *,
    base: str | Path | None = None,
    include_dev: bool = False,
    allowed: Permissions | None = None,
) -> Planner:
    """What plans a stage; arguments as those of :func:`surgery_r1.train.stage.train`.

    A model folder needs its ``config.json`` and processor files alone.

    Raises:
        SurgeryR1Error: for a folder, config or dataset that training would refuse too.
    """
    allowed = allowed or Permissions()
    if config.model.load_in_4bit:
        four_bit.refuse_uninstalled("a plan with model.load_in_4bit")
    bundle = from_pretrained(
        base or config.model.base,
        min_pixels=config.model.min_pixels or None,
        max_pixels=config.model.max_pixels or None,
        box_space=config.model.box_space or None,
        with_model=False,
        allow_hub=allowed.hub,
    )
    counted = _counted(stage, config, bundle, machine.gpu, allowed)
    one = replace(counted, adapter=None).model(1)
    check_lora_targets(one, config)
    share = attention.obstacle(one) is None and (stage == "sft" or config.rft.share_frames)
    questions = training_rows("rft", config, dataset, bundle.processor, bundle.info.box_space, include_dev)
    asked = rft_units(questions, config, bundle.processor, share=False)
    if stage == "sft":
        rows = training_rows("sft", config, dataset, bundle.processor, bundle.info.box_space, include_dev)
        units = sft_units(rows, config, bundle.processor, share)
    else:
        units = rft_units(questions, config, bundle.processor, share)
    return Planner(
        stage=stage,
        config=config,
        counted=counted,
        rows=Rows(
            units=units,
            rows_each=config.rft.generations if stage == "rft" else max(1, config.sft.rows_per_frame),
            shared=share and (stage == "rft" or bool(config.sft.rows_per_frame)),
            neighbours=stage == "rft" and config.rft.questions_per_frame > 1,
            trunk=trunk(questions, bundle.processor),
            image_tokens=image_tokens(dataset, bundle.processor),
        ),
        prompt=max(unit.tokens for unit in asked) - config.rft.max_completion,
        machine=machine,
    )


def _counted(stage: str, config: TrainConfig, bundle: Bundle, gpu: bool, allowed: Permissions) -> Counted:
    from transformers import AutoConfig

    model = AutoConfig.from_pretrained(base_of(bundle.folder, allowed.hub), local_files_only=True)
    saved = getattr(model, "dtype", None) or torch.float32
    dtype = saved if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    precision: dict[str, Any] = precision_of(getattr(config, stage).trl, gpu)
    return Counted(
        config=model,
        dtype=dtype,
        adapter=lora_of(config),
        checkpointing=precision["gradient_checkpointing"],
        gpu=gpu,
        mixed=precision["bf16"],
        frozen_tower=config.model.freeze_vision,
        entropy=stage == "rft",
        four_bit=config.model.load_in_4bit,
    )
