"""What a router refuses, all at once, before anything is changed. Pure; every router of ours has the same rules.

A prefix inside another's is refused: a service that is added would take requests away from the one that has them now.
"""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from fermion.domain.problems import Problem
from fermion.domain.serving.http_words import COOKIE_VALUE, HEADER_VALUE, TOKEN
from fermion.domain.serving.routing import Backend, Match, MatchKind, Protocol, Route, RouteTable
from fermion.errors import DriverCannot

RETRIES_LIMIT = 10
TIMEOUT_LIMIT = timedelta(days=1)

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_BACKEND = re.compile(r"[a-z0-9]([-a-z0-9]{0,98}[a-z0-9])?")
_PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_PATH = re.compile(r"/[\x21-\x7e]*")
_NOT_MATCHED = frozenset({"host", "connection", "transfer-encoding", "upgrade", "te", "content-length"})
"""Headers that belong to the connection, or that Envoy keeps under another name."""


def refuse(table: RouteTable, *, problems_of: Callable[[Route], Sequence[Problem]]) -> None:
    """Raise what is wrong with a table. ``problems_of`` is the router's own word on one route.

    Raises:
        DriverCannot: it has problems; all of them are listed.
    """
    problems = [
        *(
            replace(problem, field=f"routes.{route.name}.{problem.field}")
            for route in table.routes
            for problem in problems_of(route)
        ),
        *problems_of_table(table),
    ]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise DriverCannot(f"the router cannot do this, and nothing was changed:\n{lines}", what="route table")


# --- one route ------------------------------------------------------------------------------------------------------


def problems_of(route: Route, *, router_port: int | None = None) -> Sequence[Problem]:
    """All of one route, whatever the others are."""
    return [
        *_of_names(route),
        *_of_port(route, router_port),
        *_of_weights(route),
        *(problem for number, match in enumerate(route.matches) for problem in _of_match(match, f"matches.{number}")),
        *_of_contradictions(route),
        *_of_mirror(route),
        *_of_cookie(route),
        *_of_patience(route),
    ]


def port_taken(port: int) -> Problem:
    """Somebody else listens there."""
    return Problem(
        field="port",
        code="port_taken",
        message=f"port {port} is in use by another program.",
        fix="Stop that program, or name another port.",
    )


def _of_names(route: Route) -> Iterator[Problem]:
    if not _LABEL.fullmatch(route.name):
        yield _problem(
            "name", "not_a_label", f"{route.name!r} is not a DNS label.", "Use a-z, 0-9 and '-', at most 63 characters."
        )
    if not _PREFIX.fullmatch(route.prefix):
        yield _problem(
            "prefix",
            "bad_prefix",
            f"{route.prefix!r} is not a path prefix.",
            "It begins with '/' and does not end with one; its parts hold letters, digits, '-', '_', '~' and '.', which cannot stand first.",
        )


def _of_port(route: Route, router_port: int | None) -> Iterator[Problem]:
    if route.port is None:
        return
    if not 1 <= route.port <= 65535:
        yield _problem("port", "bad_port", f"{route.port} is not a TCP port.", "Use 1024 to 65535.")
    elif route.port == router_port:
        yield _problem(
            "port",
            "port_of_router",
            f"port {route.port} is the router's own, which all services share.",
            "Leave the port out, or name another one.",
        )


def _of_weights(route: Route) -> Iterator[Problem]:
    for backend, weight in route.weights.items():
        if not 0 <= weight <= 100:
            yield _problem(f"weights.{backend}", "bad_weight", f"{weight} is not a percentage.", "Use 0 to 100.")
    total = sum(route.weights.values())
    if route.weights and total != 100:
        yield _problem("weights", "bad_total", f"the weights sum to {total}.", "Make them 100 in all.")


def _of_match(match: Match, field: str) -> Iterator[Problem]:
    kind = match.kind.value
    if not TOKEN.fullmatch(match.name):
        yield _problem(
            f"{field}.name",
            "bad_name",
            f"{match.name!r} cannot be the name of a {kind}.",
            "Use letters, digits and '-'.",
        )
    if match.kind is MatchKind.HEADER and match.name.lower() in _NOT_MATCHED:
        yield _problem(
            f"{field}.name",
            "not_matchable",
            f"header {match.name!r} belongs to the connection, not to the request.",
            "Match a header of your own.",
        )
    allowed = COOKIE_VALUE if match.kind is MatchKind.COOKIE else HEADER_VALUE
    if not allowed.fullmatch(match.value):
        yield _problem(
            f"{field}.value",
            "bad_value",
            f"{match.value!r} can never be the value of a {kind}.",
            "Use printable ASCII" + (" without blanks, quotes, ',', ';' and '\\'." if kind == "cookie" else "."),
        )


def _of_contradictions(route: Route) -> Iterator[Problem]:
    targets = defaultdict(set)
    for match in route.matches:
        name = match.name.lower() if match.kind is MatchKind.HEADER else match.name
        targets[match.kind, name, match.value].add(match.backend)
    for (kind, name, value), backends in targets.items():
        if len(backends) > 1:
            yield _problem(
                "matches",
                "contradiction",
                f"{kind.value} {name}={value} leads to {', '.join(sorted(backends))}.",
                "Keep one of them.",
            )


def _of_mirror(route: Route) -> Iterator[Problem]:
    if route.mirror and not 1 <= route.mirror.percent <= 100:
        yield _problem(
            "mirror.percent", "bad_percent", f"{route.mirror.percent} is not a percentage to copy.", "Use 1 to 100."
        )


