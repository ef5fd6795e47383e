"""What every ``Router`` must do, whatever carries the requests.

To hold a router to it, subclass ``RouterContract`` in a ``test_*.py`` and give it a ``bench`` fixture: a ``RouterBench``
that carries nothing yet. The bench makes replicas and is the client; all that is asserted of the router goes through the port.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Protocol

import pytest

from fermion.domain.serving import routing
from fermion.domain.serving.routing import Backend, Endpoint, Match, MatchKind, Mirror, Route, RouteTable, Spread
from fermion.domain.serving.traffic import Counters
from fermion.errors import DriverCannot
from fermion.ports import Router

REQUESTS = 4000
SIGMAS = 5
LIMIT_S = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a client saw. ``backend`` is None when no replica answered."""

    status: int
    backend: str | None = None
    path: str = ""
    body: str = ""
    cookie: tuple[str, str] | None = None


class RouterBench(Protocol):
    """A router with replicas behind it and a client before it. Every lever is bounded in time."""

    router: Router

    def backend(self, name: str, *, replicas: int = 1) -> Backend:
        """A backend whose replicas answer 200. Its name begins with ``name`` and was never used before."""
        ...

    def get(
        self,
        path: str,
        *,
        port: int | None = None,
        headers: dict[str, str] | None = None,
        cookies: dict[str, str] | None = None,
    ) -> Reply:
        """One request."""
        ...

    def get_many(self, path: str, count: int) -> Counter[str | None]:
        """So many requests; who answered them."""
        ...

    def fail(self, backend: Backend, status: int) -> str:
        """Let the backend answer so, at least on the path that is returned (without the prefix)."""
        ...

    def free_port(self) -> int:
        """A port on which nobody listens."""
        ...

    def taken_port(self) -> int:
        """A port on which somebody else listens."""
        ...

    def restart(self) -> None:
        """Kill the router and let it come back."""
        ...


def route(name: str, weights: dict[str, int] | None = None, /, **changes: object) -> Route:
    """The route of a service of that name."""
    made = Route(service=f"inf-{name}-001", name=name, prefix=f"/{name}", weights=weights or {})
    return replace(made, **changes)


def weights_of(router: Router) -> dict[str, dict[str, int]]:
    """The weights that the router says it uses, by service."""
    return {name: dict(spread.weights) for name, spread in router.applied().items()}


def until(is_true: Callable[[], object], *, limit_s: float = LIMIT_S) -> None:
    """Look until it is true; fails the test when it takes too long."""
    deadline = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < deadline, f"did not come true within {limit_s} s"
        time.sleep(0.02)


def counted(bench: RouterBench, backend: Backend, requests: int) -> Counters:
    """The backend's counters once they hold so many requests, latencies too."""

    def is_there() -> bool:
        seen = bench.router.counters([backend.name])[backend.name]
        return seen.requests >= requests and seen.latency_ms["inf"] >= requests

    until(is_there)
    return bench.router.counters([backend.name])[backend.name]


