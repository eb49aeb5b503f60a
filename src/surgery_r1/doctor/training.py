"""What training does: rollouts against its own passes, rewards, adapters, steps that are divided and resumed."""

from __future__ import annotations

import copy
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from surgery_r1 import codec
from surgery_r1._util.overriding import overriding
from surgery_r1.doctor.check import Found, Skip, Wrong, check
from surgery_r1.doctor.patient import SMALL_MODEL, Patient
from surgery_r1.models.processor import view_of
from surgery_r1.models.sharing.attention import core
from surgery_r1.records import Sample
from surgery_r1.rewards import trl_rewards
from surgery_r1.train import ranks
from surgery_r1.train.config import ModelConfig, TrainConfig
from surgery_r1.train.datasets import rft_question
from surgery_r1.train.options import check_lora_targets
from surgery_r1.train.planning.plan import GIB, advice
from surgery_r1.train.rft import rft_arguments
from surgery_r1.train.rollouts.gap import BOUND_16, BOUND_32, GapMeter
from surgery_r1.train.sft import sft_arguments
from surgery_r1.train.stage import train
from surgery_r1.train.step_shares import passes

#: How often an adapter is merged and unmerged, and the drift of float32 weights, over their size, that is rounding.
_MERGES, _ROUNDING = 8, 1e-5
#: On a GPU kernels add in any order: share of the way of two steps by which two runs may end apart.
_APART = 0.05


@check(
    "sampler",
    proves="Log-probabilities of sampled tokens are those that training computes for them, to rounding.",
    fix="set rft.share_frames = false and examine again; then report which of both is right",
    needs=("model", "image_tokens", "positions", "options"),
)
def sampler(patient: Patient) -> Found:
    made, meter = patient.rollouts, GapMeter()
    meter.add(made.sampled, made.trained, made.mask)
    gap = meter.take(lambda mine: mine)
    if gap is None:
        raise Wrong("no token was sampled")
    full = next(patient.loaded.model.parameters()).dtype == torch.float32 and not torch.cuda.is_available()
    bound = patient.config.rft.gap_bound or (BOUND_32 if full else BOUND_16)
    # A NaN is above every bound.
    if not gap.mean <= bound:
        raise Wrong(f"they differ by {gap.mean:.2g} nats a token (largest {gap.largest:.2g}), above {bound:g}")
    figures = {"gap_mean": gap.mean, "gap_max": gap.largest, "tokens": int(made.mask.sum())}
    server = (
        "; those of a server are compared at every step of training" if patient.config.rft.rollouts == "server" else ""
    )
    return Found(
        f"{gap.mean:.1g} nats a token over {figures['tokens']} tokens (largest {gap.largest:.1g}){server}", figures
    )


@check(
    "rewards",
    proves="Each reward tells right from wrong replies, and within a group of sampled replies they differ.",
    fix="see the function of the reward: it must give numbers in [0, 1] that depend on the reply",
    needs=("model", "options"),
)
def rewards(patient: Patient) -> Found:
    weights = {name: weight for name, weight in patient.config.rft.rewards.items() if weight and name != "random"}
    if not weights:
        raise Skip("the config's only reward is the random control")
    values: dict[str, list[tuple[float | None, ...]]] = {name: [] for name in weights}
    for sample in patient.samples(0, kinds=True):
        texts, truth = _replies(patient, sample)
        for name, function in zip(weights, trl_rewards(weights, seed=patient.config.seed), strict=True):
            values[name].append(tuple(function(completions=texts, truth=[truth] * len(texts))))
    for name, given in values.items():
        known = [value for group in given for value in group if value is not None]
        if not all(0 <= value <= 1 for value in known):
            raise Wrong(f"reward {name} gives {min(known)} to {max(known)}, not numbers in [0, 1]")
        if known and all(len(set(group)) == 1 for group in given):
            raise Wrong(f"reward {name} gives {known[0]:g} to right and wrong replies alike")
    said, figures = f"{len(weights)} rewards tell right from wrong", {"rewards": len(weights)}
    if patient.loaded.info.stage == "base":
        return Found(f"{said}; a base model's groups say nothing yet", figures)
    differ = int((patient.rollouts.advantages.abs().amax(-1) > 0).sum())
    groups = len(patient.rollouts.advantages)
    if not differ:
        raise Wrong(
            f"all replies of a group earn the same in {groups} of {groups} groups: there is nothing to learn from",
            "raise rft.temperature or rft.generations, or train SFT for longer",
        )
    return Found(f"{said}; replies differ in {differ} of {groups} groups", {**figures, "groups_that_differ": differ})


