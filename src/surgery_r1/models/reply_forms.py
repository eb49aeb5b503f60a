"""With and without a rationale: which forms of reply a model was trained to give."""

from __future__ import annotations

import logging
from dataclasses import replace

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.info import ModelInfo

logger = logging.getLogger(__name__)


def trained_further(info: ModelInfo, *, rationales: bool, direct_answers: bool) -> ModelInfo:
    """What a model described by ``info`` can after training that shows these forms: what was taught before stays."""
    taught = info.stage != "base"
    return replace(
        info,
        rationales=rationales or (taught and info.rationales),
        direct_answers=direct_answers or (taught and info.direct_answers),
    )


def check_reply_form(info: ModelInfo, reasoning: bool, model: object) -> None:
    """Refuse to ask a trained model for a form of reply that it has never been shown: what it wrote would mislead.

    Of a base model nobody knows what it was shown: without a rationale it is asked after a warning.

    Args:
        reasoning: whether a rationale is asked for.
        model: what the model is called.

    Raises:
        SurgeryR1Error: for a form that ``info`` does not have.
    """
    if info.stage == "base":
        if not reasoning:
            logger.warning("%s is a base model: whether it was taught to reply without a rationale is not known", model)
        return
    if reasoning and not info.rationales:
        raise SurgeryR1Error(
            "the model was not trained to give a rationale (no cot rows)",
            where=str(model),
            fix=("ask without one (--no-reasoning), or " if info.direct_answers else "")
            + "train with [sft] tasks that hold 'cot'",
        )
    if not reasoning and not info.direct_answers:
        raise SurgeryR1Error(
            "the model was not trained to reply without a rationale",
            where=str(model),
            fix=("ask with one, or " if info.rationales else "") + "train with [sft] direct_answers = true",
        )