class RouterContract:
    """The tests. Each begins with a router that carries nothing."""

    # --- reaching a service -----------------------------------------------------------------------------------------

    def test_without_a_table_nothing_is_carried(self, bench: RouterBench) -> None:
        assert weights_of(bench.router) == {}
        assert bench.get("/digits/x").status == 404

    def test_a_service_is_reached_by_its_prefix_which_is_cut_off(self, bench: RouterBench) -> None:
        a = bench.backend("a")
        bench.router.apply(RouteTable(routes=(route("digits", {a.name: 100}),), backends=(a,)))
        seen = [(reply.status, reply.backend, reply.path) for reply in map(bench.get, ("/digits/v2/x?y=1", "/digits"))]
        assert seen == [(200, a.name, "/v2/x?y=1"), (200, a.name, "/")]
        assert [bench.get(path).status for path in ("/digitsx", "/digit", "/v2/x")] == [404, 404, 404]

    def test_a_port_of_its_own_takes_everything_and_cuts_nothing(self, bench: RouterBench) -> None:
        a, b, port = bench.backend("a"), bench.backend("b"), bench.free_port()
        own, other = route("own", {a.name: 100}, port=port), route("other", {b.name: 100})
        bench.router.apply(RouteTable(routes=(own, other), backends=(a, b)))
        replies = [bench.get(path, port=port) for path in ("/own/x", "/other/x", "/")]
        assert [(reply.backend, reply.path) for reply in replies] == [
            (a.name, "/own/x"),
            (a.name, "/other/x"),
            (a.name, "/"),
        ]
        assert bench.get("/other/x").backend == b.name

    def test_a_service_that_nothing_serves_yet_says_so(self, bench: RouterBench) -> None:
        bench.router.apply(RouteTable(routes=(route("digits"),)))
        reply = bench.get("/digits/x")
        assert (reply.status, reply.backend) == (503, None)
        assert "inf-digits-001" in reply.body
        assert weights_of(bench.router) == {"digits": {}}

    def test_a_backend_without_replicas_answers_503(self, bench: RouterBench) -> None:
        a = replace(bench.backend("a"), endpoints=())
        bench.router.apply(RouteTable(routes=(route("digits", {a.name: 100}),), backends=(a,)))
        assert bench.get("/digits/x").status == 503
        seen = counted(bench, a, 1)
        assert (seen.requests, dict(seen.by_class), seen.router_made) == (1, {"5xx": 1}, 1)

    def test_a_service_that_leaves_takes_nobody_with_it(self, bench: RouterBench) -> None:
        a, b = bench.backend("a"), bench.backend("b")
        both = RouteTable(routes=(route("one", {a.name: 100}), route("two", {b.name: 100})), backends=(a, b))
        bench.router.apply(both)
        bench.router.apply(RouteTable(routes=both.routes[1:], backends=(b,)))
        assert (bench.get("/one/x").status, bench.get("/two/x").backend) == (404, b.name)
        assert weights_of(bench.router) == {"two": {b.name: 100}}

    @pytest.mark.parametrize(
        ("changes", "address"),
        [
            pytest.param({}, "http://127.0.0.1:{shared}/digits", id="shared"),
            pytest.param({"port": 9123}, "http://127.0.0.1:9123", id="own port"),
            pytest.param({"protocol": routing.Protocol.GRPC}, "127.0.0.1:{shared}", id="grpc"),
            pytest.param({"protocol": routing.Protocol.GRPC, "port": 9123}, "127.0.0.1:9123", id="grpc, own port"),
        ],
    )
    def test_the_address_is_where_clients_find_it(
        self, bench: RouterBench, changes: dict[str, object], address: str
    ) -> None:
        shared = bench.router.address(route("x")).removeprefix("http://127.0.0.1:").removesuffix("/x")
        assert bench.router.address(route("digits", **changes)) == address.format(shared=shared)

    # --- spreading --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("percent", [5, 50, 95])
    def test_requests_are_split_by_weight(self, bench: RouterBench, percent: int) -> None:
        a, b = bench.backend("a"), bench.backend("b")
        weights = {a.name: 100 - percent, b.name: percent}
        bench.router.apply(RouteTable(routes=(route("digits", weights),), backends=(a, b)))
        assert weights_of(bench.router) == {"digits": weights}
        seen = bench.get_many("/digits/x", REQUESTS)
        assert seen.keys() <= {a.name, b.name}
        share = percent / 100
        sigma = (REQUESTS * share * (1 - share)) ** 0.5
        assert abs(seen[b.name] - REQUESTS * share) < SIGMAS * sigma

    def test_a_weight_of_zero_gets_nothing_and_is_read_back(self, bench: RouterBench) -> None:
        a, b = bench.backend("a"), bench.backend("b")
        weights = {a.name: 100, b.name: 0}
        bench.router.apply(RouteTable(routes=(route("digits", weights),), backends=(a, b)))
        assert weights_of(bench.router) == {"digits": weights}
        assert bench.get_many("/digits/x", 50) == {a.name: 50}

    def test_the_same_table_again_changes_nothing(self, bench: RouterBench) -> None:
        a = bench.backend("a")
        table = RouteTable(routes=(route("digits", {a.name: 100}),), backends=(a,))
        for _ in range(3):
            bench.router.apply(table)
            assert bench.get("/digits/x").backend == a.name
        assert counted(bench, a, 3).requests == 3

    @pytest.mark.parametrize(
        "match",
        [
            pytest.param(Match(kind=MatchKind.HEADER, name="X-Group", value="b, really", backend=""), id="header"),
            pytest.param(Match(kind=MatchKind.COOKIE, name="group", value="b=1", backend=""), id="cookie"),
        ],
    )
    def test_a_match_goes_before_the_weights(self, bench: RouterBench, match: Match) -> None:
        a, b = bench.backend("a"), bench.backend("b")
        matched = replace(match, backend=b.name)
        table = RouteTable(routes=(route("digits", {a.name: 100}, matches=(matched,)),), backends=(a, b))
        bench.router.apply(table)

        def ask(value: str) -> str | None:
            given = {match.name: value}
            if match.kind is MatchKind.HEADER:
                return bench.get("/digits/x", headers=given).backend
            return bench.get("/digits/x", cookies={"other": "b", **given, "last": "1"}).backend

        asked = {value: ask(value) for value in (match.value, match.value + "x", match.value[1:], "B, REALLY")}
        assert asked == {**dict.fromkeys(asked, a.name), match.value: b.name}
        assert bench.get("/digits/x").backend == a.name

    def test_a_match_is_served_before_there_are_weights(self, bench: RouterBench) -> None:
        a = bench.backend("a")
        match = Match(kind=MatchKind.HEADER, name="x-group", value="a", backend=a.name)
        bench.router.apply(RouteTable(routes=(route("digits", matches=(match,)),), backends=(a,)))
        assert bench.get("/digits/x", headers={"x-group": "a"}).backend == a.name
        assert bench.get("/digits/x").status == 503

    def test_a_cookie_keeps_its_bearer_while_the_backend_has_a_weight(self, bench: RouterBench) -> None:
        a, b = bench.backend("a"), bench.backend("b")

        def apply(weight: int) -> None:
            weights = {a.name: 100 - weight, b.name: weight}
            bench.router.apply(RouteTable(routes=(route("digits", weights, sticky_cookie="variant"),), backends=(a, b)))

        apply(100)
        assert bench.get("/digits/x").cookie == ("variant", b.name)
        apply(1)
        held = [bench.get("/digits/x", cookies={"variant": b.name}) for _ in range(20)]
        assert {reply.backend for reply in held} == {b.name}
        apply(0)
        fresh = bench.get("/digits/x", cookies={"variant": b.name})
        assert (fresh.backend, fresh.cookie) == (a.name, ("variant", a.name))
        assert bench.get("/digits/x", cookies={"variant": "unknown"}).backend == a.name

    @pytest.mark.parametrize("percent", [100, 30])
    def test_copies_go_to_the_mirror_and_are_counted_there(self, bench: RouterBench, percent: int) -> None:
        a, b = bench.backend("a"), bench.backend("b")
        mirrored = route("digits", {a.name: 100}, mirror=Mirror(backend=b.name, percent=percent))
        bench.router.apply(RouteTable(routes=(mirrored,), backends=(a, b)))
        assert bench.get_many("/digits/x", 200) == {a.name: 200}
        share = percent / 100
        key = routing.copies_of(b.name)
        until(lambda: bench.router.counters([key])[key].requests >= 200 * share - 50 * (1 - share))
        copies = bench.router.counters([key])[key].requests
        assert abs(copies - 200 * share) <= SIGMAS * (200 * share * (1 - share)) ** 0.5
        assert counted(bench, a, 200).requests == 200
        assert bench.router.counters([b.name])[b.name].requests == 0, "a copy is no request"
        bench.router.apply(RouteTable(routes=(replace(mirrored, mirror=None),), backends=(a, b)))
        assert bench.router.counters([key])[key].requests >= copies

    def test_what_replicas_answered_is_counted_as_copies_are(self, bench: RouterBench) -> None:
        a, b = bench.backend("a"), bench.backend("b")
        mirrored = route("digits", {a.name: 100}, mirror=Mirror(backend=b.name, percent=100))
        bench.router.apply(RouteTable(routes=(mirrored,), backends=(a, b)))
        assert bench.get_many("/digits/x", 50) == {a.name: 50}
        broken = bench.fail(a, 500)
        assert bench.get(f"/digits{broken}").status == 500
        keys = (routing.answers_of(a.name), routing.copies_of(b.name))

        def is_counted() -> bool:
            seen = bench.router.counters(keys)
            return all(seen[key].requests == 51 == seen[key].latency_ms["inf"] for key in keys)

        until(is_counted)
        seen = bench.router.counters([a.name, *keys])
        assert dict(seen[keys[0]].by_class) == {"2xx": 50, "5xx": 1}
        assert list(seen[keys[0]].latency_ms) == list(seen[keys[1]].latency_ms)
        assert seen[keys[0]].latency_sum_ms <= seen[a.name].latency_sum_ms + 1

    def test_copies_go_on_or_have_another_epoch_when_replicas_change(self, bench: RouterBench) -> None:
        a, b = bench.backend("a", replicas=2), bench.backend("b", replicas=2)
        mirrored = route("digits", {a.name: 100}, mirror=Mirror(backend=b.name, percent=100))
        bench.router.apply(RouteTable(routes=(mirrored,), backends=(a, b)))
        bench.get_many("/digits/x", 20)
        keys = [routing.answers_of(a.name), routing.copies_of(b.name)]
        until(lambda: all(each.requests == 20 for each in bench.router.counters(keys).values()))
        before = bench.router.counters([a.name, *keys])
        fewer = tuple(replace(each, endpoints=each.endpoints[:1]) for each in (a, b))
        bench.router.apply(RouteTable(routes=(mirrored,), backends=fewer))
        bench.get_many("/digits/x", 20)
        assert counted(bench, a, 40).epoch == before[a.name].epoch, "what clients asked for is not forgotten"
        after = bench.router.counters(keys)
        assert all(after[key].epoch != before[key].epoch or after[key].requests >= 20 for key in keys)

    # --- reading back -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({}, id="weights"),
            pytest.param({"matches": (("header", "x-group", "b, really"),)}, id="header"),
            pytest.param({"matches": (("cookie", "group", "b=1"), ("header", "x-b", "1"))}, id="cookie and header"),
            pytest.param({"sticky_cookie": "variant"}, id="sticky"),
            pytest.param({"sticky_cookie": "100%off%"}, id="sticky with a percent sign"),
            pytest.param({"mirror": 7}, id="mirror"),
        ],
    )
    @pytest.mark.parametrize("has_port", [False, True])
    def test_how_requests_are_spread_is_read_back_whole(
        self, bench: RouterBench, changes: dict[str, Any], has_port: bool
    ) -> None:
        a, b, c = bench.backend("a"), bench.backend("b"), bench.backend("c")
        given = dict(changes)
        if "matches" in given:
            given["matches"] = tuple(
                Match(kind=MatchKind(kind), name=name, value=value, backend=b.name)
                for kind, name, value in given["matches"]
            )
        if "mirror" in given:
            given["mirror"] = Mirror(backend=b.name, percent=given["mirror"])
        port = bench.free_port() if has_port else None
        asked = route("digits", {a.name: 60, b.name: 40}, port=port, **given)
        plain = route("plain", {c.name: 100})
        bench.router.apply(RouteTable(routes=(asked, plain), backends=(a, b, c)))
        assert bench.router.applied() == {"digits": asked.spread, "plain": Spread(weights={c.name: 100})}
        cookie = bench.get("/digits/x").cookie
        assert (cookie and cookie[0]) == asked.sticky_cookie
        bench.router.apply(RouteTable(routes=(route("digits", {a.name: 100}), plain), backends=(a, b, c)))
        assert bench.router.applied()["digits"] == Spread(weights={a.name: 100})

    # --- counting ---------------------------------------------------------------------------------------------------

    def test_a_backend_that_never_had_a_request_has_zeros_and_an_unknown_one_is_left_out(
        self, bench: RouterBench
    ) -> None:
        a = bench.backend("a")
        bench.router.apply(RouteTable(routes=(route("digits", {a.name: 100}),), backends=(a,)))
        seen = bench.router.counters([a.name, "never-seen"])
        assert seen.keys() == {a.name}
        counters = seen[a.name]
        assert (counters.requests, counters.by_class, counters.router_made, counters.active) == (0, {}, 0, 0)
        assert set(counters.latency_ms.values()) == {0}
        assert list(counters.latency_ms)[-1] == "inf"
        assert bench.router.counters([]) == {}

    def test_requests_are_counted_by_class_and_an_answer_of_a_replica_is_not_the_routers(
        self, bench: RouterBench
    ) -> None:
        a, b, c = bench.backend("a"), bench.backend("b"), bench.backend("c")
        routes = tuple(route(name, {backend.name: 100}) for name, backend in (("a", a), ("b", b), ("c", c)))
        bench.router.apply(RouteTable(routes=routes, backends=(a, b, c)))
        broken, missing = bench.fail(b, 503), bench.fail(c, 404)
        asked = [bench.get(path).status for path in ("/a/x", "/a/x", f"/b{broken}", f"/c{missing}")]
        assert asked == [200, 200, 503, 404]
        seen = {backend.name: counted(bench, backend, 1) for backend in (a, b, c)}
        assert {name: dict(each.by_class) for name, each in seen.items()} == {
            a.name: {"2xx": 2},
            b.name: {"5xx": 1},
            c.name: {"4xx": 1},
        }
        assert {each.router_made for each in seen.values()} == {0}

    def test_latencies_are_cumulative_and_end_with_all_requests(self, bench: RouterBench) -> None:
        a = bench.backend("a")
        bench.router.apply(RouteTable(routes=(route("digits", {a.name: 100}),), backends=(a,)))
        bench.get_many("/digits/x", 100)
        seen = counted(bench, a, 100)
        counts = list(seen.latency_ms.values())
        bounds = [float(bound) for bound in seen.latency_ms]
        assert counts == sorted(counts)
        assert counts[-1] == seen.requests == sum(seen.by_class.values()) == 100
        assert bounds == sorted(bounds)
        assert seen.latency_sum_ms > 0

    def test_a_restart_serves_the_same_table_and_counts_from_zero_in_another_epoch(self, bench: RouterBench) -> None:
        a, b = bench.backend("a"), bench.backend("b")
        weights = {a.name: 90, b.name: 10}
        bench.router.apply(RouteTable(routes=(route("digits", weights),), backends=(a, b)))
        bench.get_many("/digits/x", 20)
        until(lambda: sum(each.requests for each in bench.router.counters([a.name, b.name]).values()) == 20)
        before = bench.router.counters([a.name])[a.name]
        bench.restart()
        after = bench.router.counters([a.name])[a.name]
        assert (after.requests, after.router_made) == (0, 0)
        assert after.epoch != before.epoch
        assert weights_of(bench.router) == {"digits": weights}
        assert bench.get("/digits/x").backend in weights

    # --- refusing ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("changes", "problems"),
        [
            pytest.param({}, [], id="nothing"),
            pytest.param({"name": "Digits"}, ["name: not_a_label"], id="upper case"),
            pytest.param({"prefix": "digits"}, ["prefix: bad_prefix"], id="no slash"),
            pytest.param({"prefix": "/"}, ["prefix: bad_prefix"], id="everything"),
            pytest.param({"prefix": "/digits/"}, ["prefix: bad_prefix"], id="slash at the end"),
            pytest.param({"prefix": "/a//b"}, ["prefix: bad_prefix"], id="empty part"),
            pytest.param({"prefix": "/a/../b"}, ["prefix: bad_prefix"], id="dots"),
            pytest.param({"prefix": "/a/b.c_d~e-1"}, [], id="all that a prefix may hold"),
            pytest.param({"port": 0}, ["port: bad_port"], id="port 0"),
            pytest.param({"port": 65536}, ["port: bad_port"], id="port beyond the last"),
            pytest.param({"weights": {"a": 60, "b": 30}}, ["weights: bad_total"], id="90 in all"),
            pytest.param(
                {"weights": {"a": 101, "b": -1}}, ["weights.a: bad_weight", "weights.b: bad_weight"], id="no percent"
            ),
            pytest.param({"weights": {"a": 0}}, ["weights: bad_total"], id="0 in all"),
            pytest.param(
                {"matches": (Match(kind=MatchKind.HEADER, name="a b", value="", backend="a"),)},
                ["matches.0.name: bad_name", "matches.0.value: bad_value"],
                id="not a header",
            ),
            pytest.param(
                {"matches": (Match(kind=MatchKind.HEADER, name="Host", value="x", backend="a"),)},
                ["matches.0.name: not_matchable"],
                id="a header of the connection",
            ),
            pytest.param(
                {"matches": (Match(kind=MatchKind.COOKIE, name="c", value="a;b", backend="a"),)},
                ["matches.0.value: bad_value"],
                id="not a cookie",
            ),
            pytest.param(
                {
                    "matches": (
                        Match(kind=MatchKind.HEADER, name="x-a", value="1", backend="a"),
                        Match(kind=MatchKind.HEADER, name="X-A", value="1", backend="b"),
                    )
                },
                ["matches: contradiction"],
                id="one value to two backends",
            ),
            pytest.param({"mirror": Mirror(backend="a", percent=0)}, ["mirror.percent: bad_percent"], id="mirror of 0"),
            pytest.param(
                {"mirror": Mirror(backend="a", percent=101)}, ["mirror.percent: bad_percent"], id="mirror of 101"
            ),
            pytest.param({"sticky_cookie": "a;b"}, ["sticky_cookie: bad_name"], id="no cookie's name"),
            pytest.param(
                {"sticky_cookie": "c", "protocol": routing.Protocol.GRPC},
                ["sticky_cookie: no_cookies"],
                id="grpc cookie",
            ),
            pytest.param({"timeout": timedelta(0)}, ["timeout: bad_timeout"], id="no time"),
            pytest.param({"timeout": timedelta(days=1)}, [], id="a day"),
            pytest.param({"timeout": timedelta(days=1, seconds=1)}, ["timeout: bad_timeout"], id="more than a day"),
            pytest.param({"retries": -1}, ["retries: bad_retries"], id="less than no retry"),
            pytest.param({"retries": 10}, [], id="ten retries"),
            pytest.param({"retries": 11}, ["retries: bad_retries"], id="eleven retries"),
            pytest.param(
                {"prefix": "", "retries": 11, "weights": {"a": 1}},
                ["prefix: bad_prefix", "weights: bad_total", "retries: bad_retries"],
                id="all at once",
            ),
        ],
    )
    def test_what_it_cannot_do_is_named_all_at_once(
        self, bench: RouterBench, changes: dict[str, object], problems: list[str]
    ) -> None:
        seen = bench.router.problems_of(route("digits", **changes))
        assert [f"{problem.field}: {problem.code}" for problem in seen] == problems
        assert all(problem.message and problem.fix for problem in seen)

    def test_the_routers_own_port_and_a_taken_one_are_refused(self, bench: RouterBench) -> None:
        shared = bench.router.address(route("x")).removeprefix("http://127.0.0.1:").removesuffix("/x")
        for port, code in ((int(shared), "port_of_router"), (bench.taken_port(), "port_taken")):
            assert [problem.code for problem in bench.router.problems_of(route("digits", port=port))] == [code]

    def test_a_port_that_a_service_has_already_is_no_problem(self, bench: RouterBench) -> None:
        a = bench.backend("a")
        own = route("own", {a.name: 100}, port=bench.free_port())
        bench.router.apply(RouteTable(routes=(own,), backends=(a,)))
        assert bench.router.problems_of(own) == []
        bench.router.apply(RouteTable(routes=(own,), backends=(a,)))

    @pytest.mark.parametrize(
        ("second", "words"),
        [
            pytest.param({"prefix": "/one"}, "same prefix", id="one prefix"),
            pytest.param({"prefix": "/one/two"}, "lies inside", id="a prefix inside"),
            pytest.param({"name": "one"}, "same name", id="one name"),
            pytest.param({"service": "inf-one-001"}, "same service", id="one service"),
            pytest.param({"port": 29123}, "same port", id="one port"),
            pytest.param({"weights": {"gone": 100}}, "no backend 'gone'", id="weight of nobody"),
            pytest.param({"mirror": Mirror(backend="gone", percent=1)}, "no backend 'gone'", id="mirror to nobody"),
            pytest.param(
                {"matches": (Match(kind=MatchKind.HEADER, name="a", value="b", backend="gone"),)},
                "no backend 'gone'",
                id="match to nobody",
            ),
            pytest.param({"protocol": routing.Protocol.GRPC}, "speaks http", id="another protocol"),
            pytest.param({"retries": 99}, "routes.two.retries", id="a route with a problem"),
        ],
    )
    def test_a_table_that_contradicts_itself_changes_nothing(
        self, bench: RouterBench, second: dict[str, object], words: str
    ) -> None:
        a = bench.backend("a")
        good = RouteTable(routes=(route("good", {a.name: 100}),), backends=(a,))
        bench.router.apply(good)
        one = route("one", {a.name: 100}, port=29123)
        bad = RouteTable(routes=(one, replace(route("two", {a.name: 100}), **second)), backends=(a,))
        with pytest.raises(DriverCannot, match=words):
            bench.router.apply(bad)
        assert weights_of(bench.router) == {"good": {a.name: 100}}
        assert bench.get("/good/x").backend == a.name

    def test_prefixes_side_by_side_are_fine(self, bench: RouterBench) -> None:
        a = bench.backend("a")
        routes = tuple(
            route(name, {a.name: 100}, prefix=prefix)
            for name, prefix in (("x", "/m/x"), ("xy", "/m/xy"), ("y", "/m/y"))
        )
        bench.router.apply(RouteTable(routes=routes, backends=(a,)))
        assert [bench.get(f"{each.prefix}/p").path for each in routes] == ["/p", "/p", "/p"]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            pytest.param({"endpoints": (Endpoint(host="localhost", port=80),)}, "no IP address", id="a name"),
            pytest.param({"endpoints": (Endpoint(host="127.0.0.1", port=0),)}, "no IP address", id="no port"),
            pytest.param({"name": "a.b"}, "cannot name a backend", id="a dot"),
            pytest.param({"health_path": "health"}, "no path", id="no path"),
            pytest.param({"health_grpc": True}, "speak HTTP/1.1", id="grpc health of http"),
        ],
    )
    def test_a_backend_that_cannot_be_is_refused(
        self, bench: RouterBench, changes: dict[str, object], words: str
    ) -> None:
        with pytest.raises(DriverCannot, match=words):
            bench.router.apply(RouteTable(backends=(replace(bench.backend("a"), **changes),)))
        assert weights_of(bench.router) == {}
