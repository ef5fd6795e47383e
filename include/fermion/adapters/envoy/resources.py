"""A route table in Envoy's words: clusters, listeners and one route configuration. Pure; the same table, the same bytes.

One route configuration serves all listeners, because Envoy takes one of the kernel's few inotify instances (128 for an
account) for every file it watches, and ends when there is none left. For the same reason endpoints stand inside their
cluster and not in a file each.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fermion.domain.serving.routing import (
    COPIES,
    Backend,
    Balancing,
    Endpoint,
    Match,
    MatchKind,
    Protocol,
    Route,
    RouteTable,
)

Resource = Mapping[str, Any]
"""One Envoy object as JSON-ready values."""

LOOPBACK = "127.0.0.1"
ROUTES = "routes"
"""The name of the route configuration."""

STAT_PREFIX = "router"
"""Of the listeners' own statistics: ``http.router.…``."""

LOG_SCOPE = "fermion"
"""Of what the listeners count for us: ``fermion.requests``, ``fermion.latency``."""

MIRROR_SUFFIX = COPIES
"""A backend that gets copies has a second cluster of that name, so that copies are counted apart from requests."""

PORT_KEY = "fermion.port"
"""Where a connection keeps the port it came in by; routes are chosen by it."""

SERVICE_HEADER = "fermion-service"
BODY_LIMIT = 16 * 1024 * 1024
"""Bytes of a request that are kept for a retry or a copy; a longer one is sent once."""

UPSTREAM_IDLE = "1.5s"
"""An unused connection to a replica is closed first by us: servers close theirs after 2 s or more, in the middle of a request."""

IDLE = "3600s"
WEIGHTS = "weights"
MATCH = "match"
"""Kinds of a route, as its name says them; ``reading.py`` tells by it what a dumped route is."""

_API = "type.googleapis.com/envoy"
CLUSTER = f"{_API}.config.cluster.v3.Cluster"
LISTENER = f"{_API}.config.listener.v3.Listener"
ROUTE_CONFIGURATION = f"{_API}.config.route.v3.RouteConfiguration"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True, slots=True)
class Document:
    """A file that Envoy watches. ``version`` is the digest of what it holds."""

    version: str
    text: str


def document(kind: str, resources: Sequence[Resource]) -> Document:
    """The file that holds these and nothing else."""
    typed = [{"@type": kind, **resource} for resource in resources]
    version, body = digest(typed), _text(typed)
    return Document(version, f'{{"version_info":"{version}","resources":{body}}}\n')


def digest(resources: Sequence[Resource]) -> str:
    """The same for the same content."""
    return hashlib.sha256(_text(resources).encode()).hexdigest()[:16]


def _text(resources: Sequence[Resource]) -> str:
    return json.dumps(resources, sort_keys=True, separators=(",", ":"))


# --- clusters -------------------------------------------------------------------------------------------------------


def clusters(table: RouteTable, *, mirrored: Collection[str] = ()) -> list[Resource]:
    """One a backend, and a second one for each that gets copies, or is in ``mirrored`` because it once did."""
    copies = {route.mirror.backend for route in table.routes if route.mirror} | set(mirrored)
    named = {backend.name: backend for backend in table.backends}
    named |= {name + MIRROR_SUFFIX: backend for name, backend in named.items() if name in copies}
    return [cluster(named[name], name) for name in sorted(named)]


def cluster(backend: Backend, name: str) -> Resource:
    """The backend's replicas and how they are treated."""
    made: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST" if backend.balancing is Balancing.LEAST_REQUEST else "ROUND_ROBIN",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [_endpoint(each) for each in _sorted(backend.endpoints)]}],
        },
        # No replica is well: answer 503, rather than ask the sick ones after all.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "circuit_breakers": {"thresholds": [_unlimited()]},
        "outlier_detection": _outliers(),
        "typed_extension_protocol_options": {_HTTP_OPTIONS: _http_options(backend.protocol)},
    }
    if check := _health_check(backend):
        made["health_checks"] = [check]
    return made


def _sorted(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    return sorted(set(endpoints), key=lambda each: (each.host, each.port))


def _endpoint(endpoint: Endpoint) -> Resource:
    return {"endpoint": {"address": _address(endpoint.host, endpoint.port)}}


def _address(host: str, port: int) -> Resource:
    return {"socket_address": {"address": host, "port_value": port}}


def _unlimited() -> Resource:
    many = 1_000_000
    return {
        "max_connections": many,
        "max_pending_requests": many,
        "max_requests": many,
        # Envoy's own limit is three retries at a time: a killed replica has more requests on their way than that.
        "retry_budget": {"budget_percent": {"value": 100}, "min_retry_concurrency": 100},
    }


def _outliers() -> Resource:
    """Leave a replica alone that cannot be reached, never one for its own answers; the last one is always tried."""
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 2,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_local_origin_success_rate": 0,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "interval": "0.5s",
        "base_ejection_time": "1s",
        "max_ejection_time": "5s",
        "max_ejection_percent": 99,
    }


