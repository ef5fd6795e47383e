"""Say why a job is where it is, with the numbers of this moment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from fermion.domain.admission import decide
from fermion.domain.forecast import Forecast, expected_starts
from fermion.domain.jobs import HOLDING, IN_LINE, Job
from fermion.domain.leases import HolderKind, Lease
from fermion.domain.payloads import to_payload
from fermion.domain.reasons import Explanation
from fermion.domain.running import expected_end, numbers_of
from fermion.domain.watching import last_failure, runtime_limit, with_failure
from fermion.ports import Transaction
from fermion.usecases.admit import group_pools, recall, take_snapshot, without_pool
from fermion.usecases.context import Context
from fermion.usecases.failing import failure_payload
from fermion.usecases.lines import read_line
from fermion.usecases.moving import load

HISTORY = timedelta(days=30)
"""How far back run times are taken from for the expected start."""


def explain(ctx: Context, job_id: str) -> dict[str, object]:
    """Reason, sentence, numbers and expected start, JSON-ready. For a job in line they are computed now; nothing is changed.
    Of a job that holds GPUs the numbers tell since when, how far it is, and when it should end.

    ``expected_start`` holds ``p50`` and ``p90`` as times, or a ``reason`` why nobody can tell; None for a job not in line.
    ``last_failure`` is the last failed try of the stage that the job is in, and what is known of the next; None when none failed.

    Raises:
        NotFound: no such job.
    """
    with ctx.store.read() as tx:
        job = load(tx, job_id)
        leases = tx.leases.of_holder(HolderKind.JOB, job_id, live_only=True)
        failed = last_failure(job, tx.records.spans(job_id))
    explanation, forecast = _in_line(ctx, job) if job.phase in IN_LINE else (job.explanation, None)
    failure = None if failed is None else failure_payload(ctx, job, failed)
    message = with_failure(explanation.message, failed)
    return {
        "job": job.id,
        "status": str(job.status),
        "phase": str(job.phase),
        "reason": str(explanation.reason),
        "message": f"{message} {failure['next_try']}" if failure and failure["next_try"] else message,
        "numbers": {**explanation.numbers, **_running(ctx, job, leases)},
        "last_failure": failure,
        "expected_start": None if forecast is None else to_payload(forecast),
    }


def _running(ctx: Context, job: Job, leases: Sequence[Lease]) -> dict[str, object]:
    held = [lease for lease in leases if lease.attempt == job.attempt]
    if job.phase not in HOLDING or not held:
        return {}
    limit = runtime_limit(job, ctx.rules.policy(job.spec.pool))
    return numbers_of(job, held[-1], limit=limit, now=ctx.clock.now())


def _in_line(ctx: Context, job: Job) -> tuple[Explanation, Forecast | None]:
    """The reason, and when the job is expected to start by a simulation of the line on past run times."""
    with ctx.store.read() as tx:
        groups = group_pools(ctx.pools(tx), {job.spec.pool})
        now = ctx.clock.now()
        for cohort, pools in groups.items():
            line = read_line(ctx, tx, pools, now)
            if job.id in line.places:
                snapshot = take_snapshot(tx, pools, line.waiting, recall(tx, cohort), now)
                ended = [lease for lease in tx.leases.overlapping(now - HISTORY) if not lease.is_live]
                history = [lease for lease in ended if any(lease.pool == pool.id for pool in pools)]
                forecasts = expected_starts(snapshot, history=history, now=now, paced=_paced(tx, snapshot.leases))
                return decide(snapshot, now).explain(job.id), forecasts.get(job.id)
            return load(tx, job.id).explanation, None
    return without_pool(job, now), None


def _paced(tx: Transaction, leases: Sequence[Lease]) -> dict[str, datetime]:
    """When leases should end by the progress of their jobs, where that tells."""
    jobs = {(job.id, job.attempt): job for job in tx.jobs.find(phases=HOLDING)}
    found: dict[str, datetime] = {}
    for lease in leases:
        job = jobs.get((lease.holder_id, lease.attempt)) if lease.holder_kind is HolderKind.JOB else None
        end = None if job is None else expected_end(job, lease.exec_at)
        if end is not None:
            found[lease.id] = end if lease.ends_by is None else min(end, lease.ends_by)
    return found
