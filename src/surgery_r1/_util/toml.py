"""Hand-written TOML to frozen dataclasses: unknown keys are errors with a suggestion, all errors are shown at once."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from surgery_r1._util.toml_layers import Layer, Sources
from surgery_r1.errors import SurgeryR1Error

_T = TypeVar("_T")
_N = TypeVar("_N", int, float)

#: Where the metadata of a field keeps its bound.
_BOUND = "bound"

#: Characters that an error shows of a value.
_LONGEST_SHOWN = 120

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
    """Parsed TOML and its text.

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


def bounded(
    default: _N, *, at_least: float | None = None, above: float | None = None, unit: str = "a number", why: str = ""
) -> _N:
    """A dataclass field that holds a number not below ``at_least``, or greater than ``above``; never NaN or infinity.

    :func:`build` checks it. Give ``at_least`` or ``above``, not both.

    Args:
        unit: what ``above`` counts, for the error text.
        why: the reason for the bound, for the error text.

    Raises:
        ValueError: when the default itself is out of bounds.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Plan:
    ...     steps: int = bounded(5, at_least=1)
    >>> Plan().steps
    5
    >>> build(Plan, {"steps": 0}, "plan.toml")
    Traceback (most recent call last):
    surgery_r1.errors.SurgeryR1Error: plan.toml: steps = 0, expected 1 or more; correct the config and run again
    """
    if (at_least is None) == (above is None):
        raise ValueError("give at_least or above")
    bound = _Bound(at_least, above, unit, why)
    if not bound.allows(default):
        raise ValueError(f"default {default}, expected {bound}")
    return field(default=default, metadata={_BOUND: bound})


@dataclass(frozen=True)
class _Bound:
    at_least: float | None
    above: float | None
    unit: str
    why: str

    def allows(self, value: float) -> bool:
        """Whether the value is in bounds. NaN is not: every comparison with it is false."""
        if self.at_least is not None:
            return self.at_least <= value < math.inf
        return self.above is not None and self.above < value < math.inf

    def __str__(self) -> str:
        low = f"{self.at_least} or more" if self.at_least is not None else f"{self.unit} above {self.above}"
        return f"{low}: {self.why}" if self.why else low


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
    return build_from(kind, Sources(data, (Layer(str(path), data, tuple(text.splitlines())),)), check)


def build_from(kind: type[_T], sources: Sources, check: Callable[[_T], Iterable[str]] = lambda _: ()) -> _T:
    """A ``kind`` of values that may come from several files and the command line; ``check`` as in :func:`build`.

    Raises:
        SurgeryR1Error: all that is wrong, at once, each with the place where it stands.
    """
    builder = _Builder(sources)
    result = builder.build(kind, sources.data)
    if result is not None:
        for message in check(result):
            key = re.match(r"\w+(?:\.\w+)*", message)
            builder.add(key[0] if key else "", message)
    if builder.errors or result is None:
        raise SurgeryR1Error("\n".join(builder.errors), fix="correct the config and run again")
    return result


class _Builder:
    """Builds dataclasses of tables and collects every error on the way."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.errors = list(sources.errors)

    def add(self, name: str, message: str) -> None:
        """Note what is wrong with the dotted key ``name``."""
        self.errors.append(f"{self.sources.place(name)}: {message}")

    def build(self, kind: type, data: Mapping[str, Any], prefix: str = "") -> Any:
        """A ``kind``, or None when keys or types are wrong. A number out of bounds is an error but no obstacle."""
        known = {f.name: f for f in fields(kind)}
        hints = typing.get_type_hints(kind)
        values: dict[str, Any] = {}
        broken = False
        for key, value in data.items():
            name = f"{prefix}{key}"
            problem = None
            if key not in known:
                close = difflib.get_close_matches(key, [*known, *(() if prefix else self.sources.words)], n=1)
                hint = f"did you mean {prefix}{close[0]!s}?" if close else f"known keys: {', '.join(sorted(known))}"
                problem = f"unknown key {name!r}; {hint}"
            elif is_dataclass(hints[key]):
                if isinstance(value, Mapping):
                    values[key] = self.build(typing.cast(type, hints[key]), value, f"{name}.")
                    broken |= values[key] is None
                else:
                    problem = f"{name} must be a table, found {value!r}"
            else:
                values[key], expected = _convert(value, hints[key])
                if expected:
                    name, value = _culprit(name, value, hints[key])
                    problem = f"{name} = {_shown(value)}, expected {expected}"
                else:
                    self._check_bound(name, values[key], known[key].metadata.get(_BOUND))
            if problem:
                broken = True
                self.add(name, problem)
        if broken:
            return None
        missing = [f.name for f in known.values() if f.name not in values and _required(f)]
        if missing:
            # The path alone: there is no line of what is not there.
            self.add("", f"missing {', '.join(prefix + name for name in missing)}")
            return None
        return kind(**values)

    def _check_bound(self, name: str, value: float, bound: _Bound | None) -> None:
        if bound and not bound.allows(value):
            self.add(name, f"{name} = {value}, expected {bound}")


def _required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _culprit(name: str, value: Any, kind: Any) -> tuple[str, Any]:
    """Of a table of values of one kind the first that is wrong, with its dotted key."""
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        part = typing.get_args(kind)[1]
        key = next(key for key, item in value.items() if _convert(item, part)[1])
        return f"{name}.{key}", value[key]
    return name, value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def _convert(value: Any, kind: Any) -> tuple[Any, str | None]:
    """The value as ``kind``, or what was expected instead."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value, None
    if origin is Literal:
        # True equals 1, and 1.0 does too.
        same = any(value == one and type(value) is type(one) for one in arguments)
        return value, None if same else f"one of {list(arguments)}"
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
        problem = converted[bad[0]][1] if bad else None
        return {key: item for key, (item, _) in converted.items()}, problem
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value), None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return value, "a number" if kind is float else kind.__name__
    return value, None
