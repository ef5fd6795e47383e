"""Envoy keeps the contract that every router keeps: a real one on loopback, with real replicas and clients."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import psutil
import pytest
from router_contract import LIMIT_S, Reply, RouterContract, counted, route, until, weights_of
from router_replica import Replica

from fermion.adapters.envoy import EnvoyRouter, bootstrap, resources
from fermion.adapters.envoy.layout import Layout
from fermion.domain.serving import routing
from fermion.domain.serving.routing import Backend, Balancing, Endpoint, Match, MatchKind, RouteTable
from fermion.errors import OutsideBroken, OutsideUnavailable

CLIENTS = 4


class SystemClock:
    """The real present."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class Envoy:
    """One Envoy process and its folder. Started by the test's own thread: it ends with it."""

    def __init__(self, folder: Path, *, host: str = resources.LOOPBACK) -> None:
        self.folder = folder
        self.host = host
        self.port = free_port()
        self.log = folder / "router.log"
        self.router = EnvoyRouter(folder, SystemClock(), within=timedelta(seconds=LIMIT_S))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        bootstrap.prepare(self.folder, port=self.port, host=self.host, log=self.log)
        with self.log.open("ab") as log:
            command = bootstrap.command(self.folder)
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until(self._answers)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(LIMIT_S)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _answers(self) -> bool:
        with contextlib.suppress(OutsideUnavailable, OSError):
            self.router.applied()
            with socket.create_connection((self.host, self.port), timeout=1):
                return True
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EnvoyBench:
    """Replicas in threads of this process, and clients over real connections."""

    def __init__(self, envoy: Envoy) -> None:
        self.envoy = envoy
        self.router = envoy.router
        self.port = envoy.port
        self.replicas: dict[str, list[Replica]] = {}
        self._open = contextlib.ExitStack()

    def backend(self, name: str, *, replicas: int = 1) -> Backend:
        name = f"{name}-{next(_NUMBERS)}"
        self.replicas[name] = [Replica(name).start() for _ in range(replicas)]
        return Backend(name=name, endpoints=tuple(endpoint(replica.port) for replica in self.replicas[name]))

    def get(
        self,
        path: str,
        *,
        port: int | None = None,
        headers: dict[str, str] | None = None,
        cookies: dict[str, str] | None = None,
    ) -> Reply:
        given = dict(headers or {})
        if cookies:
            given["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=LIMIT_S)) as client:
            return ask(client, path, headers=given)

    def get_many(self, path: str, count: int) -> Counter[str | None]:
        shares = [count // CLIENTS + (number < count % CLIENTS) for number in range(CLIENTS)]
        with futures.ThreadPoolExecutor(CLIENTS) as pool:
            return sum(pool.map(lambda share: self._some(path, share), shares), Counter())

    def fail(self, backend: Backend, status: int) -> str:
        return f"/x?status={status}"

    def free_port(self) -> int:
        return free_port()

    def taken_port(self) -> int:
        server = self._open.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        return int(server.getsockname()[1])

    def restart(self) -> None:
        self.envoy.kill()
        self.envoy.start()

    def close(self) -> None:
        self.router.apply(RouteTable())
        for replica in itertools.chain(*self.replicas.values()):
            replica.stop()
        self._open.close()

    def _some(self, path: str, count: int) -> Counter[str | None]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)) as client:
            return Counter(ask(client, path).backend for _ in range(count))


_NUMBERS = itertools.count(1)


def endpoint(port: int) -> Endpoint:
    return Endpoint(host="127.0.0.1", port=port)


def ask(
    client: http.client.HTTPConnection, path: str, *, headers: dict[str, str] | None = None, body: bytes | None = None
) -> Reply:
    """One request over a connection that stays open."""
    client.request("POST" if body else "GET", path, body=body, headers=headers or {})
    answer = client.getresponse()
    text = answer.read().decode()
    cookie = answer.getheader("set-cookie")
    seen = json.loads(text) if text.startswith("{") else {}
    return Reply(
        status=answer.status,
        backend=seen.get("name"),
        path=seen.get("path", ""),
        body=text,
        cookie=tuple(cookie.partition(";")[0].split("=", 1)) if cookie else None,
    )


