"""What a command writes to standard error: ours, in one style; what libraries warn of only with ``--debug``."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

#: Libraries whose warnings are about their own code, and not about what the user gave.
_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub")


class _Style(logging.Formatter):
    """``warning: what happened``; what is no warning stands alone."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


@contextmanager
def shown_messages(debug: bool) -> Iterator[None]:
    """Show the package's log on standard error inside the block, and with ``debug`` what libraries warn of too."""
    logger = logging.getLogger("surgery_r1")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Style())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with warnings.catch_warnings():
        if not debug:
            for library in _LIBRARIES:
                warnings.filterwarnings("ignore", module=rf"{library}(\.|$)")
                logging.getLogger(library).setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
