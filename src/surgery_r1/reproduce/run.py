"""The whole reproduction: register, run every seed, judge, write tables and reports."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surgery_r1._util.files import atomic_write, sha256_file, write_json
from surgery_r1._util.locks import held
from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.reproduce.contrast import Contrast, check_contrast, read_contrast
from surgery_r1.reproduce.judge import judge
from surgery_r1.reproduce.pool import Pool
from surgery_r1.reproduce.registration import (
    Registration,
    contrast_to_register,
    read_registration,
    register,
    registered_seeds,
)
from surgery_r1.reproduce.rivals import RIVALS, Files, find_rivals, is_rival_scored, of_seed, rival_scores, score_rival
from surgery_r1.reproduce.rows import COHERENCE, ROWS, Row, check_config, rows_named
from surgery_r1.reproduce.seed import SeedStages
from surgery_r1.reproduce.tables import MEASURES, result_tables
from surgery_r1.stages import SPLITS, Say
from surgery_r1.synthetic.write import GENERATOR_VERSION
from surgery_r1.train.config import TrainConfig


@dataclass
class Reproduction:
    """Every row of the paper's table in the folder ``out``. What is finished and made of the same is not run again.

    Args:
        out: folder for the registered contrast, the stages of each seed, tables and reports. Prediction files of other
            systems in its folder ``rivals`` become rows too, see :func:`surgery_r1.reproduce.rivals.find_rivals`.
        config: what to train; its seed is replaced by each of ``seeds``.
        data: the user's dataset, on which the seeds are those of training; None draws scenes of each seed.
        seeds: none takes those that the folder was begun with, else the config's.
        only: seeds that this call runs, of those that the folder is begun with; none takes all. Calls with different
            ones may run side by side: each shows what is finished when it ends.
        rows: names of :data:`surgery_r1.reproduce.rows.ROWS` that this call runs; none takes all.
        contrast: a contrast file in place of the shipped one.
        size, frames: of drawn scenes, see :func:`surgery_r1.stages.draw_scenes`.
        pictures: False leaves every picture of a frame out of the reports.
        say: where progress lines go.
    """

    out: Path
    config: TrainConfig
    data: Dataset | None = None
    seeds: Sequence[int] = ()
    only: Sequence[int] = ()
    rows: Sequence[str] = ()
    contrast: Path | None = None
    size: tuple[int, int] = (320, 256)
    frames: int | None = None
    allow_hub: bool = False
    pictures: bool = True
    say: Say = print

    def run(self) -> dict[str, Any]:
        """Run what is not finished yet; what ``result.json`` holds.

        Raises:
            SurgeryR1Error: before anything is run, when the contrast was changed or cannot be judged, the config has
                no such row, the folder was begun with something else, or another call runs one of its seeds; before
                anything is trained, when a rival's file cannot be scored. When training was stopped by a signal. After
                tables and report are written, when predictions lack the rationales that the contrast needs.
        """
        rows = rows_named(self.rows)
        check_config(self.config, rows)
        with held(self.out, "reproducing", wait=True):
            registration, contrast = self._register()
        hashes: dict[Path, str] = {}
        rivals = self._rivals([item["seed"] for item in registration.seeds])
        run: dict[int, SeedStages] = {}
        with ExitStack() as locks:
            for seed in self._chosen(registration):
                locks.enter_context(held(self.out / f"seed{seed}", "reproducing"))
                run[seed] = self._of(seed, hashes)
                run[seed].ledger.note("contrast", sha256=registration.contrast_sha256)
            # First what costs seconds and may be refused.
            for one in run.values():
                for name, split, path in of_seed(rivals, one.config.seed):
                    score_rival(one, name, split, path)
            for one in run.values():
                self._run_seed(one, rows, contrast)
        with held(self.out, "reproducing", wait=True):
            # Another call may have added seeds or finished stages meanwhile.
            registration = read_registration(self.out)
            stages = [run.get(item["seed"]) or self._of(item["seed"], hashes) for item in registration.seeds]
            result = self._conclude(registration, contrast, stages, run, rivals)
        useless = next((claim for claim in result["contrast"]["claims"] if "fix" in claim), None)
        if useless is not None:
            what = f"tables and report are written, but the contrast cannot be judged: {useless['why']}"
            raise SurgeryR1Error(what, where=self.out, fix=useless["fix"])
        return result

    def _register(self) -> tuple[Registration, Contrast]:
        path = contrast_to_register(self.out, self.contrast)
        contrast = read_contrast(path)
        check_contrast(contrast, self.config, self._splits(), path)
        for seed in registered_seeds(self.out):
            self._of(seed, {}).hold_to(sha256_file(path))
        seeds = tuple(dict.fromkeys(self.seeds)) or registered_seeds(self.out) or (self.config.seed,)
        registration = register(self.out, path, self.config, self._data(), seeds)
        self.say(f"contrast: {contrast.title}")
        for claim in contrast.claims:
            self.say(f"   {claim.title}")
        self.say(
            f"   registered {registration.registered}, sha256 {registration.contrast_sha256[:16]}: "
            f"{registration.contrast}"
        )
        return registration, contrast

    def _chosen(self, registration: Registration) -> list[int]:
        """The seeds that this call runs."""
        known = [item["seed"] for item in registration.seeds]
        if unknown := [seed for seed in self.only if seed not in known]:
            raise SurgeryR1Error(
                f"seed {unknown[0]} is none of those that this folder is begun with: {' '.join(map(str, known))}",
                where=self.out,
                fix=f"add it to --seeds: {' '.join(map(str, [*known, *unknown]))}",
            )
        return [seed for seed in known if not self.only or seed in self.only]

    def _splits(self) -> list[str]:
        """Those of :data:`SPLITS` that have questions; drawn scenes have both."""
        found = [split for split in SPLITS if self.data is None or self.data.split(split)]
        if not found:
            raise SurgeryR1Error(
                "has no questions in val and test",
                where=self.data and self.data.root,
                fix="build it with a split to score",
            )
        return found

    def _data(self) -> dict[str, Any]:
        """What the data is, for the registration."""
        if self.data is not None:
            return {"dataset_sha256": self.data.hash}
        base = self.config.model.base
        if base != "tiny" and not Path(base).exists():
            raise SurgeryR1Error(
                f"without a dataset scenes are drawn, on which {base} would be trained",
                fix="give --data DATASET, or a config whose base is tiny or a folder",
            )
        drawn = {"generator_version": GENERATOR_VERSION, "size": list(self.size), "frames": self.frames}
        return {"drawn_scenes": drawn}

    def _rivals(self, seeds: Sequence[int]) -> dict[str, Files]:
        return find_rivals(self.out / RIVALS, self._splits(), seeds, drawn=self.data is None)

    def _of(self, seed: int, hashes: dict[Path, str]) -> SeedStages:
        # One seed for scenes, SFT and RFT alike.
        config = replace(self.config, seed=seed)
        return SeedStages(self.out, config, self.data, self.size, self.frames, self.allow_hub, self.say, hashes)

    def _run_seed(self, stages: SeedStages, rows: Sequence[Row], contrast: Contrast) -> None:
        for row in rows:
            for split in self._splits():
                stages.score(row, split)
                if row.name in contrast.rows_swapped(split):
                    stages.swap(row, split, contrast.swapped_questions)

    def _conclude(
        self,
        registration: Registration,
        contrast: Contrast,
        stages: Sequence[SeedStages],
        run: Collection[int],
        rivals: Mapping[str, Files],
    ) -> dict[str, Any]:
        """Judge, and write what is shown: of all seeds, as far as they are finished; ``run`` are those of this call."""
        folders = {
            (row.name, split, one.config.seed): one.scores(row, split)
            for row in ROWS.values()
            for split in self._splits()
            for one in stages
            if one.is_current(row, split)
        }
        folders |= {
            (name, split, one.config.seed): rival_scores(one, name, split)
            for one in stages
            for name, split, path in of_seed(rivals, one.config.seed)
            if is_rival_scored(one, name, split, path, one.dataset.hash if one.config.seed in run else None)
        }
        pool, seeds = Pool(folders, drawn=self.data is None), [one.config.seed for one in stages]
        there = [name for name in (*ROWS, *rivals) if any(name == row for row, _, _ in folders)]
        result = {
            "registered": {
                "registered": registration.registered,
                "contrast_sha256": registration.contrast_sha256,
                "seeds": [dict(item) for item in registration.seeds],
                "data": dict(registration.data),
            },
            "config": dict(registration.config),
            "seeds": seeds,
            "rows": {
                name: {split: pool.values(name, split, MEASURES) for split in self._splits() if pool.seeds(name, split)}
                for name in there
            },
            "compute": {str(one.config.seed): found for one in stages if (found := one.ledger["compute of RFT"])},
            "left_out_rewards": [name for name in self.config.rft.rewards if name in COHERENCE],
            "contrast": judge(contrast, pool, self.config, seeds),
            "seconds": {str(one.config.seed): one.ledger.seconds() for one in stages},
            "stages": [
                {"seed": one.config.seed, "stage": key, "was": was} for one in stages for key, was in one.ledger.log
            ],
        }
        write_json(self.out / "result.json", result)
        self._show(result, [one for one in stages if one.config.seed in run], folders)
        return result

    def _show(
        self, result: dict[str, Any], run: Sequence[SeedStages], folders: dict[tuple[str, str, int], Path]
    ) -> None:
        from surgery_r1.report import write_report

        tables = result_tables(result)
        for name, texts in (
            ("table.md", [table.markdown() for table in tables]),
            ("table.tex", [table.latex() for table in tables]),
        ):
            with atomic_write(self.out / name) as handle:
                handle.write("\n".join(texts))
        for one in run:
            seed = one.config.seed
            runs = [one.folder / name for name in ROWS if (one.folder / name / "run.json").is_file()]
            scores = [folder for (_, _, other), folder in folders.items() if other == seed]
            write_report([*runs, *scores], one.folder / "report.html", dataset=one.dataset, frames=self.pictures)
        reports = {seed: self.out / f"seed{seed}" / "report.html" for seed in result["seeds"]}
        links = {
            f"seed {seed}: curves and every question": path.relative_to(self.out).as_posix()
            for seed, path in reports.items()
            if path.is_file()
        }
        write_report([], self.out / "report.html", tables=tables, links=links)
        reused = sum(item["was"] == "reused" for item in result["stages"])
        self.say("")
        for table in tables:
            self.say(table.markdown())
        self.say(f"stages: {len(result['stages']) - reused} run, {reused} reused")
        self.say(f"open {(self.out / 'report.html').resolve()}; also table.md, table.tex and result.json there")
