"""TRL's GRPOTrainer with every frame and prompt computed once (:mod:`surgery_r1.models.sharing.prefix_tree`).

TRL repeats frame and prompt for every completion. Here the rows of a pass are one tree: frame, question, completion.
Log-probabilities, entropies and gradients are those of the plain way, to rounding. What is overridden is private to
TRL: ``tests/test_grpo_sharing.py`` compares both ways and fails when TRL's methods change.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from surgery_r1._util.overriding import overriding
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.reply_tokens import banned_tokens
from surgery_r1.models.sharing import prefix_tree
from surgery_r1.models.sharing.attention import core, enable, enabled
from surgery_r1.models.sharing.prefill import PromptTokens, prefill, prefix_length
from surgery_r1.train import ranks, shards
from surgery_r1.train.draws import drawing, uniforms
from surgery_r1.train.lm_head import labelled_alone
from surgery_r1.train.rollouts.recorder import RolloutRecorder
from surgery_r1.train.sharing.image_ids import ImageIds, image_ids_of
from surgery_r1.train.sharing.prompts_once import PromptsOnce


class WholeModelGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer, which asks a model that is spread over ranks as a whole, for nothing but text, and samples
    alike on any number of ranks (:mod:`surgery_r1.train.draws`), but for several beams or sequences a prompt.

    Args:
        recorder: keeps the groups of some steps.
    """

    _recorder: RolloutRecorder | None = None

    def __init__(self, *args: Any, recorder: RolloutRecorder | None = None, **kwargs: Any) -> None:
        self._recorder = recorder
        super().__init__(*args, **kwargs)
        #: Tokens that no completion may hold; TRL bans that of images.
        self.banned = banned_tokens(
            getattr(self.processing_class, "tokenizer", self.processing_class), self.eos_token_ids
        )
        own = self.generation_config.suppress_tokens or ()
        self.generation_config.suppress_tokens = sorted({*own, *self.banned})

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        model = core(self.accelerator.unwrap_model(self.model_wrapped))
        settings = self.generation_config
        numbers = uniforms(
            self.args.seed, self.state.global_step, self._places(len(prompt_ids)), settings.max_new_tokens
        )
        with shards.whole(self.model), nullcontext() if several(settings) else drawing(model, numbers):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _places(self, rows: int) -> range:
        """Where ``rows`` completions of this process stand among those of the optimiser's step, over all processes."""
        options: Any = self.args
        generations = self._step % options.gradient_accumulation_steps // options.steps_per_generation
        first = (generations * ranks.count() + ranks.index()) * rows
        return range(first, first + rows)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        if self._recorder is not None and self.model is not None and self.model.training:
            weights = dict(zip(self.reward_func_names, self.reward_weights.tolist(), strict=True))
            self._recorder.take(self.state.global_step + 1, inputs, self._logs, weights)
        return batch


