"""All stages of one seed. What a stage is made of is read from what lies there; the same is not made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from surgery_r1._util.files import read_json, sha256_file
from surgery_r1._util.locks import held
from surgery_r1._util.progress import ProgressBar
from surgery_r1.codec import CODEC_VERSION
from surgery_r1.data.dataset import Dataset, open_dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.prompts import PROMPT_VERSION
from surgery_r1.reproduce.ledger import Ledger, put_aside
from surgery_r1.reproduce.made_of import is_scored, of_predictions, of_run, of_scenes, trained_with
from surgery_r1.reproduce.rows import ROWS, Row
from surgery_r1.rewards.custom import reward_files
from surgery_r1.stages import Clock, Say, build, draw_scenes, headline, is_trained, score_model, train_run
from surgery_r1.synthetic.write import GENERATOR_VERSION
from surgery_r1.train.config import TrainConfig

DOMAINS = (18, 17)


@dataclass
class SeedStages:
    """The stages of one seed.

    Args:
        root: folder of the whole reproduction.
        config: with the seed that this is.
        dataset: the user's own; None draws scenes of the seed.
        size, frames: of drawn scenes, see :func:`surgery_r1.stages.draw_scenes`.
        hashes: of weights, by model folder, as far as they are known: all seeds come from one base.
    """

    root: Path
    config: TrainConfig
    given: Dataset | None
    size: tuple[int, int]
    frames: int | None
    allow_hub: bool
    say: Say
    hashes: dict[Path, str]
    _trained: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.folder = self.root / f"seed{self.config.seed}"
        self.ledger = Ledger(self.folder / "stages.json")
        self._clock = Clock(self.say)

    def hold_to(self, contrast_sha256: str) -> None:
        """Refuse another contrast than the one that the stages were begun for.

        Raises:
            SurgeryR1Error: when they were begun for another one.
        """
        begun = self.ledger["contrast"].get("sha256", contrast_sha256)
        if begun != contrast_sha256:
            raise SurgeryR1Error(
                f"was begun for the contrast with sha256 {begun[:12]}, not for {contrast_sha256[:12]}",
                where=self.folder / "stages.json",
                fix="restore contrast.toml and registered.json; another contrast needs another --out",
            )

    # ------------------------------------------------------------------------------------------------------- data

    @cached_property
    def dataset(self) -> Dataset:
        """The user's dataset, or that of the drawn scenes, which are drawn when first asked for."""
        if self.given is not None:
            return self.given
        scenes = [self._scenes(domain) for domain in DOMAINS]
        inputs = {"scenes": [of_scenes(path) for path in scenes]}
        folder = self.folder / "dataset"
        whole = (folder / "manifest.json").is_file()

        def work() -> None:
            build(scenes, folder, self.say)

        self.stage("dataset", "building the dataset", inputs, folder, whole, work)
        return open_dataset(folder)

    def _scenes(self, domain: int) -> Path:
        name = f"scenes{domain}"
        folder = self.folder / name
        drawn: dict[str, Any] = {"generator_version": GENERATOR_VERSION, "domain": domain, "seed": self.config.seed}
        inputs = drawn | {"size": list(self.size), "frames": self.frames}

        def work() -> None:
            draw_scenes(folder, domain, self.config.seed, self.size, self.frames, self.say)

        there = (folder / "scenes.json").is_file()
        self.stage(name, f"drawing scenes (domain {domain})", inputs, folder, there, work)
        return folder

    def stage(
        self,
        key: str,
        title: str,
        inputs: Mapping[str, Any],
        folder: Path,
        whole: bool,
        work: Callable[[], None],
        *,
        same: bool | None = None,
        log: Path | None = None,
    ) -> None:
        """Run a stage, unless its folder is whole and made of the same.

        Args:
            same: whether what lies in ``folder`` is made of ``inputs``; by default the ledger says so.
            log: see :meth:`surgery_r1.reproduce.ledger.Ledger.running`.
        """
        if same is None:
            same = self.ledger.is_same(key, inputs)
        with self._clock.part(key, f"seed {self.config.seed}: {title}"):
            if folder.exists() and not same:
                put_aside(folder, self.root, self.say)
            elif whole:
                self.ledger.reused(key, inputs, self.say)
                return
            with self.ledger.running(key, inputs, log):
                work()

    # --------------------------------------------------------------------------------------------------- training

    def train(self, row: Row) -> Path:
        """The run folder of a row, trained; first what it is trained from."""
        if row.name in self._trained:
            return self.folder / row.name
        assert row.stage is not None
        stage, base = row.stage, self._parent(row)
        steps = self.continued_steps()["steps"] if row.name == "sft_continued" else 0
        config, run, dataset = row.config(self.config, steps), self.folder / row.name, self.dataset
        inputs = {
            "stage": stage,
            "config": trained_with(stage, config.to_json()),
            "dataset_sha256": dataset.hash,
            "base_sha256": self.weights(base),
            "include_dev": False,
            "reward_files": reward_files(config.rft.rewards) if stage == "rft" else {},
            "versions": [CODEC_VERSION, PROMPT_VERSION],
        }

        def work() -> None:
            train_run(stage, config, dataset, run, base, self.say, allow_hub=self.allow_hub)

        found = of_run(run)
        # What a training that was cut does not say yet is not held against it.
        same = found is not None and all(found[name] in (None, value) for name, value in inputs.items())
        whole, log = is_trained(run), run / "metrics.jsonl"
        if not whole:
            # Not in the stage's time: whichever comes first would pay for all.
            import_module("surgery_r1.train.stage")
        self.stage(f"train {row.name}", f"training {row.title}", inputs, run, whole, work, same=same, log=log)
        self._trained.add(row.name)
        return run

    def _parent(self, row: Row) -> str | Path:
        return self.train(ROWS[row.parent]) if row.parent is not None else self.config.model.base

    def weights(self, model: str | Path) -> str:
        """Hash of the weights that a model name stands for, computed once a call."""
        from surgery_r1.models.load import resolve, weights_sha256

        folder = resolve(model, allow_hub=self.allow_hub)
        if folder not in self.hashes:
            self.hashes[folder] = weights_sha256(folder)
        return self.hashes[folder]

    def continued_steps(self) -> dict[str, Any]:
        """How long SFT is continued for the compute that RFT took, decided once for these two runs.

        Compute is time on this machine, evaluations on dev among it: RFT's seconds over the seconds of an SFT step.
        Where a time is not known, as of a run that was trained elsewhere, it is as many steps as RFT has.
        """
        sft, rft = (self.train(ROWS[name]) for name in ("sft", "rft"))
        made_of = [self.ledger[f"train {name}"]["sha256"] for name in ("sft", "rft")]
        noted = self.ledger["compute of RFT"]
        if noted.get("of") == made_of:
            return noted
        seconds = [self.ledger[f"train {name}"].get("seconds") for name in ("sft", "rft")]
        done = [read_json(run / "result.json")["steps"] for run in (sft, rft)]
        steps, how = done[1], "as many steps as RFT: a time is not known"
        if all(seconds):
            steps = max(1, round(seconds[1] / (seconds[0] / done[0])))
            how = f"RFT took {seconds[1]:.0f} s, an SFT step {seconds[0] / done[0]:.3g} s"
        self.ledger.note("compute of RFT", of=made_of, steps=steps, how=how)
        return self.ledger["compute of RFT"]

    # ----------------------------------------------------------------------------------------------------- scores

    def model(self, row: Row) -> str | Path:
        """What is predicted with."""
        return self.config.model.base if row.stage is None else self.train(row)

    def scores(self, row: Row, split: str) -> Path:
        """The score folder of a row. The base on the user's data is the same for every seed, and lies there once."""
        return self.score_folder(row.name, split, shared=self._is_shared(row))

    def score_folder(self, name: str, split: str, *, shared: bool) -> Path:
        """Where the scores of a row or a rival lie; ``shared`` by all seeds."""
        return (self.root if shared else self.folder) / "scores" / name / split

    def _is_shared(self, row: Row) -> bool:
        return row.stage is None and self.given is not None

    def score(self, row: Row, split: str) -> None:
        """Predict a split with a row's model and score it."""
        from surgery_r1.evaluate.generation import GenerationOptions

        model, out, own, dataset = self.model(row), self.scores(row, split), self.config.model, self.dataset
        options = GenerationOptions(
            self.config.eval.batch_size, self.config.eval.max_new_tokens, row.reasoning(self.config)
        )
        inputs = self._asked(row, split)
        settings: dict[str, Any] = {"allow_hub": self.allow_hub}
        if row.stage is None:
            # The base sees the frames as the models do that are trained from it.
            settings |= {"dtype": own.dtype, "pixels": (own.min_pixels, own.max_pixels)}

        def work() -> None:
            score_model(row.name, model, dataset, split, out, options, **settings)

        key, title = f"score {row.name} {split}", f"scoring {row.title} on {split}"
        log = out / "predictions.jsonl.partial"
        # Seeds that run side by side: whoever comes second finds it done.
        with held(out, "scoring", wait=True) if self._is_shared(row) else nullcontext():
            # A file that does not say a thing was not written by us: nothing is assumed of it.
            found = of_predictions(out)
            same = found is not None and all(found.get(name) == value for name, value in inputs.items())
            self.stage(key, title, inputs, out, is_scored(out, out / "predictions.jsonl"), work, same=same, log=log)
        self.say(headline(split, read_json(out / "metrics.json")))

    def is_current(self, row: Row, split: str) -> bool:
        """Whether a row that this call does not run was scored with what lies here now."""
        folder = self.scores(row, split)
        scored = of_predictions(folder)
        if scored is None or not is_scored(folder, folder / "predictions.jsonl"):
            return False
        if not all(is_trained(self.folder / name) for name in (row.stage and row.name, row.parent) if name):
            return False
        made_of = of_run(self.folder / row.name) or {}
        parent = self.config.model.base if row.parent is None else self.folder / row.parent
        from_this = row.stage is None or made_of["base_sha256"] == self.weights(parent)
        return from_this and scored.get("weights_sha256") == self.weights(self.model_folder(row))

    def _asked(self, row: Row, split: str) -> dict[str, Any]:
        """What the predictions of a row are made of."""
        return {
            "weights_sha256": self.weights(self.model_folder(row)),
            "dataset_hash": self.dataset.hash,
            "split": split,
            "reasoning": row.reasoning(self.config),
            "max_new_tokens": self.config.eval.max_new_tokens,
            "codec_version": CODEC_VERSION,
            "prompt_version": PROMPT_VERSION,
        }

    def model_folder(self, row: Row) -> str | Path:
        """As :meth:`model`, of a row that is trained."""
        return self.config.model.base if row.stage is None else self.folder / row.name

    def swap(self, row: Row, split: str, limit: int) -> None:
        """Put other questions' rationales into the mouth of a row's model, after it was scored."""
        from surgery_r1.evaluate.compare import load_scores
        from surgery_r1.evaluate.generation import GenerationOptions
        from surgery_r1.evaluate.swapped import swap_rationales

        scores, dataset = self.scores(row, split), self.dataset
        model, out = self.model_folder(row), scores / "swapped" / "swapped.jsonl"
        inputs = {
            "weights_sha256": self.weights(model),
            "predictions_sha256": sha256_file(scores / "predictions.jsonl"),
            "questions": limit,
        }
        options = GenerationOptions(self.config.eval.batch_size, self.config.eval.max_new_tokens)

        def work() -> None:
            with ProgressBar(f"   {split}", "questions") as progress:
                swap_rationales(
                    model,
                    dataset,
                    load_scores(scores),
                    options,
                    out,
                    stamp=inputs,
                    limit=limit,
                    allow_hub=self.allow_hub,
                    progress=progress,
                )

        key, title = f"swap {row.name} {split}", f"another rationale in the mouth of {row.title}, {split}"
        log = out.with_name(out.name + ".partial")
        self.stage(key, title, inputs, out.parent, out.is_file(), work, log=log)
