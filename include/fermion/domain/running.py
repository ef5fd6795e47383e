"""What is known of a job that holds GPUs, in numbers: since when, how far, and when it should have ended."""

from __future__ import annotations

from datetime import datetime, timedelta

from fermion.domain.jobs import Job
from fermion.domain.leases import Lease

LEAST_PERCENT = 1.0
"""Below this progress says nothing about the end."""


def numbers_of(job: Job, lease: Lease, *, limit: timedelta | None, now: datetime) -> dict[str, object]:
    """JSON-ready; what is not known is left out. ``limit`` is how long it may run at most, None for as long as it likes.

    ``expected_end`` is told by its progress, ``ends_by`` by its limit.
    """
    began = lease.exec_at
    found: dict[str, object | None] = {
        "gpus": lease.gpus,
        "granted_at": lease.granted_at.isoformat(),
        "running_since": began.isoformat() if began else None,
        "ran_s": round(max(0.0, (now - began).total_seconds()), 1) if began else None,
        "attempt": job.attempt,
        "progress_percent": job.progress.percent if job.progress.at else None,
        "epoch": job.progress.epoch,
        "epochs": job.progress.epochs,
        "expected_end": _iso(expected_end(job, began)),
        "ends_by": _iso(began + limit) if began and limit is not None else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def expected_end(job: Job, began: datetime | None) -> datetime | None:
    """When it reaches 100 % at the pace it had; None where its progress does not tell.

    An attempt that went on from a checkpoint did not begin at 0, and nobody knows where.
    """
    progress = job.progress
    went_on = job.attempt > 1 or job.spec.checkpoint is not None
    if began is None or went_on or progress.at is None or progress.at <= began or progress.percent < LEAST_PERCENT:
        return None
    return began + (progress.at - began) * (100 / progress.percent)


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
