"""Writing the report: ``write_report`` and what the template is given."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from surgery_r1 import __version__, vocab
from surgery_r1._util.files import atomic_write
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.compare import compare_lines
from surgery_r1.evaluate.tables import COLUMNS, FEW_BLOCKS, FLOOR, excludes_zero, format_interval, number, signed
from surgery_r1.report.curves import curves_svg
from surgery_r1.report.gallery import Gallery, gallery
from surgery_r1.report.inputs import Group, Run, Scored, read_inputs
from surgery_r1.report.pictures import Pictures, thumbnails

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset

_HERE = Path(__file__).parent

#: Metrics whose paired differences are listed.
_COMPARED = {"acc": "Acc", "miou": "true mIoU", "joint": "joint", "joint_at_iou50": "joint@.5"}

#: With more systems than this, each is compared with the one before it only.
_ALL_PAIRS = 5

_CARDS_WITHOUT_SCRIPT = 12


def write_report(
    sources: Sequence[Path],
    out: Path,
    *,
    dataset: Dataset | None = None,
    frames: bool = True,
    max_items: int | None = None,
) -> dict[str, Any]:
    """One static HTML file that needs no network: tables, curves, and every question with its boxes.

    Args:
        sources: run folders (``metrics.jsonl``), score folders (``scores.jsonl`` and ``metrics.json``), or folders
            that hold some.
        dataset: where the frames are; without it boxes are drawn on an empty ground.
        frames: False leaves every picture of a frame out.
        max_items: largest number of frames with a picture; None for as many as some 9 MB hold.

    Returns:
        ``{"path", "bytes", "questions", "questions_left_out", "pictures", "pictures_left_out"}``.

    Raises:
        SurgeryR1Error: when a source holds nothing to report, or none was scored on ``dataset``.
    """
    groups, runs = read_inputs(sources)
    shown = gallery(groups)
    pictures = _pictures(groups, shown, dataset, max_items) if frames and dataset is not None else Pictures()
    curves = [(run, svgs) for i, run in enumerate(runs) if (svgs := curves_svg(run, f"curves{i}"))]
    html = _render(
        groups=[_group(group) for group in groups],
        curves=[{"title": _run_title(run), "svgs": [Markup(svg) for svg in svgs]} for run, svgs in curves],
        gallery={
            "models": [[scored.name for scored in group.scored] for group in groups],
            "groups": [group.title for group in groups],
            "kinds": [k for k in vocab.KINDS if any(item["kind"] == k for item in shown.items)],
            "pictures": {frame: f"f{i}" for i, frame in enumerate(pictures.uris)},
            "items": shown.items,
        },
        first_cards=[item for item in shown.items if item["group"] == 0][:_CARDS_WITHOUT_SCRIPT],
        uris=list(pictures.uris.values()),
        notes=_notes(shown, pictures, dataset, frames),
    )
    with atomic_write(out) as handle:
        handle.write(html)
    return {
        "path": str(out),
        "bytes": out.stat().st_size,
        "questions": len(shown.items),
        "questions_left_out": shown.left_out,
        "pictures": len(pictures.uris),
        "pictures_left_out": pictures.left_out + pictures.unreadable,
    }


def _render(**context: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Model text, labels and folder names are untrusted: escaped here, and only our own script may run at all.
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"number": number, "signed": signed}
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html.jinja").render(
        **context,
        version=__version__,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _pictures(groups: Sequence[Group], shown: Gallery, dataset: Dataset, most: int | None) -> Pictures:
    """Frames of failures first; of the groups that were scored on this dataset."""
    ours = {i for i, group in enumerate(groups) if group.dataset_hash == dataset.hash}
    if groups and not ours:
        raise SurgeryR1Error(
            f"nothing here was scored on this dataset ({dataset.hash[:12]})",
            where=str(dataset.root),
            fix="name the dataset that was scored with --data, or leave it out",
        )
    items = [item for item in shown.items if item["group"] in ours]
    failed = [item for item in items if any(one and one["outcome"] != "coherent" for one in item["by"])]
    ids = dict.fromkeys(item["frame"] for item in [*failed, *items])
    return thumbnails([(f, dataset.image_path(dataset.frames[f])) for f in ids if f in dataset.frames], most)


def _group(group: Group) -> dict[str, Any]:
    first = group.scored[0].metrics
    floor = next((s.metrics["no_image_floor"] for s in group.scored if _has_floor(s)), None)
    rows = [] if floor is None else [_row(FLOOR, floor, floor=True)]
    rows += [_row(scored.name, scored.metrics) for scored in group.scored]
    return {
        "title": group.title,
        "n": first["n"],
        "frames": len({line.frame_id for line in group.scored[0].lines}),
        "sequences": len(first["by_sequence"]),
        "intervals": first.get("intervals", {}),
        "few_blocks": first.get("intervals", {}).get("blocks", FEW_BLOCKS) < FEW_BLOCKS,
        "columns": list(COLUMNS),
        "rows": rows,
        "models": [scored.name for scored in group.scored],
        "differences": _differences(group.scored),
        "parts": [
            _part("Question kind", "by_kind", group.scored, floor),
            _part("Sequence", "by_sequence", group.scored, None),
            _part("True answer", "by_answer", group.scored, None, "f1", "F1"),
        ],
        "confusions": group.scored[-1].metrics.get("confusions", []),
        "provenance": [_provenance(scored) for scored in group.scored],
    }


def _has_floor(scored: Scored) -> bool:
    return scored.metrics.get("no_image_floor", {}).get("acc") is not None


def _row(name: str, metrics: dict[str, Any], floor: bool = False) -> dict[str, Any]:
    ci95 = metrics.get("ci95", {})
    return {
        "name": name,
        "floor": floor,
        "n": metrics["n"],
        "unparsed": metrics.get("parse_failure_rate"),
        "wrong_referent": metrics.get("wrong_referent_broad"),
        "cells": [
            {"value": metrics.get(key), "ci95": ci95.get(key), "spread": format_interval(ci95.get(key))}
            for key in COLUMNS.values()
        ],
    }


def _differences(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    result = []
    for j, later in enumerate(scored):
        earlier = scored[:j] if len(scored) <= _ALL_PAIRS else scored[max(j - 1, 0) : j]
        for other in earlier:
            if {line.id for line in later.lines} != {line.id for line in other.lines}:
                continue
            cells = [_difference(later, other, metric) for metric in _COMPARED]
            result.append({"name": f"{later.name} − {other.name}", "cells": cells})
    return result


def _difference(later: Scored, other: Scored, metric: str) -> dict[str, Any]:
    difference = compare_lines(later.lines, other.lines, metric)
    return {
        **difference.to_json(),
        "spread": format_interval(difference.ci95, sign=True),
        "excludes_zero": excludes_zero(difference.ci95),
    }


def _part(
    title: str,
    key: str,
    scored: Sequence[Scored],
    floor: dict[str, Any] | None,
    extra: str | None = None,
    extra_title: str = "",
) -> dict[str, Any]:
    """A table of parts: rows are the parts, and for each system Acc, true mIoU, joint@.5 and perhaps one more."""
    names = list(dict.fromkeys(name for item in scored for name in item.metrics[key]))
    columns = {"acc": "Acc", "miou": "mIoU", "joint_at_iou50": "joint@.5"} | ({extra: extra_title} if extra else {})
    rows = []
    for name in names:
        parts = [item.metrics[key].get(name, {}) for item in scored]
        guess = None if floor is None else floor.get("by_kind", {}).get(name, {}).get("acc")
        n = next(part["n"] for part in parts if part)
        rows.append({"name": name, "n": n, "floor": guess, "cells": [[part.get(c) for c in columns] for part in parts]})
    return {"title": title, "columns": list(columns.values()), "has_floor": floor is not None, "rows": rows}


def _provenance(scored: Scored) -> dict[str, Any]:
    metrics = scored.metrics
    shown = {
        "model": metrics.get("model"),
        "predictions": (metrics.get("predictions") or {}).get("sha256", "")[:12],
        "dataset": str(metrics.get("dataset_hash"))[:12],
        "boxes read as": metrics.get("box_space"),
        **{k: str(v)[:12] if k.endswith("sha256") else v for k, v in (metrics.get("predicted_with") or {}).items()},
        "missing": metrics.get("missing"),
        "scored with": ", ".join(f"{k} {v}" for k, v in (metrics.get("versions") or {}).items()),
    }
    shown.pop("dataset_hash", None)
    return {"name": scored.name, "facts": {k: v for k, v in shown.items() if v not in (None, "")}}


def _run_title(run: Run) -> str:
    stage = (run.stage or run.name).upper()
    return stage if run.name.upper() == stage else f"{stage} · {run.name}"


def _notes(shown: Gallery, pictures: Pictures, dataset: Dataset | None, frames: bool) -> list[str]:
    notes = []
    if not frames:
        notes.append("Pictures of frames were left out on request; boxes stand on an empty ground.")
    elif dataset is None:
        notes.append("No dataset was named, so boxes stand on an empty ground; add --data DATASET to see the frames.")
    else:
        notes.append(f"{len(pictures.uris)} frames, each stored once at {pictures.width} px, reduced for this page.")
    if pictures.left_out:
        notes.append(f"{pictures.left_out} frames have no picture for want of room: frames with failures came first.")
    if pictures.unreadable:
        notes.append(f"{pictures.unreadable} frames could not be read.")
    if shown.left_out:
        notes.append(f"{shown.left_out} questions were left out for want of room: those that went wrong came first.")
    return notes
