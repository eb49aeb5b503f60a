"""What ``accelerate launch`` and accelerate tell each other: variables of the environment, their only interface."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_PREFIXES = ("ACCELERATE_", "FSDP_")


def told(name: str, default: str = "") -> str:
    """The value of a variable; an engine's on-off switch is ``true`` or ``false``.

    >>> told("FSDP_NO_SUCH_VARIABLE", "1")
    '1'
    """
    return os.environ.get(name, default)


def tell(**values: str) -> None:
    """Set variables, for libraries that read them later."""
    os.environ.update(values)


def without_launcher() -> dict[str, str]:
    """The environment without what a launcher says to its processes, for a program that is none of them."""
    ranks = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    said = (*_PREFIXES, "TORCHELASTIC_", "MASTER_", "ROLE_")
    return {name: value for name, value in os.environ.items() if name not in ranks and not name.startswith(said)}


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables that are set inside the block, by us or by accelerate, are afterwards what they were."""
    before = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
    tell(**values)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(_PREFIXES) and name not in before]:
            del os.environ[name]
        os.environ.update(before)
