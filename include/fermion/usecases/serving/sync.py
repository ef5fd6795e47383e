"""Every sync's part in serving: look after all services, write the router's counters down, scale by load."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from statistics import fmean
from uuid import uuid4

from fermion.domain.leases import HolderKind, LeasePhase, end
from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.records import Decision
from fermion.domain.serving.autoscaling import Advice, Scaling, TargetMetric, decide
from fermion.domain.serving.limits import over_quota
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaState, replica_name
from fermion.domain.serving.services import HOLDING, ReplicaPhase, Revision, RevisionPhase, Service
from fermion.errors import FermionError
from fermion.ports import Driver
from fermion.usecases.carrying import uncarried
from fermion.usecases.context import Context
from fermion.usecases.moving import PLATFORM
from fermion.usecases.serving.giving_up import is_settled
from fermion.usecases.serving.queries import LATELY, ServiceState, service_state
from fermion.usecases.serving.release import release
from fermion.usecases.serving.tend import ServiceTender
from fermion.usecases.serving.writing import write_service

log = logging.getLogger(__name__)

RULE_VERSION = "autoscaling/1"
STRAY_GRACE = timedelta(seconds=15)
LET_GO_WITHIN = timedelta(seconds=10)
"""A deployment that nobody tends any more is seen to its end at once: requests, drain, exit. The next round goes on."""

KEPT = timedelta(hours=25)
"""How long the router's readings are kept: a day's requests and a little more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """What earlier rounds advised."""

    advice: tuple[Advice, ...] = ()


def sync_services(ctx: Context) -> None:
    """One round. A cluster that does not answer keeps its last state; the others go on."""
    reconcile_deployments(ctx)  # before the round: a rollout that no run carries is not moved on once more
    ServiceTender(ctx).round()
    reconcile_replicas(ctx)
    with ctx.store.read() as tx:
        services = tx.services.find(is_open=True)
    if not services:
        return
    record_traffic(ctx)
    for service in services:
        if service.autoscaling is not None and service.candidate is None and service.stable is not None:
            try:
                scale_by_load(ctx, service)
            except FermionError as error:
                log.warning("service %s was not scaled this time: %s", service.name, error)


def reconcile_deployments(ctx: Context) -> Sequence[str]:
    """Let go of revisions that no run carries any more, a sentence for each: deleted, ended without their teardown, or never
    started. What serves, or served, stays as it is; a candidate's requests go back to stable first."""
    with ctx.store.read() as tx:
        revisions = tx.services.open_revisions()
    wanted = (each for each in revisions if each.phase is not RevisionPhase.RETIRING and not is_settled(ctx, each))
    lost = uncarried(ctx, wanted, is_new=lambda revision: revision.phase is RevisionPhase.STAGING)
    return [_abandon(ctx, revision, state) for revision, state in lost]


def _abandon(ctx: Context, revision: Revision, state: str) -> str:
    told = "its run is gone" if state == "absent" else f"its run ended ({state}) without releasing it"
    message = f"revision {revision.id} was let go of: {told}; it was {revision.phase}."
    log.warning("%s", message)
    try:
        release(ctx, revision.service_id, revision.number, why=f"The sync found that {told}.", patience=LET_GO_WITHIN)
    except FermionError as error:
        log.warning("revision %s is not settled yet: %s", revision.id, error)
    return message


def reconcile_replicas(ctx: Context) -> Sequence[str]:
    """End what runs for no row, and leases that no row holds; a sentence for each. Nothing is concluded from a silent cluster."""
    found: list[str] = []
    names = {cluster: _names(cluster, driver) for cluster, driver in sorted(ctx.drivers.items())}
    with ctx.store.read() as tx:
        rows = {row.name: row for row in tx.replicas.find(phases=frozenset(ReplicaPhase) - {ReplicaPhase.ENDED})}
        leases = [lease for lease in tx.leases.live() if lease.holder_kind is HolderKind.SERVICE]
    for cluster, present in names.items():
        for name in present or ():
            if name not in rows:
                found += _end_stray(ctx.drivers[cluster], name)
    for lease in leases:
        name = replica_name(lease.holder_id, lease.attempt)
        row = rows.get(name)
        if row is not None and row.phase in HOLDING:
            continue
        seen = ctx.driver_of(lease.pool).replicas.look(name)
        if seen.is_gone:
            with ctx.store.begin() as tx:
                tx.leases.end(end(lease, LeasePhase.RELEASED, cause="reconciled", now=ctx.clock.now()))
            found.append(f"lease {lease.id} was held by no replica; it was ended.")
    for message in found:
        log.warning("%s", message)
    return found


