"""Whether an endpoint is on this machine. Frames are private: they go to no other one unless the user says so."""

from __future__ import annotations

import importlib
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from surgery_r1.errors import SurgeryR1Error

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: With this on, a machine can bind to addresses that are not its own.
_BINDS_ANYTHING = ("/proc/sys/net/ipv4/ip_nonlocal_bind", "/proc/sys/net/ipv6/ip_nonlocal_bind")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint that may be used.

    Attributes:
        address: to connect to. A name on this machine has become the address that was checked.
        local: it is on this machine.
    """

    address: str
    local: bool


def check_endpoint(endpoint: str, allow_remote: bool, *, setting: str, key_variable: str) -> Endpoint:
    """An endpoint on this machine, or one elsewhere that has been allowed.

    Args:
        endpoint: such as ``http://127.0.0.1:8000/v1``.
        allow_remote: frames may go to another machine.
        setting: where the endpoint was given, for errors: ``--endpoint``.
        key_variable: the environment variable that may hold a key.

    Raises:
        SurgeryR1Error: for something that is no such address, holds a password, cannot be found, or is remote and not
            allowed.
    """
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SurgeryR1Error(f"{setting} = {endpoint!r}: {error}", fix="write http://HOST:PORT/v1") from None
    if parts.scheme not in ("http", "https") or not host:
        raise SurgeryR1Error(f"{setting} = {endpoint!r} is no http address", fix="write http://HOST:PORT/v1")
    if parts.username or parts.password:
        raise SurgeryR1Error(
            f"{setting} holds a user name or password",
            fix=f"leave it out, and put the key into {key_variable}",
        )
    addresses = addresses_of(host, setting)
    local = all(on_this_machine(address) for address in addresses)
    if not local and not allow_remote:
        raise SurgeryR1Error(
            f"{setting} {endpoint} is not on this machine, and frames are private",
            fix="serve the model here, or send frames there with --allow-remote-frames",
        )
    if local and parts.scheme == "http":
        # Asked again, a name could lead elsewhere. (Over https the certificate vouches for it.)
        first = f"[{addresses[0]}]" if addresses[0].version == 6 else str(addresses[0])
        endpoint = urlunsplit(parts._replace(netloc=first if port is None else f"{first}:{port}"))
    return Endpoint(endpoint, local)


def addresses_of(host: str, setting: str) -> list[_Address]:
    """Addresses of a host, the preferred one first.

    Raises:
        SurgeryR1Error: when there is no such host.
    """
    try:
        return [ipaddress.ip_address(host)]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SurgeryR1Error(f"{setting}: no host {host!r}: {error}", fix="check the address") from None
    # A server on "localhost" is more often on 127.0.0.1 than on ::1.
    return sorted((ipaddress.ip_address(entry[4][0]) for entry in found), key=lambda address: address.version)


def on_this_machine(address: _Address) -> bool:
    """Whether an address belongs to this machine.

    >>> [on_this_machine(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1", "192.0.2.1")]
    [True, True, False]
    """
    if address.is_loopback:
        return True
    if any(Path(name).exists() and Path(name).read_text().strip() != "0" for name in _BINDS_ANYTHING):
        return False
    # Only an address of one's own can be bound to.
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return not address.is_multicast


def through_socket(socket: Path, client: type) -> Any:
    """A transport for a client of this class: its library is httpx or httpx2, by the release of ``openai``."""
    library = importlib.import_module(client.__mro__[1].__module__.partition(".")[0])
    return library.HTTPTransport(uds=str(socket))
