"""Dataset folder -> the conversational datasets that TRL's trainers take. Images are read when a row is fetched."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from surgery_r1 import codec, prompts
from surgery_r1.data.colours import look
from surgery_r1.data.mirroring import flip_frame, flip_places, flip_sample
from surgery_r1.data.oversampling import times_shown
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import flip_box
from surgery_r1.models.encode import ImageCache
from surgery_r1.models.processor import view_of
from surgery_r1.records import TrainingRow
from surgery_r1.rewards import Truth
from surgery_r1.train.config import ALIKE, Oversample
from surgery_r1.train.sft_rows import detections, drawn_mirrors, in_mirrors

if TYPE_CHECKING:
    from datasets import Dataset as HFDataset

    from surgery_r1.data.dataset import Dataset
    from surgery_r1.records import Sample
    from surgery_r1.train.config import TrainConfig


def prompt_messages(question: str, box_space: str, task: str, reasoning: bool) -> list[dict[str, str]]:
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
    task = prompts.task_without_box(task, has_box=box is not None)
    return prompt_messages(question, box_space, task, reasoning is not None), completion


def training_rows(
    stage: str, config: TrainConfig, dataset: Dataset, processor: Any, box_space: str, include_dev: bool
) -> HFDataset:
    """The rows that SFT trains on, or the prompts that RFT asks, as a config says."""
    shown = dataset, processor, box_space
    if stage == "sft":
        names = ("tasks", "direct_answers", "flips", "flip_rationales", "colour", "oversample", "detection_rows")
        own: dict[str, Any] = {name: getattr(config.sft, name) for name in names}
        return sft_dataset(*shown, include_dev=include_dev, seed=config.seed, **own)
    own = {name: getattr(config.rft, name) for name in ("reasoning", "questions_per_frame", "flips", "oversample")}
    return rft_dataset(*shown, include_dev=include_dev, seed=config.seed, **own)


def sft_dataset(
    dataset: Dataset,
    processor: Any,
    box_space: str,
    *,
    tasks: Sequence[str],
    direct_answers: bool = False,
    include_dev: bool = False,
    flips: Sequence[str] = (),
    flip_rationales: bool = False,
    colour: float = 0.0,
    oversample: Oversample = ALIKE,
    detection_rows: int = 0,
    seed: int = 0,
) -> HFDataset:
    """Rows of ``tasks`` with columns prompt, completion and images.

    Args:
        direct_answers: add each question once without reasoning.
        flips: add every row without reasoning once more with its frame mirrored, in one of these ways
            (:data:`surgery_r1.geometry.FLIPS`), drawn for each frame. A reasoning stays with the frame that it was
            written about.
        flip_rationales, colour, oversample, detection_rows: see :class:`surgery_r1.train.config.SftConfig`.
        seed: of what is drawn.

    Raises:
        SurgeryR1Error: when there are no such rows, or labels that cannot be mirrored (:func:`flip_sample`).
    """

    def shown(flip: str, row: TrainingRow) -> dict[str, Any]:
        sample = flip_sample(dataset.samples[row.sample_id], flip)
        box = row.box_px and flip_box(row.box_px, flip, sample.width, sample.height)
        view = view_of(processor, sample.width, sample.height)
        prompt, completion = prompt_and_completion(
            row.task,
            flip_places(row.question, flip),
            row.reasoning,
            row.answer and flip_places(row.answer, flip),
            box,
            box_space,
            view,
        )
        strength = colour if flip != "none" else 0.0
        how = look(flip, strength, f"{seed}:{flip}:{sample.image}")
        return {"prompt": prompt, "completion": completion, **_image(dataset, sample, how)}

    rows = dataset.train_rows(tasks, include_dev)
    samples = dataset.train_samples(include_dev)
    if direct_answers:
        rows += [TrainingRow(s.id, s.id, "cot", s.question, None, s.answer, s.box_px, None, {}) for s in samples]
    rows += detections(dataset, samples, detection_rows, seed)
    mirrors = drawn_mirrors(dataset, samples, flips, oversample, seed)
    examples = [shown(flip, row) for flip, row in in_mirrors(dataset, rows, mirrors, flip_rationales)]
    if not examples:
        raise SurgeryR1Error(f"no training rows of tasks {list(tasks)}", where=dataset.root, fix="check [sft] tasks")
    return lazy(examples)


def rft_dataset(
    dataset: Dataset,
    processor: Any,
    box_space: str,
    *,
    reasoning: bool = True,
    include_dev: bool = False,
    flips: Sequence[str] = (),
    oversample: Oversample = ALIKE,
    questions_per_frame: int = 1,
    seed: int = 0,
) -> HFDataset:
    """One prompt for each training question, with columns id (of the sample), prompt, images, truth and shown.

    Args:
        flips: add every question again with its frame mirrored in each of these ways
            (:data:`surgery_r1.geometry.FLIPS`).
        oversample: how often such questions are asked.
        questions_per_frame, seed: beyond 1 the questions come in an order of their own, see :func:`frame_blocks`.

    Raises:
        SurgeryR1Error: when there are none, or labels that cannot be mirrored (:func:`flip_sample`).
    """
    samples = dataset.train_samples(include_dev)
    times = times_shown(dataset, samples, **asdict(oversample))
    asked = [sample for sample in samples for _ in range(times[sample.id])]
    shown = [(flip, sample) for flip in ("none", *flips) for sample in asked]
    if questions_per_frame > 1:
        shown = frame_blocks(shown, questions_per_frame, seed)
    questions = [
        rft_question(dataset, sample, processor, box_space, reasoning=reasoning, flip=flip)
        | {"shown": _shown(sample, flip)}
        | _image(dataset, sample, flip)
        for flip, sample in shown
    ]
    if not questions:
        raise SurgeryR1Error("no training questions", where=dataset.root, fix="build it from the training sequences")
    return lazy(questions)


def rft_question(
    dataset: Dataset, sample: Sample, processor: Any, box_space: str, *, reasoning: bool = True, flip: str = "none"
) -> dict[str, Any]:
    """What RFT needs of a question beside its image: id (of the sample), prompt and truth."""
    sample = flip_sample(sample, flip)
    rule = dataset.location_rule_of(sample.source)
    truth = Truth.from_sample(
        sample,
        flip_frame(dataset.frame_of(sample), flip),
        view=view_of(processor, sample.width, sample.height),
        box_space=box_space,
        rule=rule.name if rule else None,
        # The dataset has already refused rules that too few labels follow.
        agreement=1.0 if rule else None,
        reasoning=reasoning,
        classes=dataset.answers[sample.source],
    )
    prompt = prompt_messages(sample.question, box_space, truth.task, reasoning)
    return {"id": sample.id, "prompt": prompt, "truth": truth.to_json()}


def frame_blocks(shown: Sequence[tuple[str, Sample]], size: int, seed: int) -> list[tuple[str, Sample]]:
    """Flips and samples in random order, up to ``size`` questions of a frame, flipped alike, one after the other."""
    rng = random.Random(seed)
    frames: dict[tuple[str, str], list[tuple[str, Sample]]] = {}
    for flip, sample in shown:
        frames.setdefault((flip, sample.image), []).append((flip, sample))
    blocks = []
    for questions in frames.values():
        rng.shuffle(questions)
        blocks += [questions[i : i + size] for i in range(0, len(questions), size)]
    rng.shuffle(blocks)
    return [question for block in blocks for question in block]


def _shown(sample: Sample, flip: str) -> dict[str, str]:
    """What a recorded group says of its question beside the truth (:mod:`surgery_r1.train.rollouts.record`)."""
    return {"question": flip_places(sample.question, flip), "frame": sample.frame_id, "flip": flip}


def _image(dataset: Dataset, sample: Sample, how: str) -> dict[str, list[str]]:
    """The image of ``sample`` as :func:`lazy` reads it, flipped and coloured as ``how`` says."""
    return {"images": [str(dataset.image_path(sample))], "flips": [how]}


def lazy(rows: list[dict[str, Any]]) -> HFDataset:
    """A dataset of ``rows`` whose ``images`` are decoded when a row is fetched.

    Args:
        rows: among their keys ``images``, lists of paths, and ``flips``, as long ones of how each is shown
            (:func:`surgery_r1.data.colours.look`); the latter is left out of what is fetched.
    """
    from datasets import Dataset as HFDataset

    cache = ImageCache()

    def fetch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        flips = batch.pop("flips")
        return {**batch, "images": [[*map(cache, *of_row)] for of_row in zip(batch["images"], flips, strict=True)]}

    return HFDataset.from_list(rows).with_transform(fetch)
