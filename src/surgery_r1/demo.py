"""The paper's story on drawn scenes, offline, in one process: base, SFT, RFT, table, report."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surgery_r1._util.files import dump_json, read_json, write_json
from surgery_r1.data.dataset import Dataset, open_dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.compare import compare_scores
from surgery_r1.evaluate.tables import text_table
from surgery_r1.records import Sample
from surgery_r1.stages import (
    SPLITS,
    Clock,
    build,
    continued,
    draw_scenes,
    headline,
    random_rewards,
    score_model,
    train_run,
)
from surgery_r1.train.config import TrainConfig, load_config

#: Everything that a demo writes into its folder; ``fresh`` removes these and nothing else.
PARTS = (
    *("settings.json", "scenes18", "scenes17", "dataset", "first_look.png", "sft", "rft", "sft_continued"),
    *("random_rewards", "scores", "demo.json", "report.html", "rollouts.html"),
)
#: Metrics of which differences to SFT are shown: what RFT is paid for, and what must not fall meanwhile.
_COMPARED = ("joint_at_iou50", "joint", "acc", "miou", "wrong_referent_broad", "rationale_right")
_TITLES = {
    "sft": "SFT: learning to answer and point",
    "rft": "RFT: GRPO with coherence",
    "sft_continued": "control: SFT continued",
    "random_rewards": "control: RFT with random rewards",
}


@dataclass
class Demo:
    """One demo in the folder ``out``. Finished parts of an earlier, interrupted call are kept and not run again.

    Args:
        out: folder for scenes, dataset, runs, scores and report.
        config: what to train; its seed is that of the scenes too.
        size: of the frames in pixels.
        frames: frames in all per domain; None draws the full sets.
        controls: also run RFT with random rewards, and SFT continued for as many steps as RFT.
        say: where progress lines go.
    """

    out: Path
    config: TrainConfig
    size: tuple[int, int] = (320, 256)
    frames: int | None = None
    controls: bool = False
    say: Callable[[str], None] = print

    def run(self) -> dict[str, Any]:
        """Run what is not finished yet; times by part, metrics by variant and split, paired differences.

        Raises:
            SurgeryR1Error: when the folder holds a demo with other settings, or training was stopped by a signal.
        """
        self._same_settings()
        self.clock = Clock(self.say)
        start = time.monotonic()
        sources = [self.out / f"scenes{domain}" for domain in (18, 17)]
        for domain, folder in zip((18, 17), sources, strict=True):
            with self.clock.part(folder.name, f"drawing scenes (domain {domain})"):
                draw_scenes(folder, domain, self.config.seed, self.size, self.frames, self.say)
        with self.clock.part("dataset", "building the dataset"):
            build(sources, self.out / "dataset", self.say)
        dataset = open_dataset(self.out / "dataset")
        self._show_first(dataset)
        self._score("base", "tiny", dataset)
        self._train("sft", "sft", self.config, dataset, None)
        self._score("sft", self.out / "sft", dataset)
        self._train("rft", "rft", self.config, dataset, self.out / "sft")
        self._score("rft", self.out / "rft", dataset)
        if self.controls:
            self._run_controls(dataset)
        differences = self._differences()
        self.clock.seconds["total"] = time.monotonic() - start
        summary = {
            "seconds": {k: round(v, 1) for k, v in self.clock.seconds.items()},
            "metrics": {
                name: {split: read_json(self.out / "scores" / name / split / "metrics.json") for split in SPLITS}
                for name in self._variants()
            },
            "differences": differences,
        }
        write_json(self.out / "demo.json", summary)
        self._report(dataset)
        return summary

    def _same_settings(self) -> None:
        """Finished parts are kept, so all must come from the same settings."""
        path = self.out / "settings.json"
        settings = {
            "seed": self.config.seed,
            "size": list(self.size),
            "frames": self.frames,
            "config": self.config.to_json(),
        }
        if path.is_file() and read_json(path) != json.loads(dump_json(settings)):
            raise SurgeryR1Error(
                "holds a demo with other settings", where=self.out, fix="give --fresh, or another --out"
            )
        write_json(path, settings)

    def _variants(self) -> list[str]:
        return ["base", "sft", "rft", *(["sft_continued", "random_rewards"] if self.controls else [])]

    def _show_first(self, dataset: Dataset) -> None:
        from PIL import Image

        from surgery_r1.report.drawing import draw_boxes

        sample = _shown(dataset)
        with Image.open(dataset.image_path(sample)) as image:
            picture = draw_boxes(image.convert("RGB"), sample.box_px, true_label=sample.answer, caption=sample.question)
        path = self.out / "first_look.png"
        picture.save(path)
        if sys.stdout.isatty():
            self.say(_terminal_picture(picture))
        self.say(f"\nThe task: {sample.question} -> {sample.answer} and the box in {path}")

    def _train(self, stage: Any, name: str, config: TrainConfig, dataset: Dataset, base: Path | None) -> None:
        with self.clock.part(f"train_{name}", _TITLES[name]):
            train_run(stage, config, dataset, self.out / name, base, self.say)

    def _score(self, name: str, model: str | Path, dataset: Dataset) -> None:
        from surgery_r1.evaluate.generation import GenerationOptions

        options = GenerationOptions(self.config.eval.batch_size, self.config.eval.max_new_tokens)
        with self.clock.part(f"score_{name}", f"scoring {name} on held-out frames"):
            for split in SPLITS:
                out = self.out / "scores" / name / split
                if not (out / "metrics.json").is_file():
                    score_model(name, model, dataset, split, out, options)
                self.say(headline(split, read_json(out / "metrics.json")))

    def _run_controls(self, dataset: Dataset) -> None:
        sft = continued(self.config, self.config.rft.max_steps)
        self._train("sft", "sft_continued", sft, dataset, self.out / "sft")
        self._score("sft_continued", self.out / "sft_continued", dataset)
        self._train("rft", "random_rewards", random_rewards(self.config), dataset, self.out / "sft")
        self._score("random_rewards", self.out / "random_rewards", dataset)

    def _differences(self) -> dict[str, Any]:
        """RFT against SFT on every split, paired by block of ten neighbouring frames."""
        result: dict[str, Any] = {}
        self.say("\n== results")
        for split in SPLITS:
            scores = {name: self.out / "scores" / name / split for name in self._variants()}
            for name in self._variants()[2:]:
                result.setdefault(split, {})[f"{name} minus sft"] = {
                    metric: compare_scores(scores[name] / "scores.jsonl", scores["sft"] / "scores.jsonl", metric)
                    for metric in _COMPARED
                }
            lines = [
                (name, metric, difference)
                for name, metrics in result[split].items()
                for metric, difference in metrics.items()
            ]
            entries = [(name, read_json(path / "metrics.json")) for name, path in scores.items()]
            self.say(f"\n{split}\n" + text_table(entries, lines))
        return result

    def _report(self, dataset: Dataset) -> None:
        from surgery_r1.report import write_report, write_rollout_page

        path, rft = self.out / "report.html", self.out / "rft"
        runs = [self.out / name for name in self._variants() if (self.out / name / "run.json").is_file()]
        scores = [self.out / "scores" / name / split for name in self._variants() for split in SPLITS]
        write_report([*runs, *scores], path, dataset=dataset)
        self.say(f"\nopen {path.resolve()}")
        if self.config.rft.rollouts_every:
            rollouts = self.out / "rollouts.html"
            write_rollout_page([rft], rollouts, dataset=dataset)
            self.say(f"what RFT tried, and what it was paid for: {rollouts.resolve()}")
        sample = _shown(dataset)
        self.say(f'ask it: surgery-r1 ask "{dataset.image_path(sample)}" "{sample.question}" --model {rft}')
        self.say(f"ask in a browser: surgery-r1 serve --model {rft} --model {self.out / 'sft'}")


def run_demo(
    out: Path,
    *,
    config: str = "tiny",
    overrides: Sequence[str] = (),
    seed: int | None = None,
    fresh: bool,
    **settings: Any,
) -> dict[str, Any]:
    """The demo with a config by name; ``fresh`` first removes what an earlier demo wrote (:data:`PARTS`).

    Args:
        seed: of scenes, SFT and RFT alike, in place of the config's.
        settings: as :class:`Demo` takes them.

    Raises:
        SurgeryR1Error: when the config or its overrides are wrong (nothing is removed then), and as :meth:`Demo.run`.
    """
    chosen = load_config(config, overrides)
    demo = Demo(out, chosen if seed is None else replace(chosen, seed=seed), **settings)
    if fresh:
        for part in (out / name for name in PARTS):
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)
    return demo.run()


def _shown(dataset: Dataset) -> Sample:
    """The question that the demo opens and closes with: where a tool is, if any is asked about."""
    val = dataset.split("val")
    return next((sample for sample in val if sample.kind == "location"), val[0])


def _terminal_picture(image: Any, columns: int = 72) -> str:
    """The picture in half blocks of true colour, two pixels a character."""
    rows = round(columns * image.height / image.width / 2) * 2
    pixels = image.convert("RGB").resize((columns, rows)).load()
    lines = []
    for y in range(0, rows, 2):
        cells = []
        for x in range(columns):
            upper, lower = pixels[x, y], pixels[x, y + 1]
            cells.append("\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format(*upper, *lower))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)
