"""Requests to an OpenAI-compatible endpoint, with the ``openai`` client: retried, limited in rate, never redirected."""

from __future__ import annotations

import threading
import time
from typing import Any

from surgery_r1.build.recipe import TeacherConfig
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.teacher.replies import Reply

#: Requests that a server may refuse before any has been answered; then the fault is in the settings.
_REFUSALS = 10
_LONGEST_PAUSE = 8.0


class Client:
    """Asks one model. Safe to use from several threads.

    Args:
        config: endpoint, model, limits.
        key: API key; empty where the server wants none.
        local: the endpoint is on this machine; proxies are then not used.

    Raises:
        SurgeryR1Error: when the ``openai`` package is missing.
    """

    def __init__(self, config: TeacherConfig, key: str, local: bool) -> None:
        try:
            import openai
        except ImportError:
            raise SurgeryR1Error(
                "a teacher needs the openai package", fix="pip install 'surgery-r1[teacher]'"
            ) from None
        self._config = config
        self._errors: Any = openai
        self._client = openai.OpenAI(
            base_url=config.endpoint,
            # The client would look for one in the environment, and send it to whatever server this is.
            api_key=key or "none",
            timeout=config.timeout,
            max_retries=config.retries,
            http_client=openai.DefaultHttpxClient(follow_redirects=False, trust_env=not local),
        )
        self._turn = threading.Lock()
        self._next = 0.0
        self._answered = self._refused = 0

    def ask(self, messages: list[dict[str, Any]], seed: int) -> Reply:
        """The reply to a conversation; a request that the server refuses gives a reply that says so.

        Raises:
            SurgeryR1Error: when the server cannot be reached or used, after all retries.
        """
        for attempt in range(self._config.retries + 1):
            self._wait()
            try:
                reply = self._once(messages, seed)
            except _Nonsense as nonsense:
                if attempt == self._config.retries:
                    raise self._given_up(f"answers what is no chat completion: {nonsense}") from None
                time.sleep(min(0.5 * 2**attempt, _LONGEST_PAUSE))
                continue
            with self._turn:
                self._answered += reply.finish != "refused"
            return reply
        raise AssertionError("unreachable")

    def _once(self, messages: list[dict[str, Any]], seed: int) -> Reply:
        errors, config = self._errors, self._config
        try:
            done = self._client.chat.completions.create(
                model=config.model,
                messages=messages,  # type: ignore[arg-type]
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                seed=seed,
            )
        except errors.APIStatusError as error:
            return self._status(error)
        except errors.APIResponseValidationError as error:
            raise _Nonsense(str(error)) from None
        except errors.APITimeoutError:
            raise self._given_up(f"took longer than teacher.timeout = {config.timeout:g} s") from None
        except errors.APIConnectionError as error:
            raise self._given_up(f"cannot be reached: {error.__cause__ or error}") from None
        except ValueError as error:
            # A body that is no JSON.
            raise _Nonsense(str(error)) from None
        return _read(done)

    def _status(self, error: Any) -> Reply:
        status, config = error.status_code, self._config
        if 300 <= status < 400:
            target = error.response.headers.get("location", "nowhere")
            raise SurgeryR1Error(
                f"teacher.endpoint {config.endpoint} redirects to {target}: frames were not sent there",
                fix="name the endpoint that is meant to have them",
            )
        if status in (401, 403, 404):
            fix = "put a valid key into SURGERY_R1_TEACHER_KEY" if status != 404 else "check teacher.endpoint and model"
            raise SurgeryR1Error(
                f"teacher.endpoint {config.endpoint} answers {status}: {_short(error.message)}", fix=fix
            )
        if status == 429 or status >= 500:
            raise self._given_up(f"answers {status}: {_short(error.message)}") from None
        with self._turn:
            self._refused += 1
            if not self._answered and self._refused >= _REFUSALS:
                raise SurgeryR1Error(
                    f"teacher.endpoint {config.endpoint} refuses every request with {status}: {_short(error.message)}",
                    fix="check the [teacher] table of the recipe",
                )
        return Reply("", "refused")

    def _wait(self) -> None:
        """Wait for a turn, where requests a minute are limited."""
        if not self._config.requests_per_minute:
            return
        with self._turn:
            now = time.monotonic()
            self._next = max(self._next, now)
            pause = self._next - now
            self._next += 60 / self._config.requests_per_minute
        time.sleep(pause)

    def _given_up(self, why: str) -> SurgeryR1Error:
        return SurgeryR1Error(
            f"teacher.endpoint {self._config.endpoint} {why} ({self._config.retries} retries)",
            fix="see to the server and run again: what it has answered is kept and not asked for again",
        )

    def close(self) -> None:
        """Close connections."""
        self._client.close()


class _Nonsense(Exception):
    """A reply that is no chat completion."""


def _read(done: Any) -> Reply:
    try:
        choice = done.choices[0]
        text, finish = choice.message.content or "", choice.finish_reason or "stop"
        usage = getattr(done, "usage", None)
        tokens = (int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)) if usage else (0, 0)
    except (AttributeError, TypeError, IndexError, ValueError):
        raise _Nonsense(_short(repr(done))) from None
    if not isinstance(text, str):
        raise _Nonsense(_short(repr(text)))
    return Reply(text, str(finish), *tokens)


def _short(text: str) -> str:
    return " ".join(str(text).split())[:200]
