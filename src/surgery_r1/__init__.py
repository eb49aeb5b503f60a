"""An open Surgery-R1: reasoning models for surgical visual question answering with localized answers.

>>> import surgery_r1
>>> model = surgery_r1.load("tiny")                                      # or a run folder, such as runs/rft
>>> sorted(name for name in surgery_r1.__all__ if not name.startswith("_"))
['Dataset', 'Model', 'Reply', 'SurgeryR1Error', 'load', 'open_dataset', 'rewards', 'score']

Importing this package loads no torch; what needs it loads it when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    from surgery_r1 import rewards
    from surgery_r1.data.dataset import Dataset, open_dataset
    from surgery_r1.evaluate.score import score
    from surgery_r1.inference import Model, Reply, load

__version__ = "0.1.0"

__all__ = ["Dataset", "Model", "Reply", "SurgeryR1Error", "__version__", "load", "open_dataset", "rewards", "score"]

#: Name -> module that has it. Imported when first asked for.
_LAZY = {
    "Dataset": "surgery_r1.data.dataset",
    "open_dataset": "surgery_r1.data.dataset",
    "score": "surgery_r1.evaluate.score",
    "Model": "surgery_r1.inference",
    "Reply": "surgery_r1.inference",
    "load": "surgery_r1.inference",
}


def __getattr__(name: str) -> Any:
    if name == "rewards":
        return importlib.import_module("surgery_r1.rewards")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'surgery_r1' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