def _http_options(protocol: Protocol) -> Resource:
    grpc = protocol is Protocol.GRPC
    return {
        "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
        "explicit_http_config": {"http2_protocol_options": {}} if grpc else {"http_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": IDLE if grpc else UPSTREAM_IDLE},
    }


def _health_check(backend: Backend) -> Resource | None:
    if backend.health_grpc:
        how: dict[str, Any] = {"grpc_health_check": {}}
    elif backend.health_path is not None:
        how = {"http_health_check": {"path": backend.health_path, "expected_statuses": [{"start": 200, "end": 400}]}}
    else:
        return None
    return {
        "timeout": "0.5s",
        "interval": "0.5s",
        # Before its first request a backend is asked less often; without this only once a minute.
        "no_traffic_interval": "2s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        **how,
    }


# --- listeners ------------------------------------------------------------------------------------------------------


def listeners(table: RouteTable, *, routes_file: str, host: str = LOOPBACK) -> list[Resource]:
    """One for each service that has a port of its own."""
    ports = [route.port for route in table.routes if route.port is not None]
    made = [listener(port, routes_file=routes_file, host=host) for port in ports]
    return sorted(made, key=lambda each: str(each["name"]))


def listener(port: int, *, routes_file: str, host: str = LOOPBACK) -> Resource:
    """Everything that comes in by one port of that address. It says nothing of services, so it never changes."""
    return {
        "name": f"port-{port}",
        "address": _address(host, port),
        # Otherwise a second Envoy of the same account could listen beside us, and would get half of the requests.
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [_keep_port(), _http(routes_file)]}],
    }


def _keep_port() -> Resource:
    return {
        "name": "envoy.filters.network.set_filter_state",
        "typed_config": {
            "@type": f"{_API}.extensions.filters.network.set_filter_state.v3.Config",
            "on_new_connection": [
                {
                    "object_key": PORT_KEY,
                    "factory_key": "envoy.string",
                    "format_string": {"text_format_source": {"inline_string": "%DOWNSTREAM_LOCAL_PORT%"}},
                }
            ],
        },
    }


def _http(routes_file: str) -> Resource:
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_API}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": STAT_PREFIX,
            "rds": {"route_config_name": ROUTES, "config_source": watching(routes_file)},
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "normalize_path": True,
            # Old load generators speak it.
            "http_protocol_options": {"accept_http_10": True},
            "stream_idle_timeout": IDLE,
            "access_log": [_request_log(), _latency_log()],
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {
                        "@type": f"{_API}.extensions.filters.http.router.v3.Router",
                        "suppress_envoy_headers": True,
                    },
                }
            ],
        },
    }


def watching(file: str) -> Resource:
    """A configuration source that is read again when the file is replaced by a move."""
    return {"path_config_source": {"path": file}, "resource_api_version": "V3"}


def _request_log() -> Resource:
    """Count every request once, as its client saw it, however often it was tried."""
    tags = [
        {"name": "backend", "value_format": "%UPSTREAM_CLUSTER_RAW%"},
        {"name": "code", "value_format": "%RESPONSE_CODE%"},
        {"name": "grpc", "value_format": "%GRPC_STATUS_NUMBER%"},
        {"name": "flags", "value_format": "%RESPONSE_FLAGS%"},
    ]
    return _log({"counters": [{"stat": {"name": "requests", "tags": tags}, "value_fixed": 1}]})


def _latency_log() -> Resource:
    """From the first byte of the request to the last of the answer. How long a WebSocket stays open is no latency."""
    tags = [
        {"name": "backend", "value_format": "%UPSTREAM_CLUSTER_RAW%"},
        {"name": "flags", "value_format": "%RESPONSE_FLAGS%"},
    ]
    latency = {
        "stat": {"name": "latency", "tags": tags},
        "unit": "Microseconds",
        "value_format": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
    }
    websocket = {
        "name": "upgrade",
        "string_match": {"exact": "websocket", "ignore_case": True},
        "treat_missing_header_as_empty": True,
        "invert_match": True,
    }
    return {"filter": {"header_filter": {"header": websocket}}, **_log({"histograms": [latency]})}


def _log(what: Resource) -> dict[str, Any]:
    return {
        "name": "envoy.access_loggers.stats",
        "typed_config": {
            "@type": f"{_API}.extensions.access_loggers.stats.v3.Config",
            # Shared by all listeners: what came in by a port that is given up stays counted.
            "stats_scope": {"prefix": LOG_SCOPE, "sharing_name": LOG_SCOPE},
            **what,
        },
    }


# --- scraping -------------------------------------------------------------------------------------------------------


SCRAPED = "/stats/prometheus"
ADMIN = "router-admin"
"""The router's own admin socket as a cluster."""