def _replies(patient: Patient, sample: Sample) -> tuple[list[str], str]:
    """The right reply to a question, wrong ones, and the truth as rewards take it."""
    bundle, dataset = patient.loaded, patient.dataset
    asked = patient.config.rft.reasoning
    question = rft_question(dataset, sample, bundle.processor, bundle.info.box_space, reasoning=asked)
    rationale = next((row.reasoning for row in dataset.rows_of[sample.id] if row.reasoning), "it is seen")
    others = [name for name in dataset.answers[sample.source].get(sample.kind, ()) if name != sample.answer]
    view = view_of(bundle.processor, sample.width, sample.height)
    box = other = None
    if sample.box_px is not None:
        box = codec.to_model(sample.box_px, bundle.info.box_space, view)
        x1, y1, x2, y2 = sample.box_px
        # In the opposite corner of the frame.
        turned = (sample.width - x2, sample.height - y2, sample.width - x1, sample.height - y1)
        other = codec.to_model(turned, bundle.info.box_space, view)
    words = rationale if asked else None
    texts = [codec.render(words, sample.answer, box), codec.render(words, sample.answer, other), ""]
    texts += [codec.render(words, name, box) for name in others[:1]] + ["<answer>"]
    return texts, question["truth"]


@check(
    "lora",
    proves=f"An adapter that is merged and unmerged {_MERGES} times leaves the weights below it as they were.",
    fix="install peft in the version of constraints.txt",
    needs=("model",),
)
def lora(patient: Patient) -> Found:
    own = patient.config.lora
    if not own.enabled:
        raise Skip("lora.enabled = false: all weights are trained")
    check_lora_targets(patient.loaded.model, patient.config)
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    # A copy of one layer: what merging does to a weight, it does to all.
    layer = copy.deepcopy(core(patient.loaded.model).model.language_model.layers[0])
    names = own.targets or ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    inject_adapter_in_model(LoraConfig(r=own.rank, lora_alpha=own.alpha, target_modules=list(names)), layer)
    parts: list[Any] = [part for part in layer.modules() if isinstance(part, LoraLayer)]
    if not parts:
        raise Wrong(f"no linear layer of a decoder layer is called {', '.join(names)}", "leave lora.targets out")
    drift = max(_drift(part, number) for number, part in enumerate(parts))
    figures = {"drift": drift, "merges": _MERGES, "layers": len(parts)}
    if next(layer.parameters()).dtype == torch.float32:
        if not drift <= _ROUNDING:
            raise Wrong(f"weights end {drift:.1g} of their size from where they were")
        return Found(f"drift {drift:.1g} of a weight's size after {_MERGES} times", figures)
    # Each merge rounds to the 16-bit format; half a step of it, each way, is what rounding can do.
    rounding = 2 * _MERGES * torch.finfo(next(layer.parameters()).dtype).eps
    if not drift <= rounding:
        raise Wrong(f"weights end {drift:.1g} of their size from where they were, more than rounding in 16 bit")
    return Found(f"drift {drift:.1g} in 16 bit: rounding, which is why training here never merges", figures)


@torch.no_grad()
def _drift(part: Any, number: int) -> float:
    """How far a layer's weight moves, over its root mean square, with an adapter as large as a trained one."""
    weight = part.get_base_layer().weight
    before, size = weight.clone().float(), weight.float().pow(2).mean().sqrt()
    generator = torch.Generator().manual_seed(number)
    for matrix in part.lora_B.values():
        matrix.weight.copy_(torch.randn(matrix.weight.shape, generator=generator) * size / 10)
    moved = False
    for _ in range(_MERGES):
        part.merge()
        moved = moved or not torch.equal(weight.float(), before)
        part.unmerge()
    if not moved:
        raise Wrong("merging an adapter does not change the weight")
    return float((weight.float() - before).abs().max() / size)


