"""Where the rollouts of a run come from, from its config and flags."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.endpoint import ServerOptions
from surgery_r1.train import ranks
from surgery_r1.train.config import TrainConfig
from surgery_r1.train.rollouts.gap import BOUND_16, BOUND_32
from surgery_r1.train.rollouts.server import RolloutServer
from surgery_r1.train.rollouts.sync import WeightSync


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """How the server is reached that samples rollouts.

    Attributes:
        server: its ``served_model`` may be empty where it has one model.
        sync: folder through which weights go to it, the same path on both machines; None for ``OUT/sync``.
    """

    server: ServerOptions
    sync: Path | None = None


@dataclass(slots=True)
class Sampling:
    """A server that samples the rollouts of a run.

    Attributes:
        server: how it is asked.
        folder: for weights on their way to it.
        run: a word that no other run has.
        bound: mean gap in nats a token above which the run stops; 0 for that of the model's format.
        weights: what the server has; None until the first step.
    """

    server: RolloutServer
    folder: Path
    run: str
    bound: float
    weights: WeightSync | None = None

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


def open_sampling(config: TrainConfig, arguments: Any, options: RolloutOptions | None, out: Path) -> Sampling | None:
    """The server that samples rollouts, met once; None where the trainer samples them.

    Args:
        arguments: from :func:`surgery_r1.train.rft.rft_arguments`.
        out: the run folder.

    Raises:
        SurgeryR1Error: for a config and flags that do not fit, or a server that cannot be reached.
    """
    rft = config.rft
    if options is None and rft.rollouts == "server":
        raise SurgeryR1Error("rft.rollouts = 'server', but no server is named", fix="name it with --endpoint URL")
    if options is not None and rft.rollouts != "server":
        fix = "say so in the config too: --set rft.rollouts=server"
        raise SurgeryR1Error("--endpoint, but rft.rollouts = 'trainer'", fix=fix)
    if options is None:
        return None
    if config.ranks.shard != "none":
        raise SurgeryR1Error(
            f"rft.rollouts = 'server' with ranks.shard = {config.ranks.shard!r}: nobody has tried it",
            fix="spread no weights, or let the trainer sample",
        )
    _refuse_other_draws(arguments)
    server = RolloutServer(options.server, rft.max_completion, rft.temperature)
    run = ranks.first(lambda: f"surgery-r1-{secrets.token_hex(4)}")
    server.seeded = ranks.first(server.meet)
    return Sampling(server, options.sync or out / "sync", run, rft.gap_bound)


def _refuse_other_draws(arguments: Any) -> None:
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
                f"rft.trl.{name} = {getattr(arguments, name)!r} does not go with rft.rollouts = 'server'",
                fix="leave it out: what is trained are log-probabilities of the whole distribution",
            )
