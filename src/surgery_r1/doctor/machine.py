"""Versions, device, memory and disk."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import psutil
import torch

from surgery_r1.doctor.check import Found, Skip, Wrong, check
from surgery_r1.doctor.patient import Patient
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.train import ranks

_GIB = 2**30

#: Versions that are known to be wrong for this task: package, versions, what they do.
KNOWN_WRONG = (
    ("transformers", ">=5.3.0,<=5.5.3", "scales the positions of still images wrongly (transformers issue 45325)"),
    ("trl", "<1.16", "has other private methods than those that share frames here"),
)
#: Where a driver says that this machine has a GPU.
DRIVER = Path("/proc/driver/nvidia/version")
#: Room that is left to others.
_SPARE = 2**28


def installed() -> dict[str, str]:
    """Versions of the packages that a run depends on, as far as they are there."""
    found = {}
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "pillow", "vllm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@check(
    "versions",
    proves="No installed version is known to be wrong for this task, and all lie in the ranges that were tried.",
    fix="install the pinned versions: pip install -c constraints.txt 'surgery-r1[train]'",
)
def versions(patient: Patient) -> Found:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    found = installed()
    wrong = [
        f"{name} {found[name]} {what}"
        for name, bad, what in KNOWN_WRONG
        if name in found and SpecifierSet(bad).contains(found[name], prereleases=True)
    ]
    if wrong:
        raise Wrong("; ".join(wrong))
    wanted: dict[str, Requirement] = {}
    for text in metadata.requires("surgery-r1") or ():
        wanted.setdefault((one := Requirement(text)).name, one)
    untried = [
        f"{name} {version} (tried: {wanted[name].specifier})"
        for name, version in found.items()
        if name in wanted and not wanted[name].specifier.contains(version, prereleases=True)
    ]
    if untried:
        raise Wrong(f"not tried: {', '.join(untried)}")
    shown = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "trl", "peft") if name in found)
    return Found(shown, found)


@check(
    "device",
    proves="The device is the one that the machine has, takes the config's number format, and computes with it.",
    fix="set model.dtype to bfloat16 or float32",
    needs=("model",),
)
def device(patient: Patient) -> Found:
    cuda, seen = torch.cuda.is_available(), torch.cuda.device_count()
    if not cuda and (seen or DRIVER.is_file()):
        raise Wrong(
            f"this machine has a GPU, which torch {torch.__version__} cannot use",
            "install a build of torch for its driver, or unload the driver to train on the CPU on purpose",
        )
    if cuda and seen > 1 and not ranks.several() and patient.machine.processes == 1:
        raise Wrong(
            f"{seen} GPUs are visible to one process",
            f"start one process for each (docs/several_gpus.md) and examine with --processes {seen}, or show it one: "
            "CUDA_VISIBLE_DEVICES=0",
        )
    dtype = next(patient.loaded.model.parameters()).dtype
    if dtype == torch.float16:
        raise Wrong("model.dtype is float16, whose small gradients become 0 in training")
    if cuda and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        raise Wrong(
            "the GPU does not compute in bfloat16", "set model.dtype to float32, and sft.trl and rft.trl bf16 = false"
        )
    target = patient.loaded.model.device
    one = torch.ones(64, 64, dtype=dtype, device=target)
    if not torch.equal(one @ one, one * 64):
        raise Wrong(
            f"a product of matrices of ones is wrong in {dtype} on {target}", "see to driver and build of torch"
        )
    name = torch.cuda.get_device_name() if cuda else "CPU"
    word = str(dtype).removeprefix("torch.")
    return Found(
        f"{name}, {word}", {"device": name, "dtype": word, "gpus": seen, "torch_threads": torch.get_num_threads()}
    )


@check(
    "memory",
    proves="Main memory that is free now holds the model's weights while they are loaded.",
    fix="close what else takes memory, or take a larger machine",
)
def memory(patient: Patient) -> Found:
    try:
        needs = patient.weights_bytes + _SPARE
    except SurgeryR1Error as error:
        raise Skip(f"there is no model to load ({error.what})") from None
    free = psutil.virtual_memory().available
    if free < needs:
        raise Wrong(f"{free / _GIB:.1f} GiB of main memory are free, loading takes {needs / _GIB:.1f}")
    return Found(f"{free / _GIB:.1f} GiB free, loading takes {needs / _GIB:.1f}", {"loading_bytes": needs})


@check(
    "disk",
    proves="The disk that runs are written to holds two checkpoints and the best model of both stages.",
    fix="free some, or give another --out",
    needs=("model", "options"),
)
def disk(patient: Patient) -> Found:
    where = patient.out.resolve()
    where = next(folder for folder in (where, *where.parents) if folder.exists())
    try:
        parts = patient.planners["rft"].resident()
    except SurgeryR1Error as error:
        raise Skip(f"there is no plan ({error.what})") from None
    trained, merged = parts["gradients"], 0
    if patient.config.lora.enabled:
        merged = parts["weights"]
    run = 2 * (trained + parts["optimiser"]) + trained + merged
    needs, free = 2 * run + _SPARE, shutil.disk_usage(where).free
    if free < needs:
        raise Wrong(f"{free / _GIB:.1f} GiB free where runs are written, both stages need {needs / _GIB:.1f}")
    return Found(f"{free / _GIB:.1f} GiB free, both stages need {needs / _GIB:.1f}", {"needed_bytes": needs})