@dataclass
class Load:
    """Clients that never stop asking until the block is left. ``seen`` counts statuses and kinds of exceptions."""

    port: int
    paths: tuple[str, ...]
    seen: Counter[object] = field(default_factory=Counter)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._ask, args=(path,)) for path in self.paths]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * LIMIT_S)

    @property
    def failed(self) -> int:
        return sum(count for kind, count in self.seen.items() if kind != 200)

    def goes_on(self, requests: int) -> None:
        """Until so many more were answered."""
        begin = self.seen.total()
        until(lambda: self.seen.total() >= begin + requests)

    def _ask(self, path: str) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        mine: Counter[object] = Counter()
        while not self._over.is_set():
            try:
                kind: object = ask(client, path, body=b"x" * 64).status
            except (OSError, http.client.HTTPException) as error:
                client.close()
                kind = type(error).__name__
            mine[kind] += 1
            self.seen[kind] += 1
        client.close()


@pytest.fixture(scope="module")
def envoy() -> Iterator[Envoy]:
    with tempfile.TemporaryDirectory() as folder:
        made = Envoy(Path(folder))
        made.start()
        yield made
        made.kill()


@pytest.fixture
def bench(envoy: Envoy) -> Iterator[EnvoyBench]:
    made = EnvoyBench(envoy)
    yield made
    made.close()


class TestEnvoyRouter(RouterContract):
    """The contract."""


def table(backends: list[Backend], weights: dict[str, int] | None = None, **changes: object) -> RouteTable:
    """One service ``digits`` over these; by default all of it goes to the first."""
    return RouteTable(
        routes=(route("digits", weights or {backends[0].name: 100}, **changes),), backends=tuple(backends)
    )


