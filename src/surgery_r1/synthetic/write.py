"""Whole sets of drawn scenes, written in the layout and grammar of the real EndoVis-VQLA folders."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from surgery_r1 import vocab
from surgery_r1._util.files import write_json
from surgery_r1._util.folders import replacing_folder
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.synthetic.placement import plan_sequence
from surgery_r1.synthetic.render import objects_of, render_scene
from surgery_r1.synthetic.scene import DrawnObject
from surgery_r1.synthetic.statistics import sequence_records
from surgery_r1.synthetic.style import Style, make_style

#: Raised whenever the same seed would draw other pictures or labels.
GENERATOR_VERSION = 1
DOMAINS = (18, 17)
SMALLEST, LARGEST = (160, 128), (1280, 1024)


def style_of(domain: int, sequence: int, seed: int) -> Style:
    """The look of a drawn sequence; train, val and domain 17 have style namespaces of their own."""
    name = "cross" if domain == 17 else "val" if sequence in vocab.VAL_SEQUENCES else "train"
    return make_style(name, seed * 1000 + sequence, domain)


def question_lines(objects: tuple[DrawnObject, ...], size: tuple[int, int], *, organ: bool = True) -> list[str]:
    """Label lines of a frame: `question|answer|x1, y1, x2, y2`, 1-based whole pixels inside the frame."""

    def corners(obj: DrawnObject) -> str:
        # Outwards to whole pixels, so that the box holds what it held.
        x1, y1 = math.floor(obj.box_px[0]), math.floor(obj.box_px[1])
        x2, y2 = math.ceil(obj.box_px[2]), math.ceil(obj.box_px[3])
        x1, y1 = min(x1, size[0] - 2), min(y1, size[1] - 2)
        x2, y2 = min(max(x2 - 1, x1 + 1), size[0] - 1), min(max(y2 - 1, y1 + 1), size[1] - 1)
        return f"{x1 + 1}, {y1 + 1}, {x2 + 1}, {y2 + 1}"

    tools = [o for o in objects if o.name != vocab.ORGAN]
    lines = []
    if organ:
        kidney = next(o for o in objects if o.name == vocab.ORGAN)
        lines.append(f"What organ is being operated?|{vocab.ORGAN}|{corners(kidney)}")
    lines += [f"What is the state of {o.name}?|{o.state}|{corners(o)}" for o in tools]
    lines += [f"Where is {o.name} located?|{o.location}|{corners(o)}" for o in tools]
    return lines


def share_out(lengths: dict[int, int], frames: int | None) -> dict[int, range]:
    """Which frames of each sequence to draw when ``frames`` are wanted in all: a middle stretch, in proportion.

    >>> share_out({2: 6, 1: 3}, 3)
    {2: range(2, 4), 1: range(1, 2)}
    """
    total = sum(lengths.values())
    if frames is None or frames == total:
        return {s: range(n) for s, n in lengths.items()}
    if not 1 <= frames <= total:
        raise SurgeryR1Error(f"frames is {frames}", fix=f"ask for 1 to {total} frames in this domain")
    # Val sequences come early, so that even a handful of frames has something to train and something to test on.
    val = [s for s in lengths if s in vocab.VAL_SEQUENCES]
    train = [s for s in lengths if s not in vocab.VAL_SEQUENCES]
    order = [s for i, first in enumerate(train) for s in (first, *val[i : i + 1])]
    got = {s: int(i < frames) for i, s in enumerate(order)}
    while sum(got.values()) < frames:
        # Always the sequence that is furthest behind its share.
        behind = max((s for s in order if got[s] < lengths[s]), key=lambda s: frames * lengths[s] / total - got[s])
        got[behind] += 1
    return {s: range((n - got[s]) // 2, (n - got[s]) // 2 + got[s]) for s, n in lengths.items() if got[s]}


def _paths(domain: int, sequence: int, index: int) -> tuple[str, str]:
    if domain == 17:
        stem = f"seq{sequence}_frame{15 * (index + 1):03d}"
        return f"left_frames/{stem}.jpg", f"vqla/label/{stem}_QA.txt"
    return f"seq_{sequence}/left_frames/frame{index:03d}.png", f"seq_{sequence}/vqla/label/frame{index:03d}_QA.txt"


def _draw_sequence(job: tuple) -> dict:
    """Draw and write frames of a sequence; everything depends on the job alone, so any process may do it."""
    folder, domain, seed, size, sequence, records, span = job
    style = style_of(domain, sequence, seed)
    # All of it, whatever is drawn: frame 80 depends on where frame 79 left the tools.
    plans = plan_sequence(records, size[0] / size[1], style, domain, seed, sequence)
    counts = {"frames": 0, "questions": 0}
    for index in span:
        picture, label = (Path(folder) / p for p in _paths(domain, sequence, index))
        picture.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        image = render_scene(plans[index], style, size)
        if domain == 17:
            image.save(picture, quality=92, subsampling=0)
        else:
            # Unpacked, at less than twice the size: every stage reads the frames again, and unpacking took it longest.
            image.save(picture, compress_level=0)
        lines = question_lines(objects_of(plans[index], style, size), size, organ=domain == 18)
        label.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        counts["frames"] += 1
        counts["questions"] += len(lines)
    return counts


def _check(out: Path, domain: int, size: tuple[int, int]) -> None:
    if domain not in DOMAINS:
        raise SurgeryR1Error(f"unknown scene domain {domain!r}", fix=f"choose one of {', '.join(map(str, DOMAINS))}")
    if any(not low <= v <= high for v, low, high in zip(size, SMALLEST, LARGEST, strict=True)):
        raise SurgeryR1Error(f"size {size[0]}x{size[1]} is out of range", fix="choose between 160x128 and 1280x1024")
    if not 0.9 <= size[0] / size[1] <= 2:
        raise SurgeryR1Error(
            f"size {size[0]}x{size[1]} is too narrow or too wide", fix="keep near 5:4, such as 320x256"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SurgeryR1Error(f"{out} is not empty", fix="name a new folder, or remove this one first")


def make_scenes(
    out: Path,
    *,
    domain: int = 18,
    seed: int = 0,
    size: tuple[int, int] = (320, 256),
    frames: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Draw a set of scenes into ``out`` as an EndoVis-VQLA folder; same seed, same bytes, whatever ``workers`` is.

    Args:
        out: a folder that does not exist yet or is empty. It appears whole at the end, or not at all.
        domain: 18 (train and val sequences) or 17 (the cross-set, no organ question).
        seed: 0 or more.
        size: (width, height) in pixels, 160x128 to 1280x1024.
        frames: how many in all, in proportion over the sequences; None for the whole set (2,007 or 97).
        workers: processes; None for one a core.
        progress: called with (frames done, frames in all).

    Returns:
        What ``scenes.json`` holds: version, domain, seed, size, counts by sequence and split.

    Raises:
        SurgeryR1Error: on a non-empty ``out``, or a domain, size or number of frames that cannot be drawn.
    """
    out = Path(out)
    _check(out, domain, size)
    records = sequence_records(domain, seed)
    chosen = share_out({s: len(r) for s, r in records.items()}, frames)
    total = sum(map(len, chosen.values()))
    by_sequence = {f"seq_{s}": {"frames": 0, "questions": 0} for s in sorted(chosen)}
    with replacing_folder(out) as partial:
        jobs = [
            (str(partial), domain, seed, tuple(size), sequence, records[sequence], span)
            for sequence, span in chosen.items()
        ]
        done = 0
        for job, counts in _drawn(jobs, workers):
            for key, n in counts.items():
                by_sequence[f"seq_{job[4]}"][key] += n
            done += counts["frames"]
            if progress:
                progress(done, total)
        facts = {"generator_version": GENERATOR_VERSION, "domain": domain, "seed": seed, "size": list(size)}
        result = {**facts, **_totals(by_sequence, domain)}
        write_json(partial / "scenes.json", result)
    return result


