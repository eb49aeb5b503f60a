"""Dataset folder -> the conversational datasets that TRL's trainers take. Images are read when a row is fetched."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from surgery_r1 import codec, prompts
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.encode import ImageCache
from surgery_r1.models.processor import view_of
from surgery_r1.rewards import Truth

if TYPE_CHECKING:
    from datasets import Dataset as HFDataset

    from surgery_r1.dataset import Dataset
    from surgery_r1.schema import Sample


def conversation(question: str, box_space: str, task: str, reasoning: bool) -> list[dict[str, str]]:
    """System and user message; TRL puts the images in front of the user's text, as ``prompts.messages`` does."""
    return [
        {"role": "system", "content": prompts.system_text(box_space)},
        {"role": "user", "content": prompts.user_text(question, task, reasoning)},
    ]


def prompt_and_completion(
    task: str,
    question: str,
    reasoning: str | None,
    answer: str | None,
    box_px: Sequence[float] | None,
    box_space: str,
    view: codec.View,
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The messages of a training row, its box in the units of a model that sees frames as ``view`` says."""
    box = None if box_px is None else codec.to_model(box_px, box_space, view)
    completion = [{"role": "assistant", "content": codec.render(reasoning, answer, box)}]
    return conversation(question, box_space, task, reasoning is not None), completion


def sft_dataset(
    dataset: Dataset,
    processor: Any,
    box_space: str,
    *,
    tasks: Sequence[str],
    direct_answers: bool = False,
    include_dev: bool = False,
) -> HFDataset:
    """Rows of ``tasks`` with columns prompt, completion and images.

    Args:
        direct_answers: add each question once without reasoning.

    Raises:
        SurgeryR1Error: when there are no such rows.
    """
    columns: dict[str, list[Any]] = {"prompt": [], "completion": [], "images": []}

    def add(sample: Sample, task: str, question: str, reasoning: str | None, answer: str | None, box: Any) -> None:
        view = view_of(processor, sample.width, sample.height)
        prompt, completion = prompt_and_completion(task, question, reasoning, answer, box, box_space, view)
        columns["prompt"].append(prompt)
        columns["completion"].append(completion)
        columns["images"].append([str(dataset.image_root / path) for path in (sample.images or (sample.image,))])

    for row in dataset.train_rows(tasks, include_dev):
        add(dataset.samples[row.sample_id], row.task, row.question, row.reasoning, row.answer, row.box_px)
    if direct_answers:
        for sample in train_samples(dataset, include_dev):
            add(sample, "cot", sample.question, None, sample.answer, sample.box_px)
    if not columns["prompt"]:
        raise SurgeryR1Error(
            f"no training rows of tasks {list(tasks)}", where=str(dataset.root), fix="check [sft] tasks"
        )
    return lazy(columns)


def rft_dataset(
    dataset: Dataset,
    processor: Any,
    box_space: str,
    *,
    reasoning: bool = True,
    include_dev: bool = False,
    questions_per_frame: int = 1,
    seed: int = 0,
) -> HFDataset:
    """One prompt for each training question, with columns id (of the sample), prompt, images and truth.

    Args:
        questions_per_frame, seed: beyond 1 the questions come in an order of their own, see :func:`frame_blocks`.

    Raises:
        SurgeryR1Error: when there are none.
    """
    columns: dict[str, list[Any]] = {"id": [], "prompt": [], "images": [], "truth": []}
    samples = train_samples(dataset, include_dev)
    if questions_per_frame > 1:
        samples = frame_blocks(samples, questions_per_frame, seed)
    for sample in samples:
        rule = dataset.location_rule_of(sample.source)
        truth = Truth.from_sample(
            sample,
            dataset.frame_of(sample),
            view=view_of(processor, sample.width, sample.height),
            box_space=box_space,
            rule=rule.name if rule else None,
            # The dataset has already refused rules that too few labels follow.
            agreement=1.0 if rule else None,
            reasoning=reasoning,
        )
        columns["id"].append(sample.id)
        columns["prompt"].append(conversation(sample.question, box_space, "cot", reasoning))
        columns["images"].append([str(dataset.image_root / path) for path in (sample.images or (sample.image,))])
        columns["truth"].append(truth.to_json())
    if not columns["prompt"]:
        raise SurgeryR1Error(
            "no training questions", where=str(dataset.root), fix="build it from the training sequences"
        )
    return lazy(columns)


def frame_blocks(samples: Sequence[Sample], size: int, seed: int) -> list[Sample]:
    """``samples`` in random order, up to ``size`` questions of a frame one after the other."""
    rng = random.Random(seed)
    frames: dict[str, list[Sample]] = {}
    for sample in samples:
        frames.setdefault(sample.image, []).append(sample)
    blocks = []
    for questions in frames.values():
        rng.shuffle(questions)
        blocks += [questions[i : i + size] for i in range(0, len(questions), size)]
    rng.shuffle(blocks)
    return [sample for block in blocks for sample in block]


def train_samples(dataset: Dataset, include_dev: bool) -> list[Sample]:
    """Samples to train on: train, and dev on request."""
    return dataset.split("train") + (dataset.split("dev") if include_dev else [])


def lazy(columns: dict[str, list[Any]]) -> HFDataset:
    """A dataset of ``columns`` whose ``images`` (lists of paths) are decoded when a row is fetched."""
    from datasets import Dataset as HFDataset

    cache = ImageCache()

    def fetch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "images": [[cache(path) for path in paths] for paths in batch["images"]]}

    return HFDataset.from_dict(columns).with_transform(fetch)
