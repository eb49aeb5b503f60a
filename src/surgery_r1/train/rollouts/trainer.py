"""TRL's GRPO trainers with rollouts from a vLLM server in place of ``model.generate``.

Rewards, advantages and the update stay as they are. What is overridden is private to TRL; ``tests/test_rollouts.py``
fails when its methods change.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.export import name_modules
from surgery_r1.models.processor import as_read
from surgery_r1.models.quiet import without_progress_bars
from surgery_r1.train import ranks
from surgery_r1.train.draws import server_seed
from surgery_r1.train.rollouts.gap import Gap, GapMeter
from surgery_r1.train.rollouts.sampling import Sampling
from surgery_r1.train.rollouts.server import Question, RolloutServer
from surgery_r1.train.rollouts.sync import AdapterSync, FullSync, WeightSync
from surgery_r1.train.sharing.grpo import SharedFrameGRPOTrainer, WholeModelGRPOTrainer

logger = logging.getLogger(__name__)


class ServerGRPOTrainer(WholeModelGRPOTrainer):
    """TRL's GRPOTrainer whose rollouts a server samples.

    Args:
        sampling: where they come from.
    """

    def __init__(self, *args: Any, sampling: Sampling, **kwargs: Any) -> None:
        self._sampling, self._gap = sampling, GapMeter()
        self._asked: list[Any] = []
        self._at_server: tuple[int, str] | None = None
        self._compared: dict[str, Any] | None = None
        self._before: dict[str, Any] = {}
        self._lost = False
        super().__init__(*args, **kwargs)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        self._asked = prompts
        return super()._tokenize_prompts(prompts)

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self._step % self.current_gradient_accumulation_steps == 0:
            self._before = self._counts()
        # All processes fail where one does.
        self._lost = True
        replies = self._sampled(prompt_ids)
        self._lost = False
        return replies

    def _sampled(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        """Tokens and log-probabilities of the completions, a row each, in the order of the prompts."""
        with self._sampling.awake():
            return self._asked_for(prompt_ids)

    def _asked_for(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        start = time.perf_counter()
        name = self._synced()
        middle = time.perf_counter()
        size = int(self.num_generations or 1)
        processor: Any = self.processing_class
        with ranks.told_once():
            first = range(0, len(prompt_ids), size)
            if any(prompt_ids[i : i + size] != [prompt_ids[i]] * size for i in first):
                raise AssertionError("TRL no longer keeps the completions of a prompt together")
            image = processor.image_token_id
            questions = [Question(self._asked[i], prompt_ids[i], image, self.banned) for i in first]
            places = self._places(len(prompt_ids))[::size]
            seeds = [server_seed(self.args.seed, self.state.global_step, place) for place in places]
            read = partial(as_read, processor=processor)
            groups = self._sampling.server.sample(name, questions, size, seeds, read)
        ranks.first(self._sampling.check)
        self._metrics["train"]["sampler/sync_seconds"].append(middle - start)
        self._metrics["train"]["sampler/seconds"].append(time.perf_counter() - middle)
        replies = [reply for group in groups for reply in group]
        return [list(reply.ids) for reply in replies], [list(reply.log_probs) for reply in replies]

    def _synced(self) -> str:
        """The model's name at the server, which has the weights of this step afterwards."""
        step = self.state.global_step
        if self._at_server is None or self._at_server[0] != step:
            model = self.accelerator.unwrap_model(self.model_wrapped)
            # In parts, they are gathered by all.
            state = self.accelerator.get_state_dict(self.model_wrapped)
            self._at_server = step, ranks.first(lambda: self._put(model, state, step))
        return self._at_server[1]

    def _put(self, model: Any, state: dict[str, Any], step: int) -> str:
        adapter = hasattr(model, "peft_config")

        def write(folder: Path) -> None:
            with without_progress_bars():
                model.save_pretrained(folder, state_dict=state)
            if adapter:
                name_modules(folder)

        if self._sampling.weights is None:
            self._sampling.weights = self._sync_of(model, adapter)
        return self._sampling.weights.put(write, step)

    def _sync_of(self, model: Any, adapter: bool) -> WeightSync:
        where = self._sampling.server, self._sampling.folder, self._sampling.run
        if adapter:
            trained = (name for name, weight in model.named_parameters() if weight.requires_grad)
            return AdapterSync(*where, tower=any(".visual." in name for name in trained))
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        return FullSync(*where, tied=tied)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        try:
            batch = super()._generate_and_score_completions(inputs)
        except SurgeryR1Error:
            # Out here, where the processor is the model's own again.
            if self._lost:
                self._keep_finished()
            raise
        if "old_per_token_logps" in batch:
            # Several steps will use these rollouts: they are judged before the first.
            trained = batch["old_per_token_logps"]
            self._gap.add(batch["sampling_per_token_logps"], trained, batch["completion_mask"])
            self._judge()
        return batch

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self._compared = None if "old_per_token_logps" in inputs else inputs
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._compared = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._compared is not None:
            sampled, mask = (self._compared[name] for name in ("sampling_per_token_logps", "completion_mask"))
            self._gap.add(sampled, found[0], mask)
            self._compared = None
        return found

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        if self._step % self.current_gradient_accumulation_steps == 0:
            # Before the optimiser's step: nothing has been learned from these rollouts yet.
            self._judge()
        return loss

    def _judge(self) -> None:
        """Log the gap, and stop where it is too large."""
        gap = self._gap.take(lambda mine: self.accelerator.gather(mine.to(self.accelerator.device)))
        if gap is None:
            return
        model: Any = self.model
        full = model.dtype == torch.float32 and not (self.args.bf16 or self.args.fp16)
        bound = self._sampling.bound_for(float32=full)
        if gap.mean <= bound:
            self._metrics["train"]["sampler/gap_mean"].append(gap.mean)
            self._metrics["train"]["sampler/gap_max"].append(gap.largest)
            return
        self._keep_finished()
        raise _too_far(gap, bound, self._sampling.server, self.state.global_step + 1)

    def _counts(self) -> dict[str, Any]:
        """What a step changes before the optimiser's, so that a step that fails can leave no trace."""
        return {
            "random": torch.get_rng_state(),
            "tokens": self.state.num_input_tokens_seen,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "loss": self._tr_loss.clone(),
        }

    def _keep_finished(self) -> None:
        """A checkpoint of the last whole step, where there is none yet: ``--resume`` goes on from it."""
        step = self.state.global_step
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        if not step or ranks.first(folder.is_dir):
            return
        torch.set_rng_state(self._before["random"])
        self.state.num_input_tokens_seen = self._before["tokens"]
        self._metrics["train"].clear()
        self._metrics["train"].update(self._before["metrics"])
        self._tr_loss = self._before["loss"]
        self._save_checkpoint(self.model, None)
        if ranks.index() == 0:
            logger.warning("%s keeps the %d steps that were done", folder, step)


class SharedFrameServerGRPOTrainer(ServerGRPOTrainer, SharedFrameGRPOTrainer):
    """The same with every frame and prompt computed once in the update."""


def _too_far(gap: Gap, bound: float, server: RolloutServer, step: int) -> SurgeryR1Error:
    temperature = server.temperature
    raw = "" if temperature == 1 else f", --logprobs-mode processed_logprobs (rft.temperature is {temperature:g})"
    return SurgeryR1Error(
        f"step {step}: the server's log-probabilities lie {gap.mean:.4f} nats a token from the trainer's "
        f"(largest {gap.largest:.2f}), above {bound:g}",
        where=server.name,
        fix="see that both have the same weights (of an adapter's base too), chat template, pixel limits and --dtype"
        f"{raw}; rft.gap_bound allows more",
    )
