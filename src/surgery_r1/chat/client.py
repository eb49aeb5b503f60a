"""Requests to a chat server, with the ``openai`` client: retried, limited in rate, never redirected."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surgery_r1.chat.endpoint import Endpoint, through_socket
from surgery_r1.chat.reply import ChatReply, NoCompletion, read_completion
from surgery_r1.chat.settings import Limits, Names
from surgery_r1.chat.tokens import TokenGroup, against, read_tokens
from surgery_r1.chat.trouble import Passing, Refusals, Refused, seconds_of
from surgery_r1.errors import SurgeryR1Error

#: What is wrong with a request, and not with the server or with who asks.
_REFUSED, _PASSING = (400, 413, 422), (408, 409, 425, 429)
#: Servers without a list of models; transformers serve fails at it (500) where there is no hub cache.
_NO_LIST = (404, 405, 500, 501)
_LONGEST_PAUSE = 30.0
_HEADERS = {"host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length"}


class Client:
    """Asks one server. Safe to use from several threads.

    Args:
        endpoint: where it is.
        shown: the endpoint as the user wrote it.
        limits: how it is asked.
        names: of the settings, for errors.
        key: API key; empty where the server wants none.
        socket: a file through which it is reached, in place of host and port.

    Raises:
        SurgeryR1Error: when the ``openai`` package is missing, or the key has characters that no key has.
    """

    def __init__(
        self, endpoint: Endpoint, shown: str, limits: Limits, names: Names, key: str, socket: Path | None = None
    ) -> None:
        try:
            import openai
        except ImportError:
            fix = "pip install 'surgery-r1[teacher]'"
            raise SurgeryR1Error(f"{names.who} needs the openai package", fix=fix) from None
        key = key.strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise SurgeryR1Error(f"the key in {names.key} has blanks or odd characters", fix="copy it again")
        self.name = f"{names.endpoint} {shown}"
        self._limits, self._names = limits, names
        self._root = endpoint.address.rstrip("/").removesuffix("/v1")
        self._errors: Any = openai
        self._authorization = f"Bearer {key or 'none'}"
        self._client = openai.OpenAI(
            base_url=endpoint.address,
            # The client would look for one in the environment, and send it to whatever server this is.
            api_key=key or "none",
            timeout=limits.timeout,
            # Retries are ours, so that they too keep to the rate.
            max_retries=0,
            # No proxy and no other host gets a frame.
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,
                trust_env=False,
                event_hooks={"request": [self._clean]},
                transport=through_socket(socket, openai.DefaultHttpxClient) if socket else None,
            ),
        )
        self._turn = threading.Lock()
        self._stopped = threading.Event()
        self._next = 0.0
        self._refusals = Refusals()

    def _clean(self, request: Any) -> None:
        """Leave out what the client adds from its environment: other keys, organisations, headers."""
        for name in [name for name in request.headers if name.lower() not in _HEADERS]:
            del request.headers[name]
        request.headers["authorization"] = self._authorization

    def ask(
        self,
        model: str,
        messages: list[dict[str, Any]],
        seed: int | None = None,
        extra: dict[str, Any] | None = None,
        banned: Iterable[int] = (),
    ) -> ChatReply:
        """The reply to a conversation; a request that the server refuses gives a reply that says so.

        Args:
            model: its name at the server.
            extra: settings beyond those of the protocol, which servers know or do not.
            banned: tokens that no reply may hold.

        Raises:
            SurgeryR1Error: when the server cannot be reached or used, after all retries.
        """
        limits = self._limits
        sampling: dict[str, Any] = {} if seed is None else {"seed": seed}
        if bias := against(banned):
            sampling["logit_bias"] = bias

        def once() -> ChatReply:
            done = self._client.chat.completions.create(
                model=model,
                messages=messages,  # type: ignore[arg-type]
                max_tokens=limits.max_tokens,
                temperature=limits.temperature,
                extra_body=extra,
                **sampling,
            )
            return read_completion(done)

        with self._turn:
            number = self._refusals.begin()
        answered = False
        try:
            reply: ChatReply = self._retried(once)
            answered = True
            return reply
        except Refused as refused:
            with self._turn:
                if self._refusals.too_many(number, limits.refusals):
                    raise (refused.of_all if limits.refusals > 1 else refused) from None
            return ChatReply("", "refused")
        finally:
            with self._turn:
                self._refusals.end(number, answered=answered)

    def sample(
        self, model: str, messages: list[dict[str, Any]], count: int, seed: int | None, banned: Iterable[int] = ()
    ) -> TokenGroup:
        """``count`` replies to a conversation as tokens, drawn from the whole distribution at the client's temperature.

        Whatever the model's folder at the server says of sampling (top-k, penalties, ...) is switched off.

        Args:
            banned: tokens that no reply may hold.

        Raises:
            SurgeryR1Error: as :meth:`ask`.
        """

        def once() -> TokenGroup:
            done = self._client.chat.completions.create(
                model=model,
                messages=messages,  # type: ignore[arg-type]
                max_tokens=self._limits.max_tokens,
                temperature=self._limits.temperature,
                n=count,
                seed=seed,
                logprobs=True,
                top_p=1.0,
                presence_penalty=0.0,
                frequency_penalty=0.0,
                logit_bias=against(banned),  # type: ignore[arg-type]
                extra_body={"return_token_ids": True, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
            )
            return read_tokens(done)

        return self._retried(once)

    def control(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Status and text of a request to the server itself, beside its ``/v1``: a GET, or with a body a POST.

        Whatever the server answers is returned; only where it cannot be reached the request is sent again.

        Raises:
            SurgeryR1Error: when it cannot be reached, after all retries.
        """
        address = f"{self._root}{path}"

        def once() -> tuple[int, str]:
            try:
                if body is None:
                    return 200, self._client.get(address, cast_to=str)
                return 200, self._client.post(address, cast_to=str, body=body)
            except self._errors.APIStatusError as error:
                if 300 <= error.status_code < 400:
                    raise
                return error.status_code, _short(error.message)

        return self._retried(once)

    def is_up(self, path: str) -> bool:
        """Whether the server answers a GET of ``path``, beside its ``/v1``, and with success."""
        try:
            self._client.get(f"{self._root}{path}", cast_to=str)
        except self._errors.APIError:
            return False
        return True

    def models(self) -> list[dict[str, Any]] | None:
        """What the server says that it serves, an object each with ``id``; None where it has no such list.

        Raises:
            SurgeryR1Error: as :meth:`ask`.
        """

        def once() -> list[dict[str, Any]] | None:
            try:
                listed = [entry.model_dump() for entry in self._client.models.list().data]
            except self._errors.APIStatusError as error:
                if error.status_code in _NO_LIST:
                    return None
                raise
            except (AttributeError, TypeError) as error:
                raise NoCompletion(f"answers what is no list of models: {_short(str(error))}") from None
            return [entry for entry in listed if isinstance(entry.get("id"), str)]

        return self._retried(once)

    def _retried(self, once: Any) -> Any:
        retries = self._limits.retries
        for attempt in range(retries + 1):
            self._wait(self._slot())
            try:
                return self._sorted_out(once)
            except Passing as trouble:
                if attempt == retries:
                    raise SurgeryR1Error(
                        f"{self.name} {trouble.what} ({retries} retries)",
                        fix=self._names.again,
                    ) from None
                self._wait(trouble.pause or min(0.5 * 2**attempt, _LONGEST_PAUSE))
        raise AssertionError("unreachable")

    def _sorted_out(self, once: Any) -> Any:
        """A request, and what went wrong: trouble that may pass, an error, or a refusal."""
        errors = self._errors
        try:
            return once()
        except errors.APIStatusError as error:
            self._status(error)
        except errors.APITimeoutError:
            raise Passing(f"took longer than {self._names.timeout} = {self._limits.timeout:g} s") from None
        except errors.APIConnectionError as error:
            raise Passing(f"cannot be reached: {error.__cause__ or error}") from None
        except NoCompletion as error:
            raise Passing(_short(str(error))) from None
        except (errors.APIResponseValidationError, ValueError) as error:
            # Among them a body that is no JSON.
            raise Passing(f"answers what is no chat completion: {_short(str(error))}") from None

    def _status(self, error: Any) -> None:
        """Raise what a status means."""
        status, message, names = error.status_code, _short(error.message), self._names
        if 300 <= status < 400:
            target = error.response.headers.get("location", "nowhere")
            raise SurgeryR1Error(
                f"{self.name} redirects to {target}: frames were not sent there",
                fix="name the endpoint that is meant to have them",
            )
        if status in _PASSING or status >= 500:
            raise Passing(f"answers {status}: {message}", seconds_of(error.response.headers.get("retry-after")))
        if status not in _REFUSED:
            fix = {
                401: f"put a valid key into {names.key}",
                403: f"put a valid key into {names.key}",
                404: f"check {names.endpoint} and {names.model}",
            }.get(status, self._names.again)
            raise SurgeryR1Error(f"{self.name} answers {status}: {message}", fix=fix)
        raise Refused(self.name, f"{status}: {message}", names.settings)

    def _slot(self) -> float:
        """Seconds until the next request may go, where requests a minute are limited."""
        if not self._limits.requests_per_minute:
            return 0.0
        with self._turn:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + 60 / self._limits.requests_per_minute
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


def _short(text: str) -> str:
    return " ".join(str(text).split())[:200]
