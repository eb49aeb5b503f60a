"""The files that a config is read from, each with those it extends, and the values given with ``--set``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from surgery_r1._util.toml import COMMAND_LINE, SHIPPED, Layer, Sources, find, load_toml
from surgery_r1.errors import SurgeryR1Error

#: The key by which a file names the one below it.
EXTENDS = "extends"


def read_sources(
    kind: type,
    name: str | Path | None,
    known: Iterable[str],
    overrides: Sequence[str] = (),
    whole: Mapping[str, Any] | None = None,
) -> Sources:
    """All that a config is built from: the file, those it extends, and overrides on top.

    Args:
        kind: the dataclass to build.
        name: a TOML file or a shipped one; None is the defaults alone.
        known: the shipped files of this kind.
        overrides: ``key=value`` each, see :func:`parse_override`. What is wrong with them is in ``errors``. Naming one
            key of a table keeps the others, also the default ones.
        whole: tables that are one value, by dotted name, with their defaults: a file replaces them whole.

    Raises:
        SurgeryR1Error: when a file is missing or no TOML, or ``extends`` is wrong.
    """
    layers = [] if name is None else _files(kind, find(name, SHIPPED, known), sorted(known))
    whole = whole or {}
    data: dict[str, Any] = {}
    for table, default in whole.items():
        data = merge(data, _nested(table, default))
    for layer in layers:
        data = merge(data, {key: value for key, value in layer.data.items() if key != EXTENDS}, whole)
    given: dict[str, Any] = {}
    errors = []
    for text in overrides:
        try:
            path, value = parse_override(text)
        except ValueError as error:
            errors.append(f"{COMMAND_LINE}: {error}")
            continue
        data = merge(data, _nested(path, value), [table for table in whole if not path.startswith(f"{table}.")])
        given = merge(given, _nested(path, value))
    return Sources(data, [*layers, Layer(COMMAND_LINE, given)], errors, (EXTENDS,))


def merge(
    base: Mapping[str, Any], over: Mapping[str, Any], whole: Iterable[str] = (), above: str = ""
) -> dict[str, Any]:
    """The values of ``over`` on top of ``base``: tables merge, all else is replaced, and so are the tables ``whole``.

    Args:
        above: dotted name of the table that this is, with a dot behind it.

    >>> merge({"rft": {"prompts": 4, "flips": ["both"]}}, {"rft": {"flips": []}, "seed": 1})
    {'rft': {'prompts': 4, 'flips': []}, 'seed': 1}
    """
    merged = dict(base)
    for key, value in over.items():
        name = f"{above}{key}"
        tables = isinstance(base.get(key), Mapping) and isinstance(value, Mapping) and name not in whole
        merged[key] = merge(base[key], value, whole, f"{name}.") if tables else value
    return merged


def _nested(path: str, value: Any) -> dict[str, Any]:
    """A value at a dotted path, in tables.

    >>> _nested("rft.rewards.box", 0.5)
    {'rft': {'rewards': {'box': 0.5}}}
    """
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def parse_override(text: str) -> tuple[str, Any]:
    """The dotted path and the value of ``key=value``. What is not TOML is a string, so that words need no quotes.

    Raises:
        ValueError: for another form, or for open brackets and quotes.

    >>> parse_override("rft.max_steps=20")
    ('rft.max_steps', 20)
    >>> parse_override("rft.rewards={answer=1.0}")
    ('rft.rewards', {'answer': 1.0})
    >>> parse_override("model.base=tiny")
    ('model.base', 'tiny')
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
        return key, table["value"]
    if raw.startswith(("[", "{", '"', "'")):
        raise ValueError(f"{key} = {raw} is not valid TOML: check its brackets, quotes and commas")
    return key, raw


def _files(kind: type, path: Path, known: Sequence[str]) -> list[Layer]:
    """The file and those it extends, the lowest first."""
    layers: list[Layer] = []
    while True:
        data, text = load_toml(path)
        if layers:
            _refuse_another_kind(kind, data, layers[0], known)
        layers.insert(0, Layer(str(path), data, text))
        if EXTENDS not in data:
            return layers
        path = _parent(layers[0], path, known)
        before = [Path(layer.name) for layer in reversed(layers)]
        if path.resolve() in [path.resolve() for path in before]:
            what = f"extends in a circle: {' -> '.join(path.name for path in [*before, path])}"
            raise SurgeryR1Error(what, where=layers[0].place(EXTENDS), fix="take one extends out")


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
