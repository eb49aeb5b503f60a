"""Writing the report: ``write_report`` and what the template is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from surgery_r1 import vocab
from surgery_r1._util.files import atomic_write
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.compare import compare_lines
from surgery_r1.evaluate.plain_table import PlainTable
from surgery_r1.evaluate.tables import (
    AGREEMENT_COLUMNS,
    COLUMNS,
    FEW_BLOCKS,
    LESS_IS_BETTER,
    floors,
)
from surgery_r1.report.curves import curves_svg
from surgery_r1.report.gallery import Gallery, gallery
from surgery_r1.report.inputs import Group, Run, Scored, read_inputs
from surgery_r1.report.pictures import Pictures, thumbnails
from surgery_r1.report.template import rendered

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset

_SCRIPTS = ("dom.js", "cards.js", "page.js")

#: Metrics whose paired differences are listed.
_COMPARED = {
    "acc": "Acc",
    "miou": "true mIoU",
    "joint": "joint",
    "joint_at_iou50": "joint@.5",
    "wrong_referent_broad": "wrong referent",
    "rationale_right": "rationale right",
}

#: Metrics of the parts of a split.
_PARTS = {"acc": "Acc", "miou": "mIoU", "joint_at_iou50": "joint@.5"}

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
    tables: Sequence[PlainTable] = (),
    links: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One static HTML file that needs no network: tables, curves, and every question with its boxes.

    Args:
        sources: run folders (``metrics.jsonl``), score folders (``scores.jsonl`` and ``metrics.json``), or folders
            that hold some.
        dataset: where the frames are; without it boxes are drawn on an empty ground.
        frames: False leaves every picture of a frame out.
        max_items: largest number of frames with a picture; None for as many as some 9 MB hold.
        tables: shown before all else.
        links: title -> relative path of other reports.

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
        pictures=pictures,
        questions_left_out=shown.left_out,
        frames=frames,
        has_dataset=dataset is not None,
        tables=tables,
        links=links or {},
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
    return rendered(
        "page.html.jinja",
        ("page.css",),
        _SCRIPTS,
        **context,
        headline=COLUMNS,
        agreement=AGREEMENT_COLUMNS,
        compared=_COMPARED,
        less_is_better=LESS_IS_BETTER,
        few_blocks=FEW_BLOCKS,
    )


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
    found = floors([(scored.name, scored.metrics) for scored in group.scored])
    floor = found[0][1] if found else None
    rows = [{"name": name, "metrics": metrics, "floor": True} for name, metrics in found]
    rows += [{"name": scored.name, "metrics": scored.metrics, "floor": False} for scored in group.scored]
    return {
        "title": group.title,
        "n": first["n"],
        "frames": len({line.frame_id for line in group.scored[0].lines}),
        "sequences": len(first["by_sequence"]),
        "intervals": first.get("intervals", {}),
        "floor": floor,
        "rows": rows,
        "models": [scored.name for scored in group.scored],
        "differences": _differences(group.scored),
        "parts": [
            _part("Question kind", "by_kind", _PARTS, group.scored, floor),
            _part("Sequence", "by_sequence", _PARTS, group.scored),
            _part("True answer", "by_answer", {**_PARTS, "f1": "F1"}, group.scored),
        ],
        "confusions": group.scored[-1].metrics.get("confusions", []),
        "provenance": [_provenance(scored) for scored in group.scored],
    }


def _differences(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    result = []
    for j, later in enumerate(scored):
        earlier = scored[:j] if len(scored) <= _ALL_PAIRS else scored[max(j - 1, 0) : j]
        for other in earlier:
            if {line.id for line in later.lines} != {line.id for line in other.lines}:
                continue
            cells = [compare_lines(later.lines, other.lines, metric) for metric in _COMPARED]
            result.append({"name": f"{later.name} − {other.name}", "cells": cells})
    return result


def _part(
    title: str, key: str, columns: dict[str, str], scored: Sequence[Scored], floor: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A table of parts: rows are the parts, and for each system the metrics that ``columns`` name, with headings."""
    rows = []
    for name in dict.fromkeys(name for item in scored for name in item.metrics[key]):
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
