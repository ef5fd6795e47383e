"""Examine the installation: what works, what does not, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from fermion.domain.accounting import leaked_gpu_seconds, ledger_gaps
from fermion.domain.jobs import HOLDING
from fermion.domain.leases import HolderKind, Lease
from fermion.domain.workloads import workload_name
from fermion.errors import FermionError
from fermion.ports import Driver, Runs
from fermion.usecases.context import Context
from fermion.usecases.tend import GONE

SYNC_IS_LATE = timedelta(seconds=120)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at. ``to_do`` is empty when it is well."""

    name: str
    ok: bool
    detail: str
    to_do: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything looked at. ``leaked_gpu_seconds``: held with nothing running, by the ledger and by what runs."""

    checks: Sequence[Check]
    open_leases: int
    leaked_gpu_seconds: float
    orphans: Sequence[str]

    @property
    def ok(self) -> bool:
        """Whether every check is well."""
        return all(check.ok for check in self.checks)


def examine(ctx: Context, runs: Runs | None = None) -> Diagnosis:
    """Look at everything; nothing is changed, and what cannot be looked at is a check that is not well."""
    database = _look("database", lambda: ctx.store.check(), "Start the platform: make up")
    if not database.ok:
        return Diagnosis(checks=[database], open_leases=0, leaked_gpu_seconds=0.0, orphans=())
    leases, leaked = _ledger(ctx)
    orphans = [orphan for driver in ctx.drivers.values() for orphan in _orphans(driver)]
    checks = [
        database,
        *(_cluster(ctx, name) for name in sorted(ctx.drivers)),
        _look(
            "models", lambda: f"{len(ctx.models.models())} models in the repository", "Check models.uri and its disk."
        ),
        _syncs(ctx),
        Check(
            name="ledger",
            ok=leaked == 0,
            detail=f"{leases} open leases, {leaked:.1f} GPU-seconds leaked",
            to_do="" if leaked == 0 else "The next sync ends leaked leases; `fermion ledger` shows them.",
        ),
        Check(
            name="orphans",
            ok=not orphans,
            detail=f"{len(orphans)} processes of ours with no runner",
            to_do="" if not orphans else "The next sync ends them.",
        ),
    ]
    if runs is not None:
        checks.append(_look("engine", lambda: f"answers: {runs.state('train_model', '-').state} run '-'", "make up"))
    return Diagnosis(checks=checks, open_leases=leases, leaked_gpu_seconds=leaked, orphans=orphans)


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
        return f"{driver.kind}: {len(nodes)} nodes, {devices} devices; " + "; ".join(
            node.detail for node in nodes if node.detail
        )

    return _look(f"cluster {name}", ask, "See the cluster's section in config/fermion.yaml.")


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


def _ledger(ctx: Context) -> tuple[int, float]:
    """Open leases, and GPU-seconds leaked: by the ledger's sums, and by leases whose workload is not there."""
    now = ctx.clock.now()
    with ctx.store.read() as tx:
        live = tx.leases.live()
        gaps = ledger_gaps(tx.leases.ledger(), live, now)
        holding = {job.id: job for job in tx.jobs.find(phases=HOLDING)}
    leaked = leaked_gpu_seconds(gaps)
    for lease in live:
        job = holding.get(lease.holder_id)
        if lease.holder_kind is not HolderKind.JOB or (job is not None and job.attempt == lease.attempt):
            continue
        if _is_gone(ctx, lease):
            leaked += lease.to_seconds(now)
    return len(live), leaked


def _is_gone(ctx: Context, lease: Lease) -> bool:
    """Whether the lease's workload is seen gone; a cluster that does not answer says nothing (and is a check of its own)."""
    try:
        workloads = ctx.driver_of(lease.pool).workloads
        return workloads.look(workload_name(lease.holder_id, lease.attempt)).state in GONE
    except FermionError:
        return False


def _orphans(driver: Driver) -> Sequence[str]:
    """None known where the cluster does not answer: that is a check of its own."""
    try:
        return driver.workloads.orphans()
    except FermionError:
        return ()
