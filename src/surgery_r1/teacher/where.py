"""Whether an endpoint is on this machine. Frames are private: they go to no other one unless the user says so."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from surgery_r1.errors import SurgeryR1Error


def check_endpoint(endpoint: str, allow_remote: bool) -> bool:
    """Whether ``endpoint`` is on this machine; one that is not must have been allowed.

    Args:
        endpoint: such as ``http://127.0.0.1:8000/v1``.

    Raises:
        SurgeryR1Error: for something that is no such address, holds a password, cannot be found, or is remote and not
            allowed.
    """
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise SurgeryR1Error(f"teacher.endpoint = {endpoint!r}: {error}", fix="write http://HOST:PORT/v1") from None
    if parts.scheme not in ("http", "https") or not host:
        raise SurgeryR1Error(f"teacher.endpoint = {endpoint!r} is no http address", fix="write http://HOST:PORT/v1")
    if parts.username or parts.password:
        raise SurgeryR1Error(
            "teacher.endpoint holds a user name or password",
            fix="leave it out, and put the key into SURGERY_R1_TEACHER_KEY",
        )
    local = on_this_machine(host)
    if not local and not allow_remote:
        raise SurgeryR1Error(
            f"teacher.endpoint {endpoint} is not on this machine, and frames are private",
            fix="serve the model here, or send frames there with --allow-remote-frames",
        )
    return local


def on_this_machine(host: str) -> bool:
    """Whether every address of ``host`` belongs to this machine.

    >>> on_this_machine("127.0.0.1"), on_this_machine("::1"), on_this_machine("192.0.2.1")
    (True, True, False)

    Raises:
        SurgeryR1Error: when there is no such host.
    """
    try:
        addresses = {ipaddress.ip_address(host)}
    except ValueError:
        try:
            addresses = {ipaddress.ip_address(found[4][0]) for found in socket.getaddrinfo(host, None)}
        except OSError as error:
            raise SurgeryR1Error(f"teacher.endpoint: no host {host!r}: {error}", fix="check the address") from None
    return all(address.is_loopback or _own(address) for address in addresses)


def _own(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is one of this machine's: only those can be bound to."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return not address.is_multicast
