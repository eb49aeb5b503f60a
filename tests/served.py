"""Loopback servers in processes of their own, for tests that may reach this machine and no other."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_CONNECT, _LOOK_UP = socket.socket.connect, socket.getaddrinfo


def only_this_machine(monkeypatch) -> Iterator[list]:
    """As in all tests, but for this machine: a request elsewhere fails the test even if a library swallows it."""
    tried = []

    def connect(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            tried.append(address)
            raise AssertionError(f"a test reached for the network: {address}")
        return _CONNECT(self, address)

    def look_up(host, *args, **kwargs):
        if host not in ("127.0.0.1", "::1", "localhost"):
            tried.append(host)
            raise OSError("no such host")
        return _LOOK_UP(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield tried
    assert not tried


class Served:
    """A server in a process of its own, and the requests that it has seen."""

    def __init__(self, script: Path, log: Path, *args: str) -> None:
        self.log = log
        command = [sys.executable, str(script), str(log), *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.endpoint = f"http://127.0.0.1:{self.port}/v1"

    @property
    def requests(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def serving(script: Path, folder: Path, *always: str):
    """A fixture's function that starts servers: ``start(plan, delay, *arguments)``; they are stopped at the end."""
    servers: list[Served] = []

    def start(plan: str = "", delay: float = 0.0, *args: str) -> Served:
        log = folder / f"requests{len(servers)}.jsonl"
        servers.append(Served(script, log, "--plan", plan, "--delay", str(delay), *always, *args))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
