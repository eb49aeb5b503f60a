"""``surgery-r1 autopsy``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from surgery_r1._util.files import dump_json, read_json, write_json
from surgery_r1._util.progress import ProgressBar
from surgery_r1.cli.output import format_table, say
from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset


@dataclass
class Autopsy:
    """Say where rationale, answer and box agree, which is right alone, and show every case."""

    predictions: tyro.conf.Positional[tuple[Path, ...]]
    """Prediction files with rationales, ours or another group's; shown side by side, in this order."""
    data: Path
    """Dataset folder that was predicted on."""
    out: Path
    """Folder to write: autopsy.json, report.html, and the scores of each file."""
    split: str = "val"
    """Split that was predicted: train, dev, val or test."""
    box_space: Literal["pixels", "norm1000", "norm100", "norm1", "source"] | None = None
    """Units of the boxes, as in score; of files that agree in them."""
    box_format: Literal["xyxy", "xywh", "cxcywh"] | None = None
    """Two corners (the default), corner and size, or centre and size."""
    box_origin: Literal[0, 1] | None = None
    """What the first pixel is called: 0 (the default) or 1."""
    images: Path | None = None
    """Where the images lie now, if they moved."""
    no_frames: bool = False
    """Leave every picture of a frame out of the report, so that it may be passed on."""
    model: str | None = None
    """Also exchange rationales in the mouth of the model that has written the (one) file: do answer and box follow?
    Begun again after a kill, it asks what is missing."""
    limit: int = 0
    """With --model: ask only that many questions, evenly spread (0: all)."""
    seed: int = 0
    """With --model: of which rationales are exchanged."""
    batch_size: int = 16
    """With --model: prompts per batch."""
    max_new_tokens: int = 256
    """With --model: upper bound of a reply, in tokens."""
    json: bool = False
    """Print autopsy.json instead of a table."""

    def run(self) -> int:
        """Exit status 0."""
        from surgery_r1.data.dataset import open_dataset
        from surgery_r1.evaluate.autopsy import autopsy, autopsy_rows, intervention_rows
        from surgery_r1.evaluate.compare import load_scores
        from surgery_r1.evaluate.score import score_predictions
        from surgery_r1.report import write_report

        names = system_names(self.predictions)
        if self.model is not None and len(names) > 1:
            raise SurgeryR1Error(
                "--model goes with one prediction file", fix="name the file that this model has written"
            )
        dataset = open_dataset(self.data, images=self.images, check_images=not self.no_frames)
        found, folders = {}, [self.out / "scores" / name for name in names]
        for name, folder, path in zip(names, folders, self.predictions, strict=True):
            score_predictions(
                path,
                dataset,
                self.split,
                folder,
                box_space=self.box_space,
                box_format=self.box_format,
                box_origin=self.box_origin,
            )
            try:
                found[name] = autopsy(load_scores(folder))
            except SurgeryR1Error as error:
                raise SurgeryR1Error(error.what, where=path, fix=error.fix) from None
        if self.model is not None:
            found[names[0]]["interventions"] = self._interventions(self.model, dataset, folders[0])
        write_json(self.out / "autopsy.json", {"split": self.split, "dataset_hash": dataset.hash, "systems": found})
        write_report(folders, self.out / "report.html", dataset=dataset, frames=not self.no_frames)
        if self.json:
            say(dump_json(found, indent=2))
        else:
            say(format_table(autopsy_rows(found)))
            if self.model is not None:
                say("\nAnother rationale in its mouth:")
                say(format_table(intervention_rows(found[names[0]]["interventions"])))
            say(f"{self.out / 'autopsy.json'}: also by question kind and by tool")
            say(f"{self.out / 'report.html'}: every case")
        return 0

    def _interventions(self, model: str, dataset: Dataset, scores: Path) -> dict[str, Any]:
        from surgery_r1.evaluate.compare import load_scores
        from surgery_r1.evaluate.generation import GenerationOptions
        from surgery_r1.evaluate.interventions import intervene

        metrics = read_json(scores / "metrics.json")
        with ProgressBar("exchanging rationales", "replies") as progress:
            return intervene(
                model,
                dataset,
                load_scores(scores),
                GenerationOptions(self.batch_size, self.max_new_tokens),
                self.out / "interventions",
                weights_sha256=metrics["predicted_with"].get("weights_sha256"),
                predictions_sha256=metrics["predictions"]["sha256"],
                limit=self.limit,
                seed=self.seed,
                progress=progress,
            )


def system_names(paths: tuple[Path, ...]) -> list[str]:
    """What each prediction file is called: its own name, or its folder's where files share one.

    >>> system_names((Path("runs/rft.jsonl"),)), system_names((Path("sft/predictions.jsonl"),))
    (['rft'], ['sft'])

    Raises:
        SurgeryR1Error: for no file, or two of one name.
    """
    if not paths:
        raise SurgeryR1Error("no prediction file", fix="name one, such as demo/scores/rft/val/predictions.jsonl")
    names = [path.stem if path.stem != "predictions" else _folder_name(path) for path in paths]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SurgeryR1Error(f"several prediction files are called {twice[0]!r}", fix="rename one, or its folder")
    return names


def _folder_name(path: Path) -> str:
    """Of the nearest folder that says more than the split."""
    from surgery_r1 import vocab

    parents = [part for part in path.absolute().parent.parts if part not in vocab.SPLITS]
    return parents[-1]
