"""A model's rationales exchanged for those of other questions, question by question, so that two can be compared.

See :mod:`.interventions`, which tells shares of one model; here every question is a line of a file that goes on after a
kill.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1._util.files import read_jsonl
from surgery_r1._util.locks import held
from surgery_r1._util.progress import Progress
from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
from surgery_r1.evaluate.interventions import Imposed, Interventions
from surgery_r1.evaluate.kept_replies import ask_what_is_missing
from surgery_r1.evaluate.predict import evenly_spaced
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.models.load import from_pretrained
from surgery_r1.models.sharing.vision_features import keep_frozen_features

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset

logger = logging.getLogger(__name__)


def swap_rationales(
    model: str | Path,
    dataset: Dataset,
    lines: Sequence[ScoreRecord],
    options: GenerationOptions,
    out: Path,
    *,
    stamp: Mapping[str, Any],
    limit: int = 0,
    allow_hub: bool = False,
    progress: Progress | None = None,
) -> int:
    """Put another question's rationale into a model's mouth, for each question where it gave one itself.

    Lines are appended to ``<out>.partial`` batch by batch, and the file takes its name when it is whole. A line has the
    question's ``id``, what followed (see :meth:`surgery_r1.evaluate.interventions.Interventions.flags`), and ``stamp``.

    Args:
        lines: what the model said by itself, scored; in the order of the split.
        stamp: what the result depends on; a partial file with another one is refused.
        limit: take only that many questions, evenly spread (0: all).

    Returns:
        The questions asked in this call. Where no rationale could be swapped the file is empty, after a warning.

    Raises:
        SurgeryR1Error: when the partial file has another stamp.
    """
    asked = 0
    with held(out, "swapping rationales"):
        made = Interventions(dataset, evenly_spaced(lines, limit))
        imposed = made.imposed("swapped")
        if not imposed:
            logger.warning("%s: no two rationales end at different answers: none can be swapped", out.parent)

        @cache
        def engine() -> TransformersEngine:
            bundle = from_pretrained(model, allow_hub=allow_hub)
            keep_frozen_features(bundle.model)
            return TransformersEngine(bundle.model, bundle.processor, bundle.info.box_space, options)

        def ask(part: Sequence[Imposed]) -> list[Mapping[str, bool]]:
            nonlocal asked
            asked += len(part)
            return made.followed(engine(), part)

        partial = out.with_name(out.name + ".partial")
        ask_what_is_missing(imposed, ask, partial, stamp=stamp, batch_size=options.batch_size, progress=progress)
        partial.touch()
        partial.replace(out)
    return asked


def read_swapped(path: Path) -> dict[str, dict[str, bool]]:
    """What followed, by question: see :meth:`surgery_r1.evaluate.interventions.Interventions.flags`."""
    return {record["id"]: record["flags"] for _, record in read_jsonl(path)}
