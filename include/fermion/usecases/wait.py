"""Prepare a job's workload and give it a moment to be granted."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic

from fermion.domain.jobs import Job
from fermion.usecases.admit import admit_safely
from fermion.usecases.context import Context
from fermion.usecases.moving import load
from fermion.usecases.prepare import prepare


def wait_for_grant(ctx: Context, job_id: str, *, patience: timedelta) -> Job:
    """The job as it is once it does not wait any more, or after ``patience``."""
    job = prepare(ctx, job_id)
    deadline = monotonic() + patience.total_seconds()
    while job.is_waiting:
        admit_safely(ctx)
        with ctx.store.read() as tx:
            job = load(tx, job_id)
        left = deadline - monotonic()
        if left <= 0 or not job.is_waiting:
            break
        ctx.store.wait(["leases"], timedelta(seconds=min(left, 0.5)))
    return job
