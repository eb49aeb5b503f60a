"""What can go wrong with a request to a server: trouble that passes, refusals, and when there are too many of them."""

from __future__ import annotations

from surgery_r1.errors import SurgeryR1Error


class Refused(SurgeryR1Error):
    """A request that the server does not take, whatever the others were."""

    def __init__(self, name: str, how: str, fix: str) -> None:
        super().__init__(f"{name} refuses a request with {how}", fix=fix)
        self.of_all = SurgeryR1Error(f"{name} refuses every request with {how}", fix=fix)


class Refusals:
    """Counts refusals that come one after the other while several requests are under way."""

    def __init__(self) -> None:
        self._count = self._begun = 0
        self._under_way: set[int] = set()
        #: Requests that may still be answered, of those under way when the run of refusals began.
        self._hopes: set[int] = set()

    def begin(self) -> int:
        """The number of a request that goes out."""
        self._begun += 1
        self._under_way.add(self._begun)
        return self._begun

    def too_many(self, number: int, limit: int) -> bool:
        """Count the refusal of a request; whether there were ``limit`` in a row and nothing to hope for."""
        if not self._count:
            self._hopes = set(self._under_way)
        self._count += 1
        self._hopes.discard(number)
        return self._count >= limit and not self._hopes

    def end(self, number: int, *, answered: bool) -> None:
        """A request has come back; an answer ends the run of refusals."""
        self._under_way.discard(number)
        self._hopes.discard(number)
        if answered:
            self._count = 0


class Passing(Exception):
    """Trouble that may pass: try again, after ``pause`` seconds where the server has named them."""

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.what, self.pause = what, pause


def seconds_of(text: str | None) -> float:
    """Seconds of a Retry-After header, at most two minutes; 0 without one, or for a date."""
    try:
        return min(max(float(text or 0), 0.0), 120.0)
    except ValueError:
        return 0.0
