"""Examine the installation: what works, what does not, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from fermion.domain.accounting import leaked_gpu_seconds, ledger_gaps
from fermion.domain.counting import counted
from fermion.domain.jobs import HOLDING
from fermion.domain.leases import HolderKind, Lease
from fermion.domain.serving.replicas import replica_name, revision_id
from fermion.domain.serving.routing import Spread
from fermion.domain.serving.services import HOLDING as REPLICA_HOLDING
from fermion.domain.serving.services import Service
from fermion.domain.workloads import workload_name
from fermion.errors import FermionError
from fermion.ports import Runs
from fermion.usecases.context import Context
from fermion.usecases.seeing import is_gone
from fermion.usecases.serving.routes import spread_of

SYNC_IS_LATE = timedelta(seconds=120)
LOOK_AGAIN = "Ask again once what does not answer is back."


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at. ``to_do`` is empty when it is well."""

    name: str
    ok: bool
    detail: str
    to_do: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything looked at. ``leaked_gpu_seconds``: held with nothing running, by the ledger and by what runs.

    None is what nobody can tell now, because a database or a cluster does not answer.
    """

    checks: Sequence[Check]
    open_leases: int | None
    leaked_gpu_seconds: float | None
    orphans: Sequence[str] | None

    @property
    def ok(self) -> bool:
        """Whether every check is well."""
        return all(check.ok for check in self.checks)


def examine(ctx: Context, runs: Runs | None = None, *, how_to_start: str = "") -> Diagnosis:
    """Look at everything; nothing is changed, and what cannot be looked at is a check that is not well.

    ``how_to_start`` is a sentence for whoever may start the platform.
    """
    start = how_to_start or "Start the platform."
    database = _look("database", lambda: ctx.store.check(), start)
    leases, leaked = _ledger(ctx) if database.ok else (None, None)
    orphans = _orphans(ctx) if database.ok else None
    checks = [database]
    if database.ok:
        checks += [_cluster(ctx, name) for name in sorted(ctx.drivers)]
        checks += _services(ctx)
        checks += [_look("models", lambda: _models(ctx), "Check models.uri and its disk."), _syncs(ctx)]
    checks += [_of_ledger(leases, leaked), _of_orphans(orphans)]
    if database.ok and runs is not None:
        checks.append(_look("engine", lambda: _answers(runs), start))
    return Diagnosis(checks=checks, open_leases=leases, leaked_gpu_seconds=leaked, orphans=orphans)


def _of_ledger(leases: int | None, leaked: float | None) -> Check:
    known = "open leases unknown" if leases is None else counted(leases, "open lease")
    if leaked is None:
        return Check(name="ledger", ok=False, detail=f"{known}, GPU-seconds leaked unknown", to_do=LOOK_AGAIN)
    to_do = "" if leaked == 0 else "The next sync ends leaked leases; `fermion ledger` shows them."
    return Check(name="ledger", ok=leaked == 0, detail=f"{known}, {leaked:.1f} GPU-seconds leaked", to_do=to_do)


def _of_orphans(orphans: Sequence[str] | None) -> Check:
    if orphans is None:
        return Check(name="orphans", ok=False, detail="unknown", to_do=LOOK_AGAIN)
    detail = f"{counted(len(orphans), 'process', 'processes')} of ours with no runner"
    return Check(name="orphans", ok=not orphans, detail=detail, to_do="The next sync ends them." if orphans else "")


def _models(ctx: Context) -> str:
    return f"{counted(len(ctx.models.models()), 'model')} in the repository"


def _answers(runs: Runs) -> str:
    runs.state("train_model", "-")  # there is no such run; that it says so is what counts
    return "answers"


def _look(name: str, ask: Callable[[], str], to_do: str) -> Check:
    try:
        return Check(name=name, ok=True, detail=ask())
    except FermionError as error:
        return Check(name=name, ok=False, detail=error.message, to_do=to_do)


def _cluster(ctx: Context, name: str) -> Check:
    driver = ctx.drivers[name]

    def ask() -> str:
        nodes = driver.nodes.list_nodes()
        devices = sum(len(node.devices) for node in nodes if node.is_usable)
        size = f"{driver.kind}: {counted(len(nodes), 'node')}, {counted(devices, 'device')}"
        return "; ".join([size, *(node.detail for node in nodes if node.detail)])

    return _look(f"cluster {name}", ask, "See the cluster's section in config/fermion.yaml.")


def _services(ctx: Context) -> list[Check]:
    """For each cluster that serves something: what its router says, against what is wished of it."""
    with ctx.store.read() as tx:
        services = tx.services.find(is_open=True)
    by_cluster: dict[str, list[Service]] = {}
    for service in services:
        by_cluster.setdefault(service.pool.split("/", 1)[0], []).append(service)
    return [_router(ctx, cluster, found) for cluster, found in sorted(by_cluster.items()) if cluster in ctx.drivers]


def _router(ctx: Context, cluster: str, services: Sequence[Service]) -> Check:
    name, to_do = f"router {cluster}", "`fermion ps` shows it; the next sync tells it again what is wished."
    try:
        applied = ctx.drivers[cluster].router.applied()
    except FermionError as error:
        return Check(name=name, ok=False, detail=error.message, to_do=to_do)
    differs = [service.name for service in services if wished(service) != applied.get(service.name, Spread())]
    detail = f"{counted(len(services), 'service')}; weights and splits read back"
    if differs:
        return Check(name=name, ok=False, detail=f"{detail}; not as wished: {', '.join(differs)}", to_do=to_do)
    return Check(name=name, ok=True, detail=detail)


def wished(service: Service) -> Spread:
    """How a service's requests are to be spread."""
    numbers = {*map(int, service.weights), service.candidate or 0}
    return spread_of(service, {number: revision_id(service.id, number) for number in numbers if number})


