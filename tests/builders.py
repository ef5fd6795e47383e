"""Builders of domain values for tests: every argument has a default, so a test names only what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from fermion.domain.admission import Snapshot, Waiting
from fermion.domain.figures import Method
from fermion.domain.jobs import Job, JobSpec, Phase
from fermion.domain.leases import TERM, HolderKind, Lease, LeasePhase, Slice
from fermion.domain.pools import Device, Node, Pool, PoolPolicy, TeamQuota
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.rollout import reasons as rollout_reasons
from fermion.domain.rollout.looks import Look, Measured, MetricLook, Outcome, proportion
from fermion.domain.rollout.plan import MetricRule, Plan, Step
from fermion.domain.rollout.rollouts import Phase as RolloutPhase
from fermion.domain.rollout.rollouts import Rollout
from fermion.domain.serving.services import (
    ApiType,
    Replica,
    ReplicaPhase,
    Revision,
    RevisionPhase,
    Service,
    ServicePins,
    ServiceSpec,
)
from fermion.domain.serving.traffic import Counters

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
"""A Monday noon; the present of tests that need no particular one."""


def seconds(count: float) -> timedelta:
    """A duration."""
    return timedelta(seconds=count)


def at(offset_s: float) -> datetime:
    """A time relative to ``NOW``; negative is the past."""
    return NOW + timedelta(seconds=offset_s)


def make_device(
    number: int = 0, *, model: str = "declared", method: Method = Method.DECLARED, prefix: str = "slot"
) -> Device:
    """One declared slot."""
    return Device(id=f"{prefix}-{number}", model=model, method=method)


def make_node(name: str = "n0", *, gpus: int = 8, cluster: str = "local", **changes: Any) -> Node:
    """A ready node whose devices are ``<name>-0``, ``<name>-1``, …"""
    devices = tuple(make_device(number, prefix=name) for number in range(gpus))
    return Node(**{"name": name, "cluster": cluster, "devices": devices, "observed_at": NOW, **changes})


def make_policy(**changes: Any) -> PoolPolicy:
    """The policy with its own defaults."""
    return PoolPolicy(**changes)


def make_pool(pool_id: str = "local/declared", *, nodes: Sequence[int | Node] = (8,), **policy: Any) -> Pool:
    """A pool of nodes ``n0``, ``n1``, … given by their GPUs (or as nodes); keywords go into its policy."""
    prefix = "" if pool_id == "local/declared" else pool_id.split("/")[-1] + "-"
    built = tuple(
        node if isinstance(node, Node) else make_node(f"{prefix}n{number}", gpus=node)
        for number, node in enumerate(nodes)
    )
    cluster = pool_id.split("/")[0]
    return Pool(
        id=pool_id,
        cluster=cluster,
        model="declared",
        nodes=built,
        policy=make_policy(**policy),
        first_seen_at=at(-86400),
    )


def make_quota(nominal: int = 4, *, borrowing: int | None = None, lending: int | None = None) -> TeamQuota:
    """A team's quota."""
    return TeamQuota(nominal=nominal, borrowing_limit=borrowing, lending_limit=lending)


def make_waiting(job_id: str = "job-1", *, gpus: int = 1, waited_s: float = 10, **changes: Any) -> Waiting:
    """A staged job of ``ann`` that asks for ``gpus`` on each of its nodes (one by default) and has waited that long."""
    defaults = {
        "job_id": job_id,
        "owner": "ann",
        "team": "default",
        "pool": "local/declared",
        "queued_at": at(-waited_s),
        "gpus_per_node": gpus,
    }
    return Waiting(**{**defaults, **changes})


def make_lease(
    lease_id: str = "lease-1", *, gpus: int = 1, node: str = "n0", first: int = 0, held_s: float = 60, **changes: Any
) -> Lease:
    """A live lease on devices ``first`` to ``first + gpus - 1`` of one node, granted ``held_s`` ago."""
    granted_at = changes.pop("granted_at", at(-held_s))
    defaults = {
        "id": lease_id,
        "holder_kind": HolderKind.JOB,
        "holder_id": f"job-of-{lease_id}",
        "attempt": 1,
        "owner": "bob",
        "team": "default",
        "pool": "local/declared",
        "token": 1,
        "slices": (Slice(node, tuple(f"{node}-{number}" for number in range(first, first + gpus))),),
        "granted_at": granted_at,
        "expires_at": granted_at + TERM,
    }
    return Lease(**{**defaults, **changes})


def make_ended_lease(
    lease_id: str = "lease-1", *, ended_s: float = 0, cause: str = "workload_gone", **changes: Any
) -> Lease:
    """A released lease that ended ``ended_s`` after ``NOW`` (negative: before)."""
    return make_lease(lease_id, phase=LeasePhase.RELEASED, ended_at=at(ended_s), end_cause=cause, **changes)


def make_snapshot(
    *,
    pools: Sequence[Pool] | None = None,
    waiting: Sequence[Waiting] = (),
    leases: Sequence[Lease] = (),
    **changes: Any,
) -> Snapshot:
    """A snapshot of one pool with one node of eight GPUs, unless told otherwise."""
    chosen = (make_pool(),) if pools is None else tuple(pools)
    return Snapshot(pools=chosen, waiting=tuple(waiting), leases=tuple(leases), **changes)


