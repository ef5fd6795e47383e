"""Ask a job to end, and start one again."""

from __future__ import annotations

from dataclasses import replace

from fermion.domain.jobs import Job
from fermion.domain.records import Event
from fermion.domain.request import to_payload
from fermion.errors import Conflict
from fermion.ports import Transaction
from fermion.usecases.context import Context
from fermion.usecases.moving import load, settle


def request_stop(ctx: Context, job_id: str, *, actor: str) -> Job:
    """Store the wish; whoever tends the job carries it out. An ended job stays as it is.

    Raises:
        NotFound: no such job.
    """

    def write(tx: Transaction, job: Job) -> Job | None:
        if job.is_final or job.stop_requested_at is not None:
            return job
        now = ctx.clock.now()
        asked = tx.jobs.save(replace(job, stop_requested_at=now, stop_requested_by=actor))
        if asked is not None:
            tx.records.add_event(Event(actor=actor, verb="job.stop_requested", target=job_id, at=now))
        return asked

    return settle(ctx, job_id, write)


def restart_request(ctx: Context, job_id: str, *, resume: bool) -> dict[str, object]:
    """The request that starts the job again, from scratch or from its last checkpoint; its code stays pinned to the commit.

    Raises:
        NotFound: no such job.
        Conflict: it has not ended.
    """
    with ctx.store.read() as tx:
        job = load(tx, job_id)
    if not job.is_final:
        raise Conflict(f"job {job_id} is {job.status} ({job.phase}); stop it first: fermion stop {job_id}", what="job")
    request = to_payload(job.spec)
    if job.pins is not None:
        request["ref"] = job.pins.commit
    request["checkpoint"] = job_id if resume else None
    return request
