"""The line: what one waiting job asks of its pool, and what is promised to the head of the line. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from fermion.domain.jobs import Job, Phase
from fermion.domain.pools import PoolPolicy

ASSUMED_RUNTIME = timedelta(hours=1)
"""What a job without ``max_runtime`` is taken to run when its owner's next job is put in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One job in line. ``max_runtime`` is None when nobody knows how long it runs: then it cannot be backfilled.

    ``staged`` tells whether it could start now; a job that still stages keeps its place and blocks nobody. One that does
    not ``preempts`` waits for what is free, whatever its priority. ``gpus`` (in all) and ``gpu_seconds`` (of a whole run)
    follow from the rest: every round asks for them, of every job.
    """

    job_id: str
    owner: str
    team: str
    pool: str
    queued_at: datetime
    nodes: int = 1
    gpus_per_node: int = 1
    priority: int = 0
    preemptible: bool = True
    preempts: bool = True
    staged: bool = True
    max_runtime: timedelta | None = None
    excluded_nodes: tuple[str, ...] = ()
    gpus: int = field(init=False, compare=False, repr=False)
    gpu_seconds: float = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        gpus = self.nodes * self.gpus_per_node
        object.__setattr__(self, "gpus", gpus)
        object.__setattr__(self, "gpu_seconds", gpus * (self.max_runtime or ASSUMED_RUNTIME).total_seconds())

    def ends_by(self, now: datetime) -> datetime | None:
        """When it has ended for sure if it starts at ``now``; None where unknown."""
        return None if self.max_runtime is None else now + self.max_runtime


def waiting_of(job: Job, policy: PoolPolicy | None = None) -> Waiting:
    """The job as it stands in line. The pool's ``max_runtime`` holds where the job asks for none, or for more."""
    spec = job.spec
    limits = [limit for limit in (spec.max_runtime, policy.max_runtime if policy else None) if limit is not None]
    return Waiting(
        job_id=job.id,
        owner=spec.owner,
        team=spec.team,
        pool=spec.pool,
        queued_at=job.queued_at or job.submitted_at,
        nodes=spec.nodes,
        gpus_per_node=spec.gpus_per_node,
        priority=spec.priority,
        preemptible=spec.preemptible,
        staged=job.phase is Phase.WAITING,
        max_runtime=min(limits, default=None),
        excluded_nodes=job.excluded_nodes,
    )


class ReservedFor(StrEnum):
    """Why GPUs are kept for a job that cannot start yet."""

    HEAD = "head"  # first of its line and waiting longer than the grace time
    PREEMPTION = "preemption"  # running jobs were asked to end for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The GPUs and time promised to a waiting job: ``gpus_per_node`` on each of ``nodes`` from ``starts_by`` on.

    ``starts_by`` is None where a lease in the way has no known end. Keep it between rounds: it makes the promise hold
    against jobs that come later; its time moves back only for a higher priority, or when a node goes.
    """

    job_id: str
    pool: str
    nodes: tuple[str, ...]
    gpus_per_node: int
    starts_by: datetime | None
    made_at: datetime
    why: ReservedFor = ReservedFor.HEAD
