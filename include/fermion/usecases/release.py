"""Leave nothing behind: the workload gone, the lease closed, the job ended. The teardown of every run."""

from __future__ import annotations

import logging
from datetime import timedelta
from time import monotonic, sleep

from fermion.domain.jobs import HOLDING, Job, Phase
from fermion.domain.leases import HolderKind
from fermion.domain.watching import abandon, last_failure
from fermion.domain.workloads import Seen, workload_name
from fermion.errors import FermionError, OutsideUnavailable
from fermion.ports import Transaction
from fermion.usecases.admit import admit_safely
from fermion.usecases.context import Context
from fermion.usecases.moving import load, settle, write_move
from fermion.usecases.seeing import is_gone, look
from fermion.usecases.tend import Tender, end_lease

log = logging.getLogger(__name__)

STEPS = 10
"""How often a job that others move on meanwhile is let go of again."""

_ABANDONED = {
    Phase.SUBMITTED: "The run ended before the job joined the line.",
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
    tender, deadline = Tender(ctx), monotonic() + patience.total_seconds()
    _catch_up(tender, job_id)
    for _ in range(STEPS):
        job = let_go(ctx, job_id, why)
        seen = [_end_workload(ctx, job, attempt, deadline) for attempt in range(1, job.attempt + 1)]
        if job.phase in HOLDING:
            job = tender.look_after(job_id)  # a victim of a preemption may be in line again now
        if job.is_final:
            break
    else:
        raise OutsideUnavailable(f"job {job_id} is still {job.phase} after {STEPS} steps; ask again.", what=job_id)
    _end_leases(ctx, job, seen)
    workloads = ctx.driver_of(job.spec.pool).workloads
    for gone in seen:
        workloads.remove(gone.name)
    admit_safely(ctx)
    return job


def _catch_up(tender: Tender, job_id: str) -> None:
    """Let a training that ended by itself just now be read as that, before it is written that its run ended."""
    with tender.ctx.store.read() as tx:
        job = load(tx, job_id)
    if job.phase not in HOLDING:
        return
    try:
        tender.look_after(job_id)
    except FermionError as error:
        log.warning("job %s is let go of without a last look: %s", job_id, error)


def let_go(ctx: Context, job_id: str, why: str = "") -> Job:
    """The job after it was written that it is to end; one that has ended, or is on its way out, as it is.

    Written before anything is done to its workload: so the workload's end is read rightly, whoever sees it.
    """

    def write(tx: Transaction, job: Job) -> Job | None:
        message = f"{_ABANDONED.get(job.phase, 'The run ended.')} {why}".strip()
        move = abandon(job, message, failed=last_failure(job, tx.records.spans(job_id)))
        return job if move is None else write_move(ctx, tx, job, move)

    return settle(ctx, job_id, write)


def _end_workload(ctx: Context, job: Job, attempt: int, deadline: float) -> Seen:
    """One attempt's workload, seen gone."""
    workloads = ctx.driver_of(job.spec.pool).workloads
    name = workload_name(job.id, attempt)
    seen = look(ctx, workloads, name)
    if not is_gone(seen):
        workloads.stop(name, grace=ctx.rules.policy(job.spec.pool).stop_grace, why="the run ended")
        seen = look(ctx, workloads, name)
    while not is_gone(seen):
        if monotonic() > deadline:
            raise OutsideUnavailable(
                f"workload {name} is still {seen.state} after it was asked to end and waited for;"
                " its GPUs stay leased until it is seen gone.",
                what=name,
            )
        sleep(0.1)
        seen = look(ctx, workloads, name)
    return seen


def _end_leases(ctx: Context, job: Job, seen: list[Seen]) -> None:
    """Close what is left: normally nothing, because a lease ends together with the move of its job."""
    by_name = {each.name: each for each in seen}
    with ctx.store.begin() as tx:
        live = tx.leases.of_holder(HolderKind.JOB, job.id, live_only=True)
        for lease in live:
            found = by_name.get(workload_name(job.id, lease.attempt))
            end_lease(ctx, tx, lease, found, cause=str(job.explanation.reason))
    if live:
        ctx.store.notify("leases", job.spec.pool)
