"""The rollout viewer: one static HTML file of the groups that RFT has recorded. It computes nothing, it shows."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1._util.files import atomic_write, dump_json, read_json
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.report.curves import panels
from surgery_r1.report.inputs import Run, read_runs
from surgery_r1.report.pictures import BUDGET, SIZES, Pictures, thumbnails
from surgery_r1.report.template import rendered
from surgery_r1.train.rollouts.files import read_rollouts, rollout_files
from surgery_r1.train.rollouts.record import MARKS

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset

#: Bytes that the page may take, and that the packed groups may take of them: beyond, steps are left out evenly.
MOST_BYTES, _MOST_GROUPS = 14_500_000, 9_000_000

#: One frame is looked at a time, and larger than in the gallery, where there is room.
_LARGER = ((640, 75), (480, 70), *SIZES)

_SCRIPTS = (
    "dom.js",
    "rollouts_data.js",
    "rollouts_curves.js",
    "rollouts_replies.js",
    "rollouts_frame.js",
    "rollouts.js",
)


@dataclass(slots=True)
class _Packed:
    """Groups as the page holds them.

    Attributes:
        index: a line a group, of what lists and filters need: see :func:`_line`.
        chunks: base64 of the gzipped JSON of each step's groups.
        steps: of the chunks.
        frames: frame id -> the lowest mean reward of its groups.
        left_out: steps for which there was no room.
    """

    index: list[list[Any]] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    frames: dict[str, float] = field(default_factory=dict)
    left_out: int = 0


def write_rollout_page(
    sources: Sequence[Path],
    out: Path,
    *,
    dataset: Dataset | None = None,
    frames: bool = True,
    max_items: int | None = None,
) -> dict[str, Any]:
    """One static HTML file that needs no network: every recorded group with its frame, boxes, replies and rewards.

    Args:
        sources: run folders of RFT, or folders that hold some; exactly one with recorded groups.
        dataset: where the frames are; without it boxes are drawn on an empty ground.
        frames: False leaves every picture of a frame out.
        max_items: largest number of frames with a picture; None for as many as there is room for.

    Returns:
        ``{"path", "bytes", "steps", "steps_left_out", "groups", "replies", "pictures", "pictures_left_out"}``.

    Raises:
        SurgeryR1Error: when no source, or more than one, holds recorded groups, or the dataset is not the run's.
    """
    run, files = _run_of(sources)
    packed = _pack(files)
    pictures = _pictures(run, packed, dataset, max_items) if frames and dataset is not None else Pictures()
    curves = panels(run.records)
    page = rendered(
        "rollouts.html.jinja",
        ("page.css", "rollouts.css"),
        _SCRIPTS,
        name=run.name,
        data={
            "parts": _parts(files),
            "marks": [*MARKS.items()],
            "steps": packed.steps,
            "groups": packed.index,
            "curves": {**curves.get("reward", {}), **curves.get("reward parts", {})},
            "pictures": {frame: f"f{i}" for i, frame in enumerate(pictures.uris)},
        },
        chunks=packed.chunks,
        pictures=pictures,
        steps_left_out=packed.left_out,
        frames=frames,
        has_dataset=dataset is not None,
        counts={"groups": len(packed.index), "replies": sum(line[-1] for line in packed.index)},
    )
    with atomic_write(out) as handle:
        handle.write(page)
    return {
        "path": str(out),
        "bytes": out.stat().st_size,
        "steps": len(packed.steps),
        "steps_left_out": packed.left_out,
        "groups": len(packed.index),
        "replies": sum(line[-1] for line in packed.index),
        "pictures": len(pictures.uris),
        "pictures_left_out": pictures.left_out + pictures.unreadable,
    }


def _run_of(sources: Sequence[Path]) -> tuple[Run, dict[int, Path]]:
    """The one run among the sources that has recorded groups, and its files."""
    found = {run.path: run for run in read_runs(sources) if run.stage in ("rft", None) and rollout_files(run.path)}
    if len(found) != 1:
        names = ", ".join(map(str, found))
        what = f"{len(found)} runs with recorded groups: {names}" if found else "no run with recorded groups"
        where = ", ".join(map(str, sources))
        fix = "name one of them" if found else "train rft with rft.rollouts_every above 0, and name its run folder"
        raise SurgeryR1Error(what, where=where, fix=fix)
    run = next(iter(found.values()))
    return run, rollout_files(run.path)


def _pictures(run: Run, packed: _Packed, dataset: Dataset, most: int | None) -> Pictures:
    """Frames of the worst groups first, in the room that the groups leave."""
    _refuse_another(run, dataset)
    worst_first = sorted(packed.frames, key=lambda frame: packed.frames[frame])
    there = [(f, dataset.image_path(dataset.frames[f])) for f in worst_first if f in dataset.frames]
    room = MOST_BYTES - sum(map(len, packed.chunks))
    return thumbnails(there, most, min(BUDGET, room), _LARGER)


def _refuse_another(run: Run, dataset: Dataset) -> None:
    path = run.path / "run.json"
    trained_on = read_json(path).get("dataset_sha256") if path.is_file() else dataset.hash
    if trained_on != dataset.hash:
        raise SurgeryR1Error(
            f"{run.name} was not trained on this dataset ({dataset.hash[:12]})",
            where=str(dataset.root),
            fix="name the dataset of the run with --data, or leave it out",
        )


def _parts(files: dict[int, Path]) -> list[str]:
    """Names of the reward parts, in the order of the config."""
    return list(dict.fromkeys(name for reply in _first(files)["replies"] for name in reply["rewards"]))


def _first(files: dict[int, Path]) -> dict[str, Any]:
    return read_rollouts(next(iter(files.values())))[0]


def _pack(files: dict[int, Path]) -> _Packed:
    """All steps, or so many of them, evenly, as there is room for."""
    every = {step: read_rollouts(path) for step, path in files.items()}
    chunks = {step: _chunk(groups) for step, groups in every.items()}
    stride = max(1, -(-sum(map(len, chunks.values())) // _MOST_GROUPS))
    packed = _Packed(left_out=len(every) - len(range(0, len(every), stride)))
    for step in [*every][::stride]:
        packed.steps.append(step)
        packed.chunks.append(chunks[step])
        for number, group in enumerate(every[step]):
            packed.index.append(_line(len(packed.steps) - 1, number, group))
            lowest = packed.frames.get(group["frame"], 1.0)
            packed.frames[group["frame"]] = min(lowest, group["rewards_span"][1])
    return packed


def _line(step: int, number: int, group: dict[str, Any]) -> list[Any]:
    """Place among the steps, place in the step, question, kind, lowest, mean and highest reward, whether all rewards
    are equal, replies with each mark, replies."""
    marked = [sum(mark in reply["marks"] for reply in group["replies"]) for mark in MARKS]
    asked = [group["question"], group["kind"]]
    return [step, number, *asked, *group["rewards_span"], int(group["all_equal"]), marked, len(group["replies"])]


def _chunk(groups: Iterable[dict[str, Any]]) -> str:
    # The largest part by far: packed it is a sixth of its size, and unpacked when its step is looked at.
    text = dump_json([*groups])
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), mtime=0)).decode("ascii")
