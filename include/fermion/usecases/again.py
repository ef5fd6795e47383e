"""Train again within a run: a run that is cleared carries a new job after the ended one."""

from __future__ import annotations

from fermion.domain.jobs import Job, Phase
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Event
from fermion.usecases.context import Context
from fermion.usecases.moving import PLATFORM, load


def train_again(ctx: Context, job_id: str, *, actor: str = PLATFORM) -> Job:
    """The job that follows an ended one in its run: the same request with the same pins, from scratch.

    The run carries an open job already (this one, or one that followed it): that one is answered.

    Raises:
        NotFound: no such job.
    """
    with ctx.store.begin() as tx:
        ended = load(tx, job_id)
        if not ended.is_final or ended.run is None:
            return ended
        now = ctx.clock.now()
        job = Job(
            id=tx.jobs.new_id(now.date()),
            spec=ended.spec,
            phase=Phase.SUBMITTED,
            explanation=Explanation(Reason.CHECKING, f"Its run was cleared after {ended.id} ended; it trains again."),
            submitted_at=now,
            changed_at=now,
            run=ended.run,
            pins=ended.pins,
            restart_of=ended.id,
        )
        if not tx.jobs.add(job):
            return tx.jobs.by_run(*ended.run) or ended
        tx.records.add_event(
            Event(actor=actor, verb="job.submitted", target=job.id, at=now, message=f"again after {ended.id}")
        )
        return job


def follows_in_its_run(ctx: Context, job: Job) -> bool:
    """Whether the job is one that its cleared run carries after another: which of the run's tasks run again is not known."""
    if job.restart_of is None:
        return False
    with ctx.store.read() as tx:
        before = tx.jobs.get(job.restart_of)
    return before is not None and before.run == job.run


def was_staged(ctx: Context, job_id: str) -> bool:
    """Whether a run has already begun to fetch the job's image, data or code."""
    with ctx.store.read() as tx:
        return any(span.stage != "check_quota" for span in tx.records.spans(job_id))
