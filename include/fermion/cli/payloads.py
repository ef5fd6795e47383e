"""What the commands answer as JSON; the same words as everywhere else."""

from __future__ import annotations

from collections.abc import Sequence

from fermion.domain.artifacts import DatasetVersion
from fermion.domain.forms import to_form
from fermion.domain.jobs import Job
from fermion.domain.leases import Lease
from fermion.domain.records import StageSpan
from fermion.domain.watching import last_failure, with_failure
from fermion.usecases.queries import PoolState


def job_payload(job: Job, *, spans: Sequence[StageSpan] = ()) -> dict[str, object]:
    """One job, whole. With its stages' ``spans`` the message tells of the last try that failed of the one that it is in."""
    return {
        "id": job.id,
        "name": job.spec.name,
        "status": str(job.status),
        "phase": str(job.phase),
        "reason": str(job.explanation.reason),
        "message": with_failure(job.explanation.message, last_failure(job, spans)),
        "numbers": dict(job.explanation.numbers),
        "pool": job.spec.pool,
        "gpus": job.spec.gpus,
        "attempt": job.attempt,
        "owner": job.spec.owner,
        "team": job.spec.team,
        "progress": job.progress.percent,
        "epoch": job.progress.epoch,
        "epochs": job.progress.epochs,
        "submitted_at": job.submitted_at.isoformat(),
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "ended_at": job.ended_at.isoformat() if job.ended_at else None,
        "stop_requested_at": job.stop_requested_at.isoformat() if job.stop_requested_at else None,
        "stop_requested_by": job.stop_requested_by,
        "output_model_path": job.output_model_path,
        "restart_of": job.restart_of,
        "run": {"dag_id": job.run[0], "run_id": job.run[1]} if job.run else None,
        "pins": {
            "image_digest": job.pins.image_digest,
            "commit": job.pins.commit,
            "datasets": dict(job.pins.datasets),
        }
        if job.pins
        else None,
        "spec": to_form(job.spec),
    }


def lease_payload(lease: Lease) -> dict[str, object]:
    """One lease."""
    return {
        "id": lease.id,
        "holder": f"{lease.holder_kind}:{lease.holder_id}",
        "attempt": lease.attempt,
        "pool": lease.pool,
        "gpus": lease.gpus,
        "devices": [device for part in lease.slices for device in part.devices],
        "phase": str(lease.phase),
        "granted_at": lease.granted_at.isoformat(),
        "ended_at": lease.ended_at.isoformat() if lease.ended_at else None,
        "end_cause": lease.end_cause,
    }


def dataset_payload(version: DatasetVersion) -> dict[str, object]:
    """One version of a dataset."""
    return {
        "checksum": version.checksum,
        "size_bytes": version.size_bytes,
        "files": len(version.files),
        "created_at": version.created_at.isoformat(),
    }


def pool_payload(state: PoolState) -> dict[str, object]:
    """One pool with its figures."""
    pool = state.pool
    return {
        "id": pool.id,
        "cluster": pool.cluster,
        "gpu_model": pool.model,
        "method": str(pool.method),
        "created_at": {
            "value": pool.first_seen_at.isoformat(),
            "method": "derived",
            "source": "first seen by the sync",
        },
        "nodes": [
            {
                "name": node.name,
                "gpus": len(node.devices),
                "memory_mib": node.memory_mib,
                "usable": node.is_usable,
                "detail": node.detail,
            }
            for node in pool.nodes
        ],
        "figures": {name: figure.to_payload() for name, figure in state.figures.items()},
    }
