"""vLLM as a child of the training process: started with the run's own model, asked over a socket, ended with the run.

It is the server of ``rollouts.server``, started by the trainer and closed to everybody else, so that what is checked
there is checked here: tokens of prompts, weights, the gap. It may lie in an environment of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgery_r1._util.launcher import without_launcher
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.endpoint import ServerOptions
from surgery_r1.train.rollouts.server import RolloutServer

#: Seconds that a large model may take to load.
_PATIENCE = 3600.0
#: Ranks that vLLM takes for adapters.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: On a CPU vLLM draws from seeds only where it reads prompts whole, which it does up to its window. Of main memory it
#: would take nearly all, or not start where the trainer has some: it gets 4 GiB for keys and values.
_ON_CPU = (
    *("--enforce-eager", "--no-enable-chunked-prefill", "--max-model-len", "2048"),
    *("--kv-cache-memory-bytes", str(4 * 2**30)),
)
_SETTINGS = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
_SETTINGS |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
#: Runs a command until it ends or standard input does, which the trainer holds open and loses however it ends. vLLM may
#: pass over a first signal while it starts, and leaves its workers behind when it is killed: all of its group end.
_KEEPER = """
exec 3<&0
"$@" < /dev/null 3<&- & child=$!
(cat <&3 > /dev/null; kill -TERM $child; sleep 8; kill -KILL 0) &
exec 3<&-
wait $child
"""
_ERROR = re.compile(r"\b\w+Error: .*")
#: Files of a base model that an engine reads beside its description.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How vLLM is started.

    Attributes:
        command: the ``vllm`` command, of any environment.
        arguments: for ``vllm serve``, beside those that the run needs; of two that say the same the last one counts.
        rank: of the adapter that is trained; 0 where all weights are.
        timeout: seconds that a request may take.
    """

    command: Path
    arguments: tuple[str, ...]
    rank: int
    timeout: float


class ColocatedEngine:
    """A vLLM server that only this process can reach.

    Args:
        options: how it is started.
        out: the run folder; the engine's own words go to ``vllm.log`` in it.
        max_tokens, temperature: of a reply.
    """

    def __init__(self, options: EngineOptions, out: Path, max_tokens: int, temperature: float) -> None:
        self._options, self._log, self._model = options, out / "vllm.log", out / "engine"
        self._process: subprocess.Popen[bytes] | None = None
        # Paths of sockets are short, and run folders lie deep. Made at the start: a refusal before it leaves none.
        self._home = Path(tempfile.gettempdir()) / f"surgery-r1-{secrets.token_hex(8)}"
        self._socket = self._home / "socket"
        self._sleeps = torch.cuda.is_available()
        server = ServerOptions("http://127.0.0.1/v1", timeout=options.timeout)
        self.server = RolloutServer(server, max_tokens, temperature, socket=self._socket, log=self._log)

    def start(self, model: Any, describe: Callable[[Path, int], None], dtype: str) -> None:
        """Start it with the model that is to be trained, and wait until it answers.

        Args:
            model: without an adapter around it yet.
            describe: adds processor and description to the weights in a folder.
            dtype: of its weights.

        Raises:
            SurgeryR1Error: when it does not start.
        """
        self._home.mkdir(mode=0o700)
        shutil.rmtree(self._model, ignore_errors=True)
        self._model.mkdir(parents=True)
        if self._options.rank:
            # An adapter names its base by path.
            base = Path(model.name_or_path)
            for path in (path for pattern in _WEIGHTS for path in base.glob(pattern)):
                (self._model / path.name).symlink_to(path.resolve())
        else:
            model.save_pretrained(self._model)
        describe(self._model, 0)
        with self._log.open("ab") as log:
            begun = log.tell()
            # A session of its own: an interrupt is for the trainer, which then ends it.
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _KEEPER, "sh", str(self._options.command), *self._arguments(dtype)],
                env={**without_launcher(), **_SETTINGS},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait(begun)
        self.server.seeded = self.server.meet()
        for path in self._model.glob("*.safetensors"):
            path.unlink()

    def _arguments(self, dtype: str) -> Sequence[str]:
        own = ["serve", str(self._model.resolve()), "--uds", str(self._socket), "--dtype", dtype]
        own += ["--logprobs-mode", "processed_logprobs"]
        if self._options.rank:
            rank = next((rank for rank in _RANKS if rank >= self._options.rank), self._options.rank)
            own += ["--enable-lora", "--max-lora-rank", str(rank)]
        own += ["--enable-sleep-mode"] if self._sleeps else _ON_CPU
        return [*own, *self._options.arguments]

    def _wait(self, begun: int) -> None:
        """Until it answers; what stands in the log before ``begun``, in bytes, a run before this one has said."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end and self._process is not None and self._process.poll() is None:
            if self._socket.exists() and self.server.client.is_up("/health"):
                return
            time.sleep(0.2)
        said = self._log.read_bytes()[begun:].decode(errors="replace").strip().splitlines()
        # The cause comes first; then each process that had started another says that it has failed.
        causes = [found[0] for line in said if " WARNING " not in line and (found := _ERROR.search(line))]
        told = next(iter([*causes, *said[-1:]]), "nothing")
        raise SurgeryR1Error(
            f"vLLM does not start; it says: {told.strip()[:300]}",
            where=self._log,
            fix="see the whole of it there; arguments of vllm serve go into rft.vllm, such as "
            "['--gpu-memory-utilization', '0.3', '--max-model-len', '4096']",
        )

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Give the engine its GPU memory inside the block; outside it lies in main memory. (Not tried on a GPU.)"""
        self._tell("/wake_up")
        yield
        self._tell("/sleep?level=1")

    def _tell(self, path: str) -> None:
        if not self._sleeps:
            return
        status, text = self.server.client.control(path, {})
        if status != 200:
            raise SurgeryR1Error(f"vLLM answers {path} with {status}: {text}", where=self._log, fix="see its words")

    def close(self) -> None:
        """End it and all that it has started, and remove what was written for it."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                # What is left of its group.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for folder in (self._home, self._model):
            shutil.rmtree(folder, ignore_errors=True)


def command_named(name: str | None, beside: Path) -> Path:
    """The ``vllm`` command.

    Args:
        name: as the user gave it; None looks beside this Python, then along PATH.
        beside: the folder of this Python.

    Raises:
        SurgeryR1Error: when there is none.
    """
    found = shutil.which(name) if name else shutil.which("vllm", path=str(beside)) or shutil.which("vllm")
    if found is None:
        raise SurgeryR1Error(
            f"rft.rollouts = 'colocate' needs the vllm command, and {name or 'vllm'} is none",
            fix="install vLLM in an environment of its own and name its command: --vllm /path/to/bin/vllm",
        )
    return Path(found)
