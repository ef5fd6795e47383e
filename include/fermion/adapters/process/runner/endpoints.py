"""Ports for a server that is about to be executed, and the places where it is told of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Mapping, Sequence

from .files import read_text

HOST = "127.0.0.1"

_FIRST, _LAST = 20_000, 32_767
_TRIES = 200


class Claims:
    """Ports that no other runner of this location root takes meanwhile: a locked file for each."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._held: dict[int, int] = {}
        os.makedirs(folder, exist_ok=True)

    def choose(self, names: Sequence[str], wanted: Mapping[str, int]) -> dict[str, int]:
        """A free port for each name: the wanted one while nobody else has it.

        Raises:
            OSError: there is none.
        """
        chosen: dict[str, int] = {}
        for name in names:
            port = wanted.get(name)
            chosen[name] = port if port is not None and self._take(port) else self._take_any()
        for port in set(self._held) - set(chosen.values()):
            os.close(self._held.pop(port))
        return chosen

    def _take_any(self) -> int:
        for _ in range(_TRIES):
            port = _any_of(_range())
            if port not in self._held and self._take(port):
                return port
        raise OSError(f"found no free port on {HOST} in {_TRIES} tries")

    def _take(self, port: int) -> bool:
        if not is_free(port):
            return False
        if port in self._held:
            return True
        descriptor = os.open(os.path.join(self._folder, str(port)), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._held[port] = descriptor
        return True


def is_free(port: int) -> bool:
    """Whether a server could listen there now; connections of an ended one that linger do not count."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _range() -> range:
    """Ports that the kernel gives to no outgoing connection, which would take a server's port while it is away."""
    words = read_text("/proc/sys/net/ipv4/ip_local_port_range").split()
    low, high = (int(words[0]), int(words[1])) if len(words) == 2 else (32_768, 60_999)
    if low - _FIRST >= 1000:
        return range(_FIRST, min(low - 1, _LAST) + 1)
    return range(high + 1, 65_536) if 65_535 - high >= 1000 else range(_FIRST, _LAST + 1)


def _any_of(ports: range) -> int:
    return ports[int.from_bytes(os.urandom(4), "big") % len(ports)]


def filled(text: str, ports: Mapping[str, int]) -> str:
    """The text with each ``{port:NAME}`` replaced; everything else in braces stays as it is."""
    for name, port in ports.items():
        text = text.replace(f"{{port:{name}}}", str(port))
    return text


def port_environment(ports: Mapping[str, int]) -> dict[str, str]:
    """``PORT`` is the port named http, or the first; every other is ``<NAME>_PORT``."""
    found = {f"{name.upper().replace('-', '_')}_PORT": str(port) for name, port in ports.items()}
    main = ports.get("http", next(iter(ports.values()), None))
    return found if main is None else {**found, "PORT": str(main)}
