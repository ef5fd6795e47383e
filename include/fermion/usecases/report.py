"""Write the report of a job, whatever became of it."""

from __future__ import annotations

from fermion.domain.figures import Figure, Method
from fermion.domain.jobs import Job
from fermion.domain.leases import HolderKind
from fermion.domain.report import Report, build_report
from fermion.domain.workloads import workload_name
from fermion.usecases.context import Context
from fermion.usecases.moving import load

LOG_TAIL_BYTES = 16 * 1024


def write_report(ctx: Context, job_id: str) -> str:
    """The location of the report's page; written again it is replaced."""
    page, _ = ctx.reports.write(compose_report(ctx, job_id))
    return page


def compose_report(ctx: Context, job_id: str) -> Report:
    """The report from the rows as they are now."""
    with ctx.store.read() as tx:
        job = load(tx, job_id)
        leases = tx.leases.of_holder(HolderKind.JOB, job_id)
        spans = tx.records.spans(job_id)
        points = tx.records.points(job_id)
        decisions = tx.records.decisions(subject=job_id, limit=1000)
        pool = ctx.pools(tx).get(job.spec.pool)
    model = None if job.model_version is None else ctx.models.get(job.spec.output_model, job.model_version)
    return build_report(
        job,
        leases=leases,
        spans=spans,
        points=points,
        decisions=decisions,
        now=ctx.clock.now(),
        model=model,
        pool=pool,
        figures=_exit_figures(ctx, job),
        log_tail=_log_tail(ctx, job),
    )


def _log_tail(ctx: Context, job: Job) -> str:
    workloads = ctx.driver_of(job.spec.pool).workloads if job.spec.pool.split("/", 1)[0] in ctx.drivers else None
    if workloads is None:
        return ""
    name, offset, text = workload_name(job.id, job.attempt), 0, ""
    while True:
        chunk = workloads.log(name, offset=offset, limit=1024 * 1024)
        text = (text + chunk.text)[-LOG_TAIL_BYTES:]
        if chunk.at_end or chunk.next_offset == offset:
            return text
        offset = chunk.next_offset


def _exit_figures(ctx: Context, job: Job) -> dict[str, Figure]:
    """What only the exit record knows; the workload may have been removed already, then nothing."""
    if job.spec.pool.split("/", 1)[0] not in ctx.drivers:
        return {}
    record = ctx.driver_of(job.spec.pool).workloads.look(workload_name(job.id, job.attempt)).exit
    if record is None:
        return {}
    measured = {"peak_memory": (record.max_rss_mib, "mib"), "cpu_time": (record.cpu_seconds, "seconds")}
    return {
        name: Figure(value=value, unit=unit, source="exit record", method=Method.MEASURED, observed_at=record.exit_at)
        for name, (value, unit) in measured.items()
        if value is not None
    }
