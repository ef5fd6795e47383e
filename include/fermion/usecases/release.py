"""Leave nothing behind: the workload gone, the lease closed, the job ended. The teardown of every run."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic, sleep

from fermion.domain.jobs import Job, Phase
from fermion.domain.leases import HolderKind
from fermion.domain.watching import abandon
from fermion.domain.workloads import Seen, workload_name
from fermion.errors import OutsideUnavailable
from fermion.usecases.admit import admit
from fermion.usecases.context import Context
from fermion.usecases.moving import load, write_move
from fermion.usecases.tend import GONE, Tender, end_lease

_ABANDONED = {
    Phase.SUBMITTED: "The run ended before the request was checked.",
    Phase.STAGING: "The run ended while image, data or code were being fetched.",
    Phase.WAITING: "The run ended while the job waited for GPUs.",
    Phase.STARTING: "The run ended while the training was starting; its workload was ended.",
    Phase.RUNNING: "The run ended while the training was running; its workload was ended.",
    Phase.SAVING: "The run ended before the model was published.",
}


def release(ctx: Context, job_id: str, *, why: str = "", patience: timedelta = timedelta(seconds=45)) -> Job:
    """The job as it ended, with no workload alive and no lease held. Repeating it changes nothing.

    A job that the run leaves unfinished is ended here: ``why`` (the failed task's words) joins its explanation.

    Raises:
        OutsideUnavailable: the workload could not be seen gone within ``patience``; the lease stays, the sync goes on.
    """
    tender = Tender(ctx)
    _abandon(ctx, tender.look_after(job_id), why)
    with ctx.store.read() as tx:
        job = load(tx, job_id)
    seen = _end_workload(ctx, job, patience)
    if not job.is_final:
        job = tender.look_after(job_id)
    _end_leases(ctx, job, seen)
    driver = ctx.driver_of(job.spec.pool)
    for attempt in range(1, job.attempt + 1):
        driver.workloads.remove(workload_name(job.id, attempt))
    admit(ctx)
    return job


def _abandon(ctx: Context, job: Job, why: str) -> None:
    """Write that an unfinished job is to end, before anything is done to its workload: so its end is read rightly."""
    while (move := abandon(job, f"{_ABANDONED.get(job.phase, 'The run ended.')} {why}".strip())) is not None:
        with ctx.store.begin() as tx:
            if write_move(ctx, tx, job, move) is not None:
                return
            job = load(tx, job.id)


def _end_workload(ctx: Context, job: Job, patience: timedelta) -> Seen:
    """The workload, seen gone."""
    workloads = ctx.driver_of(job.spec.pool).workloads
    name = workload_name(job.id, job.attempt)
    deadline = monotonic() + patience.total_seconds()
    seen = workloads.look(name)
    if seen.state not in GONE:
        workloads.stop(name, grace=ctx.rules.policy(job.spec.pool).stop_grace, why="the run ended")
    while seen.state not in GONE:
        if monotonic() > deadline:
            raise OutsideUnavailable(
                f"workload {name} is still {seen.state} {patience.total_seconds():.0f} s after it was asked to end;"
                " its GPUs stay leased until it is seen gone.",
                what=name,
            )
        sleep(0.1)
        seen = workloads.look(name)
    return seen


def _end_leases(ctx: Context, job: Job, seen: Seen) -> None:
    """Close what is left: normally nothing, because a lease ends together with the move of its job."""
    with ctx.store.begin() as tx:
        live = tx.leases.of_holder(HolderKind.JOB, job.id, live_only=True)
        for lease in live:
            end_lease(ctx, tx, lease, seen if lease.attempt == job.attempt else None, cause=str(job.explanation.reason))
    if live:
        ctx.store.notify("leases", job.spec.pool)
