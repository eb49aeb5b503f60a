"""What was done in the folder of a seed, made of what, and how long it took: ``stages.json``."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surgery_r1._util.files import dump_json, read_json, write_json
from surgery_r1.reproduce.registration import now


def hash_of(inputs: Mapping[str, Any]) -> str:
    """sha256 of what a stage is made of.

    >>> hash_of({"seed": 0, "size": (320, 256)}) == hash_of({"size": [320, 256], "seed": 0})
    True
    """
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class Ledger:
    """The stages of a folder, by key.

    Attributes:
        log: what this call did: ``(key, "reused" or "run")`` in order.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stages: dict[str, Any] = read_json(path) if path.is_file() else {}
        self.log: list[tuple[str, str]] = []

    def __getitem__(self, key: str) -> dict[str, Any]:
        """What is known of a stage; empty for one that was never begun."""
        return dict(self._stages.get(key, {}))

    def is_same(self, key: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a stage was begun with these very inputs."""
        return self[key].get("sha256") == hash_of(inputs)

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, over all calls."""
        return {key: round(stage["seconds"], 1) for key, stage in self._stages.items() if "seconds" in stage}

    def note(self, key: str, **facts: Any) -> None:
        """Write down facts of a stage."""
        self._stages[key] = json.loads(dump_json({**self[key], **facts}))
        write_json(self._path, self._stages)

    def reused(self, key: str, inputs: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Say that a stage is not run again, and what it is made of."""
        self.log.append((key, "reused"))
        if not self.is_same(key, inputs):
            # Made elsewhere, or before a kill that came too early to note it.
            self.note(key, sha256=hash_of(inputs), inputs=dict(inputs))
        say(f"   reused: {key}, nothing that it is made of has changed ({hash_of(inputs)[:12]})")

    @contextmanager
    def running(self, key: str, inputs: Mapping[str, Any], log: Path | None = None) -> Iterator[None]:
        """Note that a stage is run, and its time; that of calls that were cut is added to it.

        Args:
            log: a file that the stage appends to while it runs: of a call that was killed, the time of its last line
                says how long it ran.
        """
        self.log.append((key, "run"))
        before, same = self[key], self.is_same(key, inputs)
        seconds = before.get("seconds", 0.0) if same else 0.0
        if same and "begun_s" in before and log is not None and log.is_file():
            seconds += max(0.0, log.stat().st_mtime - before["begun_s"])
        self._stages[key] = {}
        self.note(key, sha256=hash_of(inputs), inputs=dict(inputs), begun=now(), begun_s=time.time(), seconds=seconds)
        start = time.monotonic()
        try:
            yield
        finally:
            del self._stages[key]["begun_s"]
            self.note(key, seconds=seconds + time.monotonic() - start)
        self.note(key, finished=now())


def put_aside(folder: Path, root: Path, say: Callable[[str], None]) -> None:
    """Move what was made of something else out of the way: it was paid for, and is kept."""
    target = root / "superseded" / folder.relative_to(root)
    number = 1
    while target.exists():
        number += 1
        target = root / "superseded" / f"{folder.relative_to(root)}-{number}"
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    say(f"   {folder.name} was made of something else: put aside as {target}")
