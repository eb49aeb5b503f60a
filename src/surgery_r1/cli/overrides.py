"""The option ``--set`` of every command that takes a config."""

from __future__ import annotations

from itertools import chain
from typing import Annotated

import tyro

#: Several values after one ``--set``, and several ``--set``, are all kept.
Overrides = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE ...")]


def in_order(overrides: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """All ``KEY=VALUE`` in the order in which they were given; of two for one key the later holds.

    >>> in_order((("seed=1", "rft.prompts=4"), ("seed=2",)))
    ('seed=1', 'rft.prompts=4', 'seed=2')
    """
    return tuple(chain.from_iterable(overrides))
