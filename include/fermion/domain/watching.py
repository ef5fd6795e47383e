"""Which move a job is due, given what was seen of its workload. Pure; carrying the move out is ``usecases/tend.py``."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fermion.domain.counting import counted
from fermion.domain.jobs import HOLDING, Job, Move, Phase, Progress
from fermion.domain.leases import Lease
from fermion.domain.pools import Pool, PoolPolicy
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import StageSpan
from fermion.domain.workloads import ExitCause, ExitRecord, Seen, WorkloadState

CODE_SIGNALS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP}
)
"""Signals that a process raises by its own fault; every other one came from outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """All that a decision about one job is made from. ``other_nodes`` tells whether its pool could place it elsewhere."""

    job: Job
    policy: PoolPolicy
    seen: Seen | None = None
    lease: Lease | None = None
    other_nodes: bool = False


def decide(watched: Watched, now: datetime) -> Move | None:
    """The move that is due, or None. The first rule that matches wins.

    In line: 1. a stop was asked for; 2. the queue timeout has passed.
    Holding a lease: 3. the workload ended: by its exit record; 4. it is lost: a fresh attempt while some are left (and
    nobody asked for a stop), else failed; 5. it was asked to end and lives: nothing; 6. a stop was asked for; 7. it is being preempted; 8. not started in
    time; 9. its process is seen for the first time; 10. it ran too long; 11. it makes no progress.
    """
    job = watched.job
    if job.phase in (Phase.STAGING, Phase.WAITING, Phase.SUBMITTED):
        return _decide_in_line(job, watched.policy, now)
    if job.phase not in HOLDING or watched.seen is None:
        return None
    ended = _decide_ended(watched, watched.seen)
    if ended is not None or job.phase is Phase.STOPPING:
        return ended
    return _decide_alive(watched, watched.seen, now)


def _decide_in_line(job: Job, policy: PoolPolicy, now: datetime) -> Move | None:
    if job.stop_requested_at is not None:
        when = "before it was in line" if job.phase is Phase.SUBMITTED else "while it waited for GPUs"
        return _fail(Reason.STOPPED, f"Stopped by {job.stop_requested_by} {when}.")
    limit = _shorter(job.spec.queue_timeout, policy.queue_timeout)
    if limit is not None and job.queued_at is not None and job.started_at is None and now - job.queued_at > limit:
        waited = (now - job.queued_at).total_seconds()
        return _fail(
            Reason.QUEUE_TIMEOUT,
            f"Waited {waited:.0f} s for {counted(job.spec.gpus, 'GPU')}; its queue timeout is {limit.total_seconds():.0f} s."
            " Ask for fewer GPUs, raise the timeout or the priority.",
            waited_s=waited,
            timeout_s=limit.total_seconds(),
        )
    return None


def _decide_ended(watched: Watched, seen: Seen) -> Move | None:
    if seen.state is WorkloadState.EXITED and seen.exit is not None:
        return _after_exit(watched, seen.exit)
    if seen.state in (WorkloadState.EXITED, WorkloadState.LOST, WorkloadState.ABSENT):
        if watched.job.phase is Phase.STOPPING:
            return _after_stop(watched.job)
        return _retry(
            watched, Reason.WORKLOAD_LOST, f"The workload vanished without an exit record. {seen.detail}".strip()
        )
    return None


def _after_exit(watched: Watched, record: ExitRecord) -> Move:
    job = watched.job
    if record.cause is ExitCause.EXITED and record.code == 0:
        return Move(
            to=Phase.SAVING,
            explanation=Explanation(Reason.SAVING, "The training ended well; its model is being published."),
        )
    if job.phase is Phase.STOPPING:
        return _after_stop(job)
    if record.cause is ExitCause.OUT_OF_MEMORY:
        limit = job.spec.memory_mib
        return _fail(
            Reason.OUT_OF_MEMORY,
            f"The training crossed its memory limit ({record.detail or f'{limit} MiB'}) and was ended."
            " Ask for more memory_mib or use smaller batches.",
            memory_mib=limit,
            max_rss_mib=record.max_rss_mib,
        )
    if record.cause is ExitCause.NEVER_STARTED:
        return _fail(Reason.USER_CODE, f"The entrypoint could not be executed: {record.detail}")
    if record.cause is ExitCause.STOPPED:
        return _fail(Reason.STOPPED, _taken_down(record))
    if record.signal is not None and record.signal not in CODE_SIGNALS:
        name = signal.Signals(record.signal).name if record.signal in set(signal.Signals) else str(record.signal)
        return _retry(watched, Reason.KILLED, f"{name} from outside ended the training.")
    how = f"exited with code {record.code}" if record.signal is None else f"died of signal {record.signal}"
    return _fail(
        Reason.USER_CODE, f"The training code {how}; its log says why.", code=record.code, signal=record.signal
    )