def make_spec(**changes: Any) -> JobSpec:
    """A small valid request."""
    defaults = {
        "name": "digits",
        "pool": "local/declared",
        "image": "digits:1",
        "repository": "file:///srv/git/digits.git",
        "entrypoint": ("python", "train.py"),
        "output_model": "digits",
        "owner": "ann",
    }
    return JobSpec(**{**defaults, **changes})


def make_job(job_id: str = "job-20260302-001", *, spec: JobSpec | None = None, **changes: Any) -> Job:
    """A job that waits, staged, in line."""
    defaults = {
        "id": job_id,
        "spec": spec or make_spec(),
        "phase": Phase.WAITING,
        "explanation": Explanation(Reason.WAITING_FOR_QUOTA, "waits"),
        "submitted_at": at(-60),
        "changed_at": at(-30),
        "queued_at": at(-50),
    }
    return Job(**{**defaults, **changes})


def make_plan(weights: Sequence[float] = (10, 50, 100), **changes: Any) -> Plan:
    """A plan of these weights that measures the error rate."""
    steps = tuple(Step(weight_percent=weight) for weight in weights)
    return Plan(**{"steps": steps, "metrics": (MetricRule(name="error_rate"),), **changes})


def make_service(service_id: str = "inf-digits-001", **changes: Any) -> Service:
    """An open service, reached under its name: ``digits`` of ``inf-digits-001``."""
    name = changes.get("name", service_id.removeprefix("inf-").rpartition("-")[0] or service_id)
    defaults = {
        "id": service_id,
        "name": name,
        "owner": "ann",
        "team": "default",
        "pool": "local/declared",
        "created_at": at(-600),
        "changed_at": at(-600),
        "prefix": f"/{name}",
        "api_type": ApiType.REST,
        "replicas": 1,
    }
    return Service(**{**defaults, **changes})


def make_service_spec(**changes: Any) -> ServiceSpec:
    """A small valid request."""
    defaults = {
        "name": "digits",
        "model": "digits",
        "engine": "digits",
        "image": "digits:1",
        "pool": "local/declared",
        "plan": make_plan(),
        "owner": "ann",
    }
    return ServiceSpec(**{**defaults, **changes})


def make_revision(number: int = 1, *, service_id: str = "inf-digits-001", **changes: Any) -> Revision:
    """A revision that serves with one replica."""
    defaults = {
        "service_id": service_id,
        "number": number,
        "spec": make_service_spec(),
        "pins": ServicePins(model_version=number, model_checksum="sha256:ab", image_digest="sha256:cd"),
        "phase": RevisionPhase.SERVING,
        "explanation": Explanation(Reason.GRANTED, "serves"),
        "created_at": at(-600),
        "changed_at": at(-500),
        "wanted": 1,
    }
    return Revision(**{**defaults, **changes})


def make_replica(number: int = 1, *, revision: str = "inf-digits-001-r1", **changes: Any) -> Replica:
    """A replica that holds its lease."""
    defaults = {
        "revision": revision,
        "service_id": revision.rpartition("-")[0],
        "number": number,
        "pool": "local/declared",
        "phase": ReplicaPhase.HOLDING,
        "explanation": Explanation(Reason.GRANTED, "holds its lease"),
        "queued_at": at(-400),
        "changed_at": at(-300),
        "lease_id": f"lease-{number}",
    }
    return Replica(**{**defaults, **changes})


def make_rollout(rollout_id: str = "rollout-1", **changes: Any) -> Rollout:
    """A rollout of the second revision of ``inf-digits-001`` that bakes at its first step."""
    defaults = {
        "id": rollout_id,
        "service": "inf-digits-001",
        "canary": "inf-digits-001-r2",
        "stable": "inf-digits-001-r1",
        "plan": make_plan(),
        "phase": RolloutPhase.BAKING,
        "explanation": rollout_reasons.Explanation(rollout_reasons.Reason.WARMED_UP, "looks count"),
        "created_at": at(-300),
        "changed_at": at(-60),
        "step_since": at(-120),
        "baking_since": at(-60),
    }
    return Rollout(**{**defaults, **changes})


def make_look(number: int = 1, **changes: Any) -> Look:
    """The look of that number, one every 30 s, at which the error rate passes."""
    measured = Measured(
        step=0,
        weight_percent=10.0,
        started_at=at(30 * number - 30),
        ended_at=at(30 * number),
        readings=(proportion("error_rate", canary=(1, 100), stable=(9, 900)),),
    )
    metric = MetricLook(
        metric="error_rate", outcome=Outcome.PASS, sentence="error_rate passes.", statistic=-0.5, bound=4.6
    )
    defaults = {
        "number": number,
        "measured": measured,
        "outcome": Outcome.PASS,
        "sentence": "1 of 1 metrics pass.",
        "metrics": (metric,),
    }
    return Look(**{**defaults, **changes})


def make_counters(
    backend: str = "inf-digits-001-r1", *, observed_s: float = 0, requests: int = 0, **changes: Any
) -> Counters:
    """A reading at ``NOW`` plus that many seconds; every request was answered with 200 within 10 ms."""
    defaults = {
        "backend": backend,
        "epoch": "router-1",
        "observed_at": at(observed_s),
        "requests": requests,
        "by_class": {"2xx": requests},
        "latency_ms": {"10": requests, "inf": requests},
        "latency_sum_ms": 5.0 * requests,
    }
    return Counters(**{**defaults, **changes})