def scraping(port: int, *, socket: str, host: str = LOOPBACK) -> tuple[Resource, Resource]:
    """A listener that shows the statistics and nothing else of the admin interface, and the cluster behind it."""
    route = {
        "match": {"path": SCRAPED, "headers": [_header(":method", {"exact": "GET"})]},
        "route": {"cluster": ADMIN, "timeout": "5s"},
    }
    manager = {
        "@type": f"{_API}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "scraping",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_API}.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "name": "scraping",
        "address": _address(host, port),
        "enable_reuse_port": False,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    lb_endpoints = [{"endpoint": {"address": {"pipe": {"path": socket}}}}]
    cluster = {
        "name": ADMIN,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": ADMIN, "endpoints": [{"lb_endpoints": lb_endpoints}]},
    }
    return listener, cluster


# --- routes ---------------------------------------------------------------------------------------------------------


def route_configuration(table: RouteTable) -> Resource:
    """All services, in the order in which a request is tried on them: ports, gRPC by name, paths."""
    ordered = sorted(table.routes, key=lambda each: each.service)
    entries = (_by_port, _by_metadata, _by_authority, _by_path)
    return {
        "name": ROUTES,
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [
                    made
                    for entry in entries
                    for route in ordered
                    if (way := entry(route)) is not None
                    for made in _routes(route, way)
                ],
                "request_body_buffer_limit": BODY_LIMIT,
            }
        ],
    }


def route_label(route: Route, kind: str) -> str:
    """The name of a service's route, by which ``reading.py`` knows it again."""
    return f"{route.name}/{kind}"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One way by which requests are a service's: what must be true of them, and what is done to their path."""

    when: Resource
    rewrite: Resource = field(default_factory=dict)
    cookie_path: str = "/"


def _by_port(route: Route) -> _Entry | None:
    if route.port is None:
        return None
    return _Entry({"prefix": "/", "filter_state": [{"key": PORT_KEY, "string_match": {"exact": str(route.port)}}]})


def _by_metadata(route: Route) -> _Entry:
    return _Entry({"prefix": "/", "grpc": {}, "headers": [_header(SERVICE_HEADER, {"exact": route.name})]})


def _by_authority(route: Route) -> _Entry:
    pattern = re.escape(route.name) + "(:[0-9]+)?"
    return _Entry({"prefix": "/", "grpc": {}, "headers": [_header(":authority", {"safe_regex": {"regex": pattern}})]})


def _by_path(route: Route) -> _Entry:
    cut = {"regex_rewrite": {"pattern": {"regex": f"^{re.escape(route.prefix)}/?"}, "substitution": "/"}}
    return _Entry({"path_separated_prefix": route.prefix}, cut, route.prefix)


def _header(name: str, match: Resource) -> Resource:
    return {"name": name, "string_match": match}


def _routes(route: Route, way: _Entry) -> Iterator[Resource]:
    """First who is matched, then who was here before, then the weights."""
    action = {**way.rewrite, **_action(route)}
    held = [
        Match(kind=MatchKind.COOKIE, name=route.sticky_cookie, value=backend, backend=backend)
        for backend, weight in sorted(route.weights.items())
        if route.sticky_cookie and weight > 0
    ]
    for match in route.matches:
        name = {"name": route_label(route, MATCH)}
        yield {**name, "match": _and(way.when, match), "route": {"cluster": match.backend, **action}}
    for match in held:
        yield {"match": _and(way.when, match), "route": {"cluster": match.backend, **action}}
    last = {"name": route_label(route, WEIGHTS), "match": way.when}
    if route.weights:
        shares = [_share(route, backend, path=way.cookie_path) for backend in sorted(route.weights)]
        yield {**last, "route": {"weighted_clusters": {"clusters": shares}, **action}}
    else:
        yield {**last, "direct_response": {"status": 503, "body": {"inline_string": _unserved(route)}}}


def _unserved(route: Route) -> str:
    return f"service {route.name} ({route.service}) has no revision that serves yet\n"


def _and(when: Resource, match: Match) -> Resource:
    if match.kind is MatchKind.COOKIE:
        return {**when, "cookies": [{"name": match.name, "string_match": {"exact": match.value}}]}
    return {**when, "headers": [*when.get("headers", ()), _header(match.name, {"exact": match.value})]}


def _share(route: Route, backend: str, *, path: str) -> Resource:
    share: dict[str, Any] = {"name": backend, "weight": route.weights[backend]}
    if route.sticky_cookie:
        name = route.sticky_cookie.replace("%", "%%")  # Envoy fills in what stands between two of them.
        cookie = f"{name}={backend}; Path={path}; HttpOnly; SameSite=Lax"
        share["response_headers_to_add"] = [
            {"header": {"key": "set-cookie", "value": cookie}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}
        ]
    return share


def _action(route: Route) -> dict[str, Any]:
    action: dict[str, Any] = {"timeout": f"{route.timeout.total_seconds():.3f}s"}
    if route.retries > 0:
        action["retry_policy"] = {
            # Only what failed before a replica answered; what it answered, whatever it is, is its answer.
            "retry_on": "connect-failure,refused-stream,reset,reset-before-request",
            "num_retries": route.retries,
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": f"{_API}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
            "host_selection_retry_max_attempts": 8,
        }
    if route.mirror:
        action["request_mirror_policies"] = [
            {
                "cluster": route.mirror.backend + MIRROR_SUFFIX,
                "runtime_fraction": {"default_value": {"numerator": route.mirror.percent, "denominator": "HUNDRED"}},
                "disable_shadow_host_suffix_append": True,
            }
        ]
    return action
