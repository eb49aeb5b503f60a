"""Weights on their way to a vLLM server: a folder for every step, which the server is told to load.

Full weights go into the model that the server runs (``reload_weights``, with ``VLLM_SERVER_DEV_MODE=1``). A LoRA
adapter goes beside it under a new name (``/v1/load_lora_adapter``, with ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``): the
base is never merged, because merging and unmerging in bf16 changes it. What vLLM has computed with the old weights
(prefixes, images) is dropped with them: vLLM 0.31 would go on with it, or end with "Encoder cache miss".
"""

from __future__ import annotations

import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.train.rollouts.server import START, RolloutServer

#: Seconds between looks for a folder on a shared disk.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
_CACHES = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")


class WeightSync(ABC):
    """What the server has of this run, and how it gets the next.

    Args:
        server: to load weights.
        folder: that both machines see; each step's folder in it is removed when the server has the next.
        run: a word that no other run has, for names at the server.
    """

    def __init__(self, server: RolloutServer, folder: Path, run: str) -> None:
        self._server, self._folder, self._run = server, folder.resolve(), run
        self._ours = not folder.exists()

    def put(self, write: Callable[[Path], None], step: int) -> str:
        """Bring the weights of a step to the server; the name under which it has them.

        Args:
            write: writes the weights into a folder.
            step: optimiser steps that they have seen.

        Raises:
            SurgeryR1Error: when the server does not load them.
        """
        folder = self._folder / f"{self._run}-{step:06d}"
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        for path in partial.iterdir():
            # safetensors writes for the owner alone; the server may be another user.
            path.chmod(0o644)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        name = self._load(folder, f"{self._run}-{step}")
        self._remove(but=folder)
        return name

    def close(self) -> None:
        """Remove what was written for the server."""
        self._remove()

    def _remove(self, but: Path | None = None) -> None:
        for path in self._folder.glob(f"{self._run}-*"):
            if path != but:
                shutil.rmtree(path, ignore_errors=True)
        if but is None and self._ours and self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    @abstractmethod
    def _load(self, folder: Path, version: str) -> str:
        """Make the server load ``folder``; the model's name there."""

    @abstractmethod
    def check(self) -> None:
        """Refuse replies of a server that has other weights by now.

        Raises:
            SurgeryR1Error: then.
        """

    def _told(self, path: str, body: dict[str, Any] | None, needs: str, late: str | None = None) -> str:
        """What the server says to a request that must succeed.

        Args:
            needs: what it must be started with to take it.
            late: what it says where a shared disk does not show it the folder yet; it is asked again then.
        """
        status, text = self._server.client.control(path, body)
        for pause in _PAUSES if late else ():
            if str(late) not in text:
                break
            time.sleep(pause)
            status, text = self._server.client.control(path, body)
        if status in (404, 405) and "not found" in text.lower():
            raise SurgeryR1Error(f"{self._server.name} has no {path}", fix=f"start it with {needs}: {START}")
        if status != 200:
            raise SurgeryR1Error(
                f"{self._server.name} cannot load the weights of this run ({path} answers {status}: {text})",
                fix="serve the model that this run starts from, and see that the server reads the folder of --sync",
            )
        return text

    def _drop_caches(self) -> None:
        for path in _CACHES:
            told = self._told(path, {}, "VLLM_SERVER_DEV_MODE=1")
            if told and json.loads(told).get("success") is False:
                raise SurgeryR1Error(
                    f"{self._server.name} keeps what it has computed with old weights ({path}): others use it too",
                    fix="give this run a server of its own",
                )


class FullSync(WeightSync):
    """All weights, into the model that the server runs."""

    def __init__(self, server: RolloutServer, folder: Path, run: str, *, tied: bool) -> None:
        super().__init__(server, folder, run)
        self._name = server.base()
        self._version = ""
        self._refuse_tied_on_cpu(tied)

    def _refuse_tied_on_cpu(self, tied: bool) -> None:
        device = self._server.info().get("device_config", {}).get("device")
        if tied and device == "cpu":
            # Seen with 0.31.0: every tensor arrives, but for the packed copy that the output layer has of its own.
            raise SurgeryR1Error(
                f"{self._server.name} runs on a CPU, where vLLM reloads all weights but the output layer of a model "
                "that shares it with the token embeddings (tie_word_embeddings)",
                fix="train LoRA adapters (lora.enabled = true), or a base that does not share them",
            )

    def _load(self, folder: Path, version: str) -> str:
        dev = "VLLM_SERVER_DEV_MODE=1"
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._told("/collective_rpc", body, dev)
        self._drop_caches()
        self._told("/update_weight_version", {"new_version": version}, dev)
        self._version = version
        self.check()
        return self._name

    def check(self) -> None:
        found = json.loads(self._told("/weight_info", None, "VLLM_SERVER_DEV_MODE=1")).get("weight_version")
        if found != self._version:
            raise SurgeryR1Error(
                f"{self._server.name} has weights {found!r}, not the {self._version!r} that it was given: it was "
                "started again, or another run uses it",
                fix="give this run a server of its own, and go on with --resume",
            )


class AdapterSync(WeightSync):
    """A LoRA adapter beside the server's base model, under a name of its own for every step.

    vLLM keeps prefixes by the adapter's name and folder: those of an older step are never taken for a new one.
    """

    def __init__(self, server: RolloutServer, folder: Path, run: str, *, tower: bool) -> None:
        super().__init__(server, folder, run)
        self._tower = tower
        self._loaded: tuple[str, Path] | None = None

    def _load(self, folder: Path, version: str) -> str:
        needs = "--enable-lora --max-lora-rank RANK and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        body = {"lora_name": version, "lora_path": str(folder)}
        self._told("/v1/load_lora_adapter", body, needs, late="No adapter found")
        before, self._loaded = self._loaded, (version, folder)
        self.check()
        if before is not None:
            self._told("/v1/unload_lora_adapter", {"lora_name": before[0]}, needs)
        if self._tower:
            self._drop_caches()
        return version

    def check(self) -> None:
        if self._loaded is None:
            return
        name, folder = self._loaded
        listed = {entry["id"]: entry.get("root") for entry in self._server.client.models() or ()}
        if listed.get(name) != str(folder):
            raise SurgeryR1Error(
                f"{self._server.name} does not have the adapter {name} that it was given: it was started again",
                fix="see to the server and go on with --resume",
            )
