"""Where a job's time went: every moment under one activity, from recorded stages and leases. Knows nothing of GPU-seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import pairwise

from fermion.domain.figures import Method
from fermion.domain.jobs import Job
from fermion.domain.leases import Lease
from fermion.domain.records import StageSpan


class Activity(StrEnum):
    """What a job was doing at one moment. Where two are true, the earlier in this list counts."""

    TRAINING = "training"  # holds GPUs and its process is alive
    HOLDING = "holding"  # holds GPUs and no process is alive (starting or ending)
    SAVING = "saving"  # the model is being published
    STAGING = "staging"  # image, data or code are being fetched; no GPU is held
    WAITING = "waiting"  # in line, nothing left to fetch
    CHECKING = "checking"  # the request is being verified
    CLOSING = "closing"  # GPUs are verified as free, the report is written
    BETWEEN = "between"  # none of these: the workflow engine is on its way from one task to the next


ACTIVITY_OF_STAGE: Mapping[str, Activity] = {
    "check_quota": Activity.CHECKING,
    "enqueue": Activity.CHECKING,
    "pull_image": Activity.STAGING,
    "mount_dataset": Activity.STAGING,
    "clone_repository": Activity.STAGING,
    "prepare": Activity.STAGING,
    "wait_for_gpus": Activity.WAITING,
    "train": Activity.TRAINING,
    "save_model": Activity.SAVING,
    "release_gpus": Activity.CLOSING,
    "write_report": Activity.CLOSING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A piece of the job's life with one activity; the stretches follow each other without a gap."""

    activity: Activity
    started_at: datetime
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """All stretches of one activity together. ``ratio`` is of the job's whole time; the shares sum to it."""

    activity: Activity
    seconds: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One bar of the timeline. ``is_open``: it had not ended when the report was made; ``ended_at`` is then that time.

    MEASURED stages were recorded by whoever carried them out; the time in line and the life of the process are DERIVED
    from the job's row and its leases.
    """

    name: str
    attempt: int
    activity: Activity
    method: Method
    started_at: datetime
    ended_at: datetime
    seconds: float
    is_open: bool
    outcome: str | None
    detail: str


_Interval = tuple[Activity, datetime, datetime]


def life(job: Job, *, leases: Sequence[Lease], spans: Sequence[StageSpan], until: datetime) -> tuple[Stretch, ...]:
    """The job's time from submission to ``until``, every moment of it under exactly one activity.

    What GPUs were held for comes from the leases, everything else from the recorded stages; the first ``Activity`` in
    its list wins where several are true, so that stages side by side are not counted twice.
    """
    waits = [(Activity.WAITING, start, stop) for _, start, stop in _waits(job, leases, spans, until)]
    intervals = [*_lease_intervals(leases, until), *waits, *_span_intervals(spans, until)]
    order = list(Activity)
    cuts = sorted({job.submitted_at, until, *(t for _, a, b in intervals for t in (a, b))})
    cuts = [cut for cut in cuts if job.submitted_at <= cut <= until]
    stretches: list[Stretch] = []
    for start, stop in pairwise(cuts):
        true = [activity for activity, a, b in intervals if a <= start and stop <= b]
        activity = min(true, key=order.index, default=Activity.BETWEEN)
        seconds = (stop - start).total_seconds()
        if stretches and stretches[-1].activity is activity:
            last = stretches.pop()
            start, seconds = last.started_at, last.seconds + seconds
        stretches.append(Stretch(activity=activity, started_at=start, seconds=seconds))
    return tuple(stretches)


def _lease_intervals(leases: Sequence[Lease], until: datetime) -> Iterable[_Interval]:
    for lease in leases:
        end = lease.ended_at or until
        yield Activity.HOLDING, lease.granted_at, end
        if lease.exec_at is not None:
            yield Activity.TRAINING, lease.exec_at, min(lease.exit_at or end, end)


def _waits(
    job: Job, leases: Sequence[Lease], spans: Sequence[StageSpan], until: datetime
) -> list[tuple[int, datetime, datetime]]:
    """Each wait in line as (attempt, from, to): until the first lease, from one lease to the next, after the last one."""
    gone = job.ended_at or until
    if not leases:
        return [] if job.queued_at is None else [(job.attempt, job.queued_at, gone)]
    first, last = leases[0], leases[-1]
    waits = [(first.attempt, _joined(job, first, spans), first.granted_at)]
    waits += [
        (after.attempt, before.ended_at or after.granted_at, after.granted_at) for before, after in pairwise(leases)
    ]
    if job.queued_at is not None and job.queued_at > last.granted_at:
        waits.append((job.attempt, last.ended_at or job.queued_at, gone))
    return waits


def _joined(job: Job, first: Lease, spans: Sequence[StageSpan]) -> datetime:
    """When the job first joined the line. A later return to it moved ``queued_at``; then the end of the checks tells."""
    if job.queued_at is not None and job.queued_at <= first.granted_at:
        return job.queued_at
    checked = [
        span.ended_at for span in spans if ACTIVITY_OF_STAGE.get(span.stage) is Activity.CHECKING and span.ended_at
    ]
    return max([job.submitted_at, *(moment for moment in checked if moment <= first.granted_at)])


def _span_intervals(spans: Sequence[StageSpan], until: datetime) -> Iterable[_Interval]:
    for span in spans:
        activity = ACTIVITY_OF_STAGE.get(span.stage, Activity.BETWEEN)
        if activity is not Activity.TRAINING:  # that is what leases are for
            yield activity, span.started_at, span.ended_at or until


def shares_of(band: Sequence[Stretch]) -> tuple[Share, ...]:
    total = sum(stretch.seconds for stretch in band)
    sums = {activity: sum(s.seconds for s in band if s.activity is activity) for activity in Activity}
    return tuple(
        Share(activity=activity, seconds=seconds, ratio=seconds / total if total else 0.0)
        for activity, seconds in sums.items()
        if seconds > 0
    )


def stages_of(
    job: Job, *, leases: Sequence[Lease], spans: Sequence[StageSpan], until: datetime, now: datetime
) -> tuple[Stage, ...]:
    """The recorded stages, with the waits and the training processes that nobody recorded as a stage."""
    stages = [_stage(span, now) for span in spans]
    recorded = {(span.attempt, ACTIVITY_OF_STAGE.get(span.stage)) for span in spans}
    for attempt, start, stop in _waits(job, leases, spans, until):
        if (attempt, Activity.WAITING) not in recorded:
            stages.append(_derived_stage("wait_for_gpus", Activity.WAITING, attempt, start, stop))
    for lease in leases:
        if lease.exec_at is not None and (lease.attempt, Activity.TRAINING) not in recorded:
            stop = lease.exit_at or lease.ended_at or until
            stages.append(_derived_stage("train", Activity.TRAINING, lease.attempt, lease.exec_at, stop))
    return tuple(sorted(stages, key=lambda stage: (stage.started_at, stage.ended_at, stage.name)))


def _stage(span: StageSpan, now: datetime) -> Stage:
    end = span.ended_at or max(now, span.started_at)
    return Stage(
        name=span.stage,
        attempt=span.attempt,
        activity=ACTIVITY_OF_STAGE.get(span.stage, Activity.BETWEEN),
        method=Method.MEASURED,
        started_at=span.started_at,
        ended_at=end,
        seconds=max(0.0, (end - span.started_at).total_seconds()),
        is_open=span.ended_at is None,
        outcome=span.outcome,
        detail=span.detail,
    )


def _derived_stage(name: str, activity: Activity, attempt: int, start: datetime, stop: datetime) -> Stage:
    return Stage(
        name=name,
        attempt=attempt,
        activity=activity,
        method=Method.DERIVED,
        started_at=start,
        ended_at=stop,
        seconds=max(0.0, (stop - start).total_seconds()),
        is_open=False,
        outcome=None,
        detail="",
    )
