"""Kueue's published load, and a cluster in memory to put it on.

5 cohorts of 6 queues; each queue has 20 GPUs nominal and may borrow 100; its jobs come in three classes of rising
priority. Here a cohort is one pool of 120 GPUs and a queue is one team's quota in it. Kueue's load places nothing on
nodes, so a pool is one node and placement refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fermion.domain.figures import Method
from fermion.domain.jobs import Job, JobSpec, Phase, Pins
from fermion.domain.pools import Device, Node, PoolPolicy, TeamQuota
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.workloads import WorkloadSpec, workload_name
from fermion.ports import Clock

CLUSTER = "bench"
QUEUES = 6
NOMINAL = 20
BORROWING = 100
CAPACITY_BOUND_S = 66.0
"""GPU-seconds of one queue's jobs (1,320) over its nominal GPUs: no order of starts can be faster."""

KUEUE_S = 351.0
"""What Kueue's own published run needs."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One class of jobs: ``count`` of them in each queue, one each ``every_s``."""

    name: str
    count: int
    gpus: int
    runs_s: float
    every_s: float
    priority: int


KINDS = (
    Kind("small", 350, 1, 0.2, 0.1, 50),
    Kind("medium", 100, 5, 0.5, 0.5, 100),
    Kind("large", 50, 20, 1.0, 1.2, 200),
)


@dataclass(frozen=True, slots=True)
class Coming:
    """A job that comes ``at_ms`` after the start and runs for ``runs_ms``."""

    at_ms: int
    runs_ms: int
    job_id: str
    spec: JobSpec


def pool_id(cohort: int) -> str:
    """The pool of a cohort."""
    return f"{CLUSTER}/cohort-{cohort}"


def policies(cohorts: int, *, preemption: bool) -> dict[str, PoolPolicy]:
    """One policy per cohort's pool."""
    teams = {f"queue-{number}": TeamQuota(nominal=NOMINAL, borrowing_limit=BORROWING) for number in range(QUEUES)}
    return {
        pool_id(cohort): PoolPolicy(teams=teams, cohort=f"cohort-{cohort}", preemption=preemption)
        for cohort in range(cohorts)
    }


def nodes(cohorts: int, clock: Clock) -> list[Node]:
    """One node per cohort, with the nominal GPUs of all its queues."""
    return [
        Node(
            name=f"node-{cohort}",
            cluster=CLUSTER,
            observed_at=clock.now(),
            devices=tuple(
                Device(id=f"slot-{number}", model=f"cohort {cohort}", method=Method.DECLARED)
                for number in range(QUEUES * NOMINAL)
            ),
        )
        for cohort in range(cohorts)
    ]


def arrivals(cohorts: int, share: float = 1.0) -> list[Coming]:
    """Every job in order of its coming; with a ``share`` below 1 only the first part of each class."""
    coming = [
        Coming(
            at_ms=round(number * kind.every_s * 1000),
            runs_ms=round(kind.runs_s * 1000),
            job_id=f"job-{cohort}-{queue}-{kind.name}-{number:03d}",
            spec=_spec(cohort, queue, kind),
        )
        for cohort in range(cohorts)
        for queue in range(QUEUES)
        for kind in KINDS
        for number in range(round(kind.count * share))
    ]
    return sorted(coming, key=lambda each: (each.at_ms, each.job_id))


def _spec(cohort: int, queue: int, kind: Kind) -> JobSpec:
    return JobSpec(
        name=kind.name,
        pool=pool_id(cohort),
        image="python:3",
        repository="file:///srv/git/bench.git",
        entrypoint=("python", "train.py"),
        output_model=kind.name,
        gpus_per_node=kind.gpus,
        priority=kind.priority,
        owner=f"queue-{queue}",
        team=f"queue-{queue}",
    )


def staged(coming: Sequence[Coming], clock: Clock) -> Iterator[Job]:
    """The jobs as they are when everything is fetched and only their workload has to be prepared."""
    now = clock.now()
    for each in coming:
        yield Job(
            id=each.job_id,
            spec=each.spec,
            phase=Phase.STAGING,
            explanation=Explanation(Reason.STAGING, "Everything is fetched."),
            submitted_at=now,
            changed_at=now,
            queued_at=now,
            pins=Pins(image_digest="sha256:" + "0" * 64, commit="0" * 40),
        )


def workload_of(job: Job) -> WorkloadSpec:
    """What would run."""
    name = workload_name(job.id, job.attempt)
    return WorkloadSpec(
        name=name,
        job_id=job.id,
        attempt=job.attempt,
        image="memory",
        code="memory",
        entrypoint=job.spec.entrypoint,
        arguments=(),
        parameters={},
        datasets={},
        output="memory",
        checkpoints="memory",
        log="memory",
        gpus_per_node=job.spec.gpus_per_node,
    )
