"""The memory router keeps the contract that every router keeps; and its levers."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, datetime

import pytest
from router_contract import Reply, RouterContract, route

from fermion.adapters.memory.clock import MemoryClock
from fermion.adapters.memory.outages import Line
from fermion.adapters.memory.router import MemoryRouter
from fermion.domain.serving.routing import Backend, Endpoint, RouteTable
from fermion.errors import OutsideUnavailable


class MemoryBench:
    """A router without a network."""

    def __init__(self) -> None:
        self.line = Line("the router")
        self.router = MemoryRouter(MemoryClock(datetime(2025, 1, 1, tzinfo=UTC)), self.line)
        self._numbers = itertools.count(1)

    def backend(self, name: str, *, replicas: int = 1) -> Backend:
        endpoints = tuple(Endpoint(host="127.0.0.1", port=20000 + number) for number in range(replicas))
        return Backend(name=f"{name}-{next(self._numbers)}", endpoints=endpoints)

    def get(
        self,
        path: str,
        *,
        port: int | None = None,
        headers: dict[str, str] | None = None,
        cookies: dict[str, str] | None = None,
    ) -> Reply:
        seen = self.router.request(path, port=port, headers=headers, cookies=cookies)
        return Reply(status=seen.status, backend=seen.backend, path=seen.path, body=seen.body, cookie=seen.cookie)

    def get_many(self, path: str, count: int) -> Counter[str | None]:
        return Counter(self.get(path).backend for _ in range(count))

    def fail(self, backend: Backend, status: int) -> str:
        self.router.answers(backend.name, status)
        return "/x"

    def free_port(self) -> int:
        return 30000 + next(self._numbers)

    def taken_port(self) -> int:
        port = self.free_port()
        self.router.take_port(port)
        return port

    def restart(self) -> None:
        self.router.restart()


@pytest.fixture
def bench() -> MemoryBench:
    return MemoryBench()


class TestMemoryRouter(RouterContract):
    """The contract."""


def test_a_cut_line_answers_nobody(bench: MemoryBench) -> None:
    bench.line.cut("killed")
    for call in (bench.router.applied, lambda: bench.router.counters(["a"]), lambda: bench.router.apply(RouteTable())):
        with pytest.raises(OutsideUnavailable, match="killed"):
            call()


def test_answers_and_latencies_are_what_was_ordered(bench: MemoryBench) -> None:
    a = bench.backend("a")
    bench.router.apply(RouteTable(routes=(route("digits", {a.name: 100}),), backends=(a,)))
    bench.router.answers(a.name, 200, 200, 500, latency_ms=15.0)
    seen = Counter(bench.get("/digits/x").status for _ in range(300))
    assert seen.keys() == {200, 500}
    bench.router.hold(a.name, 3)
    counters = bench.router.counters([a.name])[a.name]
    assert (counters.by_class["5xx"], counters.router_made, counters.active) == (seen[500], 0, 3)
    assert (counters.latency_ms["12"], counters.latency_ms["15"]) == (0, 300)
    assert counters.latency_sum_ms == 4500
