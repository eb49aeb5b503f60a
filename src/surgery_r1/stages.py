"""The stages that the demo and ``reproduce`` are made of. Each writes its folder; one that is finished is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surgery_r1._util.files import read_json
from surgery_r1._util.progress import ProgressBar
from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.train.config import TrainConfig

if TYPE_CHECKING:
    from surgery_r1.evaluate.generation import GenerationOptions

Say = Callable[[str], None]

#: What is scored: the held-out sequences of the same domain, and the other domain.
SPLITS = ("val", "test")


@dataclass
class Clock:
    """Says which part of a story begins, and how long it took.

    Attributes:
        seconds: by the key of a part, in the order in which they ended.
    """

    say: Say
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, key: str, title: str) -> Iterator[None]:
        """One part; its time is noted only where it ends without an error."""
        self.say(f"\n== {title}")
        begin = time.monotonic()
        yield
        self.seconds[key] = time.monotonic() - begin
        self.say(f"   {self.seconds[key]:.1f} s")


def draw_scenes(folder: Path, domain: int, seed: int, size: tuple[int, int], frames: int | None, say: Say) -> None:
    """A drawn label folder; one that is there is kept.

    Args:
        size: of the frames in pixels.
        frames: in all; None draws the full set.
    """
    from surgery_r1.synthetic import make_scenes

    if folder.exists():
        say("   already there")
        return
    with ProgressBar("   drawing", "frames") as progress:
        made = make_scenes(folder, domain=domain, seed=seed, size=size, frames=frames, progress=progress)
    say(f"   {made['frames']:,} frames, {made['questions']:,} questions: {folder}")


def build(sources: Sequence[Path], folder: Path, say: Say) -> None:
    """The dataset of some label folders; one that is there is kept."""
    from surgery_r1.data.assemble import build_dataset

    if not (folder / "manifest.json").is_file():
        build_dataset(sources, folder)
    manifest = read_json(folder / "manifest.json")
    counts = ", ".join(f"{k} {v:,}" for k, v in manifest["samples"].items() if k != "total")
    say(f"   questions: {counts}; {manifest['rows']['total']:,} training rows")
    rule = manifest["location_rule"]
    say(f"   location labels follow {rule['rule']} in {rule['agreement']:.1%} of cases")


def is_trained(run: Path) -> bool:
    """Whether a run folder holds a training that came to its end."""
    return (run / "result.json").is_file() and not read_json(run / "result.json")["stopped"]


def train_run(
    stage: Literal["sft", "rft"],
    config: TrainConfig,
    dataset: Dataset,
    run: Path,
    base: str | Path | None,
    say: Say,
    *,
    allow_hub: bool = False,
) -> None:
    """Train into a run folder: not at all where that was done, from the last checkpoint where it was cut.

    Raises:
        SurgeryR1Error: when training was stopped by a signal, and as :func:`surgery_r1.train.stage.train`.
    """
    if is_trained(run):
        say("   already trained")
        return
    from surgery_r1.train.options import Permissions
    from surgery_r1.train.stage import train

    resume = (run / "run.json").is_file()
    result = train(stage, config, dataset, run, base=base, resume=resume, allowed=Permissions(hub=allow_hub))
    if result.stopped:
        raise SurgeryR1Error(f"stopped at step {result.steps}", where=run, fix="run the same command again to go on")
    say(f"   {result.summary}")


def score_model(
    name: str,
    model: str | Path,
    dataset: Dataset,
    split: str,
    out: Path,
    options: GenerationOptions,
    **settings: Any,
) -> None:
    """Predict a split, where ``out`` holds no predictions yet, and score it into ``out``.

    Args:
        settings: as :func:`surgery_r1.evaluate.run.predict_and_score` takes them.
    """
    from surgery_r1.evaluate.run import predict_and_score

    with ProgressBar(f"   {split}", "questions") as progress:
        predict_and_score(model, dataset, split, out, options, name=name, progress=progress, **settings)


def headline(split: str, metrics: dict[str, Any]) -> str:
    """A scored split on one line."""
    miou, joint = ("-" if metrics[key] is None else f"{metrics[key]:.3f}" for key in ("miou", "joint_at_iou50"))
    floor = metrics["no_image_floor"].get("acc")
    behind = "" if floor is None else f"  (no-image floor: Acc {floor:.3f})"
    return f"   {split:5} n={metrics['n']:,}  Acc {metrics['acc']:.3f}  true mIoU {miou}  joint@.5 {joint}{behind}"


def random_rewards(config: TrainConfig) -> TrainConfig:
    """The control whose rewards know nothing.

    The last step, not the best one, is what a control must show: dev would hide the harm by keeping the start.
    """
    return replace(_last(config), rft=replace(config.rft, rewards={"random": 1.0}))


def continued(config: TrainConfig, steps: int) -> TrainConfig:
    """The control that goes on with SFT, its learning-rate schedule begun anew, and keeps the last step."""
    return replace(_last(config), sft=replace(config.sft, max_steps=steps, eval_every=steps))


def _last(config: TrainConfig) -> TrainConfig:
    return replace(config, eval=replace(config.eval, choose="last"))