@check(
    "options",
    proves="TRL takes the config's options, and a step divides among processes and passes as the config says.",
    fix="change the value that is named",
)
def options(patient: Patient) -> Found:
    config, number = patient.config, patient.machine.processes
    sft, rft = config.sft, config.rft
    sft_arguments(config, patient.scratch / "options", patient.allowed)
    arguments, _ = rft_arguments(config, patient.scratch / "options", patient.allowed)
    unit = "packs" if sft.rows_per_frame else "rows"
    with overriding(ranks, "count", lambda: number):
        of_sft = passes("sft.batch_size", sft.batch_size, sft.micro_batch, unit)
        of_rft = passes("rft.prompts", rft.prompts * rft.generations, rft.micro_batch, "questions", rft.generations)
    questions = len(patient.dataset.train_samples()) * (1 + len(rft.flips))
    asked = arguments.generation_batch_size // arguments.num_generations
    if questions < asked:
        raise Wrong(
            f"{questions} training questions, {asked} are asked at a time", f"set rft.prompts to {questions} or less"
        )
    figures = {"processes": number, "sft": [*of_sft], "rft": [*of_rft]}
    said = f"{number} process(es); SFT {of_sft[1]} pass(es) of {of_sft[0]} {unit}"
    said += f", RFT {of_rft[1]} of {of_rft[0]} completions"
    return Found(said, figures)


@check(
    "resume",
    proves="One step, a stop, and one step more end where two steps in one go end, optimiser and all.",
    fix="install transformers, trl and accelerate in the versions of constraints.txt",
    needs=("model", "image_tokens", "chat_template", "options"),
)
def resume(patient: Patient) -> Found:
    own = patient.weights_bytes <= SMALL_MODEL
    base: str | Path = patient.base if own else "tiny"
    config, few = _two_steps(patient.config, own), patient.few(train=2, dev=1)
    straight, again = patient.scratch / "straight", patient.scratch / "again"
    start = time.perf_counter()
    train("sft", config, few, straight, base=base, quiet=True, allowed=patient.allowed)
    seconds = (time.perf_counter() - start) / 2
    shutil.copytree(straight, again)
    # As a kill between the two steps leaves it.
    shutil.rmtree(again / "checkpoints" / "checkpoint-2")
    train("sft", config, few, again, base=base, quiet=True, allowed=patient.allowed, resume=True)
    first, whole, resumed = (
        _weights(run / "checkpoints" / f"checkpoint-{step}") for run, step in ((straight, 1), (straight, 2), (again, 2))
    )
    way = max(float((whole[name].float() - first[name].float()).abs().max()) for name in whole)
    apart = max(float((whole[name].float() - resumed[name].float()).abs().max()) for name in whole)
    bound = way * _APART if torch.cuda.is_available() else 0.0
    if not way:
        raise Wrong("a step changes no weight", "see sft.learning_rate and what is frozen")
    if not apart <= bound:
        raise Wrong(f"weights end {apart:.1g} apart, a step moves them by {way:.1g}")
    model = "" if own else " (the tiny base stands in for a large model: --smoke trains the model itself)"
    figures = {"apart": apart, "step": way, "stands_in": not own, "seconds_a_step": round(seconds, 2)}
    return Found(f"{'equal to the bit' if not apart else f'{apart:.1g} apart, to rounding'}{model}", figures)


def _two_steps(config: TrainConfig, own: bool) -> TrainConfig:
    """SFT of the same kind for two steps."""
    held = {name: value for name, value in config.sft.trl.items() if name != "dataloader_num_workers"}
    sft = replace(config.sft, batch_size=2, micro_batch=1, pack_tokens=0, warmup_steps=0, max_steps=2, eval_every=1)
    # A rate at which a step is seen, whatever the config's schedule.
    sft = replace(sft, trl=held, patience=0, learning_rate=max(config.sft.learning_rate, 1e-5), flips=())
    model = (
        replace(config.model, vision_cache="", offload_vision=False)
        if own
        else ModelConfig(dtype="float32", freeze_vision=config.model.freeze_vision)
    )
    dev = replace(config.eval, dev_samples=1, batch_size=1, max_new_tokens=2)
    return replace(config, model=model, sft=sft, eval=dev, tracker="none", ranks=replace(config.ranks, shard="none"))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@check(
    "plan",
    proves="Both stages fit the memory of a process, as counted from the model's shape and the longest rows.",
    fix="lower micro_batch",
    needs=("model", "image_tokens", "options"),
)
def plan(patient: Patient) -> Found:
    plans = {stage: patient.plan(stage) for stage in ("sft", "rft")}
    room = patient.machine.memory
    for stage, made in plans.items():
        if room is not None and made.peak > room:
            raise Wrong(f"{stage} needs {made.peak / GIB:.1f} GiB, a process has {room / GIB:.1f}", advice(made))
    said = ", ".join(f"{stage} {made.peak / GIB:.2f} GiB" for stage, made in plans.items())
    known = "" if room is None else f" of {room / GIB:.1f}"
    figures = {f"{stage}_peak_bytes": made.peak for stage, made in plans.items()}
    return Found(f"{said}{known} a process; --smoke measures the hours", figures)
