"""What a check is: a name, what it proves, what to do where it fails, and a function that finds out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    from surgery_r1.doctor.patient import Patient

logger = logging.getLogger(__name__)

Status = Literal["ok", "wrong", "skipped"]


class Wrong(Exception):
    """A check has found a fault.

    Args:
        said: what is wrong, with the value found.
        fix: what to do, where it is not what the check says of itself.
    """

    def __init__(self, said: str, fix: str = "") -> None:
        super().__init__(said)
        self.said, self.fix = said, fix


class Skip(Exception):
    """A check does not apply, or cannot be made here; the text says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a check that holds has seen.

    Attributes:
        said: for people.
        figures: for machines: numbers and short words, never a path, a name of a file or a text of the data.
    """

    said: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor.

    Attributes:
        proves: what is known when it holds.
        fix: what to do when it does not, unless the fault says better.
        look: the function that looks.
        needs: checks without which this one says nothing.
    """

    name: str
    proves: str
    fix: str
    look: Callable[[Patient], Found]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """How a check has ended.

    Attributes:
        said: what was seen, what is wrong, or why it was skipped.
        fix: what to do; empty unless it is wrong.
    """

    name: str
    status: Status
    said: str
    fix: str
    seconds: float
    figures: dict[str, Any]

    def line(self) -> str:
        """As people read it.

        >>> print(Result("disk", "wrong", "1.0 GiB free, a run needs 2.0", "free some", 0.1, {}).line())
        wrong    disk: 1.0 GiB free, a run needs 2.0
                   -> free some
        """
        text = f"{self.status:8} {self.name}: {self.said}"
        return f"{text}\n           -> {self.fix}" if self.fix else text


def check(
    name: str, *, proves: str, fix: str, needs: Iterable[str] = ()
) -> Callable[[Callable[[Patient], Found]], Check]:
    """A function that looks, as a :class:`Check`."""
    return lambda look: Check(name, proves, fix, look, tuple(needs))


def examine(patient: Patient, checks: Iterable[Check], told: Callable[[Result], None] = lambda _: None) -> list[Result]:
    """Make the checks in order. One that needs another that is wrong is skipped: it would only repeat it.

    Args:
        told: called with each result as it is known.
    """
    results: dict[str, Result] = {}
    for each in checks:
        start = time.perf_counter()
        status, said, fix, figures = _made(patient, each, results)
        results[each.name] = Result(each.name, status, said, fix, time.perf_counter() - start, figures)
        told(results[each.name])
    return list(results.values())


def _made(patient: Patient, each: Check, before: dict[str, Result]) -> tuple[Status, str, str, dict[str, Any]]:
    for name in each.needs:
        if name in before and before[name].status == "wrong":
            return "skipped", f"needs {name}, which is wrong", "", {}
    try:
        found = each.look(patient)
        return "ok", found.said, "", found.figures
    except Skip as reason:
        return "skipped", str(reason), "", {}
    except Wrong as fault:
        return "wrong", fault.said, fault.fix or each.fix, {}
    except SurgeryR1Error as error:
        where = f"{error.where}: " if error.where else ""
        return "wrong", where + error.what, error.fix or each.fix, {}
    except Exception as error:
        # What libraries raise where shapes, files or versions do not fit is of any type; --debug shows where.
        logger.debug("%s", each.name, exc_info=True)
        return "wrong", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", each.fix, {}
