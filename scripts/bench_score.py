"""How long scoring takes, and how much memory: many replies with rationale, answer and box to drawn questions.

    python scripts/bench_score.py --data demo/dataset --questions 100000

The questions of a dataset's val split are repeated under other sequence names until there are enough. Prints one JSON
object: seconds of scoring with all intervals (the imports apart), and the peak memory of the process in MiB.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from surgery_r1._util.files import write_jsonl
from surgery_r1.codec import render
from surgery_r1.data.dataset import Dataset, open_dataset
from surgery_r1.evaluate.score import score_predictions


def repeated(dataset: Dataset, questions: int) -> Dataset:
    """The dataset with its val split repeated until it has that many questions."""
    samples = {s.id: s for split in ("train", "dev") for s in dataset.split(split)}
    frames = dict(dataset.frames)
    val = dataset.split("val")
    for number, sample in zip(range(questions), itertools.cycle(val), strict=False):
        sequence = f"{sample.sequence}_{number // len(val)}"
        frame = dataset.frame_of(sample)
        copy = dataclasses.replace(sample, id=f"{sample.id}#{number}", sequence=sequence)
        samples[copy.id] = copy
        frames[copy.frame_id] = dataclasses.replace(frame, frame_id=copy.frame_id)
    return dataclasses.replace(dataset, samples=samples, frames=frames)


def replies(dataset: Dataset, seed: int = 0):
    """A line for each question of val: three in four right, the others say something else."""
    rng = random.Random(seed)
    val = dataset.split("val")
    for sample in val:
        other = sample if rng.random() < 0.75 else rng.choice(val)
        rationale = f"the {sample.subject} is seen in the left-top, so its state is {other.answer}"
        box = other.box_px and [round(value) for value in other.box_px]
        yield {"id": sample.id, "text": render(rationale, other.answer, box), "box_space": "source"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=100_000)
    args = parser.parse_args()
    dataset = repeated(open_dataset(args.data, check_images=False), args.questions)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.jsonl"
        write_jsonl(path, replies(dataset))
        before = time.perf_counter()
        metrics = score_predictions(path, dataset, "val", Path(folder) / "scores")
        seconds = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"questions": metrics["n"], "blocks": metrics["intervals"]["blocks"], "seconds": round(seconds, 1)}
    print(json.dumps(result | {"acc": round(metrics["acc"], 3), "peak_mib": round(peak)}))


if __name__ == "__main__":
    main()