def _drawn(jobs: list[tuple], workers: int | None) -> Iterator[tuple[tuple, dict[str, int]]]:
    """Each job and what was counted, in the order of the jobs, drawn by ``workers`` processes (None: one a core)."""
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        for job in jobs:
            yield job, _draw_sequence(job)
        return
    # spawn, not fork: the caller may hold threads (torch) that do not survive a fork.
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            yield from zip(jobs, pool.map(_draw_sequence, jobs), strict=True)
    except BrokenProcessPool as error:
        fix = "call make_scenes under `if __name__ == '__main__':`, or with workers=1"
        raise SurgeryR1Error("a drawing process died", fix=fix) from error


def _totals(by_sequence: dict[str, dict[str, int]], domain: int) -> dict:
    """Counts in all, by split and by sequence, as ``scenes.json`` has them."""

    def count(names: Iterable[str]) -> dict[str, int]:
        rows = [by_sequence[name] for name in names if name in by_sequence]
        return {key: sum(row[key] for row in rows) for key in ("frames", "questions")}

    official = {"train": vocab.TRAIN_SEQUENCES, "val": vocab.VAL_SEQUENCES}
    if domain == 17:
        splits = {"test": count(by_sequence)}
    else:
        splits = {split: count(f"seq_{number}" for number in numbers) for split, numbers in official.items()}
    return {**count(by_sequence), "splits": splits, "sequences": by_sequence}