def _syncs(ctx: Context) -> Check:
    now = ctx.clock.now()
    with ctx.store.read() as tx:
        syncs = tx.records.syncs()
    late = [sync for sync in syncs if now - sync.ended_at > SYNC_IS_LATE]
    failed = [sync for sync in syncs if sync.error]
    detail = (
        ", ".join(f"{sync.source} {(now - sync.ended_at).total_seconds():.0f} s ago" for sync in syncs) or "none yet"
    )
    return Check(
        name="sync",
        ok=bool(syncs) and not late and not failed,
        detail="; ".join([detail, *(f"{sync.source}: {sync.error}" for sync in failed)]),
        to_do="" if syncs and not late and not failed else "Is the DAG sync_platform running and not paused?",
    )


def _ledger(ctx: Context) -> tuple[int, float | None]:
    """Open leases, and GPU-seconds leaked: by the ledger's sums, and by leases whose workload is not there."""
    now = ctx.clock.now()
    with ctx.store.read() as tx:
        live = tx.leases.live()
        gaps = ledger_gaps(tx.leases.ledger(), live, now)
        held = {(job.id, job.attempt) for job in tx.jobs.find(phases=HOLDING)}
        held |= {(row.revision, row.number) for row in tx.replicas.find(phases=REPLICA_HOLDING)}
    leaked = leaked_gpu_seconds(gaps)
    for lease in live:
        if lease.holder_kind is HolderKind.INSTANCE or (lease.holder_id, lease.attempt) in held:
            continue
        try:
            leaked += lease.to_seconds(now) if _is_gone(ctx, lease) else 0.0
        except FermionError:  # that the cluster does not answer is a check of its own
            return len(live), None
    return len(live), leaked


def _is_gone(ctx: Context, lease: Lease) -> bool:
    if lease.holder_kind is HolderKind.SERVICE:
        return ctx.driver_of(lease.pool).replicas.look(replica_name(lease.holder_id, lease.attempt)).is_gone
    workloads = ctx.driver_of(lease.pool).workloads
    return is_gone(workloads.look(workload_name(lease.holder_id, lease.attempt)))


def _orphans(ctx: Context) -> Sequence[str] | None:
    """None where a cluster does not answer: that is a check of its own."""
    try:
        drivers = ctx.drivers.values()
        return [
            *(orphan for driver in drivers for orphan in driver.workloads.orphans()),
            *(orphan for driver in drivers for orphan in driver.replicas.orphans()),
        ]
    except FermionError:
        return None
