"""A route table in Envoy's words, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fermion.adapters.envoy import bootstrap, reading, resources
from fermion.adapters.envoy.layout import SOCKET_PATH_LIMIT, Layout
from fermion.domain.serving.routing import (
    Backend,
    Balancing,
    Endpoint,
    Match,
    MatchKind,
    Mirror,
    Protocol,
    Route,
    RouteTable,
    Spread,
)
from fermion.errors import OutsideUnavailable

DIGITS = Route(service="inf-digits-001", name="digits", prefix="/digits", weights={"r1": 90, "r2": 10})
R1 = Backend(name="r1", endpoints=(Endpoint(host="127.0.0.1", port=2), Endpoint(host="127.0.0.1", port=1)))
R2 = Backend(name="r2")


def routes(*given: Route) -> list[dict[str, Any]]:
    return list(resources.route_configuration(RouteTable(routes=given))["virtual_hosts"][0]["routes"])


def test_the_same_table_in_another_order_is_the_same_file() -> None:
    other = replace(DIGITS, service="inf-a-001", name="a", prefix="/a")
    one = RouteTable(routes=(DIGITS, other), backends=(R1, R2))
    two = RouteTable(
        routes=(other, replace(DIGITS, weights={"r2": 10, "r1": 90})),
        backends=(R2, replace(R1, endpoints=(*R1.endpoints[::-1], R1.endpoints[0]))),
    )
    assert resources.route_configuration(one) == resources.route_configuration(two)
    assert resources.clusters(one) == resources.clusters(two)


def test_a_files_version_changes_with_what_it_holds_and_only_then() -> None:
    first = resources.document("t", [{"name": "a"}])
    assert first == resources.document("t", [{"name": "a"}])
    assert first.version != resources.document("t", [{"name": "b"}]).version
    assert json.loads(first.text) == {"version_info": first.version, "resources": [{"@type": "t", "name": "a"}]}


def test_ports_are_tried_before_names_and_names_before_paths() -> None:
    own = replace(DIGITS, service="inf-z-001", name="z", prefix="/z", port=9000)
    ways = [
        "port" if "filter_state" in each["match"] else "grpc" if "grpc" in each["match"] else "path"
        for each in routes(DIGITS, own)
    ]
    assert ways == ["port", "grpc", "grpc", "grpc", "grpc", "path", "path"]


def test_matches_come_first_then_cookies_of_backends_with_a_weight_then_the_weights() -> None:
    match = Match(kind=MatchKind.HEADER, name="x-a", value="1", backend="r2")
    given = replace(DIGITS, weights={"r1": 100, "r2": 0}, matches=(match,), sticky_cookie="v")
    by_path = [each["route"] for each in routes(given) if "path_separated_prefix" in each["match"]]
    assert [each.get("cluster") for each in by_path] == ["r2", "r1", None]
    assert [each["name"] for each in by_path[-1]["weighted_clusters"]["clusters"]] == ["r1", "r2"]


@pytest.mark.parametrize(
    "weights", [pytest.param({"r1": 90, "r2": 10}, id="two"), pytest.param({"r1": 100, "r2": 0}, id="one of them 0")]
)
def test_weights_are_read_back_out_of_what_envoy_dumps(weights: dict[str, int]) -> None:
    made = resources.route_configuration(RouteTable(routes=(replace(DIGITS, weights=weights),)))
    dumped = json.loads(json.dumps(made).replace(', "weight": 0', ""))
    assert reading.spreads_of(dumped) == {"digits": Spread(weights=weights)}


def test_a_service_without_weights_is_read_back_too() -> None:
    assert reading.spreads_of(resources.route_configuration(RouteTable(routes=(replace(DIGITS, weights={}),)))) == {
        "digits": Spread()
    }


def test_a_backend_that_gets_copies_has_a_second_cluster_and_keeps_it() -> None:
    mirrored = replace(DIGITS, mirror=Mirror(backend="r2", percent=5))
    table = RouteTable(routes=(mirrored,), backends=(R1, R2))
    names = ["r1", "r2", "r2~mirror"]
    assert [each["name"] for each in resources.clusters(table)] == names
    after = RouteTable(routes=(DIGITS,), backends=(R1, R2))
    assert [each["name"] for each in resources.clusters(after)] == ["r1", "r2"]
    assert [each["name"] for each in resources.clusters(after, mirrored={"r2"})] == names
    gone = RouteTable(backends=(R1,))
    assert [each["name"] for each in resources.clusters(gone, mirrored={"r2"})] == ["r1"]


@pytest.mark.parametrize(
    ("backend", "check"),
    [
        pytest.param(R1, None, id="not asked"),
        pytest.param(replace(R1, health_path="/v2/health/ready"), "http_health_check", id="path"),
        pytest.param(replace(R1, protocol=Protocol.GRPC, health_grpc=True), "grpc_health_check", id="grpc"),
    ],
)
def test_a_backend_is_asked_as_it_says(backend: Backend, check: str | None) -> None:
    checks = resources.cluster(backend, "r1").get("health_checks", [])
    assert [name for each in checks for name in each if name.endswith("_check")] == ([check] if check else [])


def test_balancing_and_protocol_are_the_backends_own() -> None:
    plain, other = (
        resources.cluster(R1, "r1"),
        resources.cluster(replace(R1, balancing=Balancing.LEAST_REQUEST, protocol=Protocol.GRPC), "r1"),
    )
    assert (plain["lb_policy"], other["lb_policy"]) == ("ROUND_ROBIN", "LEAST_REQUEST")
    ways = [
        next(iter(each["typed_extension_protocol_options"].values()))["explicit_http_config"] for each in (plain, other)
    ]
    assert ways == [{"http_protocol_options": {}}, {"http2_protocol_options": {}}]


def test_a_route_without_retries_has_no_word_of_them_and_times_are_exact() -> None:
    (*_, last) = routes(replace(DIGITS, retries=0, timeout=timedelta(milliseconds=1500)))
    assert "retry_policy" not in last["route"]
    assert last["route"]["timeout"] == "1.500s"


# --- the start ------------------------------------------------------------------------------------------------------


def test_what_was_applied_is_still_there_after_another_start(tmp_path: Path) -> None:
    bootstrap.prepare(tmp_path, port=8090)
    layout = Layout(tmp_path)
    bootstrap.replace(layout.routes, "{}")
    bootstrap.prepare(tmp_path, port=8091, log=tmp_path / "log")
    assert layout.routes.read_text() == "{}"
    assert (layout.port(), layout.log()) == (8091, tmp_path / "log")
    assert "8091" in layout.bootstrap.read_text()
    assert sorted(path.name for path in layout.watched.iterdir()) == ["clusters.json", "listeners.json", "routes.json"]


def test_a_scrape_port_shows_the_statistics_on_loopback_and_nothing_else(tmp_path: Path) -> None:
    static = bootstrap.configuration(Layout(tmp_path), port=8090, scrape_port=9464)["static_resources"]
    _, scraping = static["listeners"]
    assert scraping["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 9464}
    (manager,) = (each["typed_config"] for each in scraping["filter_chains"][0]["filters"])
    (host,) = manager["route_config"]["virtual_hosts"]
    (route,) = host["routes"]
    assert route["match"]["path"] == "/stats/prometheus"
    (cluster,) = static["clusters"]
    assert route["route"]["cluster"] == cluster["name"]


def test_the_admin_interface_is_a_private_socket_and_nothing_listens_beyond_loopback(tmp_path: Path) -> None:
    made = bootstrap.configuration(Layout(tmp_path), port=8090)
    assert made["admin"] == {"address": {"pipe": {"path": str(tmp_path / "admin.sock"), "mode": 0o600}}}
    addresses = [each["address"]["socket_address"]["address"] for each in made["static_resources"]["listeners"]]
    assert addresses == ["127.0.0.1"]


def test_who_wants_it_elsewhere_gets_all_ports_there_and_the_admin_interface_stays_a_socket(tmp_path: Path) -> None:
    bootstrap.prepare(tmp_path, port=8090, host="0.0.0.0", scrape_port=9464)
    made = json.loads(Layout(tmp_path).bootstrap.read_text())
    own = resources.listeners(RouteTable(routes=(replace(DIGITS, port=9000),)), routes_file="", host="0.0.0.0")
    addresses = [each["address"]["socket_address"] for each in (*made["static_resources"]["listeners"], *own)]
    assert [(each["address"], each["port_value"]) for each in addresses] == [
        ("0.0.0.0", port) for port in (8090, 9464, 9000)
    ]
    assert "pipe" in made["admin"]["address"]
    assert Layout(tmp_path).host() == "0.0.0.0"


def test_a_folder_too_deep_for_a_socket_gets_one_elsewhere() -> None:
    fits = Path("/" + "x" * (SOCKET_PATH_LIMIT - len("//admin.sock")))
    assert Layout(fits).socket == fits / "admin.sock"
    long = Path(f"{fits}y")
    assert len(str(Layout(long).socket)) < SOCKET_PATH_LIMIT
    assert Layout(long).socket != Layout(Path(f"{long}z")).socket


@pytest.mark.parametrize("text", [None, "", "[]", '{"port": "x"}'])
def test_a_router_that_was_never_set_up_says_how(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        Layout(tmp_path).place.write_text(text)
    with pytest.raises(OutsideUnavailable, match="fermion up"):
        Layout(tmp_path).port()
    assert Layout(tmp_path).log() is None
    assert Layout(tmp_path).host() == "127.0.0.1"