@contextlib.contextmanager
def replica_process(name: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A replica in a process of its own, and its port."""
    command = [sys.executable, str(Path(__file__).with_name("router_replica.py")), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


# --- changes under load ---------------------------------------------------------------------------------------------


def test_weights_change_under_load_without_a_failed_request_and_at_once(bench: EnvoyBench) -> None:
    a, b = bench.backend("a"), bench.backend("b")
    bench.router.apply(table([a, b]))
    took = []
    with Load(bench.port, ("/digits/x",) * CLIENTS) as load:
        for percent in (5, 10, 25, 50, 75, 95, 100, 60, 30, 0):
            load.goes_on(20)
            began = time.monotonic()
            weights = {a.name: 100 - percent, b.name: percent}
            bench.router.apply(table([a, b], weights))
            took.append(time.monotonic() - began)
            assert weights_of(bench.router) == {"digits": weights}
    assert load.failed == 0, load.seen
    assert min(took) < 0.1


def test_after_a_change_not_one_request_goes_the_old_way(bench: EnvoyBench) -> None:
    a, b = bench.backend("a"), bench.backend("b")
    for first, second in ((a, b), (b, a), (a, b)):
        bench.router.apply(table([a, b], {first.name: 100, second.name: 0}))
        assert bench.get_many("/digits/x", 20) == {first.name: 20}


def test_an_endpoint_is_taken_out_under_load_and_its_requests_end_well(bench: EnvoyBench) -> None:
    a = bench.backend("a", replicas=2)
    first = bench.replicas[a.name][0]
    bench.router.apply(table([a]))
    with Load(bench.port, ("/digits/x", "/digits/x?sleep=0.3", "/digits/y?sleep=0.3", "/digits/z?sleep=0.6")) as load:
        for _ in range(3):
            load.goes_on(20)
            bench.router.apply(table([replace(a, endpoints=a.endpoints[1:])]))
            until(lambda: first.started == first.served)
            idle = first.started
            load.goes_on(20)
            assert first.started == idle
            bench.router.apply(table([a]))
            until(lambda known=idle: first.started > known)
    assert load.failed == 0, load.seen


def test_a_replica_killed_under_load_fails_nobody_while_another_lives(bench: EnvoyBench) -> None:
    a = bench.backend("a")
    with replica_process("doomed") as (process, port):
        bench.router.apply(table([replace(a, endpoints=(*a.endpoints, endpoint(port)))]))
        with Load(bench.port, ("/digits/x", "/digits/x?sleep=0.05") * 4) as load:
            load.goes_on(100)
            process.kill()
            load.goes_on(200)
    assert load.failed == 0, load.seen
    assert bench.router.counters([a.name])[a.name].router_made == 0


def test_services_come_and_go_without_disturbing_another(bench: EnvoyBench) -> None:
    a, b = bench.backend("a"), bench.backend("b", replicas=2)
    stays = route("stays", {a.name: 100}, port=bench.free_port())
    bench.router.apply(RouteTable(routes=(stays,), backends=(a,)))
    assert stays.port is not None
    with (
        Load(bench.port, ("/stays/x", "/stays/x?sleep=0.2")) as shared,
        Load(stays.port, ("/x", "/x?sleep=0.2")) as own,
    ):
        for number in range(5):
            other = route(f"other-{number}", {b.name: 100}, port=bench.free_port(), sticky_cookie="c")
            bench.router.apply(RouteTable(routes=(stays, other), backends=(a, b)))
            assert bench.get("/x", port=other.port).backend == b.name
            bench.router.apply(RouteTable(routes=(stays,), backends=(a,)))
        shared.goes_on(20)
    assert (shared.failed, own.failed) == (0, 0), (shared.seen, own.seen)


def test_a_new_endpoint_is_used_as_soon_as_it_was_applied(bench: EnvoyBench) -> None:
    a = bench.backend("a", replicas=2)
    checked = replace(a, health_path="/health")
    bench.router.apply(table([replace(checked, endpoints=())]))
    assert bench.get("/digits/x").status == 503
    bench.router.apply(table([checked]))
    assert bench.get_many("/digits/x", 40) == {a.name: 40}
    assert all(replica.served for replica in bench.replicas[a.name])


# --- replicas that fail ---------------------------------------------------------------------------------------------


def test_what_the_router_made_is_exactly_what_clients_saw(bench: EnvoyBench) -> None:
    """The only replica is killed under load and comes back: every answer is counted once, whoever gave it."""
    a = bench.backend("a")
    replica = bench.replicas[a.name][0]
    bench.router.apply(table([a]))
    with Load(
        bench.port, ("/digits/x", "/digits/x?sleep=0.02", "/digits/x?status=500", "/digits/x?status=404")
    ) as load:
        load.goes_on(100)
        replica.stop()
        load.goes_on(100)
        replica.resume()
        load.goes_on(100)
    until(lambda: bench.router.counters([a.name])[a.name].requests == load.seen.total())
    seen = bench.router.counters([a.name])[a.name]
    assert load.seen.keys() == {200, 404, 500, 503}
    assert seen.router_made == load.seen[503]
    assert dict(seen.by_class) == {"2xx": load.seen[200], "4xx": load.seen[404], "5xx": load.seen[500] + load.seen[503]}


def test_timeouts_and_broken_answers_are_the_routers_and_a_client_that_gave_up_is_nobodys(bench: EnvoyBench) -> None:
    a = bench.backend("a")
    bench.router.apply(table([a], timeout=timedelta(seconds=0.3), retries=0))
    assert bench.get("/digits/x?sleep=5").status == 504
    assert bench.get("/digits/x?close=1").status == 503
    with pytest.raises(http.client.IncompleteRead):
        bench.get("/digits/x?break=1")
    impatient = http.client.HTTPConnection("127.0.0.1", bench.port, timeout=0.1)
    with contextlib.closing(impatient), pytest.raises(TimeoutError):
        ask(impatient, "/digits/x?sleep=0.25")
    assert bench.get("/digits/x").status == 200
    until(lambda: bench.router.counters([a.name])[a.name].active == 0)
    seen = bench.router.counters([a.name])[a.name]
    assert (seen.requests, dict(seen.by_class), seen.router_made) == (4, {"2xx": 1, "5xx": 3}, 3)


def test_an_answer_of_a_replica_is_never_asked_for_again(bench: EnvoyBench) -> None:
    a = bench.backend("a", replicas=2)
    bench.router.apply(table([a], retries=5))
    asked = ("status=500", "status=502", "status=503", "status=504", "status=429")
    assert [bench.get(f"/digits/x?{each}").status for each in asked] == [500, 502, 503, 504, 429]
    assert sum(replica.started for replica in bench.replicas[a.name]) == len(asked)


@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (1, 2), (2, 3)])
def test_what_was_never_answered_is_tried_again_as_often_as_the_route_says(
    bench: EnvoyBench, retries: int, tries: int
) -> None:
    a = bench.backend("a", replicas=3)
    bench.router.apply(table([a], retries=retries))
    assert bench.get("/digits/x?close=1").status == 503
    assert sorted(replica.started for replica in bench.replicas[a.name]) == [0] * (3 - tries) + [1] * tries


def test_a_replica_that_refuses_connections_is_left_alone_after_two_tries(bench: EnvoyBench) -> None:
    """Without a retry each try of it would be a failed request."""
    a = bench.backend("a", replicas=2)
    bench.router.apply(table([a], retries=0))
    bench.replicas[a.name][0].stop()
    failed = Counter(bench.get("/digits/x").status for _ in range(20))[503]
    assert 1 <= failed <= 2 * bootstrap.WORKERS
    assert [bench.get("/digits/x").status for _ in range(20)] == [200] * 20


def test_a_replica_that_says_it_is_not_well_is_left_out_until_it_is(bench: EnvoyBench) -> None:
    a = bench.backend("a", replicas=2)
    sick, well = bench.replicas[a.name]
    bench.router.apply(table([replace(a, health_path="/health")]))
    assert bench.get("/digits/x").status == 200
    sick.healthy = False

    def served(replica: Replica) -> int:
        before = replica.served
        assert bench.get_many("/digits/x", 20) == {a.name: 20}
        return replica.served - before

    until(lambda: served(sick) == 0)
    sick.healthy = True
    until(lambda: served(sick) > 0)
    sick.healthy = well.healthy = False
    until(lambda: bench.get("/digits/x").status == 503)


def test_a_replica_that_hangs_delays_a_change_by_one_check_only(bench: EnvoyBench) -> None:
    a = bench.backend("a")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        hanging = replace(a, endpoints=(*a.endpoints, endpoint(silent.getsockname()[1])), health_path="/health")
        bench.router.apply(table([hanging]))
        assert bench.get_many("/digits/x", 20) == {a.name: 20}


def test_a_long_request_is_tried_again_too(bench: EnvoyBench) -> None:
    a = bench.backend("a", replicas=2)
    bench.router.apply(table([a], retries=1))
    body = os.urandom(bytes_sent := 4 * 1024 * 1024)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", bench.port, timeout=LIMIT_S)) as client:
        assert ask(client, "/digits/x?close=1", body=body).status == 503
        assert json.loads(ask(client, "/digits/x", body=body).body)["bytes"] == bytes_sent
    assert sum(replica.started for replica in bench.replicas[a.name]) == 3


def test_what_came_in_by_a_port_stays_counted_when_the_port_is_given_up(bench: EnvoyBench) -> None:
    a, port = bench.backend("a"), bench.free_port()
    bench.router.apply(table([a], port=port))
    assert bench.get("/x", port=port).status == 200
    bench.router.apply(table([a]))
    assert bench.get("/digits/x").status == 200
    assert counted(bench, a, 2).requests == 2


def test_the_least_busy_replica_gets_more(bench: EnvoyBench) -> None:
    a = bench.backend("a", replicas=2)
    slow = replace(a, balancing=Balancing.LEAST_REQUEST)
    bench.router.apply(table([slow]))
    busy, free = bench.replicas[a.name]
    with Load(bench.port, ("/digits/x?sleep=0.5",) * 6):
        until(lambda: busy.started + free.started >= 6)
        held = Counter({"busy": busy.started - busy.served, "free": free.started - free.served})
    assert min(held["busy"], held["free"]) >= 1


# --- WebSocket and gRPC ---------------------------------------------------------------------------------------------


class WebSocket:
    """A client that sends short texts and reads them back."""

    def __init__(self, port: int, path: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        self._file = self._socket.makefile("rb")
        assert b" 101 " in self._file.readline()
        while self._file.readline() != b"\r\n":
            pass

    def echo(self, text: str) -> str:
        mask = os.urandom(4)
        payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(text.encode()))
        self._socket.sendall(bytes((0x81, 0x80 | len(payload))) + mask + payload)
        _, length = self._file.read(2)
        return self._file.read(length).decode()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own port"])
def test_a_websocket_outlives_the_routes_timeout_and_its_replicas_removal(bench: EnvoyBench, own: bool) -> None:
    a = bench.backend("a", replicas=2)
    changes = {"port": bench.free_port() if own else None, "timeout": timedelta(seconds=0.3)}
    bench.router.apply(table([a], **changes))
    client = WebSocket(changes["port"] or bench.port, "/digits/ws")
    with contextlib.closing(client):
        assert client.echo("hello") == "hello"
        bench.router.apply(table([replace(a, endpoints=())], **changes))
        time.sleep(0.5)
        assert client.echo("still there") == "still there"
    until(lambda: bench.router.counters([a.name])[a.name].by_class == {"1xx": 1})
    assert bench.router.counters([a.name])[a.name].latency_ms["inf"] == 0


class Echo(grpc.GenericRpcHandler):
    """``/test.Echo/Say`` sends back; ``Fail`` fails with the status it is given, ``Sleep`` takes so many seconds; and health."""

    def __init__(self) -> None:
        self.serving = True
        self.checks = 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        handlers = {
            "/test.Echo/Say": lambda request, _: request,
            "/test.Echo/Fail": lambda request, context: context.abort(grpc.StatusCode[request.decode()], "ordered"),
            "/test.Echo/Sleep": lambda request, _: time.sleep(float(request)) or request,
            "/grpc.health.v1.Health/Check": self._check,
        }
        handler = handlers.get(details.method)
        return grpc.unary_unary_rpc_method_handler(handler) if handler else None

    def _check(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.checks += 1
        return b"\x08\x01" if self.serving else b"\x08\x02"


@contextlib.contextmanager
def grpc_replica() -> Iterator[tuple[Echo, Endpoint]]:
    echo = Echo()
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=(echo,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield echo, endpoint(port)
    finally:
        server.stop(0).wait(LIMIT_S)


def call(
    address: str,
    method: str,
    text: str,
    *,
    authority: str | None = None,
    service: str | None = None,
    group: str | None = None,
) -> str:
    """The answer, or the name of the status."""
    options = [("grpc.enable_http_proxy", 0)] + ([("grpc.default_authority", authority)] if authority else [])
    with grpc.insecure_channel(address, options=options) as channel:
        say = channel.unary_unary(f"/test.Echo/{method}")
        metadata = [("fermion-service", service)] if service else []
        metadata += [("x-group", group)] if group else []
        try:
            return say(text.encode(), metadata=metadata, timeout=LIMIT_S).decode()
        except grpc.RpcError as error:
            return str(error.code().name)


def grpc_backend(*endpoints: Endpoint, **changes: object) -> Backend:
    made = Backend(name=f"g-{next(_NUMBERS)}", endpoints=endpoints, protocol=routing.Protocol.GRPC)
    return replace(made, **changes)


def test_grpc_is_reached_by_authority_by_metadata_and_by_its_own_port(bench: EnvoyBench) -> None:
    with grpc_replica() as (_, first), grpc_replica() as (_, second):
        a, b = grpc_backend(first), grpc_backend(second)
        grpc_routes = (
            route("say", {a.name: 100}, protocol=routing.Protocol.GRPC),
            route("own", {b.name: 100}, protocol=routing.Protocol.GRPC, port=bench.free_port()),
        )
        bench.router.apply(RouteTable(routes=grpc_routes, backends=(a, b)))
        shared, own = (bench.router.address(each) for each in grpc_routes)
        assert call(shared, "Say", "hi", authority="say") == "hi"
        assert call(shared, "Say", "hi", authority="say:443") == "hi"
        assert call(shared, "Say", "hi", service="say") == "hi"
        assert call(own, "Say", "hi") == "hi"
        assert call(shared, "Say", "hi", authority="sayx") == "UNIMPLEMENTED"
        assert call(shared, "Say", "hi", service="own", authority="say") == "hi"
        assert (counted(bench, a, 3).requests, counted(bench, b, 2).requests) == (3, 2)


def test_grpc_calls_are_split_by_a_key_of_their_metadata_however_the_service_is_reached(bench: EnvoyBench) -> None:
    with grpc_replica() as (_, first), grpc_replica() as (_, second):
        a, b = grpc_backend(first), grpc_backend(second)
        beta = Match(kind=MatchKind.HEADER, name="x-group", value="beta", backend=b.name)
        changes = {"protocol": routing.Protocol.GRPC, "port": bench.free_port(), "matches": (beta,)}
        made = table([a, b], {a.name: 100}, **changes)
        bench.router.apply(made)
        assert bench.router.applied() == {"digits": made.routes[0].spread}
        shared, own = f"127.0.0.1:{bench.port}", f"127.0.0.1:{changes['port']}"
        for address, way in ((shared, {"service": "digits"}), (shared, {"authority": "digits"}), (own, {})):
            before = bench.router.counters([a.name, b.name])
            for group in ("beta", "beta", "gamma", None, None):
                assert call(address, "Say", "hi", group=group, **way) == "hi"
            counted(bench, a, before[a.name].requests + 3)
            counted(bench, b, before[b.name].requests + 2)
            after = bench.router.counters([a.name, b.name])
            assert [after[name].requests - before[name].requests for name in (a.name, b.name)] == [3, 2], way


def test_a_grpc_status_is_counted_as_the_http_status_it_stands_for(bench: EnvoyBench) -> None:
    with grpc_replica() as (_, where):
        a = grpc_backend(where)
        bench.router.apply(table([a], protocol=routing.Protocol.GRPC))
        address = f"127.0.0.1:{bench.port}"
        statuses = ["INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "UNKNOWN", "UNAVAILABLE"]
        assert [call(address, "Fail", each, service="digits") for each in statuses] == statuses
        assert call(address, "Say", "hi", service="digits") == "hi"
    until(lambda: bench.router.counters([a.name])[a.name].requests == 6)
    assert call(address, "Say", "hi", service="digits") == "UNAVAILABLE"
    until(lambda: bench.router.counters([a.name])[a.name].requests == 7)
    seen = bench.router.counters([a.name])[a.name]
    assert (dict(seen.by_class), seen.router_made) == ({"2xx": 1, "4xx": 2, "5xx": 4}, 1)


def test_a_grpc_call_that_its_client_gives_up_is_nobodys(bench: EnvoyBench) -> None:
    with grpc_replica() as (_, where):
        a = grpc_backend(where)
        bench.router.apply(table([a], protocol=routing.Protocol.GRPC))
        with grpc.insecure_channel(f"127.0.0.1:{bench.port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            metadata = [("fermion-service", "digits")]
            # Cancelled, not timed out: a deadline travels to the replica, which may be the first to call it.
            given_up = channel.unary_unary("/test.Echo/Sleep").future(b"0.6", metadata=metadata, timeout=LIMIT_S)
            until(lambda: bench.router.counters([a.name])[a.name].active == 1)
            assert given_up.cancel()
            assert channel.unary_unary("/test.Echo/Sleep")(b"0.1", metadata=metadata, timeout=LIMIT_S) == b"0.1"
        until(lambda: bench.router.counters([a.name])[a.name].active == 0)
        assert dict(bench.router.counters([a.name])[a.name].by_class) == {"2xx": 1}


def test_a_grpc_replica_that_is_not_serving_is_left_out(bench: EnvoyBench) -> None:
    with grpc_replica() as (sick, first), grpc_replica() as (_, second):
        a = grpc_backend(first, second, health_grpc=True)
        sick.serving = False
        bench.router.apply(table([a], protocol=routing.Protocol.GRPC))
        address = f"127.0.0.1:{bench.port}"
        assert {call(address, "Say", "hi", service="digits") for _ in range(10)} == {"hi"}
        assert sick.checks > 0
        sick.serving = True
        bench.router.apply(table([replace(a, endpoints=(first,))], protocol=routing.Protocol.GRPC))
        assert call(address, "Say", "hi", service="digits") == "hi"


# --- Envoy itself ---------------------------------------------------------------------------------------------------


def test_a_table_applied_while_envoy_is_away_is_served_when_it_is_back(bench: EnvoyBench) -> None:
    a, b = bench.backend("a"), bench.backend("b")
    bench.router.apply(table([a, b]))
    bench.envoy.kill()
    hasty = EnvoyRouter(bench.envoy.folder, SystemClock(), within=timedelta(seconds=0.2))
    with pytest.raises(OutsideUnavailable, match=r"does not answer.*goes on from here"):
        hasty.apply(table([a, b], {b.name: 100}))
    for answer in (hasty.applied, lambda: hasty.counters([a.name])):
        with pytest.raises(OutsideUnavailable, match="fermion ps"):
            answer()
    bench.envoy.start()
    bench.router.apply(table([a, b], {b.name: 100}))
    assert bench.get("/digits/x").backend == b.name


def test_a_change_waits_for_an_envoy_that_is_just_coming_back(bench: EnvoyBench) -> None:
    a, b = bench.backend("a"), bench.backend("b")
    bench.router.apply(table([a, b]))
    bench.envoy.kill()
    with futures.ThreadPoolExecutor(1) as pool:
        change = pool.submit(bench.router.apply, table([a, b], {b.name: 100}))
        bench.envoy.start()
        change.result(LIMIT_S)
    assert bench.get("/digits/x").backend == b.name


@pytest.mark.parametrize("name", ["clusters", "listeners", "routes"])
def test_a_file_that_is_garbage_changes_nothing_and_the_next_change_repairs_it(bench: EnvoyBench, name: str) -> None:
    a, b = bench.backend("a"), bench.backend("b")
    first, second = table([a, b]), table([a, b], {b.name: 100}, port=bench.free_port())
    bench.router.apply(first)
    file: Path = getattr(Layout(bench.envoy.folder), name)
    bootstrap.replace(file, '{"resources": [{"garb')
    time.sleep(0.1)
    assert bench.get("/digits/x").backend == a.name
    bench.router.apply(first)
    bootstrap.replace(file, '{"resources": 5}')
    bench.router.apply(second)
    assert bench.get("/digits/x").backend == b.name


def test_what_envoy_refuses_is_taken_back_and_said_in_its_words(bench: EnvoyBench) -> None:
    a, b = bench.backend("a"), bench.backend("b")
    bench.router.apply(table([a]))
    taken = bench.taken_port()
    blind = EnvoyRouter(bench.envoy.folder, SystemClock(), is_free=lambda _: True)
    with pytest.raises(OutsideBroken, match=f"cannot bind '127.0.0.1:{taken}': Address already in use"):
        blind.apply(table([a, b], {b.name: 100}, port=taken))
    assert weights_of(bench.router) == {"digits": {a.name: 100}}
    assert bench.router.counters([a.name, b.name]).keys() == {a.name}
    assert bench.get("/digits/x").backend == a.name


def test_a_port_lost_while_envoy_was_away_holds_up_nobody_else(bench: EnvoyBench) -> None:
    a, b, port = bench.backend("a"), bench.backend("b"), bench.free_port()

    def make(weights: dict[str, int], **changes: object) -> RouteTable:
        own = route("own", {a.name: 100}, port=port)
        return RouteTable(routes=(own, route("other", weights, **changes)), backends=(a, b))

    bench.router.apply(make({a.name: 100}))
    bench.envoy.kill()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen(1)
        bench.envoy.start()
        with pytest.raises(OutsideBroken, match=rf"in place, but port-{port}: cannot bind"):
            bench.router.apply(make({b.name: 100}))
        assert weights_of(bench.router)["other"] == {b.name: 100}
        assert bench.get("/other/x").backend == b.name
        second = bench.free_port()
        with pytest.raises(OutsideBroken, match=rf"in place, but port-{port}: cannot bind"):
            bench.router.apply(make({b.name: 100}, port=second))
        assert bench.get("/x", port=second).backend == b.name
    bench.router.apply(make({b.name: 100}))
    assert bench.get("/x", port=port).backend == a.name


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_a_change_that_was_killed_halfway_is_finished_by_the_next(
    bench: EnvoyBench, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = bench.backend("a"), bench.backend("b")
    bench.router.apply(table([a], port=bench.free_port()))
    wanted = table([b], port=bench.free_port())
    written = itertools.count(1)

    def until_killed(path: Path, text: str) -> None:
        if next(written) == stage:
            raise KeyboardInterrupt
        bootstrap.replace(path, text)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr("fermion.adapters.envoy.router.replace", until_killed)
        bench.router.apply(wanted)
    assert bench.get("/digits/x").status == 200
    watched = Layout(bench.envoy.folder).watched
    (watched / f"{bootstrap.DRAFT}routes.json.1").write_text("half a fi")
    bench.router.apply(wanted)
    assert sorted(path.name for path in watched.iterdir()) == ["clusters.json", "listeners.json", "routes.json"]
    assert weights_of(bench.router) == {"digits": {b.name: 100}}
    assert bench.get("/digits/x").backend == b.name
    assert bench.router.counters([a.name, b.name]).keys() == {b.name}


def test_many_at_once_leave_one_whole_table(bench: EnvoyBench) -> None:
    backends = [bench.backend("a") for _ in range(4)]
    tables = [table([backend], port=bench.free_port()) for backend in backends]
    with futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(bench.router.apply, each) for each in tables * 4]:
            done.result(2 * LIMIT_S)
    (weights,) = weights_of(bench.router).values()
    (last,) = weights
    assert bench.router.counters([backend.name for backend in backends]).keys() == {last}
    assert bench.get("/digits/x").backend == last


def test_a_second_router_cannot_listen_beside_it(bench: EnvoyBench, tmp_path: Path) -> None:
    """The kernel would give it half of the connections."""
    bootstrap.prepare(tmp_path, port=bench.port)
    second = subprocess.run(bootstrap.command(tmp_path), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert second.returncode != 0
    assert "Address already in use" in second.stdout + second.stderr


def test_nobody_else_can_reach_the_admin_interface(bench: EnvoyBench) -> None:
    own = bench.free_port()
    a = bench.backend("a")
    bench.router.apply(table([a], port=own))
    layout = Layout(bench.envoy.folder)
    assert layout.socket.stat().st_mode & 0o777 == 0o600
    assert layout.folder.stat().st_mode & 0o777 == 0o700
    listening = subprocess.run(
        ["cat", f"/proc/{bench.envoy.pid}/net/tcp"], capture_output=True, text=True, timeout=5, check=True
    )
    mine = {f"0100007F:{port:04X}": port for port in (bench.port, own)}
    sockets = {os.readlink(link) for link in Path(f"/proc/{bench.envoy.pid}/fd").iterdir() if link.is_symlink()}
    held = {
        fields[1]
        for fields in (line.split() for line in listening.stdout.splitlines()[1:])
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets
    }
    assert held == mine.keys()


def test_it_listens_where_it_was_told_with_the_ports_of_single_services_too(tmp_path: Path) -> None:
    """Another loopback address stands for all of them: containers are told 0.0.0.0."""
    envoy = Envoy(tmp_path, host="127.0.0.2")
    envoy.start()
    bench = EnvoyBench(envoy)
    try:
        own = free_port()
        bench.router.apply(table([bench.backend("a")], port=own))
        for port, path in ((bench.port, "/digits/x"), (own, "/x")):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.2", port, timeout=LIMIT_S)) as client:
                assert ask(client, path).status == 200
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
    finally:
        bench.close()
        envoy.kill()


def test_two_hundred_services_cost_less_than_two_seconds_of_work_and_three_watches(bench: EnvoyBench) -> None:
    """Work, not time: the machine that tests run on may be busy."""
    envoy = psutil.Process(bench.envoy.pid)

    def work() -> float:
        return time.process_time() + sum(envoy.cpu_times()[:2])

    def make(percent: int) -> RouteTable:
        names = [f"s{number}" for number in range(200)]
        return RouteTable(
            routes=tuple(route(name, {f"{name}-r1": 100 - percent, f"{name}-r2": percent}) for name in names),
            backends=tuple(
                Backend(name=f"{name}-r{number}", endpoints=tuple(endpoint(20000 + port) for port in range(4)))
                for name in names
                for number in (1, 2)
            ),
        )

    before = work()
    bench.router.apply(make(0))
    assert work() - before < 2
    bench.router.apply(make(10))
    assert weights_of(bench.router)["s199"] == {"s199-r1": 90, "s199-r2": 10}
    assert len(bench.router.counters([f"s{number}-r1" for number in range(200)])) == 200
    watches = [link for link in Path(f"/proc/{bench.envoy.pid}/fd").iterdir() if "inotify" in os.readlink(link)]
    assert len(watches) == 3
