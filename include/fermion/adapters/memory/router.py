"""A router that carries made-up requests, at once and with a chance that can be repeated. Keeps ``ports.Router``."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fermion.adapters.envoy import rules
from fermion.adapters.envoy.bootstrap import bounds_ms
from fermion.adapters.memory.outages import Line
from fermion.domain.problems import Problem
from fermion.domain.serving.routing import (
    COPIES,
    MatchKind,
    Protocol,
    Route,
    RouteTable,
    Spread,
    answers_of,
    backend_of,
    copies_of,
)
from fermion.domain.serving.traffic import Counters
from fermion.ports import Clock

PORT = 8090


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the client of one request saw. ``backend`` is None when no replica answered; ``cookie`` is what was set."""

    status: int
    backend: str | None = None
    path: str = "/"
    body: str = ""
    cookie: tuple[str, str] | None = None


@dataclass(slots=True)
class _Tally:
    classes: Counter[str] = field(default_factory=Counter)
    router_made: int = 0
    active: int = 0
    latencies_ms: list[float] = field(default_factory=list)


class MemoryRouter:
    """Every replica answers 200 in a millisecond until ``answers`` says otherwise; ``request`` is a client's."""

    def __init__(self, clock: Clock, line: Line | None = None, *, port: int = PORT, seed: int = 0) -> None:
        self._clock = clock
        self._line = line or Line("the router")
        self._port = port
        self._guard = threading.RLock()
        self._random = random.Random(seed)
        self._table = RouteTable()
        self._tallies: dict[str, _Tally] = {}
        self._statuses: dict[str, Sequence[int]] = {}
        self._latency_ms: dict[str, float] = {}
        self._taken: set[int] = set()
        self._starts = 1

    # --- the port ---------------------------------------------------------------------------------------------------

    def problems_of(self, route: Route) -> Sequence[Problem]:
        """What Envoy would refuse too, and a port that ``take_port`` gave away."""
        found = list(rules.problems_of(route, router_port=self._port))
        if route.port in self._taken:
            found.append(rules.port_taken(route.port))
        return found

    def apply(self, table: RouteTable) -> None:
        """From the next request on.

        Raises:
            DriverCannot: the table has problems; nothing was changed.
        """
        self._line.answer()
        rules.refuse(table, problems_of=self.problems_of)
        with self._guard:
            self._table = table
            self._begin_tallies()

    def applied(self) -> Mapping[str, Spread]:
        """What the last table says."""
        self._line.answer()
        return {route.name: route.spread for route in self._table.routes}

    def counters(self, backends: Collection[str]) -> Mapping[str, Counters]:
        """Of those in the last table."""
        self._line.answer()
        with self._guard:
            there = {backend.name for backend in self._table.backends}
            known = {key for key in self._tallies if backend_of(key) in there}
            return {name: self._counters(name) for name in sorted(known & set(backends))}

    def address(self, route: Route) -> str:
        """As Envoy's."""
        place = f"127.0.0.1:{route.port or self._port}"
        if route.protocol is Protocol.GRPC:
            return place
        return f"http://{place}" if route.port else f"http://{place}{route.prefix}"

    # --- levers -----------------------------------------------------------------------------------------------------

    def answers(self, backend: str, *statuses: int, latency_ms: float = 1.0) -> None:
        """From now on that backend's requests are answered with one of the statuses, each as likely as the next."""
        self._statuses[backend] = statuses or (200,)
        self._latency_ms[backend] = latency_ms

    def hold(self, backend: str, active: int) -> None:
        """So many requests are on their way to it."""
        self._tallies.setdefault(backend, _Tally()).active = active

    def take_port(self, port: int) -> None:
        """Another program listens there."""
        self._taken.add(port)

    def restart(self) -> None:
        """It was killed and came back: the same table, counters from zero."""
        with self._guard:
            self._starts += 1
            self._tallies = {}
            self._begin_tallies()

    def request(
        self,
        path: str,
        *,
        port: int | None = None,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request to the shared listener, or to a service's own port."""
        with self._guard:
            for route in self._table.routes:
                if route.port == port if port is not None else _is_under(path, route.prefix):
                    rest = path if port is not None else path.removeprefix(route.prefix) or "/"
                    return replace(self._carry(route, headers or {}, cookies or {}), path=rest)
            return Answer(status=404)

    # --- carrying ---------------------------------------------------------------------------------------------------

    def _begin_tallies(self) -> None:
        """A backend has copies from the first mirror on that names it."""
        mirrored = {route.mirror.backend for route in self._table.routes if route.mirror}
        for backend in self._table.backends:
            for key in (backend.name, answers_of(backend.name)):
                self._tallies.setdefault(key, _Tally())
            if backend.name in mirrored:
                self._tallies.setdefault(copies_of(backend.name), _Tally())

    def _carry(self, route: Route, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Answer:
        if (chosen := _matched(route, headers, cookies)) is not None:
            return self._ask(chosen, route)
        if not route.weights:
            return Answer(status=503, body=f"service {route.name} ({route.service}) has no revision that serves yet\n")
        backend = self._random.choices(list(route.weights), list(route.weights.values()))[0]
        answer = self._ask(backend, route)
        return replace(answer, cookie=(route.sticky_cookie, backend)) if route.sticky_cookie else answer

    def _ask(self, backend: str, route: Route) -> Answer:
        if route.mirror and self._random.random() * 100 < route.mirror.percent:
            copied = route.mirror.backend
            self._one(copied, copies_of(copied))
        return self._one(backend, backend, answers_of(backend))

    def _one(self, name: str, *keys: str) -> Answer:
        """One request to the backend, counted under those keys."""
        if not any(backend.endpoints for backend in self._table.backends if backend.name == name):
            for tally in (self._tallies[key] for key in keys):
                tally.router_made += COPIES not in keys[0]
                tally.classes["5xx"] += 1
                tally.latencies_ms.append(0.0)
            return Answer(status=503, body="no healthy upstream")
        status = self._random.choice(self._statuses.get(name, (200,)))
        for tally in (self._tallies[key] for key in keys):
            tally.classes[f"{status // 100}xx"] += 1
            tally.latencies_ms.append(self._latency_ms.get(name, 1.0))
        return Answer(status=status, backend=name)

    def _counters(self, name: str) -> Counters:
        tally = self._tallies[name]
        bounds = {f"{bound:g}": sum(each <= bound for each in tally.latencies_ms) for bound in bounds_ms()}
        return Counters(
            backend=name,
            epoch=f"start {self._starts}",
            observed_at=self._clock.now(),
            requests=tally.classes.total(),
            by_class=dict(sorted(tally.classes.items())),
            router_made=tally.router_made,
            active=tally.active,
            latency_ms={**bounds, "inf": len(tally.latencies_ms)},
            latency_sum_ms=sum(tally.latencies_ms),
        )


def _is_under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith((prefix + "/", prefix + "?"))


def _matched(route: Route, headers: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
    """The backend that a match, or the cookie of an earlier choice, leads to."""
    lowered = {name.lower(): value for name, value in headers.items()}
    for match in route.matches:
        seen = lowered.get(match.name.lower()) if match.kind is MatchKind.HEADER else cookies.get(match.name)
        if seen == match.value:
            return match.backend
    held = cookies.get(route.sticky_cookie or "")
    return held if held is not None and route.weights.get(held, 0) > 0 else None
