"""What a command writes to standard error: ours, in one style; what libraries warn of only with ``--debug``."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

#: Libraries whose warnings are about their own code, and not about what the user gave.
_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub", "bitsandbytes")


class _Style(logging.Formatter):
    """``warning: what happened``; what is no warning stands alone."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


@contextmanager
def shown_messages(debug: bool) -> Iterator[None]:
    """Show the package's log on standard error inside the block, and with ``debug`` what libraries warn of too."""
    package = logging.getLogger("surgery_r1")
    libraries = [] if debug else [logging.getLogger(name) for name in _LIBRARIES]
    levels = [(named, named.level) for named in (package, *libraries)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Style())
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    with warnings.catch_warnings():
        for library in libraries:
            warnings.filterwarnings("ignore", module=rf"{library.name}(\.|$)")
            library.setLevel(logging.ERROR)
        try:
            yield
        finally:
            package.removeHandler(handler)
            for named, level in levels:
                named.setLevel(level)
