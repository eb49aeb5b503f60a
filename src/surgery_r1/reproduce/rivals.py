"""Prediction files of other systems that stand in the tables below the rows, and in no contrast."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surgery_r1._util.files import read_json, sha256_file
from surgery_r1._util.locks import held
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.reproduce.made_of import is_scored
from surgery_r1.reproduce.rows import ROWS
from surgery_r1.stages import headline

if TYPE_CHECKING:
    from surgery_r1.reproduce.seed import SeedStages

#: Folder of a reproduction in which they lie.
RIVALS = "rivals"

#: Of a rival, by split and seed.
Files = dict[tuple[str, int], Path]


def find_rivals(folder: Path, splits: Sequence[str], seeds: Sequence[int], *, drawn: bool) -> dict[str, Files]:
    """The prediction files below a folder, by the name of the system: ``NAME/seedN/SPLIT.jsonl``.

    On the user's own data a file holds for every seed: ``NAME/SPLIT.jsonl``. What ``predict`` is still writing
    (``*.partial``, hidden locks) is not there yet.

    Args:
        seeds: those of this reproduction.
        drawn: whether each has scenes of its own.

    Raises:
        SurgeryR1Error: for anything else that lies there: a misspelt file would leave a row out without a word.
    """
    found: dict[str, Files] = {}
    if not folder.is_dir():
        return {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name.startswith(".") or path.suffix == ".partial":
            continue
        name, *between = path.relative_to(folder).parent.parts or ("",)
        expected = "NAME/seedN/SPLIT.jsonl" if drawn else "NAME/SPLIT.jsonl"
        number = re.fullmatch(r"seed(\d+)", between[0]) if len(between) == 1 else None
        fits = number is not None and int(number[1]) in seeds if drawn else not between
        if not name or not fits or path.suffix != ".jsonl" or path.stem not in splits:
            known = f"N of {', '.join(map(str, seeds))}, " if drawn else ""
            raise SurgeryR1Error(
                "is no prediction file of a rival",
                where=path,
                fix=f"call it {expected} below {folder} ({known}SPLIT of {', '.join(splits)}), or move it elsewhere",
            )
        if name in ROWS:
            raise SurgeryR1Error(f"a rival is called {name!r}, as a row is", where=path, fix="rename its folder")
        for seed in seeds if number is None else (int(number[1]),):
            found.setdefault(name, {})[path.stem, seed] = path
    return found


def of_seed(rivals: Mapping[str, Files], seed: int) -> list[tuple[str, str, Path]]:
    """Name, split and prediction file of each rival that has one for a seed."""
    return [(name, split, path) for name, files in rivals.items() for (split, of), path in files.items() if of == seed]


def score_rival(stages: SeedStages, name: str, split: str, predictions: Path) -> None:
    """Score a rival's prediction file, unless that was done."""
    from surgery_r1.evaluate.score import score_predictions

    out, dataset = rival_scores(stages, name, split), stages.dataset
    inputs = {"predictions_sha256": sha256_file(predictions), "dataset_hash": dataset.hash}

    def work() -> None:
        score_predictions(predictions, dataset, split, out)

    with held(out, "scoring", wait=True):
        same = is_rival_scored(stages, name, split, predictions, dataset.hash)
        stages.stage(f"score {name} {split}", f"scoring {name} on {split}", inputs, out, same, work, same=same)
    stages.say(headline(split, read_json(out / "metrics.json")))


def rival_scores(stages: SeedStages, name: str, split: str) -> Path:
    """The score folder of a rival. On the user's data it is the same for every seed, and lies there once."""
    return stages.score_folder(name, split, shared=stages.given is not None)


def is_rival_scored(stages: SeedStages, name: str, split: str, predictions: Path, dataset_hash: str | None) -> bool:
    """Whether the scores that lie there are of this file, by this version, on this data (None: on any)."""
    out = rival_scores(stages, name, split)
    return is_scored(out, predictions) and dataset_hash in (None, read_json(out / "metrics.json")["dataset_hash"])
