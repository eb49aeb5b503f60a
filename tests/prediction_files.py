"""Questions with true boxes as they lie in surgical frames, and prediction files about them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from surgery_r1.evaluate.predictions import PredictionFile, read_predictions
from surgery_r1.geometry import Box
from surgery_r1.records import Sample

WIDTH, HEIGHT = 1280, 1024


def questions(count: int = 60, seed: int = 0, *, width: int = WIDTH, height: int = HEIGHT) -> list[Sample]:
    """Every third asks for the organ, which hardly moves; the others for a tool, which lies anywhere."""
    draw = random.Random(seed)
    samples = []
    for i in range(count):
        if i % 3 == 0:
            box = (300 + draw.randrange(8), 250 + draw.randrange(8), 900 + draw.randrange(8), 800 + draw.randrange(8))
        else:
            w, h = draw.randrange(150, 500), draw.randrange(120, 400)
            x, y = draw.randrange(WIDTH - w), draw.randrange(HEIGHT - h)
            box = (x, y, x + w, y + h)
        scaled = [v * s for v, s in zip(box, (width / WIDTH, height / HEIGHT) * 2, strict=True)]
        kind = ("organ", "state", "location")[i % 3]
        samples.append(
            Sample(
                f"endovis18/seq_1/frame{i // 3:03d}/{i % 3}",
                *("endovis18", "val", "seq_1", f"frame{i // 3:03d}", "a.png", width, height),
                *(f"What {kind}?", kind, "suction", "Idle", (scaled[0], scaled[1], scaled[2], scaled[3])),
            )
        )
    return samples


def field_lines(samples: Iterable[Sample], box: Callable[[Sample], Any], **more: Any) -> list[dict[str, Any]]:
    return [{"id": s.id, "answer": s.answer, "box_px": box(s), **more} for s in samples]


def text_lines(samples: Iterable[Sample], box: Callable[[Sample], Any], **more: Any) -> list[dict[str, Any]]:
    return [{"id": s.id, "text": f"<answer>Idle</answer><box>{[*box(s)]}</box>", **more} for s in samples]


def read(folder: Path, samples: Iterable[Sample], lines: Iterable[dict[str, Any]], **options: Any) -> PredictionFile:
    path = folder / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return read_predictions(path, {s.id: s for s in samples}, split="val", **options)


def shares(box: Box, sample: Sample) -> list[float]:
    return [v / s for v, s in zip(box, (sample.width, sample.height) * 2, strict=True)]


def xywh(box: Iterable[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def cxcywh(box: Iterable[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