class SharedFrameGRPOTrainer(WholeModelGRPOTrainer):
    """TRL's GRPOTrainer whose passes over a batch share what its rows share, with models that take prefix trees.

    Args:
        keep_order: leave prompts in the order of the dataset, so that neighbours share a micro-batch.
    """

    def __init__(self, *args: Any, keep_order: bool = False, **kwargs: Any) -> None:
        self._keep_order = keep_order
        super().__init__(*args, **kwargs)
        self._images = ImageIds(getattr(self.processing_class, "image_processor", None))
        if self.ref_model is not None:
            enable(self.ref_model)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL shuffles completions before it splits them into micro-batches; here whole groups are shuffled."""

        def shuffle(batch: dict[str, Any]) -> dict[str, Any]:
            return batch if self._keep_order else shuffle_groups(batch, self.num_generations or 1)

        with overriding(grpo_trainer, "shuffle_sequence_dict", shuffle):
            return super()._prepare_inputs(generation_batch)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """TRL's own, with a number for every image. Images that do not fit the tokens are an error; TRL drops them."""
        if self.model is not None and self.model.training:
            self._images.forget()
        processor = self.processing_class
        with (
            overriding(processor, "image_processor", self._images),
            overriding(self, "processing_class", PromptsOnce(processor)),
        ):
            batch = super()._generate_and_score_completions(inputs)
        if any(row.get("images") or row.get("image") for row in inputs) and "pixel_values" not in batch:
            names = sorted({str(row.get("id", f"row {i}")) for i, row in enumerate(inputs)})
            raise SurgeryR1Error(
                "image tokens and image features of a batch differ in number",
                where=", ".join(names),
                fix="use the chat template and the image processor of the model's own folder",
            )
        return batch

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's own, but for the start of ``model.generate``: a frame is read once, not for every completion."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        shared = partial(generate_shared, model, model.generate, self._images)
        with overriding(model, "generate", shared):
            return super()._generate_single_turn(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        names = ("input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if not _shareable(given) or not enabled(self.accelerator.unwrap_model(model)):
            return super()._get_per_token_logps_and_entropies(model, **self._images.restored(given))
        rows = len(given["input_ids"])
        step = given.get("batch_size") or rows
        parts = [self._tree_pass(model, given, slice(at, min(at + step, rows))) for at in range(0, rows, step)]
        log_probs, entropies = (torch.cat(values) for values in zip(*parts, strict=True))
        return log_probs, entropies if given.get("compute_entropy") else None, None

    def _tree_pass(self, model: Any, given: dict[str, Any], part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies (rows, C) of the rows ``part``; 0 where a completion has ended."""
        ids, attention, keep = given["input_ids"][part], given["attention_mask"][part], given["logits_to_keep"]
        counts = list(given["num_images"])
        shown = slice(sum(counts[: part.start]), sum(counts[: part.stop]))
        grids = given["image_grid_thw"][shown]
        keys = image_ids_of(given["pixel_values"], given["image_grid_thw"])[shown]
        base = core(self.accelerator.unwrap_model(model))
        first = np.concatenate([[0], np.cumsum(counts[part])])
        of_row = [slice(first[i], first[i + 1]) for i in range(len(ids))]
        rows, columns = grpo_sequences(ids, attention, keep, [keys[images] for images in of_row])
        token, merge = base.config.image_token_id, base.config.vision_config.spatial_merge_size
        tree = prefix_tree.build_prefix_tree(rows, token)
        count = prefix_tree.SequencePositions(base.model.get_rope_index, token, merge)
        positions = [count(row, grids[images]) for row, images in zip(rows, of_row, strict=True)]
        inputs = prefix_tree.tree_inputs(tree, rows, positions)
        inputs = {name: value.to(ids.device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        chosen = [int(first[row]) + number for row, number in tree.images]
        with self.accelerator.autocast(), labelled_alone(base):
            output = model(
                **inputs,
                pixel_values=self._images.patches([keys[i] for i in chosen], ids.device),
                image_grid_thw=grids[chosen],
                fused_lm_head=True,
            )
        place = [np.full(len(c), i) for i, c in enumerate(columns)]
        # A label's probability stands at the token before it.
        source = [index[row_columns] for index, row_columns in zip(tree.index, _predictors(rows), strict=True)]
        to = tuple(torch.as_tensor(np.concatenate(x), device=ids.device) for x in (place, columns))
        at = torch.as_tensor(np.concatenate(source), device=ids.device)

        def back(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros((len(ids), keep)).index_put(to, values[0, at])

        entropy = output.entropy if output.entropy is not None else torch.zeros_like(output.log_probs)
        return back(output.log_probs), back(entropy)


def generate_shared(model: Any, generate: Any, images: ImageIds, generation_config: Any, **inputs: Any) -> torch.Tensor:
    """``generate``, with what the prompts share read once. Arguments and result are those of ``model.generate``,
    but for ``pixel_values``: the numbers of ``images``."""
    ids, attention = inputs["input_ids"], inputs["attention_mask"].bool()
    imageless = inputs.get("pixel_values") is None or inputs.get("image_grid_thw") is None
    if imageless or several(generation_config) or generation_config.cache_implementation is not None:
        return generate(generation_config=generation_config, **images.restored(inputs))
    token = core(model).config.image_token_id
    tokens = [ids[i, attention[i]].tolist() for i in range(len(ids))]
    grids = inputs["image_grid_thw"]
    keys = image_ids_of(inputs["pixel_values"], grids)
    counts = [prefix_tree.count_runs(np.asarray(row) == token) for row in tokens]
    ends = np.cumsum(counts)
    prompts = [PromptTokens(row, tuple(keys[end - n : end])) for row, n, end in zip(tokens, counts, ends, strict=True)]
    if len({prefix_length(prompt, token) for prompt in prompts}) > 1 or 0 in counts:
        return generate(generation_config=generation_config, **images.restored(inputs))
    return generate(
        generation_config=generation_config,
        **prefill(model, prompts, images.kept(keys), generation_config.pad_token_id, ids.shape[1], share=True),
    )


def several(settings: Any) -> bool:
    """Whether ``model.generate`` follows more than one sequence of a prompt."""
    return (settings.num_beams or 1) > 1 or (settings.num_return_sequences or 1) > 1


def grpo_sequences(
    ids: torch.Tensor, attention: torch.Tensor, keep: int, images: Sequence[Sequence[Any]]
) -> tuple[list[prefix_tree.TokenSequence], list[np.ndarray]]:
    """Rows of a GRPO batch without their padding, and for each row the columns of the completion that it scores.

    Args:
        ids, attention: (rows, P + C), prompts padded on the left, completions on the right.
        keep: C.
        images: keys of each row's images.
    """
    rows, columns = [], []
    tokens, seen = ids.cpu().numpy(), attention.cpu().numpy().astype(bool)
    size = tokens.shape[1] - keep
    for i in range(len(tokens)):
        there = np.flatnonzero(seen[i])
        row = tokens[i, there]
        scored = there >= size
        labels = np.full(len(row), prefix_tree.IGNORE)
        labels[:-1][scored[1:]] = row[1:][scored[1:]]
        rows.append(prefix_tree.TokenSequence(row, labels, images[i], f"row {i}"))
        columns.append(there[scored] - size)
    return rows, columns


def _predictors(rows: Sequence[prefix_tree.TokenSequence]) -> list[np.ndarray]:
    return [np.flatnonzero(np.asarray(row.labels) != prefix_tree.IGNORE) for row in rows]


def shuffle_groups(batch: dict[str, Any], size: int) -> dict[str, Any]:
    """The batch with its groups of ``size`` neighbouring rows in random order, each group whole."""
    rows = len(next(value for value in batch.values() if value is not None and not _scalar(value)))
    if rows % size:
        raise SurgeryR1Error(f"a batch of {rows} completions in groups of {size}", fix="make it a multiple")
    groups = torch.randperm(rows // size)
    order = (groups[:, None] * size + torch.arange(size)).flatten()

    def permuted(value: Any) -> Any:
        if value is None or _scalar(value):
            return value
        return value[order] if isinstance(value, torch.Tensor) else [value[i] for i in order]

    return {name: permuted(value) for name, value in batch.items()}


def _scalar(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 0


def _shareable(given: dict[str, Any]) -> bool:
    """Images that the positions can be computed of, and nothing asked for that a prefix tree does not give."""
    return (
        given.get("pixel_values") is not None
        and given.get("image_grid_thw") is not None
        and given.get("num_images") is not None
        and not given.get("compute_aux_loss")
    )
