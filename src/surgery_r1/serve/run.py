"""A server from its settings: models loaded, scenes drawn, then one process that listens until it is told to stop."""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from surgery_r1.chat.endpoint import addresses_of
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.geometry import LOCATION_RULES, LocationRule
from surgery_r1.serve.engines import Engine, OwnEngine, ServerEngine, names_of
from surgery_r1.serve.limits import Limits
from surgery_r1.serve.page_files import read_page
from surgery_r1.serve.scenes import draw_scenes

if TYPE_CHECKING:
    from surgery_r1.evaluate.endpoint import ServerOptions

#: Characters of the shortest token that is taken.
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class ServeSettings:
    """How to serve.

    Attributes:
        models: folders, run folders or ``tiny``.
        host, port: to listen at; port 0 takes any that is free.
        token: that requests must bring; empty for none, on loopback alone.
        hosts: further names under which the server may be asked.
        server: the chat server that has the (one) model; None for models in this process.
    """

    models: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8765
    token: str = ""
    hosts: tuple[str, ...] = ()
    location_rule: LocationRule | None = LOCATION_RULES[0]
    limits: Limits = field(default_factory=Limits)
    server: ServerOptions | None = None
    dtype: str = "auto"


def serve(settings: ServeSettings, say: Callable[[str], None]) -> None:
    """Listen until SIGTERM or SIGINT; what has been asked by then is answered.

    Args:
        say: gets the line that tells the address.

    Raises:
        SurgeryR1Error: for an address beyond loopback without a token, an address that cannot be listened at, or a
            model that cannot be loaded.
    """
    # Starlette looks for it only when a form comes.
    import python_multipart  # noqa: F401
    import uvicorn

    from surgery_r1.serve.app import Service, make_app

    check_token(settings)
    listening = _listen(settings.host, settings.port)
    service = Service(
        engines=load_engines(settings),
        scenes=draw_scenes(),
        page=read_page(),
        location_rule=settings.location_rule,
        limits=settings.limits,
        token=settings.token,
        hosts=(*settings.hosts, *([] if _is_address(settings.host) else [settings.host])),
    )
    app, worker = make_app(service)
    warm_up(service.engines, next(iter(service.scenes.values())).image)
    config = uvicorn.Config(
        app,
        # Neither questions nor who asks them are written down.
        access_log=False,
        log_level="warning",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=int(settings.limits.seconds) + 5,
        timeout_keep_alive=20,
        h11_max_incomplete_event_size=64 * 1024,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            # Told when it can be asked, and stopped.
            say(f"serving {', '.join(service.engines)} at http://{shown}:{port}/")

        def handle_exit(self, sig: int, frame: Any) -> None:
            # uvicorn's own would raise the signal again at the end, which is no clean exit.
            worker.stop()
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

    with _address_refused(settings.host, settings.port):
        listening.listen(config.backlog)
    # What is loaded stays: the collector need not go through it, least of all at the end.
    gc.freeze()
    Server(config).run(sockets=[listening])


def check_token(settings: ServeSettings) -> None:
    """Refuse to listen beyond loopback without a token.

    Raises:
        SurgeryR1Error: so, or for a token that is too short or has odd characters.
    """
    token = settings.token
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise SurgeryR1Error(
            f"a token of {len(token)} characters, or with blanks or odd ones",
            fix=f"use at least {SHORTEST_TOKEN} letters and digits, such as those of `openssl rand -hex 32`",
        )
    if not token and not all(address.is_loopback for address in addresses_of(settings.host, "--host")):
        raise SurgeryR1Error(
            f"--host {settings.host} can be reached from other machines, and no token is set",
            fix="name a file that holds one with --token-file, or leave --host out",
        )


def load_engines(settings: ServeSettings) -> dict[str, Engine]:
    """The models by name, in the order that they were given.

    Raises:
        SurgeryR1Error: when one cannot be loaded.
    """
    names: Sequence[str] = names_of(settings.models)
    pairs = list(zip(settings.models, names, strict=True))
    if settings.server is not None:
        if len(pairs) != 1:
            raise SurgeryR1Error(f"{len(pairs)} models with --endpoint", fix="name the one that is served there")
        return {name: ServerEngine(settings.server, model, name, settings.limits) for model, name in pairs}
    return {name: OwnEngine(model, name, settings.limits, settings.dtype) for model, name in pairs}


def warm_up(engines: Mapping[str, Engine], frame: Any) -> None:
    """Ask each model once: the first question takes longer, and one that cannot answer is told now."""
    for engine in engines.values():
        question = "What organ is being operated?"
        engine.replies([(frame, question)], reasoning=engine.facts.rationale, sampled=False, stop=lambda: False)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that has the address, before the models take their time."""
    if not 0 <= port < 2**16:
        raise SurgeryR1Error(f"--port {port}", fix="give one from 1 to 65535, or 0 for any that is free")
    address = addresses_of(host, "--host")[0]
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    found = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.ExitStack() as failed, _address_refused(host, port):
        failed.enter_context(found)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((str(address), port))
        failed.pop_all()
    return found


@contextlib.contextmanager
def _address_refused(host: str, port: int) -> Iterator[None]:
    """Say in one line why an address cannot be had. Two that start together may both have it, until one listens."""
    try:
        yield
    except OSError as error:
        raise SurgeryR1Error(
            f"cannot listen at {host}:{port}: {error.strerror}", fix="give another --port, or stop what has it"
        ) from None


def _is_address(host: str) -> bool:
    return all(str(address) == host for address in addresses_of(host, "--host"))