def _of_cookie(route: Route) -> Iterator[Problem]:
    if route.sticky_cookie is None:
        return
    if not TOKEN.fullmatch(route.sticky_cookie):
        yield _problem(
            "sticky_cookie",
            "bad_name",
            f"{route.sticky_cookie!r} cannot be the name of a cookie.",
            "Use letters, digits, '-' and '_'.",
        )
    if route.protocol is Protocol.GRPC:
        yield _problem(
            "sticky_cookie", "no_cookies", "gRPC clients keep no cookies.", "Match a metadata key (a header) instead."
        )


def _of_patience(route: Route) -> Iterator[Problem]:
    if not timedelta(milliseconds=1) <= route.timeout <= TIMEOUT_LIMIT:
        yield _problem(
            "timeout", "bad_timeout", f"{route.timeout.total_seconds():g} s is no timeout.", "Use 1 ms to 24 h."
        )
    if not 0 <= route.retries <= RETRIES_LIMIT:
        yield _problem("retries", "bad_retries", f"{route.retries} retries.", f"Use 0 to {RETRIES_LIMIT}.")


# --- a table --------------------------------------------------------------------------------------------------------


def problems_of_table(table: RouteTable) -> Sequence[Problem]:
    """What only shows when all routes and backends are seen together."""
    backends = {backend.name: backend for backend in table.backends}
    return [
        *_of_doubles(table),
        *_of_nested_prefixes(table),
        *(problem for backend in table.backends for problem in _of_backend(backend)),
        *(problem for route in table.routes for problem in _of_references(route, backends)),
    ]


def _of_doubles(table: RouteTable) -> Iterator[Problem]:
    """Two of a kind where one is meant."""
    asked: tuple[tuple[str, Callable[[Route], Hashable | None]], ...] = (
        ("service", lambda route: route.service),
        ("name", lambda route: route.name),
        ("prefix", lambda route: route.prefix),
        ("port", lambda route: route.port),
    )
    for field, value_of in asked:
        holders = defaultdict(list)
        for route in table.routes:
            if (value := value_of(route)) is not None:
                holders[value].append(route.service)
        for value, services in holders.items():
            if len(services) > 1:
                yield _problem(
                    f"routes.{field}",
                    "collision",
                    f"{' and '.join(sorted(services))} have the same {field} {value!r}.",
                    f"Give each service a {field} of its own.",
                )
    names = [backend.name for backend in table.backends]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield _problem("backends", "collision", f"backend {name} is there twice.", "Name each revision once.")


def _of_nested_prefixes(table: RouteTable) -> Iterator[Problem]:
    by_prefix = {route.prefix: route for route in table.routes}
    for prefix, inner in sorted(by_prefix.items()):
        parts = prefix.split("/")[1:-1]
        for depth in range(1, len(parts) + 1):
            if outer := by_prefix.get("/" + "/".join(parts[:depth])):
                yield _problem(
                    f"routes.{inner.name}.prefix",
                    "collision",
                    f"{prefix!r} of {inner.service} lies inside {outer.prefix!r} of {outer.service}.",
                    "Use a prefix that is not inside another one.",
                )


def _of_backend(backend: Backend) -> Iterator[Problem]:
    field = f"backends.{backend.name}"
    if not _BACKEND.fullmatch(backend.name):
        yield _problem(field, "bad_name", f"{backend.name!r} cannot name a backend.", "Use a-z, 0-9 and '-'.")
    for endpoint in backend.endpoints:
        if not _is_address(endpoint.host) or not 1 <= endpoint.port <= 65535:
            yield _problem(
                f"{field}.endpoints",
                "bad_endpoint",
                f"{endpoint.host}:{endpoint.port} is no IP address with a port.",
                "Name the address; names are not looked up.",
            )
    if backend.health_path is not None and not _PATH.fullmatch(backend.health_path):
        yield _problem(f"{field}.health_path", "bad_path", f"{backend.health_path!r} is no path.", "Begin with '/'.")
    if backend.health_path is not None and (backend.protocol is Protocol.GRPC or backend.health_grpc):
        yield _problem(
            f"{field}.health_path", "wrong_protocol", "a path is asked over HTTP/1.1.", "Use health_grpc for gRPC."
        )
    if backend.health_grpc and backend.protocol is not Protocol.GRPC:
        yield _problem(
            f"{field}.health_grpc", "wrong_protocol", "its replicas speak HTTP/1.1.", "Use health_path instead."
        )


def _of_references(route: Route, backends: Mapping[str, Backend]) -> Iterator[Problem]:
    named = [(f"weights.{name}", name) for name in route.weights]
    named += [(f"matches.{number}.backend", match.backend) for number, match in enumerate(route.matches)]
    named += [("mirror.backend", route.mirror.backend)] if route.mirror else []
    for field, name in named:
        if name not in backends:
            yield _problem(f"routes.{route.name}.{field}", "unknown", f"there is no backend {name!r}.", "Add it first.")
        elif backends[name].protocol is not route.protocol:
            yield _problem(
                f"routes.{route.name}.{field}",
                "wrong_protocol",
                f"backend {name!r} speaks {backends[name].protocol.value}, the service {route.protocol.value}.",
                "Both must speak the same.",
            )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _problem(field: str, code: str, message: str, fix: str) -> Problem:
    return Problem(field=field, code=code, message=message, fix=fix)
