"""``surgery-r1 train sft|rft|specialist`` and ``surgery-r1 export``."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import tyro

from surgery_r1._util.files import dump_json
from surgery_r1._util.offline import stay_offline
from surgery_r1.cli.output import say
from surgery_r1.cli.overrides import Overrides, in_order
from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset
    from surgery_r1.train.config import TrainConfig
    from surgery_r1.train.fit import TrainResult
    from surgery_r1.train.options import Permissions
    from surgery_r1.train.rollouts.sampling import RolloutOptions


@dataclass(kw_only=True)
class _Run:
    """What every training is given."""

    config: str
    """A TOML file, or a shipped config by name."""
    set: Overrides = ()
    """Change values of the config, written as in TOML."""
    data: Path
    """A dataset folder that surgery-r1 data build wrote."""
    out: Path
    """The run folder to write; out/best is the model that dev chose, or the last."""
    images: Path | None = None
    """Where the images lie now, if they moved."""
    seed: int | None = None
    """Overrides the config's seed."""
    include_dev: bool = False
    """Train on the dev sequences too: for a final run, after everything has been chosen."""
    resume: bool = False
    """Go on from the last checkpoint in --out."""
    allow_hub: bool = False
    """Allow downloads from the model hub."""


@dataclass(kw_only=True)
class _Train(_Run):
    config: str
    """A TOML file, or a shipped config by name: tiny, qwen2_5_vl_3b, qwen2_5_vl_7b, qwen2_5_vl_7b_24gb, qwen3_vl_8b."""
    set: Overrides = ()
    """Change values of the config, written as in TOML: --set rft.max_steps=20 sft.learning_rate=1e-4."""
    model: str | None = None
    """Start from this model instead of the config's: a folder, a run, or tiny."""
    allow_upload: bool = False
    """Allow trackers and options that send metrics, weights or completions to another machine."""
    json: bool = False
    """Print the result (or the plan) as JSON, without a progress bar."""
    plan: bool = False
    """Print what the run needs (parameters, memory by part, the largest micro-batch that fits), and start nothing."""
    memory: float | None = None
    """With --plan: GiB that a process may use; by default those of the visible GPU."""
    device: Literal["cpu", "cuda"] | None = None
    """With --plan: plan for a GPU or without one; by default as this machine has."""
    processes: int | None = None
    """With --plan: processes that will train together, one for each GPU."""
    step_seconds: float | None = None
    """With --plan: seconds of a step as measured, for the hours of the run."""

    stage: ClassVar[Literal["sft", "rft"]]

    def _rollouts(self) -> RolloutOptions | None:
        """The server that samples rollouts, if one does."""
        return None

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        from dataclasses import replace

        from surgery_r1.data.dataset import open_dataset
        from surgery_r1.train.config import load_config

        self._check_plan_options()
        stay_offline(self.allow_hub)
        with _told_once():
            config = load_config(self.config, in_order(self.set))
            if self.seed is not None:
                config = replace(config, seed=self.seed)
            dataset = open_dataset(self.data, images=self.images)

        from surgery_r1.train.options import Permissions

        allowed = Permissions(hub=self.allow_hub, upload=self.allow_upload)
        if self.plan:
            self._show_plan(config, dataset, allowed)
            return 0
        return self._train(config, dataset, allowed)

    def _check_plan_options(self) -> None:
        for name in ("memory", "device", "processes", "step_seconds"):
            if getattr(self, name) is not None and not self.plan:
                flag = f"--{name.replace('_', '-')}"
                raise SurgeryR1Error(f"{flag} is for a plan", fix="add --plan, or leave it out")

    def _show_plan(self, config: TrainConfig, dataset: Dataset, allowed: Permissions) -> None:
        from surgery_r1.cli.plan import show_plan

        own = {name: getattr(self, name) for name in ("include_dev", "memory", "device", "processes", "step_seconds")}
        show_plan(self.stage, config, dataset, base=self.model, allowed=allowed, json=self.json, **own)

    def _train(self, config: TrainConfig, dataset: Dataset, allowed: Permissions) -> int:
        from surgery_r1.train import ranks
        from surgery_r1.train.stage import train

        result = train(
            self.stage,
            config,
            dataset,
            self.out,
            base=self.model,
            include_dev=self.include_dev,
            resume=self.resume,
            allowed=allowed,
            quiet=self.json,
            rollouts=self._rollouts(),
        )
        first = ranks.index() == 0
        ranks.leave()
        if not first:
            return 0
        tell(result, json=self.json)
        return 0


