"""Write the report of a job, whatever became of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from fermion.domain.figures import Figure, Method
from fermion.domain.jobs import Job
from fermion.domain.leases import HolderKind, Lease
from fermion.domain.records import MetricPoint
from fermion.domain.report import Report, build_report
from fermion.domain.workloads import workload_name
from fermion.errors import FermionError
from fermion.usecases.context import Context
from fermion.usecases.moving import load

log = logging.getLogger(__name__)

LOG_TAIL_BYTES = 16 * 1024
LOG_PIECE_BYTES = 1024 * 1024
LOG_PIECES = 1024
"""How many pieces of a log are read at most to find its end; drivers keep far less of one."""


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
        figures=_exit_figures(job, points, leases),
        log_tail=_log_tail(ctx, job),
    )


def _log_tail(ctx: Context, job: Job) -> str:
    """The end of the last attempt's log; empty where the cluster cannot tell it now, which must not cost the report."""
    name, offset, text = workload_name(job.id, job.attempt), 0, ""
    try:
        workloads = ctx.driver_of(job.spec.pool).workloads
        for _ in range(LOG_PIECES):
            chunk = workloads.log(name, offset=offset, limit=LOG_PIECE_BYTES)
            text = (text + chunk.text)[-LOG_TAIL_BYTES:]
            if chunk.at_end or chunk.next_offset == offset:
                break
            offset = chunk.next_offset
    except FermionError as error:
        log.warning("the log of %s is not in its report: %s", job.id, error)
    return text


def _exit_figures(job: Job, points: Sequence[MetricPoint], leases: Sequence[Lease]) -> dict[str, Figure]:
    """What the last attempt's exit record said, and the mean CPU that follows from it; nothing where it left none."""
    units = {"peak_memory": "mib", "cpu_time": "seconds"}
    said = {
        point.name: Figure(
            value=point.value,
            unit=units[point.name],
            source="exit record",
            method=Method.MEASURED,
            observed_at=point.at,
        )
        for point in points
        if point.kind == "exit" and point.attempt == job.attempt and point.name in units
    }
    ran_s = next((_ran_s(lease) for lease in leases if lease.attempt == job.attempt), None)
    return {**said, **_mean_cores(said.get("cpu_time"), ran_s)}


def _ran_s(lease: Lease) -> float | None:
    """How long the attempt's process lived, by its exit record."""
    if lease.exec_at is None or lease.exit_at is None:
        return None
    return (lease.exit_at - lease.exec_at).total_seconds()


def _mean_cores(cpu_time: Figure | None, ran_s: float | None) -> dict[str, Figure]:
    """Over all of the process' life: samples, one a second, say little of a short one."""
    if cpu_time is None or not isinstance(cpu_time.value, float) or not ran_s:
        return {}
    source = f"exit record: {cpu_time.value:.2f} s of CPU / {ran_s:.2f} s from exec to exit"
    mean = replace(cpu_time, value=cpu_time.value / ran_s, unit="cores", source=source, method=Method.DERIVED)
    return {"cpu_cores_mean": mean}
