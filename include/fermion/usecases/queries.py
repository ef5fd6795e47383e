"""What can be asked about the platform's state. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from fermion.domain.artifacts import ModelVersion
from fermion.domain.figures import Figure, Method
from fermion.domain.jobs import IN_LINE, Job
from fermion.domain.leases import HolderKind, Lease
from fermion.domain.model_names import problems_of
from fermion.domain.pools import Pool
from fermion.errors import NotFound
from fermion.usecases.context import Context
from fermion.usecases.moving import load


def job_of_run(ctx: Context, dag_id: str, run_id: str) -> Job:
    """The job that a run carries.

    Raises:
        NotFound: the run carries none.
    """
    with ctx.store.read() as tx:
        job = tx.jobs.by_run(dag_id, run_id)
    if job is None:
        raise NotFound(
            f"run {run_id!r} of {dag_id} carries no job: its request was refused before one was made.", what="job"
        )
    return job


def job_by_id(ctx: Context, job_id: str) -> Job:
    """One job.

    Raises:
        NotFound: no job has this id.
    """
    with ctx.store.read() as tx:
        return load(tx, job_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """A pool with what its live leases and its line say of it."""

    pool: Pool
    leases: Sequence[Lease]
    waiting: int
    figures: dict[str, Figure]


def pool_states(ctx: Context) -> Sequence[PoolState]:
    """Every pool with its figures: capacity, allocated, free, waiting."""
    with ctx.store.read() as tx:
        pools = ctx.pools(tx)
        leases = tx.leases.live()
        line = tx.jobs.find(phases=IN_LINE)
    return [
        _pool_state(
            pool,
            [lease for lease in leases if lease.pool == pool.id],
            sum(job.spec.pool == pool.id for job in line),
            ctx.clock.now(),
        )
        for pool in pools.values()
    ]


def _pool_state(pool: Pool, leases: Sequence[Lease], waiting: int, now: datetime) -> PoolState:
    allocated = sum(lease.gpus for lease in leases)
    seen_at = max((node.observed_at for node in pool.nodes), default=now)

    def derived(value: int, unit: str, source: str) -> Figure:
        return Figure(value=value, unit=unit, source=source, method=Method.DERIVED, observed_at=now)

    figures = {
        "capacity": Figure(
            value=pool.capacity, unit="gpus", source="nodes as last seen", method=pool.method, observed_at=seen_at
        ),
        "allocated": derived(allocated, "gpus", "live leases"),
        "free": derived(pool.capacity - allocated, "gpus", "capacity - live leases"),
        "waiting": derived(waiting, "jobs", "jobs in line"),
    }
    return PoolState(pool=pool, leases=leases, waiting=waiting, figures=figures)


def leases_of(ctx: Context, job_id: str) -> Sequence[Lease]:
    """Every lease that a job held, oldest first."""
    with ctx.store.read() as tx:
        return tx.leases.of_holder(HolderKind.JOB, job_id)


def report_page(ctx: Context, job_id: str) -> str:
    """The page of a job's report, as HTML.

    Raises:
        NotFound: none was written.
    """
    page = ctx.reports.page(job_id)
    if page is None:
        raise NotFound(f"job {job_id!r} has no report: one is written when its run ends.", what="report")
    return page


def model_version(ctx: Context, model: str, number: int) -> ModelVersion:
    """One published version.

    Raises:
        NotFound: there is none.
    """
    found = None if problems_of(model) else ctx.models.get(model, number)
    if found is None:
        raise NotFound(f"there is no model version {model}/{number}; `fermion models` lists them.", what="model")
    return found
