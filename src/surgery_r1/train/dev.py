"""Evaluation on dev while training: the only questions on which anything is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from surgery_r1.codec import read_reply
from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
from surgery_r1.evaluate.metrics import summarise
from surgery_r1.evaluate.predict import evenly_spaced, prompt_of
from surgery_r1.evaluate.score import Scorer
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.models.load import Bundle
from surgery_r1.models.processor import view_of
from surgery_r1.models.reply_forms import check_reply_form
from surgery_r1.records import Sample
from surgery_r1.train import ranks, shards
from surgery_r1.train.config import EvalConfig

#: Values by name, all in [0, 1].
Metrics = dict[str, float]

#: What is logged beside the figures that a model is chosen by: whether rationale, answer and box agree.
AGREEMENT = (
    *("rationale_right", "rationale_answer", "rationale_contradicts", "rationale_unsupported"),
    *("rationale_box", "answer_box", "wrong_referent_broad"),
)


def dev_evaluator(config: EvalConfig, dataset: Dataset, bundle: Bundle) -> Callable[[Any], Metrics]:
    """A function model -> acc, miou, joint, joint_at_iou50 and parse_failure_rate on dev, and :data:`AGREEMENT`.

    Of the latter what can be told: nothing of rationales where none is asked for.

    ``joint`` is the mean over questions of the IoU where the answer is right, else 0. In sets without boxes it is Acc.

    Args:
        bundle: the processor of the models that will be evaluated, and what is true of them.

    Raises:
        SurgeryR1Error: when the dataset has no dev questions, or dev would be asked for replies of a form that the
            models are not trained to give.
    """
    check_reply_form(bundle.info, config.reasoning, f"eval.reasoning = {str(config.reasoning).lower()}")
    samples = dev_samples(dataset, config.dev_samples)
    options = GenerationOptions(config.batch_size, config.max_new_tokens, config.reasoning)
    prompts = [prompt_of(sample, dataset, reasoning=options.reasoning) for sample in samples]
    space, scorer = bundle.info.box_space, Scorer(dataset)

    def evaluate(model: Any) -> Metrics:
        engine = TransformersEngine(model, bundle.processor, space, options)
        # Each rank asks a part of the questions; all count all replies.
        with shards.whole(model):
            mine = [text for batch in engine.generate(ranks.share(prompts)) for text in batch]
        texts = ranks.gathered(mine)
        readings = (
            read_reply(text, space, view_of(bundle.processor, s.width, s.height))
            for text, s in zip(texts, samples, strict=True)
        )
        lines = [scorer.line(s, reading) for s, reading in zip(samples, readings, strict=True)]
        return dev_metrics(lines)

    return evaluate


def dev_metrics(lines: Sequence[ScoreRecord]) -> Metrics:
    """What is logged of dev: see :func:`dev_evaluator`."""
    scored, n = summarise(lines), len(lines)
    hits = (line.answer_right if line.joint_at_iou50 is None else line.joint_at_iou50 for line in lines)
    return {
        "acc": sum(line.answer_right for line in lines) / n,
        "miou": sum(line.iou or 0.0 for line in lines) / n,
        "joint": sum(_chosen_by(line) for line in lines) / n,
        "joint_at_iou50": sum(hits) / n,
        "parse_failure_rate": sum(line.failed for line in lines) / n,
        **{name: value for name in AGREEMENT if (value := scored[name]) is not None},
    }


def dev_samples(dataset: Dataset, count: int) -> list[Sample]:
    """Questions of dev, or ``count`` of them, evenly spread.

    Raises:
        SurgeryR1Error: when there are none.
    """
    samples = evenly_spaced(dataset.split("dev"), count)
    if not samples:
        raise SurgeryR1Error(
            "the dataset has no dev questions to choose on",
            where=dataset.root,
            fix="build it from label folders that hold the dev sequences (see surgery_r1.vocab.DEV_SEQUENCES)",
        )
    return samples


def _chosen_by(line: ScoreRecord) -> float:
    return float(line.answer_right) if line.joint is None else line.joint
