"""Where a config's values come from, layer upon layer, and in which line each of them stands."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any

#: Metadata of a field whose table is one value: the upper layer replaces it whole. Other tables merge key by key.
ONE_VALUE = {"one_value": True}


#: Name of the layer that was given with ``--set``.
COMMAND_LINE = "--set"


@dataclass(frozen=True)
class Layer:
    """One source of values: a file, or what was given with ``--set``.

    Attributes:
        name: how errors call it.
        data: its values, in nested tables.
        lines: its text, for line numbers; empty where it has none.
    """

    name: str
    data: Mapping[str, Any]
    lines: tuple[str, ...] = ()

    def holds(self, key: str) -> bool:
        """Whether the dotted key is set here."""
        value: Any = self.data
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return False
            value = value[part]
        return True

    def place(self, key: str) -> str:
        """``path:line`` of the dotted key; the path alone where it is not set, or the layer has no lines."""
        if not self.lines or not self.holds(key):
            return self.name
        parts = key.split(".")
        # In an inline table the line is that of the table.
        tables = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        number = next((number for table in tables if (number := _line_of(table, self.lines))), 1)
        return f"{self.name}:{number}"


@dataclass(frozen=True)
class Sources:
    """Everything that a config is built from.

    Attributes:
        data: the values of all layers, merged.
        layers: the lowest first.
        errors: what is known to be wrong before anything is built.
        words: keys that files may hold beside the config's own; for suggestions.
    """

    data: Mapping[str, Any]
    layers: tuple[Layer, ...]
    errors: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def place(self, key: str) -> str:
        """Where the dotted key gets its value; where it has none, the file that was asked for."""
        for layer in reversed(self.layers):
            if layer.holds(key):
                return layer.place(key)
        return next((layer.name for layer in reversed(self.layers) if layer.name != COMMAND_LINE), COMMAND_LINE)


def merge(kind: Any, base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``over`` on top of ``base``: tables merge, everything else is replaced.

    Args:
        kind: the dataclass that the values are for; its fields may say :data:`ONE_VALUE`.

    >>> merge(None, {"rft": {"prompts": 4, "flips": ["both"]}}, {"rft": {"flips": []}, "seed": 1})
    {'rft': {'prompts': 4, 'flips': []}, 'seed': 1}
    """
    merged = dict(base)
    for key, value in over.items():
        before = base.get(key)
        field = _field(kind, key)
        whole = field is not None and field.metadata.get("one_value")
        if isinstance(before, Mapping) and isinstance(value, Mapping) and not whole:
            merged[key] = merge(_kind_of(kind, key), before, value)
        else:
            merged[key] = value
    return merged


def put(kind: Any, data: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """``data`` with a value merged in at a path. Naming one key of a table keeps the others, also the default ones.

    >>> put(None, {"rft": {"rewards": {"answer": 1.0, "box": 1.0}}}, ["rft", "rewards", "box"], 0.5)
    {'rft': {'rewards': {'answer': 1.0, 'box': 0.5}}}
    """
    key, *rest = path
    if not rest:
        return merge(kind, data, {key: value})
    inner = data.get(key, _default_table(kind, key))
    return {**data, key: put(_kind_of(kind, key), inner if isinstance(inner, Mapping) else {}, rest, value)}


def _field(kind: Any, key: str) -> Field[Any] | None:
    return next((f for f in fields(kind) if f.name == key), None) if is_dataclass(kind) else None


def _kind_of(kind: Any, key: str) -> Any:
    return typing.get_type_hints(kind).get(key) if is_dataclass(kind) else None


def _default_table(kind: Any, key: str) -> Any:
    field = _field(kind, key)
    return {} if field is None or field.default_factory is MISSING else field.default_factory()


def _line_of(name: str, lines: Sequence[str]) -> int | None:
    """First line that sets the dotted ``name`` or opens its table."""
    table = ""
    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].strip()
        if text.startswith("["):
            table = text.strip("[] ") + "."
            found = table[:-1]
        else:
            found = table.replace(" ", "") + text.split("=")[0].strip()
        if found == name or found.startswith(f"{name}."):
            return number
    return None
