"""The files that a config is read from, each with those it extends, and the values given with ``--set``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from surgery_r1._util.toml import SHIPPED, find, load_toml
from surgery_r1._util.toml_layers import COMMAND_LINE, Layer, Sources, merge, put
from surgery_r1.errors import SurgeryR1Error

#: The key by which a file names the one below it.
EXTENDS = "extends"


def read_sources(kind: type, name: str | Path | None, known: Iterable[str], overrides: Sequence[str] = ()) -> Sources:
    """All that a config is built from: the file, those it extends, and overrides on top.

    Args:
        kind: the dataclass to build; it says which tables are replaced whole (``ONE_VALUE``).
        name: a TOML file or a shipped one; None is the defaults alone.
        known: the shipped files of this kind.
        overrides: ``key=value`` each, see :func:`parse_override`. What is wrong with them is in ``errors``.

    Raises:
        SurgeryR1Error: when a file is missing or no TOML, or ``extends`` is wrong.
    """
    layers = [] if name is None else _files(kind, find(name, SHIPPED, known), sorted(known))
    data: dict[str, Any] = {}
    for layer in layers:
        data = merge(kind, data, {key: value for key, value in layer.data.items() if key != EXTENDS})
    given: dict[str, Any] = {}
    errors = []
    for text in overrides:
        try:
            path, value = parse_override(text)
        except ValueError as error:
            errors.append(f"{COMMAND_LINE}: {error}")
            continue
        data = put(kind, data, path, value)
        given = put(None, given, path, value)
    return Sources(data, (*layers, Layer(COMMAND_LINE, given)), tuple(errors), (EXTENDS,))


def parse_override(text: str) -> tuple[list[str], Any]:
    """The path and the value of ``key=value``. What is not TOML is a string, so that words need no quotes.

    Raises:
        ValueError: for another form, or for open brackets and quotes.

    >>> parse_override("rft.max_steps=20")
    (['rft', 'max_steps'], 20)
    >>> parse_override("rft.rewards={answer=1.0}")
    (['rft', 'rewards'], {'answer': 1.0})
    >>> parse_override("model.base=tiny")
    (['model', 'base'], 'tiny')
    """
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise ValueError(f"{text!r} is not KEY=VALUE, such as rft.max_steps=20")
    if key == EXTENDS:
        raise ValueError(f"{text!r}: only a file can extend another")
    try:
        table = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        table = {}
    if table.keys() == {"value"}:
        return key.split("."), table["value"]
    if raw.startswith(("[", "{", '"', "'")):
        raise ValueError(f"{key} = {raw} is not valid TOML: check its brackets, quotes and commas")
    return key.split("."), raw


def _files(kind: type, path: Path, known: Sequence[str]) -> list[Layer]:
    """The file and those it extends, the lowest first."""
    layers: list[Layer] = []
    paths: list[Path] = []
    while True:
        data, text = load_toml(path)
        if layers:
            _refuse_another_kind(kind, data, layers[0], known)
        layers.insert(0, Layer(str(path), data, tuple(text.splitlines())))
        paths.append(path)
        if EXTENDS not in data:
            return layers
        path = _parent(layers[0], path, known)
        if path.resolve() in [before.resolve() for before in paths]:
            raise SurgeryR1Error(
                f"extends in a circle: {' -> '.join(p.name for p in [*paths, path])}",
                where=layers[0].place(EXTENDS),
                fix="take one extends out",
            )


def _parent(layer: Layer, path: Path, known: Sequence[str]) -> Path:
    """The file that a layer extends: a shipped one by name, or a path relative to the file that says so."""
    name = layer.data[EXTENDS]
    if not isinstance(name, str) or not name:
        raise SurgeryR1Error(f"extends = {name!r}, expected the name of a config or a path", where=layer.place(EXTENDS))
    shipped = SHIPPED / f"{name}.toml"
    if not Path(name).suffix and shipped.is_file():
        return shipped
    if not (path.parent / name).is_file():
        raise SurgeryR1Error(
            f"extends = {name!r}: no such config",
            where=layer.place(EXTENDS),
            fix=f"give a TOML file by its path from here, or one of {', '.join(known)}",
        )
    return path.parent / name


def _refuse_another_kind(kind: type, data: dict[str, Any], child: Layer, known: Sequence[str]) -> None:
    tables = {key for key, value in data.items() if isinstance(value, dict)}
    own = {f.name for f in fields(kind)}
    if tables and not tables & own:
        raise SurgeryR1Error(
            f"extends = {child.data[EXTENDS]!r}, a file of another kind: it has the tables {', '.join(sorted(tables))}",
            where=child.place(EXTENDS),
            fix=f"extend one of {', '.join(known)}, or a file with some of the keys {', '.join(sorted(own))}",
        )
