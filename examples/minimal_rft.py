"""Reinforcement fine-tuning (RFT) in one file: GRPO with rule-based rewards over shared frames, without TRL.

    python examples/minimal_rft.py --data demo/dataset --model demo/sft --out runs/minimal_rft

Read it from top to bottom. One step of training is:

1. ask P questions, each about one frame, and sample G completions of each (a *group*);
2. score every completion with R rules: format, answer, box, ...;
3. turn rewards into *advantages*: how much better is a completion than the others of its group?
4. make tokens of good completions more likely and tokens of bad ones less likely, within the limits of a clip.

Loss and gradients are those of ``surgery-r1 train rft --config tiny``, which goes through TRL's GRPOTrainer (held to it
by ``tests/test_minimal_rft.py``). All weights but the vision tower are trained, with one update a batch and no KL term.
Shapes: P questions, G completions of each, B = P * G, R rewards, C tokens of the longest completion, N in all.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from surgery_r1._util.files import write_json
from surgery_r1._util.offline import stay_offline
from surgery_r1.codec import read_reply
from surgery_r1.data.dataset import Dataset, open_dataset
from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
from surgery_r1.evaluate.predict import evenly_spaced, prompt_of
from surgery_r1.matching import match
from surgery_r1.models.encode import expand_images
from surgery_r1.models.load import Bundle, from_pretrained, merged, weights_sha256
from surgery_r1.models.processor import image_key, view_of
from surgery_r1.models.save import save_model
from surgery_r1.models.sharing import attention, prefix_tree
from surgery_r1.models.sharing.prefill import ImagePatches, PromptTokens, prefill, prefix_length
from surgery_r1.models.sharing.vision_features import keep_frozen_features
from surgery_r1.prompts import chat_messages
from surgery_r1.rewards import Mixture, Truth, reward_named
from surgery_r1.train.config import Oversample
from surgery_r1.train.datasets import rft_dataset
from surgery_r1.train.run_folder import seed_everything

LOG = logging.getLogger("minimal_rft")
#: Added to a standard deviation before dividing by it: a group whose rewards are all equal gets 0, not 0 / 0.
STD_EPSILON = 1e-4
REWARDS = {"format": 0.5, "answer": 1.0, "box": 1.0, "coherence": 1.0, "spatial": 1.0, "rationale": 1.0}


@dataclass(frozen=True)
class Settings:
    """What a run depends on beside its data and its model; the defaults are those of the tiny config."""

    steps: int = 130
    prompts: int = 16  # questions of a step, P
    generations: int = 8  # completions of a question, G
    learning_rate: float = 8e-5
    warmup_steps: int = 3  # in which the learning rate rises from 0; it is constant afterwards
    max_completion: int = 40  # tokens after which a completion is cut
    rewards: Mapping[str, float] = field(default_factory=lambda: REWARDS)
    tangled: int = 3  # how often to ask about an object that overlaps another, where others are asked about once
    flips: Sequence[str] = ("horizontal", "vertical", "both")  # ask every question of its mirrored frames, too
    seed: int = 0
    dev_samples: int = 300  # questions of dev to evaluate on, evenly spread; 0 takes all
    dev_batch_size: int = 200
    dev_max_new_tokens: int = 48


class Batch(NamedTuple):
    """B prompts and their completions, as tokens, and the images that the prompts name."""

    prompts: Sequence[PromptTokens]
    completions: Sequence[Sequence[int]]
    images: Mapping[Hashable, ImagePatches]


# 1. Ask questions and sample completions.
def question_order(count: int, prompts: int, seed: int) -> Iterator[list[int]]:
    """For each step the numbers of its P questions: random without repetition, again and again (TRL's order)."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        yield from (order[i : i + prompts] for i in range(0, count - prompts + 1, prompts))


def encode_prompts(rows: Sequence[Mapping[str, Any]], processor: Any) -> tuple[list[PromptTokens], dict]:
    """Tokens of each question (a row of :func:`rft_dataset`), and the patches of each distinct image once."""
    prompts, images = [], {}
    for row in rows:
        keys = tuple(image_key(image, {}) for image in row["images"])
        for key, image in zip(keys, row["images"], strict=True):
            encoded = processor.image_processor(images=[image], return_tensors="pt")
            images.setdefault(key, ImagePatches(encoded["pixel_values"], encoded["image_grid_thw"][0]))
        system, user = (message["content"] for message in row["prompt"])
        messages = chat_messages(system, user, len(keys))
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # The template writes one placeholder for an image; the model wants one token for each piece of it.
        text = expand_images(text, [images[key].grid for key in keys], processor)
        prompts.append(PromptTokens(processor.tokenizer(text, add_special_tokens=False)["input_ids"], keys))
    return prompts, images


@torch.no_grad()
def sample_completions(
    model: Any, processor: Any, prompts: Sequence[PromptTokens], images: Mapping, max_new_tokens: int
) -> list[list[int]]:
    """One completion of each of B prompts, drawn from the model's own distribution; its end token is part of it."""
    tokenizer, image_token = processor.tokenizer, processor.image_token_id
    more = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])} - {None}
    lengths = [prefix_length(prompt, image_token) for prompt in prompts]
    completions: list[list[int]] = [[] for _ in prompts]
    # A frame and a question are read once, not once a completion; together only where frames have as many tokens.
    for length in set(lengths):
        members = [i for i in range(len(prompts)) if lengths[i] == length]
        inputs = prefill(model, [prompts[i] for i in members], images, tokenizer.pad_token_id)
        # The whole distribution at temperature 1: what is sampled is what is trained. Image tokens would have no image.
        sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        sampling |= {"suppress_tokens": [image_token], "max_new_tokens": max_new_tokens, "use_cache": True}
        output = model.generate(**inputs, **sampling, eos_token_id=[*ends], pad_token_id=tokenizer.pad_token_id)
        for i, ids in zip(members, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            stop = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
            completions[i] = ids[:stop]
    return completions


# 2. Score completions with rules.
def score(texts: Sequence[str], truths: Sequence[Truth], names: Sequence[str]) -> torch.Tensor:
    """Rewards (P, G, R) of B texts against P truths, each in [0, 1]; NaN where a rule does not apply to a question."""
    generations = len(texts) // len(truths)
    values = [[reward_named(name)(text, truths[i // generations]) for name in names] for i, text in enumerate(texts)]
    numbers = torch.tensor([[math.nan if value is None else value for value in row] for row in values])
    return numbers.view(len(truths), generations, len(names))


# 3. Turn rewards into advantages.
def advantages(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Advantages (P, G): above 0 for completions better than the others of their group. GDPO, arXiv 2601.05242.

    Each reward (P, G, R) is standardised within its group before the sum with weights (R,). Were they summed first, the
    one that varies most would drown the others. Where a reward is the same for the whole group, it teaches nothing.
    A reward is NaN for a whole group or for none of it.
    """
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    standardised = (rewards - mean) / (std + STD_EPSILON)
    # A reward that does not apply adds nothing, to every completion of the group alike.
    total = (standardised.nan_to_num(0.0) * weights).sum(-1)
    # The whole batch to spread 1: the size of a step does not depend on how many rewards apply or agree.
    scored = ~rewards.isnan().all(-1)
    mean, std = total[scored].mean(), total[scored].std()
    return torch.where(scored, (total - mean) / (std + STD_EPSILON), 0.0)


# 4. Make good completions more likely.
def completion_log_probs(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every completion token, (B, C), 0 behind a completion's end; and the mask of tokens, (B, C).

    The B sequences of frame, question and completion are packed into one prefix tree of N tokens, so that a frame and a
    question are computed once for all completions that follow them. ``model`` must have :func:`attention.enable`.
    """
    image_token, device = model.config.image_token_id, model.device
    sequences = []
    for prompt, completion in zip(batch.prompts, batch.completions, strict=True):
        # A token's label is the one that comes next: the first to predict stands behind the prompt's last token.
        labels = [*[prefix_tree.IGNORE] * (len(prompt.ids) - 1), *completion, prefix_tree.IGNORE]
        sequences.append(prefix_tree.TokenSequence([*prompt.ids, *completion], labels, prompt.images))
    tree = prefix_tree.build_prefix_tree(sequences, image_token)
    # Every token keeps the position that it has in its own sequence.
    merge = model.config.vision_config.spatial_merge_size
    positions_of = prefix_tree.SequencePositions(model.model.get_rope_index, image_token, merge)
    positions = [positions_of(s, torch.stack([batch.images[key].grid for key in s.images])) for s in sequences]
    shown = [batch.images[sequences[row].images[number]] for row, number in tree.images]
    inputs = prefix_tree.tree_inputs(tree, sequences, positions)
    inputs["pixel_values"] = torch.cat([image.patches for image in shown])
    inputs["image_grid_thw"] = torch.stack([image.grid for image in shown])
    inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
    labels = inputs.pop("shift_labels")[0]
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[0]
    scored = labels != prefix_tree.IGNORE
    # Only tokens that predict a completion's token get logits: most of the sequence is frames.
    log_probs = model.lm_head(hidden[scored]).float().log_softmax(-1).gather(-1, labels[scored, None])[:, 0]
    packed = log_probs.new_zeros(tree.layout.size).masked_scatter(scored, log_probs)
    # Back from places in the packed sequence (N,) to one row a completion (B, C).
    rows = [tree.unpack(packed, i)[len(prompt.ids) - 1 :] for i, prompt in enumerate(batch.prompts)]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True), mask


def clipped_loss(log_probs: Any, old_log_probs: Any, advantages: Any, mask: Any, epsilon: float = 0.2) -> torch.Tensor:
    """PPO's clipped loss, the mean over all tokens of the batch (as in DAPO: every token counts the same).

    Args:
        log_probs, old_log_probs: (B, C), of the model now, and of the model that sampled the completions.
        advantages: (B,); every token of a completion is given the advantage of the whole.
        mask: (B, C), 1 for tokens of completions.
        epsilon: a token whose probability has changed by this share, the way its advantage asks for, is left alone.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    per_token = -torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
    return (per_token * mask).sum() / mask.sum().clamp(min=1)


# Evaluation, the loop, the command line.
def evaluate(model: Any, bundle: Bundle, dataset: Dataset, settings: Settings) -> dict[str, float]:
    """Greedy replies to the questions of dev: accuracy, mean IoU, both at once (joint), all in [0, 1]."""
    samples, space = evenly_spaced(dataset.split("dev"), settings.dev_samples), bundle.info.box_space
    options = GenerationOptions(settings.dev_batch_size, settings.dev_max_new_tokens)
    engine = TransformersEngine(model, bundle.processor, space, options)
    texts = [text for batch in engine.generate([prompt_of(s, dataset) for s in samples]) for text in batch]
    views = [view_of(bundle.processor, s.width, s.height) for s in samples]
    readings = [read_reply(text, space, view) for text, view in zip(texts, views, strict=True)]
    matches = [match(reading, sample.accepted) for reading, sample in zip(readings, samples, strict=True)]
    return {
        "acc": fmean(m.answer_right for m in matches),
        "miou": fmean(m.iou for m in matches),
        "joint": fmean(m.joint for m in matches),
        "joint_at_iou50": fmean(m.joint_at_iou50 for m in matches),
        "parse_failure_rate": fmean(r.answer is None or r.box_px is None for r in readings),
    }


def train(data: Path, start: Path | str, out: Path, settings: Settings) -> dict[str, Any]:
    """Train the model of ``start`` on the dataset folder ``data``; write ``out/best`` and ``out/result.json``."""
    seed_everything(settings.seed)
    dataset, bundle = open_dataset(data), from_pretrained(start, dtype="float32")
    processor = bundle.processor
    model = merged(bundle.model)
    if not attention.enable(model):
        raise SystemExit("this file needs a model that takes prefix trees; train this one with surgery-r1 train rft")
    model.model.visual.requires_grad_(False)
    keep_frozen_features(model)  # the frozen tower reads each frame once in the whole run
    asked = {"flips": settings.flips, "oversample": Oversample(settings.tangled), "seed": settings.seed}
    rows = rft_dataset(dataset, processor, bundle.info.box_space, **asked)
    if len(rows) < settings.prompts:
        raise SystemExit(f"{len(rows)} questions do not fill a step of {settings.prompts}: give fewer --prompts")
    mixture = Mixture(settings.rewards)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    before, begun = evaluate(model, bundle, dataset, settings), time.perf_counter()
    log: list[dict[str, Any]] = []
    order = question_order(len(rows), settings.prompts, settings.seed)
    for step, chosen in zip(range(settings.steps), order, strict=False):
        questions = [rows[i] for i in chosen]
        prompts, images = encode_prompts(questions, processor)
        prompts = [prompt for prompt in prompts for _ in range(settings.generations)]
        completions = sample_completions(model, processor, prompts, images, settings.max_completion)
        texts = processor.batch_decode(completions, skip_special_tokens=True)
        rewards = score(texts, [Truth.from_json(question["truth"]) for question in questions], mixture.names)
        advantage = advantages(rewards, torch.tensor(mixture.weights_normalised)).flatten().to(model.device)
        log_probs, mask = completion_log_probs(model, Batch(prompts, completions, images))
        # One update a batch: the model that sampled is the model of now. The ratio is 1, its gradient is not 0.
        loss = clipped_loss(log_probs, log_probs.detach(), advantage, mask)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(1.0, step / max(1, settings.warmup_steps))
        optimizer.step()
        means = zip(mixture.names, rewards.flatten(0, 1).nanmean(0).tolist(), strict=True)
        log.append({"step": step + 1, "rewards": {name: round(m, 4) for name, m in means if not math.isnan(m)}})
        LOG.info("%s", log[-1])
    seconds, after = time.perf_counter() - begun, evaluate(model, bundle, dataset, settings)
    info = replace(bundle.info, stage="rft", step=settings.steps, dataset_sha256=dataset.hash)
    save_model(model, processor, info, out / "best")
    result = {"dataset_sha256": dataset.hash, "base_sha256": weights_sha256(bundle.folder)}
    result |= {"settings": asdict(settings), "start": before, "dev": after, "seconds": seconds}
    write_json(out / "result.json", {**result, "steps": log})
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--model", required=True, help="SFT run or model folder to start from")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the model and result.json")
    for name in ("steps", "prompts", "generations", "seed", "dev_samples"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(Settings, name), help="default %(default)s")
    parser.add_argument("--lr", type=float, default=Settings.learning_rate, help="default %(default)s")
    args = vars(parser.parse_args(arguments))
    data, model, out = (args.pop(name) for name in ("data", "model", "out"))
    if out.exists():
        parser.error(f"{out} exists: give another --out")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    stay_offline(False)
    found = train(data, model, out, Settings(learning_rate=args.pop("lr"), **args))
    LOG.info("dev before: %(start)s\ndev after: %(dev)s", found)


if __name__ == "__main__":
    main()
