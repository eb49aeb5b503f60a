"""Models: loading, processors, the tiny base."""

from __future__ import annotations

from typing import Any

__all__ = ["Bundle", "ModelInfo", "from_pretrained"]


def __getattr__(name: str) -> Any:
    # Lazy, because importing transformers takes seconds and most commands never need it.
    if name in __all__:
        from surgery_r1.models import load

        return getattr(load, name)
    raise AttributeError(name)
