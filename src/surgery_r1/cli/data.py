"""``surgery-r1 data``: check label folders, build datasets, draw scenes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from surgery_r1._util.files import dump_json
from surgery_r1._util.progress import ProgressBar
from surgery_r1.cli.output import format_table, rule_lines, say, say_issues, splits_table, stats_table
from surgery_r1.cli.overrides import Overrides, in_order
from surgery_r1.cli.teacher_progress import teacher_progress
from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    from surgery_r1.data.rationales.teacher.writer import TeacherWriter
    from surgery_r1.data.recipe import Recipe


@dataclass
class Check:
    """Read a label folder; print every error as path:line. A sound one ends in a page to read before training.

    The page has counts by split, kind, class and sequence, the rare tail, overlaps of boxes, the measured top/bottom
    rule and the no-image floor. Every image is decoded.

    Given a dataset, compare its records, images and label files with what they were when it was built.
    """

    folder: tyro.conf.Positional[Path]
    """Folder with label files, in any layout of EndoVis-18-VQLA or EndoVis-17-VQLA; or a dataset."""
    images: Path | None = None
    """Folder with the images, where they lie apart from the labels."""
    json: bool = False
    """Print one JSON object instead of tables."""
    adapter: str | None = None
    """How another set is read: a shipped adapter by name, or a TOML file. Without it, adapter.toml in the folder or
    beside it is used, where there is one."""
    sheet: Path | None = None
    """Write a picture of frames with their boxes drawn."""

    def run(self) -> int:
        """Exit status: 1 when there are errors."""
        from surgery_r1.cli.check_page import page_facts, page_text
        from surgery_r1.data.check import check_report
        from surgery_r1.data.formats.opening import source_opener
        from surgery_r1.data.formats.source import read_all

        files = ("manifest.json", "samples.jsonl")
        if self.adapter is None and all((self.folder / name).is_file() for name in files):
            return self._check_dataset()
        content = read_all(source_opener(self.adapter)(self.folder, self.images))
        report = check_report(content)
        facts = page_facts(content, report) if content.samples else {}
        if self.json:
            say(dump_json(report.to_json() | facts, indent=2))
        elif report.errors:
            say(splits_table(report.splits, report.frames, report.questions))
            say(rule_lines(report.location_rule))
            say_issues("warning", report.warnings)
            say_issues("error", report.errors)
        else:
            say_issues("warning", report.warnings)
            say("No errors.\n")
            say(page_text(report, facts))
        if self.sheet is not None:
            from surgery_r1.data.contact_sheet import write_sheet

            count = write_sheet(content, self.sheet)
            if not self.json:
                say(f"{count} frames drawn: {self.sheet}")
        return 1 if report.errors else 0

    def _check_dataset(self) -> int:
        from surgery_r1.data.dataset import changes, label_changes, open_dataset
        from surgery_r1.data.formats.validation import ValidationIssue

        if self.sheet is not None:
            raise SurgeryR1Error("--sheet draws label folders", fix="name the folder that the dataset was built from")
        dataset = open_dataset(self.folder, images=self.images)
        found, warnings = list(changes(dataset)), []
        try:
            found += label_changes(dataset)
        except SurgeryR1Error as error:
            warnings.append(ValidationIssue(str(error.where), None, "labels not compared", error.what, str(error.fix)))
        if self.json:
            counts = {"frames": len(dataset.frames), "questions": len(dataset.samples)}
            listed = {"faults": [x.to_json() for x in found], "notices": [x.to_json() for x in warnings]}
            say(dump_json(counts | listed, indent=2))
        else:
            say(f"{len(dataset.frames):,} frames, {len(dataset.samples):,} questions")
            say_issues("warning", warnings)
            say_issues("error", found)
            if not found:
                say("Nothing that was compared has changed since it was built.")
        return 1 if found else 0


@dataclass
class Build:
    """Build a dataset (samples, frames, training rows, manifest, card) from label folders."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Label folders; several are joined."""
    out: Path
    """The dataset folder to write."""
    images: Path | None = None
    """Folder with the images, where they lie apart from the labels."""
    adapter: str | None = None
    """How another set is read: a shipped adapter by name (endovis18, endovis17, endovis18_extended), or a TOML file.
    Without it, adapter.toml in a folder or beside it is used, where there is one."""
    config: str | None = None
    """The recipe: a shipped one by name (surgery_r1_54k), or a TOML file; by default one row of each kind."""
    set: Overrides = ()
    """Change values of the recipe, written as in TOML: --set rows.cot=2 teacher.model=NAME."""
    seed: int | None = None
    """Seed of the reasoning writer, in place of the recipe's own."""
    on_fault: Literal["stop", "skip"] = "stop"
    """At faulty labels: stop, or leave the faulty questions out and count them."""
    embed_images: bool = False
    """Copy the images into the dataset instead of referring to them."""
    overwrite: bool = False
    """Replace a dataset that is already there."""
    allow_remote_frames: bool = False
    """Let frames and annotations go to a teacher that is not on this machine."""
    replies: Path | None = None
    """File that keeps what a teacher answers, so that it is never asked twice; DATASET.replies.jsonl by default."""
    stats: bool = False
    """Print what became of the reasoning, by writer and by reason."""
    json: bool = False
    """Print the manifest instead of tables."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        from surgery_r1.data.assemble import build_dataset
        from surgery_r1.data.formats.opening import source_opener
        from surgery_r1.data.recipe import TEACHER, load_recipe

        recipe = load_recipe(self.config, in_order(self.set))
        with contextlib.ExitStack() as stack:
            teacher = stack.enter_context(self._teacher(recipe)) if recipe.asks_teacher else None
            progress = stack.enter_context(teacher_progress(teacher)) if teacher else None
            manifest = build_dataset(
                self.folders,
                self.out,
                images=self.images,
                recipe=recipe,
                seed=self.seed,
                on_fault=self.on_fault,
                embed_images=self.embed_images,
                overwrite=self.overwrite,
                writers={TEACHER: teacher} if teacher else None,
                progress=progress,
                open_source=source_opener(self.adapter),
            )
        if self.json:
            say(dump_json(manifest, indent=2))
            return 0
        samples, frames, rows = manifest["samples"], manifest["frames"], manifest["rows"]
        table: list[Sequence[Any]] = [("split", "frames", "questions")]
        table += [(name, frames[name], samples[name]) for name in samples if name != "total"]
        table.append(("total", frames["total"], samples["total"]))
        say(format_table(table))
        parts = ", ".join(f"{count:,} {task}" for task, count in rows.items() if task != "total")
        say(f"{rows['total']:,} training rows: {parts}")
        for reason, count in manifest["skipped"].items():
            say(f"left out: {count:,} questions, {reason}")
        for writer, counts in manifest["reasoning"].items():
            if counts["dropped"]:
                what = f"{counts['dropped']:,} of {counts['asked']:,} rationales failed their checks and were dropped"
                say(f"{writer}: {what} (--stats shows why)")
        if manifest["images_in_two_splits"]:
            say(f"warning: {manifest['images_in_two_splits']:,} images occur in more than one split")
        say(rule_lines(manifest["location_rule"]))
        if self.stats:
            say(stats_table(manifest["reasoning"]))
        say(f"dataset: {self.out}")
        return 0

    def _teacher(self, recipe: Recipe) -> AbstractContextManager[TeacherWriter]:
        from surgery_r1.data.rationales.teacher.writer import open_teacher

        out = self.out.resolve()
        replies = self.replies or out.with_name(out.name + ".replies.jsonl")
        if replies.resolve().is_relative_to(out):
            raise SurgeryR1Error("--replies lies in the dataset that is written", fix="keep it beside the dataset")
        key = os.environ.get("SURGERY_R1_TEACHER_KEY", "")
        return open_teacher(recipe, replies, key=key, allow_remote=self.allow_remote_frames)


@dataclass
class MakeScenes:
    """Draw laparoscopic scenes and write them as an EndoVis-VQLA folder."""

    out: tyro.conf.Positional[Path]
    """The folder to write."""
    domain: Literal[18, 17] = 18
    """18: train and val sequences. 17: the cross-set, with another palette and camera."""
    seed: int = 0
    """Same seed, same bytes."""
    size: str = "320x256"
    """Width x height in pixels, from 160x128 to 1280x1024."""
    frames: int | None = None
    """That many frames in all, spread over the official sequences; the full set by default."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes that draw; one for each core by default."""
    json: bool = False
    """Print what was made as JSON."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        from surgery_r1.synthetic import make_scenes

        with ProgressBar("drawing", "frames") as progress:
            made = make_scenes(
                self.out,
                domain=self.domain,
                seed=self.seed,
                size=parse_size(self.size),
                frames=self.frames,
                workers=self.workers,
                progress=progress,
            )
        if self.json:
            say(dump_json(made, indent=2))
        else:
            say(f"scenes: {self.out}")
            say(dump_json(made, indent=2))
        return 0


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of ``320x256``.

    >>> parse_size("320x256")
    (320, 256)

    Raises:
        SurgeryR1Error: when it is not two whole numbers.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise SurgeryR1Error(f"size {text!r}", fix="write width x height in pixels, such as --size 320x256")
    return int(width), int(height)
