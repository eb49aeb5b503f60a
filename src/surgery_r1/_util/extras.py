"""Which extra of this package brings a module that is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from surgery_r1.errors import SurgeryR1Error

#: Extra -> the modules that it brings; ``pyproject.toml`` says in which versions.
EXTRAS: dict[str, tuple[str, ...]] = {
    "predict": ("torch", "transformers", "peft", "accelerate", "safetensors", "cachetools"),
    "train": ("trl", "datasets", "pyarrow", "psutil"),
    "teacher": ("openai",),
    "serve": ("fastapi", "uvicorn", "python_multipart"),
}


@contextmanager
def extras_named(*, trains: bool = False) -> Iterator[None]:
    """A module that is missing inside the block becomes a :class:`SurgeryR1Error` that names the extra to install.

    Args:
        trains: the block needs all of ``train``, so that is named for what ``predict`` brings too.

    >>> with extras_named():
    ...     raise ModuleNotFoundError("No module named 'trl'", name="trl.trainer")
    Traceback (most recent call last):
    surgery_r1.errors.SurgeryR1Error: trl is not installed; pip install 'surgery-r1[train]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
        if extra is None:
            raise
        if trains and extra == "predict":
            extra = "train"
        raise SurgeryR1Error(f"{module} is not installed", fix=f"pip install 'surgery-r1[{extra}]'") from error
