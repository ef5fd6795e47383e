"""TCP ports of the embedded installation: chosen once, kept over restarts, changed only when somebody else has them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from fermion.errors import Conflict

DEFAULT_HTTP = 8080
DEFAULT_POSTGRES = 25432
DEFAULT_ROUTER = 8090
TRIES = 100
"""How many ports upwards are looked at before giving up."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Loopback ports of one installation. An installation from before there was a router gets its default."""

    http: int
    postgres: int
    router: int = DEFAULT_ROUTER

    @property
    def url(self) -> str:
        """Where the pages and the API are."""
        return f"http://127.0.0.1:{self.http}"


def choose(
    *,
    wanted_http: int | None,
    kept: Addresses | None,
    is_free: Callable[[int], bool],
    holder: Callable[[int], str | None] = lambda _: None,
) -> tuple[Addresses, str | None]:
    """The ports to use now, and a sentence when a port that people know is not the one that was to be expected.

    1. ``wanted_http``, when given, is used or refused. 2. What was kept is used again while it is free.
    3. Otherwise the first free port from the default upwards. ``holder`` names who has a port, for the message.
    The router gets none of the others' ports.

    Raises:
        Conflict: ``wanted_http`` is taken, or no port of the range is free.
    """
    postgres = _first_free(kept.postgres if kept else DEFAULT_POSTGRES, is_free)
    http, note = _choose_http(wanted_http, kept, is_free=is_free, holder=holder)
    expected = kept.router if kept else DEFAULT_ROUTER
    router = _first_free(expected, lambda port: port not in {http, postgres} and is_free(port))
    if kept and router != expected:
        moved = f"the router's port {expected} is taken{_by(holder(expected))}; services are at {router} now"
        note = f"{note}; {moved}" if note else moved
    return Addresses(http=http, postgres=postgres, router=router), note


def _choose_http(
    wanted_http: int | None,
    kept: Addresses | None,
    *,
    is_free: Callable[[int], bool],
    holder: Callable[[int], str | None],
) -> tuple[int, str | None]:
    if wanted_http is not None:
        if not is_free(wanted_http):
            raise Conflict(
                f"FERMION_PORT={wanted_http} is taken{_by(holder(wanted_http))}; "
                "stop that program, name another port, or leave FERMION_PORT unset to get the next free one",
                what="port",
            )
        return wanted_http, None
    expected = kept.http if kept else DEFAULT_HTTP
    http = _first_free(expected, is_free)
    note = None
    if http != expected:
        note = (
            f"port {expected} is taken{_by(holder(expected))}; using {http} instead "
            f"(FERMION_PORT=<port> chooses another one)"
        )
    return http, note


def scrape_port(
    wanted: int | None,
    addresses: Addresses,
    *,
    is_free: Callable[[int], bool],
    holder: Callable[[int], str | None] = lambda _: None,
) -> int | None:
    """The port at which the router is scraped: the configured one and no other, for a Prometheus was told it too.

    Raises:
        Conflict: somebody has it; the router would not start with it.
    """
    if wanted is None:
        return None
    ours = {addresses.http: "the pages", addresses.postgres: "the database", addresses.router: "the router"}
    if wanted in ours or not is_free(wanted):
        raise Conflict(
            f"metrics.scrape_port {wanted} is taken{_by(ours.get(wanted) or holder(wanted))}; "
            "stop that program, or configure another port here and in Prometheus",
            what="port",
        )
    return wanted


def is_free(port: int) -> bool:
    """Whether a server could listen on that port of the loopback interface now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def read(path: Path) -> Addresses | None:
    """The kept ports; None when there are none, or none that can be read."""
    try:
        kept = json.loads(path.read_text())
        return Addresses(
            http=int(kept["http"]), postgres=int(kept["postgres"]), router=int(kept.get("router", DEFAULT_ROUTER))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(path: Path, addresses: Addresses) -> None:
    """Keep them."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps({**asdict(addresses), "url": addresses.url}) + "\n")
    new.replace(path)


def holder_of(port: int) -> str | None:
    """``nginx (pid 12)``, where the machine tells who listens there."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr.port != port:
                continue
            if connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return None


def _by(holder: str | None) -> str:
    return f" by {holder}" if holder else ""


def _first_free(start: int, is_free: Callable[[int], bool]) -> int:
    for port in range(start, min(start + TRIES, 65536)):
        if is_free(port):
            return port
    raise Conflict(
        f"none of the ports {start} to {start + TRIES - 1} is free; name a free one with FERMION_PORT=<port>",
        what="port",
    )
