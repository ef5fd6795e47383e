"""What the router is to do, as one value: which backends there are, and how each service's requests are spread over them.

Pure and vendor-neutral. The same table always means the same traffic; a router that cannot do what it says refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where one replica listens."""

    host: str
    port: int


class Protocol(StrEnum):
    """What the replicas of a backend speak."""

    HTTP = "http"  # HTTP/1.1, WebSocket upgrades included
    GRPC = "grpc"  # HTTP/2 without TLS


class ApiType(StrEnum):
    """What clients of a service speak."""

    REST = "rest"
    GRPC = "grpc"
    WEBSOCKET = "websocket"


class Balancing(StrEnum):
    """How requests are spread over the replicas of one backend."""

    ROUND_ROBIN = "round_robin"
    LEAST_REQUEST = "least_request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The replicas of one revision that may get requests. ``name`` is the revision's id, and the key of its counters.

    ``health_path`` (HTTP) or ``health_grpc`` lets the router itself leave a replica out that does not answer; None and
    False: only the platform decides. A backend without endpoints answers 503.
    """

    name: str
    endpoints: tuple[Endpoint, ...] = ()
    protocol: Protocol = Protocol.HTTP
    balancing: Balancing = Balancing.ROUND_ROBIN
    health_path: str | None = None
    health_grpc: bool = False


class MatchKind(StrEnum):
    """What of a request is looked at."""

    HEADER = "header"
    COOKIE = "cookie"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Requests whose header or cookie has exactly that value go to that backend, whatever the weights say (A/B)."""

    kind: MatchKind
    name: str
    value: str
    backend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A copy of ``percent`` of the requests goes to that backend too; its answers are thrown away."""

    backend: str
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How one service's requests are spread over its backends: what a route wishes, or what a router says it does."""

    weights: Mapping[str, int] = field(default_factory=dict)
    matches: tuple[Match, ...] = ()
    mirror: Mirror | None = None
    sticky_cookie: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one service is reached and its requests are spread.

    Requests to the shared listener whose path begins with ``prefix`` (``/digits``) are its own, the prefix cut off; gRPC
    calls are its own when their authority or their ``fermion-service`` metadata is the service's ``name``. ``port``: a
    listener of its own, on which everything is its own and nothing is cut off. ``weights`` maps backends to percent and
    sums to 100; empty: nothing serves yet, and it answers 503.
    ``sticky_cookie``: a cookie of that name is set to the backend that was chosen, and keeps its bearer there while that
    backend has a weight. ``retries``: how often a request that failed before it was answered goes to another replica.
    """

    service: str
    name: str
    prefix: str
    weights: Mapping[str, int] = field(default_factory=dict)
    port: int | None = None
    protocol: Protocol = Protocol.HTTP
    matches: tuple[Match, ...] = ()
    mirror: Mirror | None = None
    sticky_cookie: str | None = None
    timeout: timedelta = timedelta(seconds=60)
    retries: int = 2

    @property
    def spread(self) -> Spread:
        """What is read back from a router that does what it says."""
        return Spread(weights=self.weights, matches=self.matches, mirror=self.mirror, sticky_cookie=self.sticky_cookie)

    def spreading(self, spread: Spread) -> Route:
        """The same route with its requests spread so."""
        return replace(
            self,
            weights=spread.weights,
            matches=spread.matches,
            mirror=spread.mirror,
            sticky_cookie=spread.sticky_cookie,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """All of it: what the router of a cluster is to do now."""

    routes: tuple[Route, ...] = ()
    backends: tuple[Backend, ...] = ()


COPIES = "~mirror"
ANSWERS = "~answers"


def copies_of(backend: str) -> str:
    """The key of the counters of the copies that a mirror sends to that backend; they are in no other counters."""
    return backend + COPIES


def answers_of(backend: str) -> str:
    """The key of the counters of what the backend's replicas answered to requests, taken as copies are: by HTTP status,
    and timed from the whole request being there to the last byte of the answer. What copies are compared with.
    """
    return backend + ANSWERS


def backend_of(key: str) -> str:
    """The backend that a key of counters is about: its own name, or that of its copies or answers."""
    return key.removesuffix(ANSWERS).removesuffix(COPIES)
