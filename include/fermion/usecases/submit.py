"""Record a training job under an id, once per run. A request that cannot be recorded is answered with all of its problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fermion.domain.jobs import Job, JobSpec, Phase
from fermion.domain.problems import Problem
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Event
from fermion.domain.request import Reading, read_request, same_request
from fermion.errors import OutsideUnavailable, RequestRefused
from fermion.ports import Transaction
from fermion.usecases.context import Context
from fermion.usecases.examine import examine


def submit(
    ctx: Context,
    raw: Mapping[str, object],
    *,
    dag_id: str,
    run_id: str | None,
    actor: str,
    restart_of: str | None = None,
) -> Job:
    """The job of this run: made now, or found when the run submitted it before. Without a run id the job's id is the run's.

    The owner is always ``actor``, whatever the request says: nobody asks in another's name.

    Raises:
        RequestRefused: the request does not read as a job, or the run carries another request already; all problems are
            listed, also those of its names that were looked up.
    """
    asked = read_request(raw).owned_by(actor)
    if asked.problems:
        carried = _carried(ctx, dag_id, run_id)
        raise _refusal(ctx, asked, [_other_request(run_id, carried)] if carried else [])
    spec = asked.spec()
    # A run may carry several jobs, one after the other: only under a lock of its own is "has it none?" still true at the insert.
    with ctx.store.begin(exclusive=None if run_id is None else f"run:{dag_id}/{run_id}") as tx:
        found = tx.jobs.by_run(dag_id, run_id) if run_id is not None else None
        if found is None:
            job = _new_job(ctx, tx, spec, dag_id, run_id, restart_of)
            if tx.jobs.add(job):
                tx.records.add_event(
                    Event(
                        actor=actor,
                        verb="job.submitted",
                        target=job.id,
                        at=job.submitted_at,
                        message=f"{spec.name} on {spec.pool}",
                    )
                )
                return job
            found = tx.jobs.by_run(dag_id, run_id or job.id)
    if found is None or not same_request(found.spec, replace(spec, owner=found.spec.owner)):
        raise _refusal(ctx, asked, [_other_request(run_id, found)])
    return found


def _carried(ctx: Context, dag_id: str, run_id: str | None) -> Job | None:
    """The job that the run carries; None also while the store does not answer, which is no reason to hide a refusal."""
    try:
        with ctx.store.read() as tx:
            return tx.jobs.by_run(dag_id, run_id) if run_id is not None else None
    except OutsideUnavailable:
        return None


def _refusal(ctx: Context, asked: Reading, known: Sequence[Problem]) -> RequestRefused:
    return RequestRefused(examine(ctx, asked, known=known).problems, what="training request")


def _new_job(
    ctx: Context, tx: Transaction, spec: JobSpec, dag_id: str, run_id: str | None, restart_of: str | None
) -> Job:
    now = ctx.clock.now()
    job_id = tx.jobs.new_id(now.date())
    return Job(
        id=job_id,
        spec=spec,
        phase=Phase.SUBMITTED,
        explanation=Explanation(Reason.CHECKING, "The request is being checked."),
        submitted_at=now,
        changed_at=now,
        run=(dag_id, run_id or job_id),
        restart_of=restart_of,
    )


def _other_request(run_id: str | None, carried: Job | None) -> Problem:
    holder = f"job {carried.id}" if carried else "another job"
    return Problem(
        field="run_id",
        code="run_id_taken",
        message=f"run {run_id!r} already carries {holder} with another request.",
        fix="Use a new run id for a new request.",
    )
