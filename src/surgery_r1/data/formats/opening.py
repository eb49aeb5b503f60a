"""Which reader a folder needs: an adapter that was named or that lies with it, or that of EndoVis label folders."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from surgery_r1.data.formats.declarative import load_format
from surgery_r1.data.formats.endovis import LabelFolder
from surgery_r1.data.formats.reader import FormatReader
from surgery_r1.data.formats.source import Source

logger = logging.getLogger(__name__)

#: Name of an adapter that is used without being named.
OWN_ADAPTER = "adapter.toml"


def source_opener(adapter: str | None) -> Callable[[Path, Path | None], Source]:
    """What opens a folder (and the one with its images, where they lie apart).

    Args:
        adapter: a shipped one by its name, or a TOML file by its path. None: :func:`adapter_of` each folder, and where
            there is none the folder is one of EndoVis labels. An adapter that was not named is logged.

    Raises:
        SurgeryR1Error: for an adapter that is not there or is wrong.
    """
    named = None if adapter is None else load_format(adapter)

    def open_source(folder: Path, images: Path | None) -> Source:
        if named is not None:
            return FormatReader(named, folder, images)
        path = adapter_of(folder)
        if path is None:
            return LabelFolder(folder, images)
        logger.info("%s is read by %s (--adapter names another)", folder, path)
        return FormatReader(load_format(path), folder, images)

    return open_source


def adapter_of(folder: Path) -> Path | None:
    """The ``adapter.toml`` in a folder, else the one beside it, else None."""
    if not folder.is_dir():
        return None
    above = folder.resolve().parent if folder.name in ("", "..") else folder.parent
    return next((path for path in (folder / OWN_ADAPTER, above / OWN_ADAPTER) if path.is_file()), None)
