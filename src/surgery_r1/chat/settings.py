"""How a chat server is asked, and what errors call the settings that say so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Names:
    """What errors call the settings of a client.

    Attributes:
        who: needs the client: ``a teacher``.
        endpoint, model, timeout: settings, ``teacher.endpoint`` or ``--endpoint``.
        key: the environment variable of the key.
        settings: where to look when the server refuses what it is asked.
        again: what to do when the server was there and is no longer.
    """

    who: str
    endpoint: str
    model: str
    timeout: str
    key: str
    settings: str
    again: str = "see to the server and run again: what it has answered is kept and not asked for again"


@dataclass(frozen=True, slots=True)
class Limits:
    """How a server is asked.

    Attributes:
        max_tokens, temperature: of a reply.
        timeout: seconds that a reply may take.
        retries: how often a request that failed is sent again, with growing pauses.
        requests_per_minute: 0 for no limit.
        refusals: requests that a server may refuse one after the other; then the fault is in the settings. Refusals
            come back at once: the run of them ends when a request is answered that was under way when it began.
    """

    max_tokens: int
    temperature: float
    timeout: float
    retries: int
    requests_per_minute: int = 0
    refusals: int = 1
