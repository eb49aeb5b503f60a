"""Hand-written TOML to frozen dataclasses: unknown keys are errors with a suggestion, all errors are shown at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from surgery_r1._util.checked import WrongData, checked
from surgery_r1.errors import SurgeryR1Error

_T = TypeVar("_T")

#: Files shipped with the package, usable by their bare name: training configs and the recipes of data sets.
SHIPPED = Path(__file__).parents[1] / "configs"

#: Name of the layer that was given with ``--set``.
COMMAND_LINE = "--set"


def shipped_with(table: str) -> list[str]:
    """Names of the shipped files that have a ``table``: ``model`` in training configs, ``rows`` in recipes."""
    return [path.stem for path in sorted(SHIPPED.glob("*.toml")) if table in load_toml(path)[0]]


def find(name: str | Path, folder: Path, known: Iterable[str]) -> Path:
    """The TOML file ``name``, or the shipped one of that name in ``folder``.

    Raises:
        SurgeryR1Error: when there is neither, naming those that are ``known``.
    """
    path = Path(name)
    if not path.suffix and (folder / f"{name}.toml").is_file():
        return folder / f"{name}.toml"
    if not path.is_file():
        raise SurgeryR1Error("no such config", where=name, fix=f"give a TOML file or one of {', '.join(sorted(known))}")
    return path


def load_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Parsed TOML and its text.

    Raises:
        SurgeryR1Error: for a file that is not UTF-8 or not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except UnicodeDecodeError as error:
        raise SurgeryR1Error(f"not UTF-8: {error.reason}", where=path, fix="save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SurgeryR1Error(f"not valid TOML: {error}", where=path, fix="correct the line") from None


@dataclass(frozen=True)
class Layer:
    """One source of values: a file, or what was given with ``--set``.

    Attributes:
        name: how errors call it.
        data: its values, in nested tables.
        text: for line numbers; empty where it has none.
    """

    name: str
    data: Mapping[str, Any]
    text: str = ""

    def place(self, key: str) -> str | None:
        """``path:line`` of the dotted key, the name alone where there is no text; None where it is not set here."""
        value: Any = self.data
        parts = key.split(".")
        for part in parts:
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        if not self.text:
            return self.name
        # In an inline table the line is that of the table.
        tables = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return f"{self.name}:{next((line for table in tables if (line := _line_of(table, self.text))), 1)}"


def _line_of(name: str, text: str) -> int | None:
    """First line that sets the dotted ``name`` or opens its table."""
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.split("#")[0].strip()
        if line.startswith("["):
            found = line.strip("[] ")
            table = found.replace(" ", "") + "."
        else:
            found = table + line.split("=")[0].strip()
        if found == name or found.startswith(f"{name}."):
            return number
    return None


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
    layers: Sequence[Layer]
    errors: Sequence[str] = ()
    words: tuple[str, ...] = ()

    def place(self, key: str) -> str:
        """Where the dotted key gets its value; where it has none, the file that was asked for."""
        places = [place for layer in self.layers if (place := layer.place(key))]
        files = [layer.name for layer in self.layers if layer.name != COMMAND_LINE]
        return (places or files or [COMMAND_LINE])[-1]


def build(
    kind: type[_T],
    data: Mapping[str, Any],
    path: Path | str,
    text: str = "",
    check: Callable[[_T], Iterable[str]] = lambda _: (),
) -> _T:
    """A ``kind`` of parsed TOML; ``text`` is its source, for line numbers. All else as in :func:`build_from`."""
    return build_from(kind, Sources(data, [Layer(str(path), data, text)]), check)


def build_from(kind: type[_T], sources: Sources, check: Callable[[_T], Iterable[str]] = lambda _: ()) -> _T:
    """A ``kind`` of values that may come from several files and the command line.

    Args:
        kind: see :func:`surgery_r1._util.checked.checked`.
        check: what is wrong with values that are right one by one; a message that starts with a dotted key gets its
            line.

    Raises:
        SurgeryR1Error: all that is wrong, at once, each as ``path:line`` where it stands.

    >>> from surgery_r1.data.recipe import RowsConfig
    >>> build(RowsConfig, {"cot": -1}, "mine.toml")
    Traceback (most recent call last):
    surgery_r1.errors.SurgeryR1Error: mine.toml: cot = -1, expected 0 or more; correct the config and run again
    """
    errors = list(sources.errors)
    try:
        result = checked(kind, sources.data, sources.words)
        keyed = ((re.match(r"\w+(?:\.\w+)*", message), message) for message in check(result))
        problems = [(key[0] if key else "", message) for key, message in keyed]
    except WrongData as error:
        problems = list(error.problems)
    errors += [f"{sources.place(key)}: {message}" for key, message in problems]
    if errors:
        raise SurgeryR1Error("\n".join(errors), fix="correct the config and run again")
    return result
