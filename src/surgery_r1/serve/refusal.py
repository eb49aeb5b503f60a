"""A request that is not answered: status, code, what was wrong and what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)

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


def unexpected(error: Exception) -> Refusal:
    """500: an error that nobody foresaw. Its message may hold what was asked, so that its kind and place are told."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = "" if last is None else f" at {last.tb_frame.f_code.co_filename}:{last.tb_lineno}"
    logger.error("a request failed: %s%s", type(error).__name__, place)
    return Refusal(500, "internal", f"the server failed ({type(error).__name__})", "ask again, or for less at a time")