def _taken_down(record: ExitRecord) -> str:
    """What it means that a workload was told to end that nobody asked to end."""
    how = f": {record.detail}" if record.detail else ""
    return (
        f"The platform or its machine was taken down while it ran{how}."
        " Restart it with --resume to go on from its last checkpoint."
    )


def _after_stop(job: Job) -> Move:
    """What a stop meant, read from the explanation that was stored when it was asked for."""
    numbers = dict(job.explanation.numbers)
    why = Reason(str(numbers.get("why", Reason.STOPPED)))
    message = str(numbers.get("message", job.explanation.message))
    if why is Reason.PREEMPTED and job.stop_requested_at is not None:
        return _fail(Reason.STOPPED, f"Stopped by {job.stop_requested_by}.")
    if why is Reason.PREEMPTED:
        return Move(to=Phase.STAGING, explanation=Explanation(why, message, numbers), fresh_attempt=True)
    return Move(to=Phase.FAILED, explanation=Explanation(why, message, numbers))


def _decide_alive(watched: Watched, seen: Seen, now: datetime) -> Move | None:
    job = watched.job
    if job.stop_requested_at is not None:
        return _stop(Reason.STOPPED, f"Stopped by {job.stop_requested_by}.")
    if job.preempted_for is not None:
        return _stop(
            Reason.PREEMPTED,
            f"It makes room for {job.preempted_for}, which has a higher priority and takes its {counted(job.spec.gpus, 'GPU')}."
            " It goes on from its last checkpoint when GPUs are free.",
            preempted_for=job.preempted_for,
        )
    if seen.state is not WorkloadState.RUNNING:
        return _decide_not_started(watched, now)
    if job.phase is Phase.STARTING:
        return Move(to=Phase.RUNNING, explanation=Explanation(Reason.TRAINING, "The training process is alive."))
    return _decide_too_long(watched, seen, now)


def _decide_not_started(watched: Watched, now: datetime) -> Move | None:
    limit = watched.policy.start_timeout
    if watched.lease is None or now - watched.lease.granted_at <= limit:
        return None
    return _stop(Reason.START_TIMEOUT, f"Its process was not seen within {limit.total_seconds():.0f} s of its grant.")


def _decide_too_long(watched: Watched, seen: Seen, now: datetime) -> Move | None:
    job, policy = watched.job, watched.policy
    limit = runtime_limit(job, policy)
    if limit is not None and seen.exec_at is not None and now - seen.exec_at > limit:
        return _stop(
            Reason.MAX_RUNTIME,
            f"It ran {(now - seen.exec_at).total_seconds():.0f} s; its limit is {limit.total_seconds():.0f} s."
            " Raise max_runtime, or resume from its checkpoint.",
            limit_s=limit.total_seconds(),
        )
    progress = job.progress
    if progress.at is None or progress.usual_step is None:
        return None
    patience = max(policy.hang_floor, policy.hang_factor * progress.usual_step)
    silent = now - progress.at
    if silent <= patience:
        return None
    return _stop(
        Reason.HANG,
        f"Alive but silent for {silent.total_seconds():.0f} s; a step usually takes {progress.usual_step.total_seconds():.1f} s.",
        silent_s=silent.total_seconds(),
        usual_step_s=progress.usual_step.total_seconds(),
    )


def runtime_limit(job: Job, policy: PoolPolicy) -> timedelta | None:
    """The shorter of what the job asks and what the pool allows; None when neither limits it."""
    return _shorter(job.spec.max_runtime, policy.max_runtime)


def _shorter(asked: timedelta | None, allowed: timedelta | None) -> timedelta | None:
    return min((limit for limit in (asked, allowed) if limit is not None), default=None)


