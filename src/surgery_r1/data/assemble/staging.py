"""Frames and their questions on disk between the two passes of a build, so that memory does not grow with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from surgery_r1._util.files import dump_json
from surgery_r1.data.formats.endovis import SOURCES
from surgery_r1.records import Frame, Sample


class StagingFiles:
    """Written frame by frame, read back source by source: those of EndoVis first, others as they came.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[str]] = {}
        self.frames = 0

    def add(self, frame: Frame, samples: list[Sample]) -> None:
        """Keep a frame and its questions (at least one)."""
        source = samples[0].source
        if source not in self._files:
            self._files[source] = (self._folder / f"{len(self._files)}.jsonl").open("w+", encoding="utf-8")
        record = {"frame": frame.to_json(), "samples": [sample.to_json() for sample in samples]}
        self._files[source].write(dump_json(record) + "\n")
        self.frames += 1

    def __iter__(self) -> Iterator[tuple[Frame, list[Sample]]]:
        for source in sorted(self._files, key=lambda name: SOURCES.index(name) if name in SOURCES else len(SOURCES)):
            file = self._files[source]
            file.seek(0)
            for line in file:
                record = json.loads(line)
                yield Frame.from_json(record["frame"]), [Sample.from_json(data) for data in record["samples"]]

    def close(self) -> None:
        """Close and delete what was kept."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._folder)
