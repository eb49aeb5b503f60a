"""Replacing an attribute of somebody else's object for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()


@contextmanager
def overriding(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let ``owner.name`` be ``value`` inside the block; afterwards it is what it was, also after an error.

    An attribute that the object only inherits from its class is inherited again afterwards.

    Raises:
        AttributeError: when there is no such attribute: the library has changed.

    >>> class Model:
    ...     def generate(self):
    ...         return "slow"
    >>> model = Model()
    >>> with overriding(model, "generate", lambda: "fast"):
    ...     inside = model.generate()
    >>> inside, model.generate(), vars(model)
    ('fast', 'slow', {})
    """
    getattr(owner, name)
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
