"""Hand-written TOML to frozen dataclasses: unknown keys are errors with a suggestion, all errors are shown at once."""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from surgery_r1.errors import SurgeryR1Error

_T = TypeVar("_T")

#: Files shipped with the package, usable by their bare name: training configs and the recipes of data sets.
SHIPPED = Path(__file__).parents[1] / "configs"


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
        raise SurgeryR1Error(
            "no such config", where=str(name), fix=f"give a TOML file or one of {', '.join(sorted(known))}"
        )
    return path


def load_toml(path: Path) -> tuple[dict[str, Any], str]:
    """ParsedReply TOML and its text.

    Raises:
        SurgeryR1Error: for a file that is not UTF-8 or not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SurgeryR1Error(f"not UTF-8: {error.reason}", where=str(path), fix="save the file as UTF-8") from None
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise SurgeryR1Error(f"not valid TOML: {error}", where=str(path), fix="correct the line") from None


def build(
    kind: type[_T],
    data: Mapping[str, Any],
    path: Path | str,
    text: str = "",
    check: Callable[[_T], Iterable[str]] = lambda _: (),
) -> _T:
    """A ``kind`` of parsed TOML.

    Args:
        kind: a dataclass whose fields are scalars, lists (tuples), tables (dicts) or such dataclasses.
        text: the source, for line numbers.
        check: what is wrong with a value whose types are right; a message that starts with a dotted key gets its line.

    Raises:
        SurgeryR1Error: every unknown key and wrong value at once, each as ``path:line``.
    """
    errors: list[str] = []
    lines = text.splitlines()
    result = _build(kind, data, "", errors, str(path), lines)
    if result is not None:
        errors += [f"{path}{_at(message, lines)}: {message}" for message in check(result)]
    if errors or result is None:
        raise SurgeryR1Error("\n".join(errors), fix="correct the config and run again")
    return result


def _build(kind: type, data: Mapping[str, Any], prefix: str, errors: list[str], path: str, lines: list[str]) -> Any:
    known = {f.name: f for f in fields(kind)}
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    before = len(errors)
    for key, value in data.items():
        name = f"{prefix}{key}"
        # In an inline table the line is that of the table.
        where = f"{path}:{_line_of(name, lines) or _line_of(prefix.rstrip('.'), lines) or 1}" if lines else path
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {prefix}{close[0]!s}?" if close else f"known keys: {', '.join(sorted(known))}"
            errors.append(f"{where}: unknown key {name!r}; {hint}")
            continue
        hint_type = hints[key]
        if is_dataclass(hint_type):
            if not isinstance(value, dict):
                errors.append(f"{where}: {name} must be a table, found {value!r}")
                continue
            values[key] = _build(typing.cast(type, hint_type), value, f"{name}.", errors, path, lines)
            continue
        converted, problem = _convert(value, hint_type)
        if problem:
            errors.append(f"{where}: {name} = {value!r}, expected {problem}")
        values[key] = converted
    if len(errors) > before:
        return None
    try:
        return kind(**values)
    except TypeError:
        missing = [f.name for f in fields(kind) if f.name not in values and _required(f)]
        errors.append(f"{path}: missing {', '.join(prefix + name for name in missing)}")
        return None


def _required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _convert(value: Any, kind: Any) -> tuple[Any, str | None]:
    """The value as ``kind``, or what was expected instead."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value, None
    if origin is Literal:
        return value, None if value in arguments else f"one of {list(arguments)}"
    if origin in (typing.Union, types.UnionType):
        tried = [_convert(value, part) for part in arguments if part is not type(None)]
        right = next((result for result in tried if result[1] is None), None)
        return right or (value, " or ".join(str(problem) for _, problem in tried))
    if origin is tuple:
        items = [] if not isinstance(value, list) else [_convert(item, arguments[0]) for item in value]
        several = len(arguments) == 2 and arguments[1] is Ellipsis
        count = "a list" if several else f"a list of {len(arguments)}"
        if not isinstance(value, list) or any(problem for _, problem in items):
            return value, f"{count} of {getattr(arguments[0], '__name__', 'values')}"
        if not several and len(items) != len(arguments):
            return value, f"{count} values"
        return tuple(item for item, _ in items), None
    if origin is dict:
        if not isinstance(value, dict):
            return value, "a table"
        converted = {key: _convert(item, arguments[1]) for key, item in value.items()}
        bad = [key for key, (_, problem) in converted.items() if problem]
        problem = f"{converted[bad[0]][1]} in {bad}" if bad else None
        return {key: item for key, (item, _) in converted.items()}, problem
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value), None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return value, "a number" if kind is float else kind.__name__
    return value, None


def _at(message: str, lines: list[str]) -> str:
    """``:line`` of the dotted key that a message begins with, where it is set."""
    key = re.match(r"\w+(?:\.\w+)*", message)
    number = _line_of(key[0], lines) if key else None
    return f":{number}" if number else ""


def _line_of(name: str, lines: list[str]) -> int | None:
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
