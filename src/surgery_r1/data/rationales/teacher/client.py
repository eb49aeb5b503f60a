"""Requests to an OpenAI-compatible endpoint, with the ``openai`` client: retried, limited in rate, never redirected."""

from __future__ import annotations

import threading
import time
from typing import Any

from surgery_r1.data.rationales.teacher.endpoint import Endpoint
from surgery_r1.data.rationales.teacher.response_cache import TeacherResponse
from surgery_r1.data.recipe import TeacherConfig
from surgery_r1.errors import SurgeryR1Error

#: Requests that a server may refuse one after the other; then the fault is in the settings.
_REFUSALS = 10
#: What is wrong with a request, and not with the server or with who asks.
_REFUSED = (400, 413, 422)
_PASSING = (408, 409, 425, 429)
_LONGEST_PAUSE = 30.0
_HEADERS = {"host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length"}


class Client:
    """Asks one model. Safe to use from several threads.

    Args:
        config: model and limits.
        endpoint: where it is.
        key: API key; empty where the server wants none.

    Raises:
        SurgeryR1Error: when the ``openai`` package is missing, or the key has characters that no key has.
    """

    def __init__(self, config: TeacherConfig, endpoint: Endpoint, key: str) -> None:
        try:
            import openai
        except ImportError:
            fix = "pip install 'surgery-r1[teacher]'"
            raise SurgeryR1Error("a teacher needs the openai package", fix=fix) from None
        key = key.strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise SurgeryR1Error("the key in SURGERY_R1_TEACHER_KEY has blanks or odd characters", fix="copy it again")
        self._config, self._name = config, f"teacher.endpoint {config.endpoint}"
        self._errors: Any = openai
        self._authorization = f"Bearer {key or 'none'}"
        self._client = openai.OpenAI(
            base_url=endpoint.address,
            # The client would look for one in the environment, and send it to whatever server this is.
            api_key=key or "none",
            timeout=config.timeout,
            # Retries are ours, so that they too keep to the rate.
            max_retries=0,
            # No proxy and no other host gets a frame.
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False, trust_env=False, event_hooks={"request": [self._clean]}
            ),
        )
        self._turn = threading.Lock()
        self._stopped = threading.Event()
        self._next = 0.0
        self._refused = 0

    def _clean(self, request: Any) -> None:
        """Leave out what the client adds from its environment: other keys, organisations, headers."""
        for name in [name for name in request.headers if name.lower() not in _HEADERS]:
            del request.headers[name]
        request.headers["authorization"] = self._authorization

    def ask(self, messages: list[dict[str, Any]], seed: int) -> TeacherResponse:
        """The reply to a conversation; a request that the server refuses gives a reply that says so.

        Raises:
            SurgeryR1Error: when the server cannot be reached or used, after all retries.
        """
        for attempt in range(self._config.retries + 1):
            self._wait(self._slot())
            try:
                return self._once(messages, seed)
            except _Passing as trouble:
                if attempt == self._config.retries:
                    raise SurgeryR1Error(
                        f"{self._name} {trouble.what} ({self._config.retries} retries)",
                        fix="see to the server and run again: what it has answered is kept and not asked for again",
                    ) from None
                self._wait(trouble.pause or min(0.5 * 2**attempt, _LONGEST_PAUSE))
        raise AssertionError("unreachable")

    def _once(self, messages: list[dict[str, Any]], seed: int) -> TeacherResponse:
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
        except errors.APITimeoutError:
            raise _Passing(f"took longer than teacher.timeout = {config.timeout:g} s") from None
        except errors.APIConnectionError as error:
            raise _Passing(f"cannot be reached: {error.__cause__ or error}") from None
        except (errors.APIResponseValidationError, ValueError) as error:
            # Among them a body that is no JSON.
            raise _Passing(f"answers what is no chat completion: {_short(str(error))}") from None
        reply = _read(done)
        with self._turn:
            self._refused = 0
        return reply

    def _status(self, error: Any) -> TeacherResponse:
        status, message = error.status_code, _short(error.message)
        if 300 <= status < 400:
            target = error.response.headers.get("location", "nowhere")
            raise SurgeryR1Error(
                f"{self._name} redirects to {target}: frames were not sent there",
                fix="name the endpoint that is meant to have them",
            )
        if status in _PASSING or status >= 500:
            raise _Passing(f"answers {status}: {message}", _seconds(error.response.headers.get("retry-after")))
        if status not in _REFUSED:
            fix = {
                401: "put a valid key into SURGERY_R1_TEACHER_KEY",
                403: "put a valid key into SURGERY_R1_TEACHER_KEY",
                404: "check teacher.endpoint and teacher.model",
            }.get(status, "see to it and run again: what it has answered is kept")
            raise SurgeryR1Error(f"{self._name} answers {status}: {message}", fix=fix)
        with self._turn:
            self._refused += 1
            if self._refused >= _REFUSALS:
                raise SurgeryR1Error(
                    f"{self._name} refuses every request with {status}: {message}",
                    fix="check the [teacher] table of the recipe",
                )
        return TeacherResponse("", "refused")

    def _slot(self) -> float:
        """Seconds until the next request may go, where requests a minute are limited."""
        if not self._config.requests_per_minute:
            return 0.0
        with self._turn:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + 60 / self._config.requests_per_minute
        return turn - now

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds) if seconds else self._stopped.is_set():
            raise SurgeryR1Error("stopped", fix="run again: what has been answered is kept")

    def stop(self) -> None:
        """Let requests under way finish, and send no other."""
        self._stopped.set()

    def close(self) -> None:
        """Close connections."""
        self._client.close()


class _Passing(Exception):
    """Trouble that may pass: try again, after ``pause`` seconds where the server has named them."""

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.what, self.pause = what, pause


def _seconds(text: str | None) -> float:
    """Seconds of a Retry-After header, at most two minutes; 0 without one, or for a date."""
    try:
        return min(max(float(text or 0), 0.0), 120.0)
    except ValueError:
        return 0.0


def _read(done: Any) -> TeacherResponse:
    try:
        choice = done.choices[0]
        text, finish = choice.message.content or "", choice.finish_reason or "stop"
        usage = getattr(done, "usage", None)
        tokens = (int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)) if usage else (0, 0)
        # Half a character, as JSON can hold it, cannot be written to a file.
        text = text.encode("utf-8", "replace").decode()
    except (AttributeError, TypeError, IndexError, ValueError):
        raise _Passing(f"answers what is no chat completion: {_short(repr(done))}") from None
    return TeacherResponse(text, str(finish), *tokens)


def _short(text: str) -> str:
    return " ".join(str(text).split())[:200]
