"""From Envoy's statistics to a backend's counters."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from fermion.adapters.envoy import counting
from fermion.adapters.envoy.admin import Sample, parse, refusals
from fermion.adapters.envoy.bootstrap import bounds_ms
from fermion.domain.serving.traffic import Counters

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)

KNOWN = 'envoy_cluster_membership_total{envoy_cluster_name="a"} 2'


def read(*lines: str) -> Counters:
    return counting.read(parse("\n".join((KNOWN, *lines))), ["a"], epoch="e", observed_at=NOW)["a"]


def request(code: str, count: int, *, grpc: str = "", flags: str = "-", backend: str = "a") -> str:
    return f'envoy_fermion_requests{{backend="{backend}",code="{code}",grpc="{grpc}",flags="{flags}"}} {count}'


@pytest.mark.parametrize(
    ("line", "by_class", "router_made"),
    [
        pytest.param(request("200", 7), {"2xx": 7}, 0, id="answered"),
        pytest.param(request("302", 7), {"3xx": 7}, 0, id="sent elsewhere"),
        pytest.param(request("429", 7), {"4xx": 7}, 0, id="refused by the replica"),
        pytest.param(request("503", 7), {"5xx": 7}, 0, id="the replica's own 503"),
        pytest.param(request("503", 7, flags="UH"), {"5xx": 7}, 7, id="none well"),
        pytest.param(request("503", 7, flags="URX,UF"), {"5xx": 7}, 7, id="refused after retries"),
        pytest.param(request("504", 7, flags="UT"), {"5xx": 7}, 7, id="timed out"),
        pytest.param(request("200", 7, flags="UC"), {"5xx": 7}, 7, id="broken off after the headers"),
        pytest.param(request("0", 7, flags="DC"), {}, 0, id="the client gave up"),
        pytest.param(request("200", 7, flags="DC"), {}, 0, id="the client gave up in the middle"),
        pytest.param(request("200", 7, flags="DR"), {}, 0, id="the client cancelled"),
        pytest.param(request("101", 7, flags="DC"), {"1xx": 7}, 0, id="a WebSocket that its client ended"),
        pytest.param(request("101", 7, flags="UC"), {"1xx": 7}, 0, id="a WebSocket that its replica ended"),
        pytest.param(request("200", 7, grpc="0"), {"2xx": 7}, 0, id="grpc OK"),
        pytest.param(request("200", 7, grpc="3"), {"4xx": 7}, 0, id="grpc INVALID_ARGUMENT"),
        pytest.param(request("200", 7, grpc="13"), {"5xx": 7}, 0, id="grpc INTERNAL"),
        pytest.param(request("200", 7, grpc="14", flags="UF"), {"5xx": 7}, 7, id="grpc UNAVAILABLE by the router"),
        pytest.param(request("200", 7, grpc="99"), {"2xx": 7}, 0, id="a grpc status that nobody knows"),
        pytest.param(request("200", 7, backend="b"), {}, 0, id="another backend"),
        pytest.param(request("404", 7, backend=""), {}, 0, id="no backend"),
    ],
)
def test_a_request_is_of_one_class_and_made_by_one_side(line: str, by_class: dict[str, int], router_made: int) -> None:
    seen = read(line)
    assert (dict(seen.by_class), seen.router_made, seen.requests) == (by_class, router_made, sum(by_class.values()))


def test_every_grpc_status_has_a_class() -> None:
    assert set(counting.GRPC_CLASSES) == {str(number) for number in range(17)}


def test_latencies_of_all_ends_are_added_and_given_in_milliseconds() -> None:
    seen = read(
        'envoy_fermion_latency_bucket{backend="a",flags="-",le="1000"} 3',
        'envoy_fermion_latency_bucket{backend="a",flags="-",le="+Inf"} 5',
        'envoy_fermion_latency_sum{backend="a",flags="-"} 9000.5',
        'envoy_fermion_latency_bucket{backend="a",flags="UT",le="+Inf"} 2',
        'envoy_fermion_latency_sum{backend="a",flags="UT"} 1000',
        'envoy_fermion_latency_bucket{backend="a",flags="DC",le="+Inf"} 100',
    )
    assert (seen.latency_ms["1"], seen.latency_ms["inf"], seen.latency_sum_ms) == (3, 7, 10.0005)


def test_requests_copies_and_answers_are_counted_apart() -> None:
    lines = (
        request("200", 9),
        'envoy_cluster_membership_total{envoy_cluster_name="a~mirror"} 1',
        'envoy_cluster_upstream_rq_xx{envoy_cluster_name="a",envoy_response_code_class="2"} 7',
        'envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="a~mirror"} 30',
        'envoy_cluster_upstream_rq_xx{envoy_response_code_class="5",envoy_cluster_name="a~mirror"} 1',
        'envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="a~mirror",le="1"} 4',
        'envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="a",le="1"} 7',
        'envoy_cluster_upstream_rq_active{envoy_cluster_name="a"} 2',
        'envoy_cluster_upstream_rq_pending_active{envoy_cluster_name="a"} 1',
        'envoy_cluster_upstream_rq_active{envoy_cluster_name="a~mirror"} 1',
    )
    found = counting.read(
        parse("\n".join([KNOWN, *lines])), ["a", "a~mirror", "a~answers", "b~mirror"], epoch="e", observed_at=NOW
    )
    assert {key: (dict(each.by_class), each.active, each.latency_ms["1"]) for key, each in found.items()} == {
        "a": ({"2xx": 9}, 3, 0),
        "a~answers": ({"2xx": 7}, 3, 7),
        "a~mirror": ({"2xx": 30, "5xx": 1}, 1, 4),
    }


def test_a_backend_without_a_cluster_is_left_out() -> None:
    samples = parse(f"{KNOWN}\n{request('200', 7, backend='b')}")
    assert counting.read(samples, ["a", "b"], epoch="e", observed_at=NOW).keys() == {"a"}


def test_latency_bounds_are_at_most_a_quarter_apart() -> None:
    bounds = [bound for bound in bounds_ms() if bound >= 1]
    assert (bounds[0], bounds[-1]) == (1, 60_000)
    assert all(1 < after / before <= 1.25 for before, after in itertools.pairwise(bounds))


def test_few_backends_are_asked_for_by_name_and_many_are_not() -> None:
    assert "inf\\-a\\-001\\-r1|inf\\-b\\-001\\-r1" in counting.pattern(["inf-b-001-r1", "inf-a-001-r1"])
    assert counting.pattern(["a~mirror", "a~answers", "a"]) == counting.pattern(["a"])
    assert "r7" not in counting.pattern([f"r{number}" for number in range(counting.NAMED_AT_MOST + 1)])


def test_a_label_may_hold_quotes_and_commas() -> None:
    line = 'x{a="1,\\"2\\"",b=""} 4.5e+03'
    assert parse(f"# TYPE x counter\n\n{line}\nnot a line") == [Sample("x", {"a": '1,\\"2\\"', "b": ""}, 4500.0)]


def test_what_envoy_refused_is_found_in_its_log_once() -> None:
    log = (
        "[2026-11-24 10:31:22.578][1168][warning][config] [source/x.cc:81] Filesystem config update rejected: "
        "cannot bind '127.0.0.1:1': taken\n\n"
        "[2026-11-24 10:31:22.579][1168][error][config] [source/y.cc:1] something else\n"
        "[2026-11-24 10:31:22.580][1168][warning][config] [source/x.cc:81] Filesystem config update rejected: "
        "cannot bind '127.0.0.1:1': taken\n"
        "[2026-11-24 10:31:22.878][1168][warning][config] [source/x.cc:128] Filesystem config update failure: "
        "in /run/routes.json, Unable to parse\n  two lines"
    )
    assert refusals(log) == "cannot bind '127.0.0.1:1': taken; Unable to parse two lines"
    assert refusals("") == ""
