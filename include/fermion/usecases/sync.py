"""Bring what is known in line with what is: nodes, choices, open jobs, leases against what really runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from fermion.domain.counting import counted
from fermion.domain.jobs import HOLDING, Job, Phase
from fermion.domain.leases import HolderKind, Lease, LeasePhase, end
from fermion.domain.reasons import Reason
from fermion.domain.records import Event, SyncRecord
from fermion.domain.workloads import Seen, workload_name
from fermion.errors import FermionError
from fermion.ports import Driver, Runs
from fermion.usecases.carrying import uncarried
from fermion.usecases.context import Context
from fermion.usecases.datasets import known_datasets
from fermion.usecases.moving import PLATFORM
from fermion.usecases.release import let_go
from fermion.usecases.seeing import GONE, ORPHAN_ENDED, is_gone, look
from fermion.usecases.tend import OPEN, Tender, end_lease

log = logging.getLogger(__name__)

TOLD_WITHIN = timedelta(minutes=5)
"""For how long after its end the run of a job that it left behind is asked how it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing on which ledger and reality disagreed, and what was done about it."""

    kind: str
    subject: str
    message: str


def sync_platform(ctx: Context, *, patience: timedelta = timedelta(0)) -> Sequence[Difference]:
    """One whole round. A cluster that does not answer keeps its last state; the others go on.

    ``patience`` is how long it stays with services that lost model servers and are getting others.
    """
    for name, driver in sorted(ctx.drivers.items()):
        sync_nodes(ctx, name, driver)
    abandoned = reconcile_runs(ctx)  # before the round: a job that no run carries is not moved on once more
    Tender(ctx).round()
    _sync_services(ctx)
    found = [*abandoned, *reconcile(ctx)]
    for difference in found:
        log.warning("%s %s: %s", difference.kind, difference.subject, difference.message)
    write_choices(ctx)
    if patience:
        _mend_services(ctx, patience)
    return found


def _sync_services(ctx: Context) -> None:
    """Services after jobs: what goes wrong with them keeps no job from being looked after."""
    from fermion.usecases.serving.sync import sync_services

    try:
        sync_services(ctx)
    except FermionError as error:
        log.warning("services were not synced this time: %s", error)


def _mend_services(ctx: Context, patience: timedelta) -> None:
    from fermion.usecases.serving.mend import mend

    try:
        mend(ctx, patience=patience)
    except FermionError as error:
        log.warning("services were not mended this time: %s", error)


def sync_nodes(ctx: Context, cluster: str, driver: Driver) -> None:
    """Read one cluster's nodes and images into the catalog; on failure only the sync's record says so."""
    started, items, error = ctx.clock.now(), 0, None
    try:
        nodes = driver.nodes.list_nodes()
        images = driver.images.known()
        items = len(nodes)
        with ctx.store.begin() as tx:
            tx.catalog.put_nodes(cluster, nodes)
            for image in images:
                tx.catalog.put_image(image)
    except FermionError as failed:
        error = failed.message
        log.warning("cluster %s was not synced: %s", cluster, failed)
    record = SyncRecord(
        source=f"cluster:{cluster}", started_at=started, ended_at=ctx.clock.now(), items=items, error=error
    )
    with ctx.store.begin() as tx:
        tx.records.put_sync(record)


def write_choices(ctx: Context) -> None:
    """Give the form its choices."""
    with ctx.store.begin() as tx:
        pools = sorted(ctx.pools(tx))
        images = sorted(image.id for image in tx.catalog.images())
    ctx.choices.write(pools=pools, images=images, datasets=sorted(known_datasets(ctx)))


def reconcile_runs(ctx: Context) -> Sequence[Difference]:
    """Let go of open jobs that no run carries any more: deleted, ended without their teardown, or never started."""
    if ctx.runs is None:
        return ()
    with ctx.store.read() as tx:
        jobs = tx.jobs.find(phases=OPEN)
    lost = uncarried(ctx, jobs, is_new=lambda job: job.phase is Phase.SUBMITTED)
    found = [difference for job, state in lost if (difference := _let_go(ctx, job, state))]
    return [*found, *_correct_runs(ctx, ctx.runs)]


def _correct_runs(ctx: Context, runs: Runs) -> list[Difference]:
    """Mark runs as failed that ended as a success and left their job behind.

    A run that is marked failed by hand before its setup has run skips the teardown that decides its state, and ends as
    whatever its last task says.
    """
    since, found = ctx.clock.now() - TOLD_WITHIN, []
    with ctx.store.read() as tx:
        failed = tx.jobs.find(phases={Phase.FAILED}, changed_since=since)
    for job in failed:
        if job.run is None or job.explanation.reason is not Reason.RUN_ENDED:
            continue
        try:
            if runs.state(*job.run).state == "success" and _carried_now(ctx, job):
                runs.fail_run(*job.run)
                message = f"its run {job.run[1]} ended as a success; it was marked failed, as the job is."
                found.append(Difference(kind="run", subject=job.id, message=message))
        except FermionError as error:
            log.warning("the run of job %s was not corrected this time: %s", job.id, error)
    return found


def _carried_now(ctx: Context, job: Job) -> bool:
    """Whether it is still this job that its run carries; a cleared run trains again with another."""
    with ctx.store.read() as tx:
        newest = None if job.run is None else tx.jobs.by_run(*job.run)
    return newest is not None and newest.id == job.id


def _let_go(ctx: Context, job: Job, state: str) -> Difference | None:
    told = "its run is gone" if state == "absent" else f"its run ended ({state}) without releasing it"
    after = let_go(ctx, job.id, f"The sync found that {told}.")
    if after.version == job.version or after.phase not in (Phase.STOPPING, Phase.FAILED):
        return None  # it was on its way out already
    try:
        ctx.driver_of(job.spec.pool).workloads.stop(
            workload_name(after.id, after.attempt), grace=ctx.rules.policy(job.spec.pool).stop_grace, why=told
        )
    except FermionError as error:
        log.warning("the workload of job %s is ended later: %s", job.id, error)
    return Difference(kind="abandoned", subject=job.id, message=f"{told}; the job was {job.phase}.")


def reconcile(ctx: Context) -> Sequence[Difference]:
    """Compare leases with what runs and mend every difference: each is an event, none is silent.

    A cluster that does not answer keeps its leases and workloads until it does; nothing is concluded from its silence.
    """
    # Names first: a workload that is made later has a job that the rows below do not know yet.
    names = {cluster: _names(cluster, driver) for cluster, driver in sorted(ctx.drivers.items())}
    with ctx.store.read() as tx:
        open_jobs = {job.id: job for job in tx.jobs.find(phases=OPEN)}
        leases = [lease for lease in tx.leases.live() if lease.holder_kind is HolderKind.JOB]
    found: list[Difference] = []
    for lease in leases:
        if (difference := _reconcile_lease(ctx, lease, open_jobs.get(lease.holder_id))) is not None:
            found.append(difference)
    expected = {workload_name(job.id, job.attempt) for job in open_jobs.values()}
    for cluster, present in names.items():
        if present is not None:
            found += _reconcile_cluster(ctx, cluster, [name for name in present if name not in expected])
    if found:
        _record(ctx, found)
    return found


def _names(cluster: str, driver: Driver) -> Sequence[str] | None:
    try:
        return driver.workloads.names()
    except FermionError as error:
        log.warning("cluster %s is not reconciled this time: %s", cluster, error)
        return None


def _record(ctx: Context, found: Sequence[Difference]) -> None:
    with ctx.store.begin() as tx:
        for difference in found:
            tx.records.add_event(
                Event(
                    actor=PLATFORM,
                    verb=f"reconcile.{difference.kind}",
                    target=difference.subject,
                    at=ctx.clock.now(),
                    message=difference.message,
                )
            )


def _reconcile_lease(ctx: Context, lease: Lease, job: Job | None) -> Difference | None:
    """A live lease belongs to a job that holds GPUs with this very attempt; anything else is a leak."""
    if job is not None and job.phase in HOLDING and job.attempt == lease.attempt:
        return None
    try:
        return _mend_lease(ctx, lease)
    except FermionError as error:
        log.warning("lease %s is not reconciled this time: %s", lease.id, error)
        return None


def _mend_lease(ctx: Context, lease: Lease) -> Difference | None:
    workloads = ctx.driver_of(lease.pool).workloads
    name = workload_name(lease.holder_id, lease.attempt)
    seen = look(ctx, workloads, name)
    if not is_gone(seen):
        workloads.stop(name, grace=ctx.rules.policy(lease.pool).stop_grace, why="its job does not hold GPUs any more")
        return Difference(
            kind="ghost", subject=name, message="it runs, but its job has ended or moved on; it was asked to end."
        )
    if not _end_leaked(ctx, lease, seen):
        return None
    held = lease.to_seconds(ctx.clock.now())
    return Difference(
        kind="leak",
        subject=lease.id,
        message=f"{counted(lease.gpus, 'GPU')} of {lease.pool} {'was' if lease.gpus == 1 else 'were'} leased to {lease.holder_id} with nothing running ({held:.0f} GPU-seconds).",
    )


def _end_leaked(ctx: Context, lease: Lease, seen: Seen) -> bool:
    now = ctx.clock.now()
    with ctx.store.begin() as tx:
        if lease.expires_at < now and seen.exit is None:
            ended = tx.leases.end(end(lease, LeasePhase.EXPIRED, cause="expired", now=now))
        else:
            ended = end_lease(ctx, tx, lease, seen, cause="reconciled")
    if ended:
        ctx.store.notify("leases", lease.pool)
    return ended


def _reconcile_cluster(ctx: Context, cluster: str, unknown: Sequence[str]) -> list[Difference]:
    """End the workloads that no open job has, and processes that have no workload."""
    driver, found = ctx.drivers[cluster], []
    try:
        for name in unknown:
            if (difference := _end_stray(ctx, driver, name)) is not None:
                found.append(difference)
        orphans = driver.workloads.orphans()
        found += [Difference(kind="orphan", subject=orphan, message=ORPHAN_ENDED) for orphan in orphans]
        if orphans:
            driver.workloads.end_orphans()
    except FermionError as error:
        log.warning("cluster %s is not wholly reconciled this time: %s", cluster, error)
    return found


def _end_stray(ctx: Context, driver: Driver, name: str) -> Difference | None:
    """Forget an ended workload; end any other. One that runs needs its grace: a later round forgets it."""
    state = driver.workloads.look(name).state
    if state in GONE:
        driver.workloads.remove(name)
        return None
    why = "no open job has this workload"
    driver.workloads.stop(name, grace=ctx.rules.default_policy.stop_grace, why=why)
    return Difference(kind="stray", subject=name, message=f"{why}; it was {state} and was asked to end.")
