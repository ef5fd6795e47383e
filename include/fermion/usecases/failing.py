"""What is known of a stage that failed and is tried again: its last try, its words, and the next one."""

from __future__ import annotations

from datetime import datetime

from fermion.domain.jobs import Job
from fermion.domain.records import StageSpan
from fermion.errors import FermionError
from fermion.usecases.context import Context
from fermion.usecases.tend import PREPARE_EVERY

_NEXT = {
    "up_for_retry": "Its run waits to try it again.",
    **dict.fromkeys(("scheduled", "queued", "running", "restarting"), "It is being tried again now."),
    **dict.fromkeys(("failed", "upstream_failed"), "Its run does not try it again."),
}
"""What the engine's state of the task means for the next try."""


def failure_payload(ctx: Context, job: Job, failed: StageSpan) -> dict[str, object]:
    """``stage``, ``at``, ``message`` of the last try, and of the next its time and a sentence; None where nobody tells."""
    at = failed.ended_at or failed.started_at
    next_at = at + PREPARE_EVERY if failed.stage == "prepare" and job.attempt > 1 else None
    return {
        "stage": failed.stage,
        "at": at.isoformat(),
        "message": failed.detail,
        "next_try_at": None if next_at is None else next_at.isoformat(),
        "next_try": _next_try(ctx, job, failed.stage, next_at),
    }


def _next_try(ctx: Context, job: Job, stage: str, next_at: datetime | None) -> str | None:
    """The platform itself prepares fresh attempts; all else is the engine's, which does not say when it tries again."""
    if next_at is not None:
        return f"The next try comes at {next_at:%H:%M:%S} UTC."
    if ctx.runs is None or job.run is None:
        return None
    try:
        state = ctx.runs.state(*job.run).tasks.get("wait_for_gpus" if stage == "prepare" else stage)
    except FermionError:
        return None
    return _NEXT.get(state) if state is not None else None
