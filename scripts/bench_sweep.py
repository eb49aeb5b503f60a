"""How the time of an RFT update grows with the text on a frame, both variants: docs/sweep.json and docs/sweep.png.

python scripts/bench_sweep.py --out docs
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from surgery_r1.bench.compare import bench
from surgery_r1.bench.shapes import Work

#: TRL has no groups of one.
GENERATIONS = (2, 4, 8, 16, 32)
QUESTIONS = (1, 3, 6, 9)


def measure(pairs: int) -> list[dict]:
    """Records over G with one question, and over questions with G = 8; completions of 32 tokens."""
    base = Work(completion_tokens=32)
    works = [replace(base, generations=g) for g in GENERATIONS]
    works += [replace(base, questions=q) for q in QUESTIONS]
    records = []
    for work in works:
        sys.stderr.write(f"G = {work.generations}, questions = {work.questions}\n")
        records.append(bench("rft", work, pairs, say=lambda line: sys.stderr.write(line + "\n")))
    return records


def draw(records: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    parts = (
        ("generations", "completions of one question (G)", records[: len(GENERATIONS)]),
        ("questions", "questions on the frame (G = 8)", records[len(GENERATIONS) :]),
    )
    for axis, (name, label, chosen) in zip(axes, parts, strict=True):
        x = [record["config"][name] for record in chosen]
        for name, key, style in (("baseline", "plain", "o-"), ("optimised", "ours", "s-")):
            axis.plot(x, [record[key]["compared"] for record in chosen], style, label=name)
        axis.set_xlabel(label)
        axis.set_yscale("log")
        if name == "generations":
            axis.set_xscale("log", base=2)
        axis.set_xticks(x, [str(value) for value in x])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds of an update")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    records = measure(args.pairs)
    (args.out / "sweep.json").write_text(json.dumps(records, indent=1) + "\n")
    draw(records, args.out / "sweep.png")


if __name__ == "__main__":
    main()
