"""Where the rollouts of a run come from, from its config and flags."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.endpoint import ServerOptions
from surgery_r1.train import ranks
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.rollouts.colocate import ColocatedEngine, EngineOptions, command_named
from surgery_r1.train.rollouts.gap import BOUND_16, BOUND_32
from surgery_r1.train.rollouts.server import RolloutServer
from surgery_r1.train.rollouts.sync import WeightSync


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """How the vLLM is reached that samples rollouts.

    Attributes:
        server: its ``served_model`` may be empty where it has one model; None where vLLM is a child of the trainer.
        sync: folder through which weights go to it, the same path on both machines; None for ``OUT/sync``.
        command: the ``vllm`` command that a child is started with; None looks for it.
        timeout: seconds that a request to a child may take.
    """

    server: ServerOptions | None = None
    sync: Path | None = None
    command: str | None = None
    timeout: float = 600.0


@dataclass(slots=True)
class Sampling:
    """A server that samples the rollouts of a run.

    Attributes:
        server: how it is asked.
        folder: for weights on their way to it.
        run: a word that no other run has.
        bound: mean gap in nats a token above which the run stops; 0 for that of the model's format.
        weights: what the server has; None until the first step.
        engine: the server's process, where the trainer starts it.
    """

    server: RolloutServer
    folder: Path
    run: str
    bound: float
    weights: WeightSync | None = None
    engine: ColocatedEngine | None = None

    def start(self, model: Any, describe: Callable[[Path, int], None], *, bf16: bool) -> None:
        """Start the server, where the trainer does, with the model that is to be trained.

        Args:
            describe: adds processor and description to the weights in a folder.
            bf16: passes are made in bfloat16, whatever the weights are kept in.
        """
        if self.engine is not None:
            self.engine.start(model, describe, "bfloat16" if bf16 else str(model.dtype).removeprefix("torch."))

    def awake(self) -> contextlib.AbstractContextManager[None]:
        """The server may be asked inside the block."""
        return self.engine.awake() if self.engine is not None else contextlib.nullcontext()

    def check(self) -> None:
        """Refuse replies of a server that has other weights by now."""
        if self.weights is not None:
            self.weights.check()

    def bound_for(self, *, float32: bool) -> float:
        """The bound in force for a model that is trained in float32, or in 16 bit."""
        return self.bound or (BOUND_32 if float32 else BOUND_16)

    def close(self) -> None:
        """Remove what was written for the server, and close connections."""
        if self.weights is not None:
            self.weights.close()
        self.server.close()
        if self.engine is not None:
            self.engine.close()


def open_sampling(config: TrainConfig, arguments: Any, options: RolloutOptions | None, out: Path) -> Sampling | None:
    """The vLLM that samples rollouts, met once where it is a server; None where the trainer samples them.

    Args:
        arguments: from :func:`surgery_r1.train.rft.rft_arguments`.
        out: the run folder.

    Raises:
        SurgeryR1Error: for a config and flags that do not fit, or a server that cannot be reached.
    """
    rft = config.rft
    options = options or RolloutOptions()
    _refuse_what_does_not_fit(config, options)
    if rft.rollouts == "trainer":
        return None
    _refuse_other_draws(arguments, rft.rollouts)
    run = ranks.first(lambda: f"surgery-r1-{secrets.token_hex(4)}")
    if options.server is None:
        return _own_engine(config, options, out, run)
    server = RolloutServer(options.server, rft.max_completion, rft.temperature)
    server.seeded = ranks.first(server.meet)
    return Sampling(server, options.sync or _cleared(out), run, rft.gap_bound)


def _own_engine(config: TrainConfig, options: RolloutOptions, out: Path, run: str) -> Sampling:
    rft = config.rft
    command = command_named(options.command, Path(sys.executable).parent)
    rank = config.lora.rank if config.lora.enabled else 0
    started = EngineOptions(command, rft.vllm, rank, options.timeout)
    engine = ColocatedEngine(started, out, rft.max_completion, rft.temperature)
    return Sampling(engine.server, _cleared(out), run, rft.gap_bound, engine=engine)


def _cleared(out: Path) -> Path:
    """The run's own folder for weights, without those that a killed run has left there under its name."""
    folder = out / "sync"
    ranks.first(lambda: shutil.rmtree(folder, ignore_errors=True))
    return folder


def _refuse_what_does_not_fit(config: TrainConfig, options: RolloutOptions) -> None:
    kind = config.rft.rollouts
    if options.server is None and kind == "server":
        raise SurgeryR1Error("rft.rollouts = 'server', but no server is named", fix="name it with --endpoint URL")
    if options.server is not None and kind != "server":
        fix = "say so in the config too: --set rft.rollouts=server"
        raise SurgeryR1Error(f"--endpoint, but rft.rollouts = {kind!r}", fix=fix)
    if kind != "colocate" and (options.command or config.rft.vllm):
        what = "rft.vllm" if config.rft.vllm else "--vllm"
        raise SurgeryR1Error(f"{what}, but rft.rollouts = {kind!r}", fix="say --set rft.rollouts=colocate, or leave it")
    if kind != "trainer" and config.ranks.shard != "none":
        raise SurgeryR1Error(
            f"rft.rollouts = {kind!r} with ranks.shard = {config.ranks.shard!r}: nobody has tried it",
            fix="spread no weights, or let the trainer sample",
        )
    if kind == "colocate" and ranks.count() > 1:
        raise SurgeryR1Error(
            f"rft.rollouts = 'colocate' in {ranks.count()} processes: one engine serves one process",
            fix="start a vLLM server for all, with --set rft.rollouts=server and --endpoint URL",
        )


def _refuse_other_draws(arguments: Any, rollouts: str) -> None:
    """Log-probabilities are those of the whole distribution: nothing else may be drawn from."""
    whole: dict[str, tuple[Any, ...]] = {
        "top_p": (1.0,),
        "top_k": (0, None),
        "min_p": (0.0, None),
        "repetition_penalty": (1.0,),
        "generation_kwargs": ({}, None),
    }
    for name, values in whole.items():
        if getattr(arguments, name) not in values:
            raise SurgeryR1Error(
                f"rft.trl.{name} = {getattr(arguments, name)!r} does not go with rft.rollouts = {rollouts!r}",
                fix="leave it out: what is trained are log-probabilities of the whole distribution",
            )