@dataclass(kw_only=True)
class TrainSft(_Train):
    """Stage one: supervised fine-tuning with TRL's SFTTrainer."""

    stage = "sft"


@dataclass(kw_only=True)
class TrainRft(_Train):
    """Stage two: GRPO with rule-based rewards with TRL's GRPOTrainer. Start it with --model RUN_OF_SFT."""

    endpoint: str | None = None
    """With rft.rollouts = "server": the vLLM server that samples rollouts, such as http://127.0.0.1:8000/v1."""
    sync: Path | None = None
    """With --endpoint: the folder through which weights go to the server, on a disk that both see; --out/sync."""
    served_model: str = ""
    """With --endpoint: the model's name there; by default the only one."""
    vllm: str | None = None
    """With rft.rollouts = "colocate": the vllm command, which may lie in an environment of its own."""
    timeout: float = 600.0
    """With --endpoint or "colocate": seconds that a request may take."""
    retries: int = 6
    """With --endpoint: how often a request that failed is sent again, with growing pauses."""
    allow_remote_frames: bool = False
    """With --endpoint: frames may go to another machine."""

    stage = "rft"

    def _rollouts(self) -> RolloutOptions | None:
        from surgery_r1.evaluate.endpoint import KEY_VARIABLE, ServerOptions
        from surgery_r1.train.rollouts.sampling import RolloutOptions

        given = {"--sync": self.sync is not None, "--served-model": bool(self.served_model)}
        given["--allow-remote-frames"] = self.allow_remote_frames
        alone = [flag for flag, is_given in given.items() if is_given]
        if self.endpoint is None and alone:
            raise SurgeryR1Error(f"{alone[0]} without --endpoint", fix="name the server with --endpoint")
        if self.endpoint is None:
            return RolloutOptions(command=self.vllm, timeout=self.timeout)
        server = ServerOptions(
            self.endpoint,
            served_model=self.served_model,
            key=os.environ.get(KEY_VARIABLE, ""),
            allow_remote=self.allow_remote_frames,
            timeout=self.timeout,
            retries=self.retries,
        )
        return RolloutOptions(server, self.sync, self.vllm)


@dataclass(kw_only=True)
class TrainSpecialist(_Run):
    """A small rival on the same questions: it classifies the answer and regresses the box, and writes no text."""

    config: str
    """A TOML file, or the shipped config: specialist."""
    set: Overrides = ()
    """Change values of the config, written as in TOML: --set specialist.max_steps=200."""
    json: bool = False
    """Print the result as JSON, without a progress bar."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        from dataclasses import replace

        from surgery_r1.data.dataset import open_dataset

        stay_offline(self.allow_hub)
        # Before the libraries are imported, which takes seconds: a wrong path is told at once.
        dataset = open_dataset(self.data, images=self.images)

        from surgery_r1.train.specialist.config import load_specialist_config
        from surgery_r1.train.specialist.stage import train_specialist

        config = load_specialist_config(self.config, in_order(self.set))
        if self.seed is not None:
            config = replace(config, seed=self.seed)
        own = {"include_dev": self.include_dev, "resume": self.resume, "allow_hub": self.allow_hub}
        tell(train_specialist(config, dataset, self.out, **own, quiet=self.json), json=self.json)
        return 0


def tell(result: TrainResult, *, json: bool) -> None:
    """Print how a stage has ended."""
    if json:
        say(dump_json(result.to_json(), indent=2))
    elif result.stopped:
        say(f"stopped at step {result.steps}; go on with --resume")
    else:
        say(f"{result.summary}: {result.best}")


def _told_once() -> AbstractContextManager[None]:
    """An error inside the block is told by one process, where a launcher has started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # Without waiting for torch to be imported.
        return nullcontext()
    from surgery_r1.train import ranks

    ranks.join()
    if ranks.index() > 0:
        # What is worth a warning is so for all.
        logging.getLogger("surgery_r1").setLevel(logging.ERROR)
    return ranks.told_once()


@dataclass
class Export:
    """Write a folder that vLLM and transformers serve, an adapter merged or alone, with a model card."""

    source: tyro.conf.Positional[Path]
    """A run folder or checkpoint."""
    out: tyro.conf.Positional[Path]
    """The folder to write."""
    adapter_only: bool = False
    """The LoRA adapter alone, for vllm serve BASE --enable-lora."""
    allow_hub: bool = False
    """Allow downloads from the model hub."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        stay_offline(self.allow_hub)
        from surgery_r1.models.export import export

        out = export(self.source, self.out, adapter_only=self.adapter_only, allow_hub=self.allow_hub)
        say(f"exported: {out}")
        return 0
