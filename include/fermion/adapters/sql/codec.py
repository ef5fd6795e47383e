"""Domain values to rows and back. What is asked for in queries is a column; the rest is JSON.

No row is trusted to be complete JSON of today: a key that an older program did not write takes the value's default.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any

from fermion.adapters.sql.json_text import from_json
from fermion.domain.artifacts import Image
from fermion.domain.jobs import Job, JobSpec, Phase, Pins, Progress
from fermion.domain.leases import HolderKind, Lease, LeasePhase, Slice
from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.pools import Device, Node
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Decision, Event, LedgerEntry, MetricPoint, StageSpan, SyncRecord

Values = dict[str, Any]


# --- jobs -----------------------------------------------------------------------------------------------------------


def job_values(job: Job) -> Values:
    """The row of a job, but for ``seq``."""
    return {
        **job_changes(job),
        "pool": job.spec.pool,
        "owner": job.spec.owner,
        "dag_id": job.run[0] if job.run else None,
        "run_id": job.run[1] if job.run else None,
        "spec": to_payload(job.spec),
        "pins": to_payload(job.pins),
        "submitted_at": job.submitted_at,
        "restart_of": job.restart_of,
    }


def job_changes(job: Job, fields: Collection[str] | None = None) -> Values:
    """The part of the row that a job in line or running changes, and its id; of these fields only if given."""
    found: Values = {"id": job.id, "version": job.version}
    for field in _CHANGING if fields is None else fields:
        found |= _CHANGING[field](job)
    return found


def changed_fields(before: Job, after: Job) -> set[str]:
    """Names of the fields that ``job_changes`` knows and that are not the same; ``version`` is always written."""
    return {field for field in _CHANGING if getattr(before, field) != getattr(after, field)}


def _same(field: str) -> Callable[[Job], Values]:
    return lambda job: {field: getattr(job, field)}


_CHANGING: dict[str, Callable[[Job], Values]] = {
    "phase": lambda job: {"phase": str(job.phase)},
    "progress": lambda job: {"progress": to_payload(job.progress)},
    "explanation": lambda job: {
        "reason": str(job.explanation.reason),
        "message": job.explanation.message,
        "numbers": dict(job.explanation.numbers),
    },
    "excluded_nodes": lambda job: {"excluded_nodes": list(job.excluded_nodes)},
    **{
        field: _same(field)
        for field in (
            "attempt",
            "changed_at",
            "queued_at",
            "started_at",
            "ended_at",
            "stop_requested_at",
            "stop_requested_by",
            "preempted_for",
            "model_version",
        )
    },
}


def job_of(row: Any) -> Job:
    """The job of a row."""
    return Job(
        id=row.id,
        spec=from_payload(JobSpec, row.spec),
        phase=Phase(row.phase),
        explanation=Explanation(Reason(row.reason), row.message, row.numbers),
        submitted_at=row.submitted_at,
        changed_at=row.changed_at,
        run=None if row.run_id is None else (row.dag_id, row.run_id),
        pins=None if row.pins is None else from_payload(Pins, row.pins),
        attempt=row.attempt,
        progress=from_payload(Progress, row.progress),
        queued_at=row.queued_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        stop_requested_at=row.stop_requested_at,
        stop_requested_by=row.stop_requested_by,
        preempted_for=row.preempted_for,
        excluded_nodes=tuple(row.excluded_nodes),
        model_version=row.model_version,
        restart_of=row.restart_of,
        version=row.version,
    )


# --- leases ---------------------------------------------------------------------------------------------------------


def lease_values(lease: Lease) -> Values:
    """The row of a lease."""
    return {
        "id": lease.id,
        "holder_kind": str(lease.holder_kind),
        "holder_id": lease.holder_id,
        "attempt": lease.attempt,
        "owner": lease.owner,
        "team": lease.team,
        "pool": lease.pool,
        "token": lease.token,
        "slices": to_payload(lease.slices),
        "granted_at": lease.granted_at,
        "expires_at": lease.expires_at,
        "phase": str(lease.phase),
        "priority": lease.priority,
        "preemptible": lease.preemptible,
        "ends_by": lease.ends_by,
        "exec_at": lease.exec_at,
        "exit_at": lease.exit_at,
        "ended_at": lease.ended_at,
        "end_cause": lease.end_cause,
    }


def lease_of(row: Any) -> Lease:
    """The lease of a row."""
    return Lease(
        id=row.id,
        holder_kind=HolderKind(row.holder_kind),
        holder_id=row.holder_id,
        attempt=row.attempt,
        owner=row.owner,
        team=row.team,
        pool=row.pool,
        token=row.token,
        slices=tuple(from_payload(Slice, part) for part in row.slices),
        granted_at=row.granted_at,
        expires_at=row.expires_at,
        phase=LeasePhase(row.phase),
        priority=row.priority,
        preemptible=row.preemptible,
        ends_by=row.ends_by,
        exec_at=row.exec_at,
        exit_at=row.exit_at,
        ended_at=row.ended_at,
        end_cause=row.end_cause,
    )


def device_values(lease: Lease) -> list[Values]:
    """One row per device held, always in one order, so that two grants that meet wait instead of locking each other."""
    pairs = sorted((part.node, device) for part in lease.slices for device in part.devices)
    return [
        {"lease_id": lease.id, "pool": lease.pool, "node": node, "device": device, "live": True}
        for node, device in pairs
    ]


def entry_values(entry: LedgerEntry) -> Values:
    """The row of a ledger entry, but for ``seq``."""
    return {
        "lease_id": entry.lease_id,
        "pool": entry.pool,
        "holder": entry.holder,
        "kind": entry.kind,
        "gpus": entry.gpus,
        "at": entry.at,
        "cause": entry.cause,
    }


def entry_of(row: Any) -> LedgerEntry:
    """The ledger entry of a row."""
    return LedgerEntry(
        lease_id=row.lease_id,
        pool=row.pool,
        holder=row.holder,
        kind=row.kind,
        gpus=row.gpus,
        at=row.at,
        cause=row.cause,
    )


# --- catalog --------------------------------------------------------------------------------------------------------

_MEMORY = "fermion.dev/memory-mib"
"""The label that keeps a node's memory, beside those that the node has."""


