"""The route table as the store has it, and the router brought to it. Made anew each time: nothing of it is remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fermion.domain.rollout.plan import Share, SplitRule
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaState
from fermion.domain.serving.routing import (
    Backend,
    Endpoint,
    Match,
    MatchKind,
    Mirror,
    Protocol,
    Route,
    RouteTable,
    Spread,
)
from fermion.domain.serving.services import ApiType, Replica, ReplicaPhase, Revision, RevisionPhase, Service

ROUTED = frozenset({RevisionPhase.STARTING, RevisionPhase.SERVING, RevisionPhase.WARM, RevisionPhase.RETIRING})
"""Phases in which the router knows a revision: its counters live as long as it has replicas."""


def protocol_of(service: Service) -> Protocol:
    """What the router speaks for it."""
    return Protocol.GRPC if service.api_type is ApiType.GRPC else Protocol.HTTP


def port_of(service: Service) -> str:
    """The name of the replicas' port that gets its requests."""
    return "grpc" if service.api_type is ApiType.GRPC else "http"


def route_of(service: Service, revisions: Sequence[Revision]) -> Route:
    """How its requests are recognised and spread. Weights of revisions that the router does not know are left out."""
    spread = spread_of(service, {revision.number: revision.id for revision in revisions if revision.phase in ROUTED})
    return Route(
        service=service.id,
        name=service.name,
        prefix=service.prefix,
        port=service.port,
        protocol=protocol_of(service),
    ).spreading(spread)


def spread_of(service: Service, backends: Mapping[int, str]) -> Spread:
    """How its requests are to be spread; ``backends`` are the revisions that the router knows, by number."""
    known = {str(number): backend for number, backend in backends.items()}
    weights = {known[number]: weight for number, weight in service.weights.items() if number in known}
    spread = Spread(weights=weights if sum(weights.values()) == 100 else {})
    candidate = backends.get(service.candidate or 0)
    if candidate is None:
        return spread
    return with_share(spread, Share(split=service.split, mirror_percent=service.mirror_percent), candidate)


def with_share(spread: Spread, share: Share, canary: str) -> Spread:
    """The spread with the canary's split and copies; weights are left as they are."""
    split, mirror = share.split, share.mirror_percent
    if split is not None and split.is_sticky:
        spread = replace(spread, sticky_cookie=split.cookie)
    elif split is not None:
        kind = MatchKind.HEADER if split.header is not None else MatchKind.COOKIE
        name = split.header or split.cookie or ""
        match = Match(kind=kind, name=name, value=split.value or "", backend=canary)
        spread = replace(spread, matches=(match,))
    return replace(spread, mirror=Mirror(backend=canary, percent=mirror)) if mirror else spread


def share_of(spread: Spread, canary: str) -> Share:
    """What the canary gets where requests are spread so."""
    split = None
    if spread.sticky_cookie is not None and canary in spread.weights:
        split = SplitRule(cookie=spread.sticky_cookie)
    for match in spread.matches:
        if match.backend == canary:
            is_header = match.kind is MatchKind.HEADER
            split = SplitRule(**{"header" if is_header else "cookie": match.name}, value=match.value)
    mirror = spread.mirror
    return Share(
        weight_percent=float(spread.weights.get(canary, 0)),
        split=split,
        mirror_percent=mirror.percent if mirror is not None and mirror.backend == canary else 0,
    )


def backend_of(
    service: Service, revision: Revision, rows: Sequence[Replica], seen: Mapping[str, ReplicaSeen]
) -> Backend:
    """The revision's replicas that may get requests: they hold a lease, are not leaving, and are ready."""
    name = port_of(service)
    endpoints = [
        found.endpoints[name]
        for row in rows
        if row.revision == revision.id and row.phase is ReplicaPhase.HOLDING
        if (found := seen.get(row.name)) is not None and found.state is ReplicaState.READY and name in found.endpoints
    ]
    probe = revision.spec.probes.readiness if revision.spec.probes else None
    is_http = protocol_of(service) is Protocol.HTTP
    return Backend(
        name=revision.id,
        endpoints=tuple(sorted(endpoints, key=lambda each: (each.host, each.port))),
        protocol=protocol_of(service),
        balancing=revision.spec.balancing,
        health_path=probe.path if probe is not None and is_http and probe.kind == "http" else None,
    )


def table_of(
    services: Sequence[Service],
    revisions: Sequence[Revision],
    rows: Sequence[Replica],
    seen: Mapping[str, ReplicaSeen],
) -> RouteTable:
    """All of one cluster's services."""
    by_service = {service.id: service for service in services}
    routed = [each for each in revisions if each.phase in ROUTED and each.service_id in by_service]
    return RouteTable(
        routes=tuple(
            route_of(service, [each for each in routed if each.service_id == service.id])
            for service in sorted(services, key=lambda service: service.id)
            if service.is_open
        ),
        backends=tuple(
            backend_of(by_service[each.service_id], each, rows, seen)
            for each in sorted(routed, key=lambda each: each.id)
        ),
    )


def routed_names(
    table: RouteTable, services: Mapping[str, Service], rows: Sequence[Replica], seen: Mapping[str, ReplicaSeen]
) -> frozenset[str]:
    """The replicas that are endpoints in the table."""
    there: dict[str, frozenset[Endpoint]] = {each.name: frozenset(each.endpoints) for each in table.backends}
    names = set()
    for row in rows:
        service, found = services.get(row.service_id), seen.get(row.name)
        if service is None or found is None:
            continue
        if found.endpoints.get(port_of(service)) in there.get(row.revision, frozenset()):
            names.add(row.name)
    return frozenset(names)
