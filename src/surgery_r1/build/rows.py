"""Training rows: for each question one Visual-QA, one Grounding-QA and one CoT row."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from surgery_r1.build.cot import Writer
from surgery_r1.build.verify import check_reasoning, passes
from surgery_r1.schema import TASKS, Frame, Row, Sample

#: Splits whose samples become rows; training leaves dev out unless it is told to include it.
ROW_SPLITS: tuple[str, ...] = ("train", "dev")

DROPPED_REASONING = "reasoning failed its checks"


def make_rows(
    samples: Iterable[Sample], frames: Mapping[str, Frame], writer: Writer, seed: int, dropped: Counter[str]
) -> Iterator[Row]:
    """Rows of the train and dev samples, in the order of the samples and then of ``schema.TASKS``.

    A CoT row whose reasoning fails its checks is dropped and counted in ``dropped``.
    """
    for sample in samples:
        if sample.split not in ROW_SPLITS:
            continue
        # Seeded by the sample's id: leaving one question out changes no other row.
        reasoning = writer.write(sample, frames[sample.frame_id], random.Random(f"{seed}:{sample.id}"))
        checks = check_reasoning(sample, reasoning)
        for task in TASKS:
            if task == "cot" and not passes(checks):
                dropped[DROPPED_REASONING] += 1
                continue
            yield Row(
                id=f"{sample.id}/{task}",
                sample_id=sample.id,
                task=task,
                question=sample.question,
                reasoning=reasoning if task == "cot" else None,
                answer=None if task == "grounding_qa" else sample.answer,
                box_px=None if task == "visual_qa" else sample.box_px,
                writer=writer.name if task == "cot" else None,
                checks=checks if task == "cot" else {},
            )