def node_values(node: Node, cluster: str) -> Values:
    """The row of a node."""
    return {
        "cluster": cluster,
        "name": node.name,
        "observed_at": node.observed_at,
        "ready": node.ready,
        "schedulable": node.schedulable,
        "labels": {**node.labels, **({} if node.memory_mib is None else {_MEMORY: str(node.memory_mib)})},
        "devices": to_payload(node.devices),
        "detail": node.detail,
    }


@lru_cache(maxsize=10_000)
def node_of(row: Any) -> Node:
    """The node of a row, whose JSON was left as text. The same row is read again and again until its node is seen anew."""
    labels: dict[str, str] = from_json(row.labels)
    memory = labels.get(_MEMORY)
    return Node(
        name=row.name,
        cluster=row.cluster,
        devices=tuple(_device(**device) for device in from_json(row.devices)),
        observed_at=row.observed_at,
        ready=row.ready,
        schedulable=row.schedulable,
        memory_mib=None if memory is None else int(memory),
        labels={name: value for name, value in labels.items() if name != _MEMORY},
        detail=row.detail,
    )


@lru_cache(maxsize=10_000)
def _device(**payload: Any) -> Device:
    """The same few devices are read again and again."""
    return from_payload(Device, payload)


def image_values(image: Image) -> Values:
    """The row of an image."""
    return {
        "id": image.id,
        "digest": image.digest,
        "category": image.category,
        "source_type": image.source_type,
        "source": image.source,
        "framework": image.framework,
        "size_bytes": image.size_bytes,
        "created_at": image.created_at,
        "updated_at": image.updated_at,
    }


def image_of(row: Any) -> Image:
    """The image of a row."""
    return Image(**row._mapping)


# --- records --------------------------------------------------------------------------------------------------------


def decision_values(decision: Decision) -> Values:
    """The row of a decision, but for ``seq``."""
    return {
        "id": decision.id,
        "kind": decision.kind,
        "subject": decision.subject,
        "verdict": decision.verdict,
        "reason": str(decision.reason),
        "message": decision.message,
        "rule_version": decision.rule_version,
        "decided_at": decision.decided_at,
        "inputs": dict(decision.inputs),
        "numbers": dict(decision.numbers),
    }


def decision_of(row: Any) -> Decision:
    """The decision of a row."""
    return Decision(
        id=row.id,
        kind=row.kind,
        subject=row.subject,
        verdict=row.verdict,
        reason=row.reason,
        message=row.message,
        rule_version=row.rule_version,
        decided_at=row.decided_at,
        inputs=row.inputs,
        numbers=row.numbers,
    )


def event_values(event: Event) -> Values:
    """The row of an event, but for ``seq``."""
    return {
        "actor": event.actor,
        "verb": event.verb,
        "target": event.target,
        "at": event.at,
        "message": event.message,
        "data": dict(event.data),
        "pool": event.pool,
    }


def event_of(row: Any) -> Event:
    """The event of a row."""
    return Event(
        actor=row.actor,
        verb=row.verb,
        target=row.target,
        at=row.at,
        message=row.message,
        data=row.data,
        pool=row.pool,
    )


def point_values(point: MetricPoint) -> Values:
    """The row of a metric point."""
    return {
        "job_id": point.job_id,
        "attempt": point.attempt,
        "kind": point.kind,
        "number": point.number,
        "name": point.name,
        "value": point.value,
        "at": point.at,
        "epoch": point.epoch,
        "step": point.step,
    }


def point_of(row: Any) -> MetricPoint:
    """The metric point of a row."""
    return MetricPoint(
        job_id=row.job_id,
        attempt=row.attempt,
        number=row.number,
        kind=row.kind,
        name=row.name,
        value=row.value,
        at=row.at,
        epoch=row.epoch,
        step=row.step,
    )


def span_values(span: StageSpan) -> Values:
    """The row of a stage's span."""
    return {
        "job_id": span.job_id,
        "attempt": span.attempt,
        "stage": span.stage,
        "started_at": span.started_at,
        "ended_at": span.ended_at,
        "outcome": span.outcome,
        "detail": span.detail,
    }


def span_of(row: Any) -> StageSpan:
    """The span of a row."""
    return StageSpan(**row._mapping)


def sync_values(sync: SyncRecord) -> Values:
    """The row of a sync."""
    return {
        "source": sync.source,
        "started_at": sync.started_at,
        "ended_at": sync.ended_at,
        "items": sync.items,
        "error": sync.error,
    }


def sync_of(row: Any) -> SyncRecord:
    """The sync of a row."""
    return SyncRecord(**row._mapping)
