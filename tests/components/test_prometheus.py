"""A real Prometheus scrapes a real router: what is asked of it is answered, exactly and after restarts too."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "contract")]

import missing  # noqa: E402
from router_contract import route  # noqa: E402
from router_replica import Replica  # noqa: E402

from fermion.adapters.envoy import EnvoyRouter, bootstrap  # noqa: E402
from fermion.adapters.prometheus import PrometheusMeasurements  # noqa: E402
from fermion.domain.serving.routing import (  # noqa: E402
    Backend,
    Endpoint,
    Mirror,
    RouteTable,
    answers_of,
    copies_of,
)
from fermion.domain.serving.traffic import Window, quantile_ms, window  # noqa: E402
from fermion.errors import OutsideBroken, OutsideUnavailable  # noqa: E402

pytestmark = [pytest.mark.components, pytest.mark.timeout(180)]

LIMIT_S = 40
PROGRAM = "prometheus"
LABELS = {"job": "fermion"}


class SystemClock:
    """The real present."""

    def now(self) -> datetime:
        return datetime.now(UTC)


def until(is_true: Callable[[], Any], what: str) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + LIMIT_S
    while not (answer := is_true()):
        assert time.monotonic() < deadline, f"{what} did not come true within {LIMIT_S} s"
        time.sleep(0.1)
    return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Program:
    """A process that may be killed and started again."""

    def __init__(self, command: list[str], log: Path, port: int) -> None:
        self._command, self._log, self._port = command, log, port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until(self._listens, f"port {self._port}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(LIMIT_S)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


class Bench:
    """A router with two revisions of one service, and the Prometheus that scrapes it every second."""

    def __init__(self, folder: Path) -> None:
        self.port, self.scrape_port, self.prometheus_port = free_port(), free_port(), free_port()
        (folder / "router").mkdir()
        bootstrap.prepare(folder / "router", port=self.port, log=folder / "router.log", scrape_port=self.scrape_port)
        self.envoy = Program(bootstrap.command(folder / "router"), folder / "router.log", self.scrape_port)
        self.router = EnvoyRouter(folder / "router", SystemClock())
        target = {"targets": [f"127.0.0.1:{self.scrape_port}"]}
        job = {"job_name": "fermion", "metrics_path": "/stats/prometheus", "static_configs": [target]}
        (folder / "prometheus.yml").write_text(
            json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]})
        )
        command = [
            PROGRAM,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.prometheus_port}",
        ]
        self.prometheus = Program(command, folder / "prometheus.log", self.prometheus_port)
        self.measurements = PrometheusMeasurements(f"http://127.0.0.1:{self.prometheus_port}", labels=LABELS)
        self.replicas = [Replica(name).start() for name in ("stable", "canary")]

    def serve(self, canary: int, name: str = "canary", *, mirror: int = 0) -> None:
        """Requests are split over stable and a canary of that name, which also gets copies of some."""
        backends = tuple(
            Backend(name=backend, endpoints=(Endpoint(host="127.0.0.1", port=each.port),))
            for backend, each in zip(("stable", name), self.replicas, strict=True)
        )
        weights = {"stable": 100 - canary, name: canary}
        copies = Mirror(backend=name, percent=mirror) if mirror else None
        self.router.apply(RouteTable(routes=(route("digits", weights, mirror=copies),), backends=backends))

    def ask(self, count: int, query: str = "") -> None:
        """So many requests."""
        for _ in range(count):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/digits/x{query}", timeout=LIMIT_S) as answer:
                    answer.read()
            except urllib.error.HTTPError as refused:
                refused.read()

    def scraped(self) -> datetime:
        """The time of a scrape that begins after now."""
        began = datetime.now(UTC)
        return until(lambda: (newest := self._newest()) and newest > began and newest, "a scrape")

    def windows(self, since: datetime, **changes: bool) -> dict[str, Window]:
        return dict(self.measurements.windows(["stable", "canary"], since, datetime.now(UTC), **changes))

    def _newest(self) -> datetime | None:
        now = datetime.now(UTC)
        try:
            found = self.measurements.windows(["stable"], now - timedelta(seconds=20), now)
        except OutsideUnavailable:
            return None  # it has just been started
        return found["stable"].until if found else None


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if shutil.which(PROGRAM) is None:
        missing.skip(
            "there is no prometheus: it needs the package prometheus (tests/components/install.sh installs it)"
        )
    made = Bench(tmp_path_factory.mktemp("prometheus"))
    try:
        made.envoy.start()
        made.prometheus.start()
        made.serve(canary=50)
        yield made
    finally:
        made.prometheus.kill()
        made.envoy.kill()
        for replica in made.replicas:
            replica.stop()


@contextmanager
def away(program: Program) -> Iterator[None]:
    """Killed for the block."""
    program.kill()
    try:
        yield
    finally:
        program.start()


def test_what_was_recorded_is_exactly_what_the_router_counted(bench: Bench) -> None:
    since = bench.scraped()
    before = bench.router.counters(["stable", "canary"])
    bench.ask(120)
    time.sleep(0.6)  # the router adds its latencies up twice a second
    bench.scraped()
    after = bench.router.counters(["stable", "canary"])
    found = bench.windows(since)
    for name, seen in found.items():
        own = window([before[name], after[name]])
        assert (seen.requests, seen.failures, seen.buckets) == (own.requests, own.failures, own.buckets)
        assert seen.bounds_ms == own.bounds_ms
        assert seen.mean_ms == pytest.approx(own.mean_ms, rel=0.01)
        assert quantile_ms(seen, 0.95) == quantile_ms(own, 0.95)
    assert sum(each.requests for each in found.values()) == 120


def test_the_first_errors_there_ever_were_are_counted(bench: Bench) -> None:
    since = bench.scraped()
    bench.serve(canary=100)
    bench.ask(7, "?status=503")
    bench.ask(2, "?close=1")
    bench.ask(20)
    bench.scraped()
    found = bench.windows(since)
    bench.serve(canary=50)
    assert (found["canary"].requests, found["canary"].failures, found["canary"].router_made) == (29, 9, 2)
    assert (found["stable"].requests, found["stable"].failures) == (0, 0)


def test_copies_and_what_they_are_compared_with_are_recorded_apart_from_requests(bench: Bench) -> None:
    bench.serve(canary=0, mirror=100)
    bench.ask(20)
    since = bench.scraped()
    bench.ask(30)
    bench.ask(5, "?status=500")
    bench.scraped()
    keys = [copies_of("canary"), answers_of("stable"), "canary", "stable"]
    found = bench.measurements.windows(keys, since, datetime.now(UTC))
    assert {key: (each.requests, each.failures) for key, each in found.items()} == {
        copies_of("canary"): (35, 5),
        answers_of("stable"): (35, 5),
        "canary": (0, 0),
        "stable": (35, 5),
    }
    assert found[copies_of("canary")].bounds_ms == found[answers_of("stable")].bounds_ms
    bench.serve(canary=50)


def test_a_restart_of_the_router_loses_nothing_that_was_scraped(bench: Bench) -> None:
    since = bench.scraped()
    bench.ask(30)
    bench.scraped()
    with away(bench.envoy):
        pass
    until(lambda: "digits" in bench.router.applied(), "the router with its table")
    bench.ask(50)
    bench.scraped()
    found = bench.windows(since)
    assert sum(each.requests for each in found.values()) == 80
    assert {each.resets for each in found.values()} == {1}


def test_a_day_is_added_up_from_one_reading_a_minute(bench: Bench) -> None:
    bench.ask(10)
    bench.scraped()
    bench.serve(canary=100, name="brief")
    bench.ask(11)
    bench.scraped()
    bench.serve(canary=50)
    bench.scraped()
    now = datetime.now(UTC)
    names = ["stable", "canary", "brief"]
    found = dict(bench.measurements.windows(names, now - timedelta(hours=24), now, latencies=False))
    assert found.pop("brief").requests == 11, "it lived for seconds"
    own = bench.router.counters(["stable", "canary"])
    for name, seen in found.items():
        assert seen.requests >= own[name].requests, "all since the router's last start, and more"
        assert seen.mean_ms is not None
        assert seen.bounds_ms == ()


def test_a_router_that_is_not_scraped_any_more_is_silence_and_not_zero(bench: Bench) -> None:
    with away(bench.envoy):
        time.sleep(2)  # a scrape that had begun has ended
        assert bench.windows(datetime.now(UTC) - timedelta(seconds=1)) == {}
    until(lambda: "digits" in bench.router.applied(), "the router with its table")


def test_series_of_another_job_are_not_ours(bench: Bench) -> None:
    bench.scraped()
    now = datetime.now(UTC)
    others = PrometheusMeasurements(f"http://127.0.0.1:{bench.prometheus_port}", labels={"job": "another"})
    assert others.windows(["stable"], now - timedelta(seconds=20), now) == {}


def test_a_label_that_cannot_be_is_refused_in_prometheus_words(bench: Bench) -> None:
    now = datetime.now(UTC)
    broken = PrometheusMeasurements(f"http://127.0.0.1:{bench.prometheus_port}", labels={"a-b": "c"})
    with pytest.raises(OutsideBroken, match="parse error"):
        broken.windows(["stable"], now - timedelta(seconds=20), now)


def test_a_prometheus_that_is_away_is_unavailable_and_goes_on_afterwards(bench: Bench) -> None:
    with away(bench.prometheus), pytest.raises(OutsideUnavailable, match="does not answer"):
        bench.windows(datetime.now(UTC) - timedelta(seconds=20))
    since = bench.scraped()
    bench.ask(5)
    bench.scraped()
    assert sum(each.requests for each in bench.windows(since).values()) == 5


def test_the_scrape_port_shows_nothing_else_of_the_admin_interface(bench: Bench) -> None:
    for path in ("/", "/stats", "/config_dump", "/quitquitquit"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{bench.scrape_port}{path}", timeout=LIMIT_S)
    stop = urllib.request.Request(f"http://127.0.0.1:{bench.scrape_port}/stats/prometheus", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(stop, timeout=LIMIT_S)
