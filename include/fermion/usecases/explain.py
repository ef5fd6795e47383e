"""Say why a job is where it is, with the numbers of this moment."""

from __future__ import annotations

from fermion.domain.admission import decide
from fermion.domain.jobs import IN_LINE, Job
from fermion.domain.reasons import Explanation
from fermion.usecases.admit import group_pools, recall, take_snapshot, without_pool
from fermion.usecases.context import Context
from fermion.usecases.lines import read_line
from fermion.usecases.moving import load


def explain(ctx: Context, job_id: str) -> dict[str, object]:
    """Reason, sentence and numbers, JSON-ready. For a job in line they are computed now; nothing is changed.

    Raises:
        NotFound: no such job.
    """
    with ctx.store.read() as tx:
        job = load(tx, job_id)
    explanation = _in_line(ctx, job) if job.phase in IN_LINE else job.explanation
    return {
        "job": job.id,
        "status": str(job.status),
        "phase": str(job.phase),
        "reason": str(explanation.reason),
        "message": explanation.message,
        "numbers": dict(explanation.numbers),
    }


def _in_line(ctx: Context, job: Job) -> Explanation:
    with ctx.store.read() as tx:
        groups = group_pools(ctx.pools(tx), {job.spec.pool})
        now = ctx.clock.now()
        for cohort, pools in groups.items():
            line = read_line(ctx, tx, pools, now)
            if job.id in line.places:
                snapshot = take_snapshot(tx, pools, line.waiting, recall(tx, cohort), now)
                return decide(snapshot, now).explain(job.id)
            job = load(tx, job.id)
            return job.explanation
    return without_pool(job, now)
