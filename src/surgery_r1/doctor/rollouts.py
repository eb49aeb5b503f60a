"""A few groups sampled by the trainer itself, as RFT would, and looked at before anything is learned from them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch

from surgery_r1._util.offline import stay_offline
from surgery_r1._util.overriding import overriding
from surgery_r1.doctor.patient import Patient, without_lora
from surgery_r1.models.sharing import attention
from surgery_r1.rewards import trl_rewards
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.datasets import rft_dataset
from surgery_r1.train.rft import rft_arguments
from surgery_r1.train.run_folder import seed_everything
from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer, WholeModelGRPOTrainer

#: Groups, completions of each at most, and tokens of each at most.
_GROUPS, _EACH, _TOKENS = 3, 4, 64
#: Options of ``rft.trl`` that say how steps follow each other, or add a second model: no step is made here.
_OF_STEPS = ("beta", "num_iterations", "steps_per_generation", "generation_batch_size", "dataloader_num_workers")


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What was sampled; rows are completions, the groups one after the other.

    Attributes:
        sampled, trained: log-probabilities (rows, C) of the sampler and of the trainer.
        mask: (rows, C), True where there is a token.
        advantages: (groups, each).
        suppressed: tokens that the sampler was told to leave out.
    """

    sampled: torch.Tensor
    trained: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor
    suppressed: frozenset[int]


def _config(patient: Patient) -> TrainConfig:
    """RFT of the same kind, small."""
    rft = patient.config.rft
    small = replace(
        rft,
        prompts=_GROUPS,
        generations=min(rft.generations, _EACH),
        micro_batch=0,
        max_completion=min(rft.max_completion, _TOKENS),
        max_steps=1,
        eval_every=1,
        questions_per_frame=1,
        rollouts="trainer",
        flips=(),
        trl={name: value for name, value in rft.trl.items() if name not in _OF_STEPS} | {"beta": 0.0},
    )
    return replace(without_lora(patient.config), rft=small, tracker="none")


def roll_out(patient: Patient) -> Rollouts:
    """Sample groups with the trainer, and compute the log-probabilities of their tokens as its loss would.

    The model gets no adapter: a new one changes nothing.
    """
    # TRL's trainers send telemetry unless they are told not to.
    stay_offline(patient.allowed.hub)
    config, bundle = _config(patient), patient.loaded
    arguments, _ = rft_arguments(config, patient.scratch / "rollouts", patient.allowed)
    few = patient.few(train=_GROUPS)
    rows = rft_dataset(few, bundle.processor, bundle.info.box_space, reasoning=config.rft.reasoning)
    kind = (
        SharedFrameGRPOTrainer if config.rft.share_frames and attention.enable(bundle.model) else WholeModelGRPOTrainer
    )
    rewards = trl_rewards(config.rft.rewards, seed=config.seed)
    shown = {"model": bundle.model, "args": arguments, "train_dataset": rows, "processing_class": bundle.processor}
    trainer: Any = kind(**shown, reward_funcs=rewards)
    # TRL's trainer asks this of the loop around it.
    trainer.current_gradient_accumulation_steps = 1
    chosen = [rows[i * len(rows) // _GROUPS] for i in range(_GROUPS)]
    inputs = [row for row in chosen for _ in range(config.rft.generations)]
    logits: list[torch.Tensor] = []
    plain = bundle.model.generate

    def generate(*args: Any, generation_config: Any, **kwargs: Any) -> torch.Tensor:
        telling = copy.deepcopy(generation_config)
        telling.output_logits = telling.return_dict_in_generate = True
        found = plain(*args, generation_config=telling, **kwargs)
        logits.extend(found.logits)
        ids: torch.Tensor = found.sequences
        return ids

    seed_everything(config.seed)
    trainer.model.train()
    try:
        with torch.no_grad(), overriding(bundle.model, "generate", generate):
            batch = trainer._generate_and_score_completions(inputs)
            trained = _as_loss_would(trainer, batch)
    finally:
        bundle.model.eval()
    ids, mask = batch["completion_ids"], batch["completion_mask"].bool()
    scaled = torch.stack(logits[: ids.shape[1]], 1).float().to(ids.device) / config.rft.temperature
    sampled = scaled.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    suppressed = frozenset(trainer.generation_config.suppress_tokens or ())
    return Rollouts(sampled, trained.float(), mask, batch["advantages"].view(_GROUPS, -1), suppressed)


def _as_loss_would(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of a batch's completions, by the trainer's own pass."""
    ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], dim=1) for name in ("ids", "mask"))
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    shown = {name: batch[name] for name in names if name in batch}
    found = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, batch["completion_ids"].shape[1], compute_entropy=True, **shown
    )
    log_probs: torch.Tensor = found[0]
    return log_probs
