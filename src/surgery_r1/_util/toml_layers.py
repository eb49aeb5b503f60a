"""Where a config's values come from, layer upon layer, and in which line each of them stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