def abandon(job: Job, message: str, *, failed: StageSpan | None = None) -> Move | None:
    """The move of an open job that no run carries any more; None when it is on its way out already.

    1. A stop that was asked for wins, as long as there is no model to save. 2. ``failed``, the stage that gave up, is the
    reason. 3. Else its run ended.
    """
    if job.phase is Phase.STOPPING or job.is_final:
        return None
    reason = Reason.RUN_ENDED
    if job.stop_requested_at is not None and job.phase is not Phase.SAVING:
        reason, message = Reason.STOPPED, f"Stopped by {job.stop_requested_by}."
    elif failed is not None and job.phase is not Phase.SUBMITTED and failed.stage in _STAGES.get(job.phase, ()):
        reason = Reason.SAVE_FAILED if job.phase is Phase.SAVING else Reason.STAGING_FAILED
        message = f"{failed.stage} failed: {failed.detail}"
    return _stop(reason, message) if job.phase in HOLDING else _fail(reason, message)


_STAGES = {
    Phase.SUBMITTED: frozenset({"check_quota"}),
    Phase.STAGING: frozenset({"pull_image", "mount_dataset", "clone_repository", "prepare"}),
    Phase.SAVING: frozenset({"save_model"}),
}


def last_failure(job: Job, spans: Sequence[StageSpan]) -> StageSpan | None:
    """The last failed try of a stage that belongs to the job's phase and attempt; None when none failed, or was repeated well."""
    stages = _STAGES.get(job.phase, ())
    failed = [
        span for span in spans if span.stage in stages and span.attempt == job.attempt and span.outcome == "failed"
    ]
    return max(failed, key=lambda span: span.ended_at or span.started_at, default=None)


def with_failure(message: str, failed: StageSpan | None) -> str:
    """What is true of a job's phase, and that the last try of its stage failed."""
    if failed is None:
        return message
    at, said = failed.ended_at or failed.started_at, failed.detail.rstrip(". ")
    return f"{message} The last try of {failed.stage} failed at {at:%H:%M:%S} UTC: {said}."


def could_move(job: Job, pool: Pool | None, lease: Lease | None) -> bool:
    """Whether the pool could place the job without the nodes that it excludes and the one that it holds first."""
    if pool is None:
        return False
    avoided = {*job.excluded_nodes, *(part.node for part in (lease.slices[:1] if lease else ()))}
    wide = [node for node in pool.nodes if node.is_usable and len(node.devices) >= job.spec.gpus_per_node]
    return sum(node.name not in avoided for node in wide) >= job.spec.nodes


def with_step(before: Progress, after: Progress, lines: int, now: datetime) -> Progress:
    """``after`` as heard at ``now``, with the running mean of the time between lines; ``lines`` came since ``before``.

    The times that a training writes into its lines are for its charts; when it was heard is seen here, so that a wrong
    clock looks neither hung nor alive. The mean forgets: each read counts one fifth, so that a training that slows down
    evenly does not look hung.
    """
    if replace(after, usual_step=before.usual_step, offset=before.offset, lines=before.lines) == before:
        return before  # nothing of what came could be understood
    if before.at is None or now <= before.at:
        return replace(after, at=now, usual_step=before.usual_step)
    gap = (now - before.at) / max(1, lines)
    usual = gap if before.usual_step is None else before.usual_step * 0.8 + gap * 0.2
    return replace(after, at=now, usual_step=usual)


def _retry(watched: Watched, reason: Reason, message: str) -> Move:
    job = watched.job
    if job.stop_requested_at is not None:
        return _fail(Reason.STOPPED, f"Stopped by {job.stop_requested_by}.")
    if job.attempt >= watched.policy.max_attempts:
        return _fail(
            reason, f"{message} This was attempt {job.attempt} of {watched.policy.max_attempts}.", attempt=job.attempt
        )
    node = watched.lease.slices[0].node if watched.lease is not None and watched.lease.slices else None
    return Move(
        to=Phase.STAGING,
        explanation=Explanation(
            Reason.RETRYING,
            f"{message} Attempt {job.attempt + 1} of {watched.policy.max_attempts} is in line, resuming from the last checkpoint.",
            {"cause": str(reason), "attempt": job.attempt + 1},
        ),
        fresh_attempt=True,
        exclude_node=node if reason is Reason.WORKLOAD_LOST and watched.other_nodes else None,
    )


def _stop(why: Reason, message: str, **numbers: object) -> Move:
    return Move(
        to=Phase.STOPPING,
        explanation=Explanation(Reason.STOP_REQUESTED, message, {"why": str(why), "message": message, **numbers}),
    )


def _fail(reason: Reason, message: str, **numbers: object) -> Move:
    return Move(to=Phase.FAILED, explanation=Explanation(reason, message, numbers))
