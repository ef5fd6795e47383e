"""The router as a supervised program: a real supervisor with a real Envoy and nothing else."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from fermion.adapters.envoy import EnvoyRouter, bootstrap, readiness
from fermion.adapters.local_platform import processes
from fermion.adapters.local_platform.addresses import Addresses
from fermion.adapters.local_platform.keys import keep_keys
from fermion.adapters.local_platform.layout import Layout
from fermion.adapters.local_platform.postgres import EmbeddedPostgres
from fermion.adapters.local_platform.programs import ROUTER, environment, programs, render
from fermion.adapters.local_platform.supervision import ProgramState, Supervisor
from fermion.domain.serving.routing import Backend, Endpoint, Route, RouteTable
from fermion.errors import OutsideUnavailable
from fermion.ports import Router

LIMIT_S = 30


class SystemClock:
    """The real present."""

    def now(self) -> datetime:
        return datetime.now(UTC)


def weights_of(router: Router) -> dict[str, dict[str, int]]:
    """The weights that the router says it uses, by service."""
    return {name: dict(spread.weights) for name, spread in router.applied().items()}


def until(is_true: Callable[[], object]) -> None:
    """Look until it is true; fails the test when it takes too long."""
    deadline = time.monotonic() + LIMIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"did not come true within {LIMIT_S} s"
        time.sleep(0.05)


def is_gone(process: psutil.Process) -> bool:
    """Also a zombie: whoever inherited it may never ask for it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Installation:
    """A supervisor that keeps only the router."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(root=folder, state=folder / "state")
        self.layout.make_folders()
        keys = keep_keys(self.layout.secrets)
        postgres = EmbeddedPostgres(data=self.layout.postgres, keys=keys, port=free_port())
        self.port = free_port()
        self.supervisor = Supervisor(self.layout)
        self.router = EnvoyRouter(self.layout.router, SystemClock())
        only = [program for program in programs(self.layout, postgres, None) if program.name == ROUTER]
        self._configuration = render(self.layout, only, socket=self.supervisor.socket)
        addresses = Addresses(http=free_port(), postgres=free_port(), router=self.port)
        self._environment = environment(self.layout, keys, addresses, postgres, caller=os.environ)

    def start(self) -> None:
        bootstrap.prepare(self.layout.router, port=self.port, log=self.layout.logs / "router.log")
        self.supervisor.start(self._configuration, self._environment)
        until(self.is_up)

    def is_up(self) -> bool:
        return readiness.problems(self.layout.router) == [] and self.state().state == "RUNNING"

    def state(self) -> ProgramState:
        (state,) = self.supervisor.states() or ()
        return state

    def envoy(self) -> psutil.Process:
        return psutil.Process(self.state().pid)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(tmp_path)
    made.start()
    yield made
    made.supervisor.shutdown(timedelta(seconds=LIMIT_S))


def table() -> RouteTable:
    route = Route(service="inf-digits-001", name="digits", prefix="/digits", weights={"digits-r1": 60, "digits-r2": 40})
    backends = tuple(
        Backend(name=name, endpoints=(Endpoint(host="127.0.0.1", port=9),)) for name in ("digits-r1", "digits-r2")
    )
    return RouteTable(routes=(route,), backends=backends)


def test_killed_it_is_back_with_the_same_table_and_port(here: Installation) -> None:
    here.router.apply(table())
    before = here.envoy()
    before.kill()
    until(lambda: here.is_up() and here.state().pid != before.pid)
    assert weights_of(here.router) == {"digits": {"digits-r1": 60, "digits-r2": 40}}
    with socket.create_connection(("127.0.0.1", here.port), timeout=LIMIT_S):
        pass


def test_it_ends_with_its_supervisor_and_is_seen_not_to_answer(here: Installation) -> None:
    envoy = here.envoy()
    supervisor = psutil.Process(envoy.ppid())
    assert here.supervisor.shutdown(timedelta(seconds=LIMIT_S))
    until(lambda: is_gone(envoy) and is_gone(supervisor))
    assert readiness.problems(here.layout.router) == ["the router does not answer on its admin socket yet"]
    with pytest.raises(OutsideUnavailable, match="fermion ps"):
        here.router.applied()


def test_it_outlives_a_killed_supervisor_and_the_next_start_finds_it(here: Installation) -> None:
    here.router.apply(table())
    envoy = here.envoy()
    supervisor = psutil.Process(envoy.ppid())
    supervisor.kill()
    until(lambda: is_gone(supervisor))
    assert readiness.problems(here.layout.router) == []
    assert [each.pid for each in processes.find(here.layout).programs] == [envoy.pid]
    processes.end([envoy], grace_s=LIMIT_S)
    here.start()
    assert weights_of(here.router) == {"digits": {"digits-r1": 60, "digits-r2": 40}}


def test_its_log_says_what_it_refused(here: Installation) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        taken = server.getsockname()[1]
        blind = EnvoyRouter(here.layout.router, SystemClock(), is_free=lambda _: True)
        (route,) = table().routes
        own = Route(service=route.service, name=route.name, prefix=route.prefix, port=taken)
        with pytest.raises(OutsideUnavailable, match=f"cannot bind '127.0.0.1:{taken}'"):
            blind.apply(RouteTable(routes=(own,)))