def _names(cluster: str, driver: Driver) -> Sequence[str] | None:
    try:
        if driver.replicas.orphans():
            driver.replicas.end_orphans()
        return driver.replicas.names()
    except FermionError as error:
        log.warning("replicas of cluster %s are not reconciled this time: %s", cluster, error)
        return None


def _end_stray(driver: Driver, name: str) -> list[str]:
    """A replica that no row has: asked to end, and forgotten once it is gone."""
    try:
        if driver.replicas.look(name).is_gone:
            driver.replicas.remove(name)
            return []
        driver.replicas.stop(name, grace=STRAY_GRACE, why="no service has this replica")
    except FermionError as error:
        log.warning("replica %s is not reconciled this time: %s", name, error)
        return []
    return [f"replica {name} belongs to no service; it was asked to end."]


def record_traffic(ctx: Context) -> None:
    """Write down what each router counted of every open revision."""
    now = ctx.clock.now()
    with ctx.store.read() as tx:
        revisions = tx.services.open_revisions()
    for cluster, driver in sorted(ctx.drivers.items()):
        names = [each.id for each in revisions if each.spec.pool.split("/", 1)[0] == cluster]
        if not names:
            continue
        try:
            counters = driver.router.counters(names)
        except FermionError as error:
            log.warning("the router of cluster %s was not read: %s", cluster, error)
            continue
        with ctx.store.begin() as tx:
            tx.traffic.add(list(counters.values()))
            tx.traffic.forget(now - KEPT)


def scale_by_load(ctx: Context, service: Service) -> Scaling | None:
    """What was decided about the number of replicas, stored; None where nothing is asked."""
    wish = service.autoscaling
    if wish is None:
        return None
    state = service_state(ctx, service.id, traffic_of=[LATELY])
    stable = next((each for each in state.revisions if each.number == service.stable), None)
    if stable is None:
        return None
    ready = [seen for row, seen in state.replicas if row.revision == stable.id and _is_ready(seen)]
    key = f"autoscaling:{service.id}"
    with ctx.store.read() as tx:
        kept = tx.records.memory(key)
    recent = from_payload(Recent, kept) if kept is not None else Recent()
    made = decide(
        wish,
        current=service.replicas,
        ready=len(ready),
        value=_value(wish.metric, state, stable, [seen for seen in ready if seen is not None]),
        recent=recent.advice,
        now=ctx.clock.now(),
    )
    _write(ctx, service, stable, made, key)
    return made


def _write(ctx: Context, service: Service, stable: Revision, made: Scaling, key: str) -> None:
    now = ctx.clock.now()
    with ctx.store.begin() as tx:
        tx.records.put_memory(key, to_payload(Recent(advice=made.recent)), now=now)
        if made.replicas == service.replicas:
            return
        pool = ctx.pools(tx).get(service.pool)
        gpus = stable.spec.gpus_per_replica
        refused = pool and over_quota(pool, replicas=made.replicas, gpus_per_replica=gpus, team=service.team)
        verdict = "refused" if refused else f"{service.replicas} to {made.replicas}"
        message = f"{made.message} {refused[0].message}" if refused else made.message
        tx.records.add_decision(
            Decision(
                id=uuid4().hex,
                kind="scale",
                subject=service.id,
                verdict=verdict,
                reason="over_quota" if refused else "load",
                message=message,
                rule_version=RULE_VERSION,
                decided_at=now,
                inputs={"autoscaling": to_payload(service.autoscaling), "scaling": to_payload(made)},
            )
        )
        if not refused:
            write_service(ctx, tx, replace(service, replicas=made.replicas), "service.scaled", made.message, PLATFORM)


def _is_ready(seen: ReplicaSeen | None) -> bool:
    return seen is not None and seen.state is ReplicaState.READY


def _value(metric: TargetMetric, state: ServiceState, stable: Revision, ready: Sequence[ReplicaSeen]) -> float | None:
    """The metric's mean over the ready replicas; None where it was not measured."""
    if metric is TargetMetric.QPS:
        window = state.lately
        if window is None or window.seconds <= 0 or not ready:
            return None
        return window.requests / window.seconds / len(ready)
    usages = [seen.usage for seen in ready if seen.usage is not None]
    if metric is TargetMetric.GPU:
        values = [100 * use.gpu_utilisation for use in usages if use.gpu_utilisation is not None]
    else:
        asked = stable.spec.cpus or 1.0
        values = [100 * use.cpu_cores / asked for use in usages if use.cpu_cores is not None]
    return fmean(values) if values else None
