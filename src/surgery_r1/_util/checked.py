"""Data from a file as a frozen dataclass: all that is wrong with it, at once and in plain words. pydantic checks."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from annotated_types import Ge

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

_T = TypeVar("_T")

Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
NotNegative = Annotated[float, Ge(0)]

#: What pydantic calls a number that has the right type and lies out of bounds.
_OUT_OF_BOUNDS = ("greater_than_equal", "greater_than", "finite_number")


class WrongData(Exception):
    """What is wrong: dotted key (empty for the whole) and message."""

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        self.problems = tuple(dict.fromkeys(problems))
        super().__init__("; ".join(message for _, message in self.problems))


def checked(
    kind: type[_T], data: Any, known: Iterable[str] = (), *, others: Literal["forbid", "ignore"] = "forbid"
) -> _T:
    """A ``kind`` of parsed JSON or TOML.

    Args:
        kind: a dataclass whose fields are scalars, lists (tuples), tables (dicts) or such dataclasses. Bounds stand in
            the annotation: ``Annotated[int, Ge(2)]``, or any other with a text behind it that says what is expected.
        known: keys beside the fields, for suggestions.
        others: what becomes of keys that are no fields.

    Raises:
        WrongData: for unknown and missing keys, wrong types, numbers out of bounds or not finite, and what the
            dataclass itself refuses with a ValueError.
    """
    from pydantic import ValidationError

    # JSON, where strict takes a list for a tuple and a table for a dataclass, and else nothing but the type itself. A
    # date of TOML is its text.
    text = json.dumps([data], default=str)
    try:
        return typing.cast("list[_T]", _adapter(kind, others).validate_json(text))[0]  # type: ignore[arg-type]
    except ValidationError as error:
        problems = error.errors(include_url=False)
    raise WrongData(_told(kind, data, problem, known) for problem in problems)


@cache
def _adapter(kind: type, others: Literal["forbid", "ignore"]) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    # pydantic takes no configuration for a dataclass; those in a list have the list's.
    return TypeAdapter(list[kind], config=ConfigDict(extra=others, strict=True, allow_inf_nan=False))  # type: ignore[valid-type]


def _told(kind: Any, data: Any, problem: ErrorDetails, known: Iterable[str]) -> tuple[str, str]:
    """The dotted key that a problem is about, and what is wrong in plain words."""
    table, names, value = kind, [], data
    path = problem["loc"][1:]
    for key in path:
        if is_dataclass(kind):
            table, kind = kind, typing.get_type_hints(kind, include_extras=True).get(str(key))
        elif any(held := [part for part in typing.get_args(kind) if is_dataclass(part)]):
            kind = held[0]
        else:
            # What lies inside one value is told with the whole of it.
            break
        names.append(str(key))
        value = value[key] if not isinstance(value, Mapping) or key in value else None
    name, what = ".".join(names), problem["type"]
    if what == "unexpected_keyword_argument":
        return name, _unknown(table, names, known)
    if what == "missing" and len(names) == len(path):
        return "", f"missing {name}"
    if what == "json_invalid":
        return "", "holds half of a surrogate pair, which is no character"
    if what == "dataclass_type":
        return name, f"{name or 'the whole'} must be a table, found {value!r:.80}"
    if is_dataclass(kind):
        # The dataclass itself refuses its values.
        return name, f"{name}: " * bool(name) + str(problem["ctx"]["error"])
    return name, f"{name} = {value!r:.80}, expected {_expected(kind, what in _OUT_OF_BOUNDS, path[len(names) :])}"


def _unknown(table: type, names: list[str], known: Iterable[str]) -> str:
    *above, key = names
    own = [f.name for f in fields(table)]
    close = difflib.get_close_matches(key, [*own, *(() if above else known)], n=1)
    hint = f"did you mean {'.'.join((*above, close[0]))}?" if close else f"known keys: {', '.join(sorted(own))}"
    return f"unknown key {'.'.join(names)!r}; {hint}"


def _expected(kind: Any, out_of_bounds: bool = False, inside: tuple[int | str, ...] = ()) -> str:
    """A type in words, or its bounds.

    Args:
        inside: where in the value the problem lies.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        kind, bound, *words = arguments
        return (words[0] if words else f"{bound.ge} or more") if out_of_bounds else _expected(kind)
    if origin is Literal:
        return f"one of {list(arguments)}"
    if float in (kind, *arguments) and origin in (None, types.UnionType):
        return "a number"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_expected(part) for part in arguments if part is not types.NoneType)
    if origin is tuple:
        several = arguments[-1] is Ellipsis
        return f"a list of {'' if several else f'{len(arguments)} values, each '}{_expected(arguments[0])}"
    if origin is dict:
        return f"{_expected(arguments[1])} in {[inside[0]]}" if inside else "a table"
    return str(kind.__name__)
