"""From what a Prometheus answers to windows of traffic; and what it is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from builders import NOW, seconds
from fermion.adapters.envoy.bootstrap import bounds_ms
from fermion.adapters.prometheus import PrometheusMeasurements, promql, recorded
from fermion.domain.serving.traffic import Window, quantile_ms
from fermion.errors import FermionError, OutsideBroken, OutsideUnavailable

Series = dict[str, Any]


def series(name: str, values: dict[float, float], **labels: str) -> Series:
    """Values by seconds since the beginning."""
    metric = {"__name__": name, "job": "router", "instance": "127.0.0.1:9464", **labels}
    return {"metric": metric, "values": [[NOW.timestamp() + at, str(value)] for at, value in values.items()]}


def requests(values: dict[float, float], *, code: str = "200", backend: str = "a", flags: str = "-") -> Series:
    return series("envoy_fermion_requests", values, backend=backend, code=code, grpc="", flags=flags)


def known(*times: float, backend: str = "a") -> Series:
    return series("envoy_cluster_membership_total", dict.fromkeys(times, 1.0), envoy_cluster_name=backend)


def uptime(values: dict[float, float]) -> Series:
    return series(promql.UPTIME, values)


def read(*found: Series, since: float = 0, latencies: bool = True) -> dict[str, Window]:
    return dict(recorded.windows(found, ["a", "b"], since=NOW + seconds(since), latencies=latencies))


def test_what_came_between_the_first_and_the_last_scrape() -> None:
    found = read(known(5, 20), requests({5: 100, 20: 160}), requests({5: 1, 20: 4}, code="500"))["a"]
    assert (found.requests, found.failures, found.router_made, found.resets) == (63, 3, 0, 0)
    assert (found.since, found.until) == (NOW + seconds(5), NOW + seconds(20))


def test_the_first_errors_of_a_series_that_is_new_are_all_counted() -> None:
    found = read(known(5, 20), requests({5: 100, 20: 160}), requests({20: 7}, code="503", flags="UH"))["a"]
    assert (found.requests, found.failures, found.router_made) == (67, 7, 7)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        pytest.param(30, 30 + 60, id="fewer than before"),
        pytest.param(500, 500 + 60, id="more than before, since the last scrape"),
    ],
)
def test_a_router_that_started_anew_has_counted_from_zero(second: float, expected: int) -> None:
    found = read(known(0, 15, 30), uptime({0: 900, 15: 915, 30: 10}), requests({0: 40, 15: 100, 30: second}))["a"]
    assert (found.requests, found.resets) == (expected, 1)


def test_a_router_that_is_younger_than_the_window_counted_all_of_it_there() -> None:
    found = read(known(30), uptime({30: 20}), requests({30: 50}))["a"]
    assert (found.requests, found.since) == (50, NOW + seconds(10))


def test_one_scrape_of_an_older_router_says_nothing() -> None:
    assert read(known(30), uptime({30: 900}), requests({30: 50})) == {}


def test_what_came_before_the_window_is_not_in_it() -> None:
    values = {0: 10.0, 15: 20.0, 30: 50.0}
    found = read(known(0, 15, 30), uptime({0: 900, 15: 915, 30: 930}), requests(values), since=15)["a"]
    assert (found.requests, found.since) == (30, NOW + seconds(15))


def test_a_backend_without_requests_has_zeros_and_one_that_nobody_knows_has_nothing() -> None:
    found = read(known(0, 15), requests({0: 10, 15: 20}, backend="b"))
    assert (found["a"].requests, found["a"].seconds) == (0, 15.0)
    assert "b" not in found


def test_a_backend_that_came_in_the_middle_begins_with_nothing() -> None:
    found = read(known(0, 15), known(15, backend="b"), requests({15: 9}, backend="b"))
    assert found["b"].requests == 9


def test_several_routers_are_added_up() -> None:
    other = requests({1: 0, 16: 5})
    other["metric"]["instance"] = "127.0.0.1:9999"
    there = known(1, 16)
    there["metric"]["instance"] = "127.0.0.1:9999"
    assert read(known(0, 15), requests({0: 10, 15: 20}), there, other)["a"].requests == 15


def latency(le: str, values: dict[float, float]) -> Series:
    return series("envoy_fermion_latency_bucket", values, backend="a", flags="-", le=le)


def test_latencies_are_milliseconds_and_left_out_where_nobody_asked() -> None:
    found = [known(0, 15), requests({0: 0, 15: 10})]
    found += [latency(f"{1000 * bound:g}", {0: 0, 15: 10 if bound > 1 else 0}) for bound in bounds_ms()]
    found += [latency("+Inf", {0: 0, 15: 10})]
    found += [series("envoy_fermion_latency_sum", {0: 0, 15: 11_000}, backend="a", flags="-")]
    exact, coarse = read(*found)["a"], read(*found, latencies=False)["a"]
    assert exact.mean_ms == coarse.mean_ms == pytest.approx(1.1)
    assert 1.0 <= (quantile_ms(exact, 0.95) or 0) <= 1.2
    assert (coarse.bounds_ms, coarse.buckets) == ((), (10,))


def test_names_and_labels_are_quoted() -> None:
    asked = promql.readings(['a"}', "b.c"], {"job": 'x"y\\z'}, latencies=False)
    assert r'''backend=~"|a\"\\}|b\\.c"''' in asked
    assert r'''job="x\"y\\z"''' in asked
    assert promql.over("x", timedelta(seconds=1.5)) == "x[1500ms]"


# --- over HTTP ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Any]:
    """Answers every question with ``answer``: a status and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, body = server.answer
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """Not here."""

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def ask(port: int) -> object:
    asked = PrometheusMeasurements(f"http://127.0.0.1:{port}/")
    return asked.windows(["a"], NOW, NOW + seconds(60))


def good(result: object) -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}).encode()


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        pytest.param((503, b"starting"), OutsideUnavailable, "503: starting", id="it starts"),
        pytest.param((200, b"<html>"), OutsideBroken, "no readings", id="another server"),
        pytest.param((404, b"not here"), OutsideBroken, "404", id="another path"),
        pytest.param((400, b'{"status":"error","error":"parse error"}'), OutsideBroken, "parse error", id="refused"),
        pytest.param((200, good([{"metric": {}}])), OutsideBroken, "no readings", id="half an answer"),
        pytest.param((200, good([{"metric": {"__name__": "x"}, "values": [["a", 1]]}])), OutsideBroken, "no readings"),
    ],
)
def test_what_is_no_answer_is_an_error_in_words(
    server: Any, answer: tuple[int, bytes], error: type[FermionError], words: str
) -> None:
    server.answer = answer
    with pytest.raises(error, match=words):
        ask(server.server_port)


def test_an_answer_without_series_is_no_error(server: Any) -> None:
    server.answer = (200, good([]))
    assert ask(server.server_port) == {}


def test_nobody_there_is_unavailable(server: Any) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(OutsideUnavailable, match="does not answer"):
        ask(server.server_port)
