"""Leave nothing behind: the workload gone, the lease closed, the job ended. The teardown of every run."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic, sleep

from fermion.domain.jobs import HOLDING, Job, Move, Phase
from fermion.domain.leases import HolderKind
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.workloads import Seen, workload_name
from fermion.errors import OutsideUnavailable
from fermion.usecases.admit import admit
from fermion.usecases.context import Context
from fermion.usecases.moving import load, write_move
from fermion.usecases.tend import GONE, Tender, end_lease

_ABANDONED = {
    Phase.SUBMITTED: (Reason.RUN_ENDED, "The run ended before the request was checked."),
    Phase.STAGING: (Reason.STAGING_FAILED, "The run ended while image, data or code were being fetched."),
    Phase.WAITING: (Reason.RUN_ENDED, "The run ended while the job waited for GPUs."),
    Phase.SAVING: (Reason.SAVE_FAILED, "The run ended before the model was published."),
}


def release(ctx: Context, job_id: str, *, why: str = "", patience: timedelta = timedelta(seconds=45)) -> Job:
    """The job as it ended, with no workload alive and no lease held. Repeating it changes nothing.

    A job that the run leaves unfinished is ended here: ``why`` (the failed task's words) joins its explanation.

    Raises:
        OutsideUnavailable: the workload could not be seen gone within ``patience``; the lease stays, the sync goes on.
    """
    with ctx.store.read() as tx:
        job = load(tx, job_id)
    seen = _end_workload(ctx, job, patience)
    job = _end_job(ctx, job_id, why)
    _end_leases(ctx, job, seen)
    driver = ctx.driver_of(job.spec.pool)
    for attempt in range(1, job.attempt + 1):
        driver.workloads.remove(workload_name(job.id, attempt))
    admit(ctx)
    return job


def _end_workload(ctx: Context, job: Job, patience: timedelta) -> Seen:
    """The workload, seen gone. One that ended by itself is first let to tell how."""
    workloads = ctx.driver_of(job.spec.pool).workloads
    name = workload_name(job.id, job.attempt)
    if job.phase in HOLDING:
        Tender(ctx).round()
    deadline = monotonic() + patience.total_seconds()
    grace = ctx.rules.policy(job.spec.pool).stop_grace
    seen = workloads.look(name)
    if seen.state not in GONE:
        workloads.stop(name, grace=grace, why="the run ended")
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


def _end_job(ctx: Context, job_id: str, why: str) -> Job:
    while True:
        with ctx.store.begin() as tx:
            job = load(tx, job_id)
            if job.is_final:
                return job
            moved = write_move(ctx, tx, job, _abandon(job, why))
            if moved is not None:
                return moved


def _abandon(job: Job, why: str) -> Move:
    if job.stop_requested_at is not None:
        return Move(to=Phase.FAILED, explanation=Explanation(Reason.STOPPED, f"Stopped by {job.stop_requested_by}."))
    reason, message = _ABANDONED.get(
        job.phase, (Reason.RUN_ENDED, f"The run ended while the job was {job.phase}; its workload was ended.")
    )
    return Move(to=Phase.FAILED, explanation=Explanation(reason, f"{message} {why}".strip()))


def _end_leases(ctx: Context, job: Job, seen: Seen) -> None:
    with ctx.store.begin() as tx:
        live = tx.leases.of_holder(HolderKind.JOB, job.id, live_only=True)
        for lease in live:
            end_lease(ctx, tx, lease, seen if lease.attempt == job.attempt else None, cause=str(job.explanation.reason))
    if live:
        ctx.store.notify("leases", job.spec.pool)
