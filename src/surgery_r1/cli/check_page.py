"""The page that ``data check`` of a sound folder ends with: what one wants to know of a set before training on it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from surgery_r1 import vocab
from surgery_r1.cli.output import format_table, rule_lines, splits_table

if TYPE_CHECKING:
    from surgery_r1.data.check import CheckReport
    from surgery_r1.data.formats.source import FolderContent

_WIDTH = 110
#: Classes of a source that the page lists; --json has all.
_CLASSES_SHOWN = 30
_METRICS = ("acc", "f_score", "miou")


def page_facts(content: FolderContent, report: CheckReport) -> dict[str, Any]:
    """What the page shows beside the report itself, ready for JSON."""
    from surgery_r1.data.statistics import statistics

    facts = statistics(content)
    return facts | {"blocks": _blocks(facts["sequences"]), "no_image_floor": _floors(content, report)}


def page_text(report: CheckReport, facts: Mapping[str, Any]) -> str:
    """The page as plain text."""
    parts = [
        splits_table(report.splits, report.frames, report.questions),
        *(_classes(source, kinds) for source, kinds in facts["classes"].items()),
        "\n".join([*_tail(facts), *_sequences(facts["sequences"])]),
        "\n".join([*_boxes(facts, report), *_floor_lines(facts)]),
    ]
    return "\n\n".join(parts)


def _blocks(sequences: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Split -> blocks of neighbouring frames that intervals are computed from, and the frames they really hold."""
    from surgery_r1.evaluate.intervals import FRAMES_PER_BLOCK

    held: dict[str, list[int]] = {}
    for counts in (counts for named in sequences.values() for counts in named.values()):
        whole, rest = divmod(counts["frames"], FRAMES_PER_BLOCK)
        held.setdefault(counts["split"], []).extend([FRAMES_PER_BLOCK] * whole + [rest] * bool(rest))
    found = {
        split: {
            "frames_per_block": FRAMES_PER_BLOCK,
            "blocks": len(frames),
            "shorter": sum(count < FRAMES_PER_BLOCK for count in frames),
            "smallest": min(frames),
        }
        for split, frames in held.items()
    }
    return {split: found[split] for split in vocab.SPLITS if split in found}


def _floors(content: FolderContent, report: CheckReport) -> dict[str, dict[str, Any]]:
    """Split -> training splits of the floor -> its metrics, as ``score`` has them."""
    from surgery_r1.data.dataset import Dataset
    from surgery_r1.evaluate.metrics import summarise
    from surgery_r1.evaluate.score import Scorer

    answers = {source: {"answers": kinds} for source, kinds in content.classes.items()}
    manifest = {"sources": answers, "location_rule": report.location_rule}
    samples = {sample.id: sample for sample in content.samples}
    scorer = Scorer(Dataset(content.image_root, content.image_root, manifest, samples, content.frames))
    of = {split: [sample for sample in content.samples if sample.split == split] for split in vocab.SPLITS}
    found: dict[str, dict[str, Any]] = {}
    for split in ("val", "test"):
        for name, training in (("train+dev", of["train"] + of["dev"]), ("train", of["train"])):
            lines = scorer.floor_lines(training, of[split]) if of[split] else None
            if lines:
                metrics = summarise(lines)
                kept = {"n": len(lines), "training_questions": len(training)}
                found.setdefault(split, {})[name] = kept | {metric: metrics.get(metric) for metric in _METRICS}
    return found


def _classes(source: str, kinds: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Questions by class and split, with the share of each in its split."""
    splits = [s for s in vocab.SPLITS if any(counts[s] for names in kinds.values() for counts in names.values())]
    totals = {s: sum(counts[s] for names in kinds.values() for counts in names.values()) for s in splits}
    rows = [(kind, name, counts) for kind, names in kinds.items() for name, counts in names.items()]
    if len(rows) > _CLASSES_SHOWN:
        rows = sorted(rows, key=lambda row: -sum(row[2].values()))[:_CLASSES_SHOWN]
    table: list[Sequence[Any]] = [(source, "class", *(cell for s in splits for cell in (s, "%")))]
    for kind, name, counts in rows:
        shares = (cell for s in splits for cell in (counts[s], f"{100 * counts[s] / totals[s]:5.1f}"))
        table.append((kind, name, *shares))
    left = sum(len(names) for names in kinds.values()) - len(rows)
    return format_table(table) + (f"\nand {left:,} more classes (--json lists all)" if left else "")


def _tail(facts: Mapping[str, Any]) -> list[str]:
    several = len(facts["classes"]) > 1
    rare = ", ".join(f"{_name(item, several)} {item['n']:,} ({item['share']:.2%})" for item in facts["rare_classes"])
    unseen = ", ".join(
        f"{_name(item, several)} {item['held_out']:,}" + (f" (dev has {item['dev']:,})" if item["dev"] else "")
        for item in facts["unseen_classes"]
    )
    lines = _wrapped("rare, below 1 % of training questions: " + (rare or "no class"))
    return lines + _wrapped("asked in val or test, never shown by train: " + (unseen or "no class"))


def _name(item: Mapping[str, Any], several: bool) -> str:
    return f"{item['source']}/{item['class']}" if several else str(item["class"])


def _sequences(sequences: Mapping[str, Any]) -> list[str]:
    """Each split's sequences with frames and questions."""
    lines = []
    for source, named in sequences.items():
        for split in vocab.SPLITS:
            own = [(name, counts) for name, counts in named.items() if counts["split"] == split]
            if own:
                listed = ", ".join(f"{name} {c['frames']:,}/{c['questions']:,}" for name, c in own)
                lines += _wrapped(f"{source} {split}, frames/questions: {listed}")
    return lines


def _boxes(facts: Mapping[str, Any], report: CheckReport) -> list[str]:
    """Boxes, what they overlap, and what top and bottom mean."""
    with_box = facts["questions_with_box"]
    if not with_box:
        return ["boxes: none. Answers alone are scored, and no Grounding-QA rows are built"]
    lines = [] if with_box == report.questions else [f"boxes: {with_box:,} of {report.questions:,} questions have one"]
    shares = "; ".join(f"{split} {v['iou30']:.1%}, {v['iou50']:.1%}" for split, v in facts["overlaps"].items())
    lines += _wrapped(f"true box overlaps another object (IoU from .3, from .5): {shares}")
    return lines + rule_lines(report.location_rule).splitlines()


def _floor_lines(facts: Mapping[str, Any]) -> list[str]:
    """What is scored without a look at any frame, and what intervals are made of."""
    table: list[Sequence[Any]] = [("no-image floor", "fitted on", "Acc", "F", "mIoU", "n")]
    for split, floors in facts["no_image_floor"].items():
        for training, values in floors.items():
            shown = ("-" if values[m] is None else f"{values[m]:.3f}".removeprefix("0") for m in _METRICS)
            table.append((split, f"{training} ({values['training_questions']:,})", *shown, values["n"]))
    lines = format_table(table).splitlines() if len(table) > 1 else ["no-image floor: no val or test to compute it for"]
    blocks = ", ".join(
        f"{split} {b['blocks']:,}" + (f" ({b['shorter']:,} of fewer, down to {b['smallest']})" if b["shorter"] else "")
        for split, b in facts["blocks"].items()
    )
    size = next((block["frames_per_block"] for block in facts["blocks"].values()), 0)
    return lines + _wrapped(f"blocks of {size} neighbouring frames: {blocks}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="    ", break_on_hyphens=False)
