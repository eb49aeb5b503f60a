"""A request that is not answered: status, code, what was wrong and what to do."""

from __future__ import annotations

from collections.abc import Mapping

#: Seconds after which it is worth asking again.
RETRY_AFTER = 2


class Refusal(Exception):
    """Why a request is not answered, in one shape for every status.

    Args:
        status: of the response.
        code: a word that programs can tell apart.
        message: what was wrong, with the value found. Never a question's text or a frame: logs may hold it.
        fix: what to do.
        headers: of the response.
    """

    def __init__(
        self, status: int, code: str, message: str, fix: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.fix = status, code, message, fix
        self.headers = dict(headers or {})

    def body(self) -> dict[str, dict[str, str]]:
        """The response's JSON."""
        return {"error": {"code": self.code, "message": self.message, "fix": self.fix}}


def busy(message: str) -> Refusal:
    """503: as many requests as the server takes are waiting."""
    return Refusal(503, "busy", message, f"ask again in {RETRY_AFTER} s", {"Retry-After": str(RETRY_AFTER)})


def stopping() -> Refusal:
    """503: what runs is finished, nothing new begins."""
    headers = {"Retry-After": "30", "Connection": "close"}
    return Refusal(503, "stopping", "the server is being stopped", "ask the one that replaces it", headers)
