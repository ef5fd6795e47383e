"""The training report: everything worth knowing about one ended run, computed from rows and nothing else.

Pure: the same rows and the same ``now`` give the same report. How it looks on a page is ``adapters/report``.
``to_payload`` is a stable JSON schema (``schema`` tells which); ``from_payload`` reads it back.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import cast
from urllib.parse import urlsplit, urlunsplit

from fermion.domain.accounting import Account, account, total
from fermion.domain.artifacts import ModelVersion
from fermion.domain.figures import Figure, Method
from fermion.domain.jobs import Job, Phase
from fermion.domain.leases import Lease
from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.pools import Pool
from fermion.domain.reasons import Reason
from fermion.domain.records import Decision, MetricPoint, StageSpan
from fermion.domain.request import to_payload as spec_payload
from fermion.domain.workloads import workload_name

SCHEMA = 1
"""Moves on when a field changes its meaning or goes; a new field does not move it."""

SERIES_POINTS = 480
"""At most so many points of one metric are kept in a report: more than a chart has columns for."""

LOG_LINES = 120
LOG_CHARACTERS = 24_000
DECISIONS = 100

SYSTEM_UNITS: Mapping[str, str] = {
    "cpu_cores": "cores",
    "memory_mib": "mib",
    "gpu_utilisation": "ratio",
    "gpu_memory_mib": "mib",
}
"""The system series that every report speaks of, measured or not, with their units."""

_DECLARED_SLOTS = "declared slots: this machine has no GPU that could be measured"


# --- values ---------------------------------------------------------------------------------------------------------


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
    "wait_for_gpus": Activity.WAITING,
    "train": Activity.TRAINING,
    "save_model": Activity.SAVING,
    "release_gpus": Activity.CLOSING,
    "write_report": Activity.CLOSING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which job, whose, when. ``devices`` says what was held in words (``2 declared slots``), None when nothing was."""

    id: str
    name: str
    owner: str
    team: str
    pool: str
    priority: int
    nodes: int
    gpus_per_node: int
    gpus: int
    attempts: int
    devices: str | None
    submitted_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    stop_requested_by: str | None
    restart_of: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended: ``headline`` in a few words, ``message`` the reason's sentence, ``problems`` those of a refused request."""

    status: str
    phase: str
    reason: str
    headline: str
    message: str
    numbers: Mapping[str, object] = field(default_factory=dict)
    problems: tuple[Mapping[str, object], ...] = ()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseUse:
    """One lease with its account in GPU-seconds: ``held = used + sum(wasted.values())``."""

    id: str
    attempt: int
    pool: str
    token: int
    gpus: int
    devices: tuple[str, ...]
    phase: str
    end_cause: str | None
    granted_at: datetime
    exec_at: datetime | None
    exit_at: datetime | None
    ended_at: datetime | None
    held: float
    used: float
    wasted: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPoint:
    """One value; None where what was recorded is not a finite number."""

    attempt: int
    at: datetime
    value: float | None
    epoch: int | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric over time. ``count`` points were recorded, ``points`` are those kept (see ``thin``).

    ``first`` to ``highest`` are over all recorded points. ``reason`` says why there is no point.
    """

    name: str
    kind: str
    unit: str
    source: str
    count: int
    not_finite: int
    points: tuple[SeriesPoint, ...]
    first: Figure
    last: Figure
    lowest: Figure
    highest: Figure
    reason: str | None = None

    @property
    def is_thinned(self) -> bool:
        """Whether fewer points are kept than were recorded."""
        return len(self.points) < self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUse:
    """The published version."""

    path: str
    checksum: str
    uri: str
    created_at: datetime
    size_bytes: int
    files: tuple[Mapping[str, object], ...]
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The chain from the run to the model. What was never reached is None or empty."""

    dag_id: str | None
    run_id: str | None
    leases: tuple[str, ...]
    image: str
    image_digest: str | None
    repository: str
    ref: str
    commit: str | None
    entrypoint: tuple[str, ...]
    datasets: Mapping[str, str | None]
    hyperparameters: Mapping[str, str | int | float | bool]
    checkpoint: str | None
    model: str | None
    model_checksum: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """How to run it again: a shell command with the specification in it, and what that does not fix."""

    command: str
    spec: Mapping[str, object]
    is_pinned: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionLine:
    """A decision without its inputs; those are stored under ``id``."""

    id: str
    kind: str
    verdict: str
    reason: str
    message: str
    rule_version: str
    decided_at: datetime
    numbers: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run's report. ``band`` is the job's life in order, ``shares`` the same by activity; both sum to ``wall_seconds``."""

    generated_at: datetime
    job: Identity
    outcome: Outcome
    figures: Mapping[str, Figure]
    wasted: Mapping[str, Figure]
    band: tuple[Stretch, ...]
    shares: tuple[Share, ...]
    stages: tuple[Stage, ...]
    leases: tuple[LeaseUse, ...]
    metrics: tuple[Series, ...]
    system: tuple[Series, ...]
    model: ModelUse | None
    lineage: Lineage
    reproduction: Reproduction
    decisions: tuple[DecisionLine, ...]
    decision_count: int
    log_tail: str = ""
    schema: int = SCHEMA

    def to_payload(self) -> dict[str, object]:
        """The report as JSON-ready values: times ISO 8601 with offset, no NaN, keys are the field names."""
        return cast("dict[str, object]", to_payload(self))

    @staticmethod
    def from_payload(payload: Mapping[str, object]) -> Report:
        """The report that ``to_payload`` wrote; fields added since then are ignored.

        Raises:
            ValueError: another schema, or a field is missing or malformed.
        """
        if payload.get("schema") != SCHEMA:
            raise ValueError(
                f"this is a report of schema {payload.get('schema')!r}; this program reads schema {SCHEMA}"
            )
        try:
            return from_payload(Report, payload)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a report of schema {SCHEMA}: {error!r}") from error


# --- building -------------------------------------------------------------------------------------------------------


def build_report(
    job: Job,
    *,
    leases: Sequence[Lease],
    spans: Sequence[StageSpan],
    points: Sequence[MetricPoint],
    decisions: Sequence[Decision],
    now: datetime,
    model: ModelVersion | None = None,
    pool: Pool | None = None,
    figures: Mapping[str, Figure] | None = None,
    log_tail: str = "",
) -> Report:
    """The report of one run from its rows, whatever it reached.

    ``figures`` are further ones that only the caller could measure (exit code, peak memory): they are shown as they are,
    and replace one of the same name. ``log_tail`` is the end of the last attempt's log; the last lines of it are kept.
    """
    leases = sorted(leases, key=lambda lease: lease.granted_at)
    accounts = [account(lease, now) for lease in leases]
    end = max([job.ended_at or now, *(lease.ended_at or now for lease in leases)])
    band = life(job, leases=leases, spans=spans, until=end)
    shares = _shares(band)
    declared = holds_declared(leases, pool)
    metrics = _training_series(points, job=job, now=now)
    system = _system_series(points, declared=declared, has_lease=bool(leases), now=now)
    return Report(
        generated_at=now,
        job=_identity(job, leases, pool),
        outcome=_outcome(job),
        figures={
            **_time_figures(job, shares, end=end, now=now),
            **_gpu_figures(job, leases, total(accounts), pool=pool, now=now),
            **_training_figures(job, model, now=now),
            **_system_figures(system, now=now),
            **{name: _finite(figure) for name, figure in (figures or {}).items()},
        },
        wasted=_wasted(total(accounts), now=now),
        band=band,
        shares=shares,
        stages=_stages(job, leases=leases, spans=spans, until=end, now=now),
        leases=tuple(_lease_use(lease, held) for lease, held in zip(leases, accounts, strict=True)),
        metrics=metrics,
        system=system,
        model=_model_use(model),
        lineage=_lineage(job, leases, model),
        reproduction=reproduction(job),
        decisions=tuple(
            _decision_line(decision) for decision in sorted(decisions, key=lambda d: d.decided_at)[-DECISIONS:]
        ),
        decision_count=len(decisions),
        log_tail=tail(log_tail),
    )


# --- identity and outcome -------------------------------------------------------------------------------------------

HEADLINES: Mapping[Reason, str] = {
    Reason.MODEL_PUBLISHED: "Model published",
    Reason.CHECK_REFUSED: "The request was refused",
    Reason.STOPPED: "Stopped by request",
    Reason.QUEUE_TIMEOUT: "Gave up waiting for GPUs",
    Reason.START_TIMEOUT: "The training did not start in time",
    Reason.MAX_RUNTIME: "Ended at its maximum runtime",
    Reason.HANG: "Ended because it made no progress",
    Reason.OUT_OF_MEMORY: "Ran out of memory",
    Reason.USER_CODE: "The training code failed",
    Reason.KILLED: "Ended by a signal from outside",
    Reason.WORKLOAD_LOST: "The workload vanished",
    Reason.STAGING_FAILED: "Image, data or code could not be fetched",
    Reason.SAVE_FAILED: "The model could not be published",
    Reason.NO_MODEL: "The training left no model",
    Reason.RUN_ENDED: "The workflow run ended early",
}
"""A few words for each reason that a job can end with."""


def _outcome(job: Job) -> Outcome:
    explanation = job.explanation
    headline = HEADLINES.get(explanation.reason, str(explanation.reason).replace("_", " ").capitalize())
    if job.phase is Phase.COMPLETED and job.output_model_path:
        headline = f"Published {job.output_model_path}"
    numbers = {key: _plain(value) for key, value in explanation.numbers.items()}
    problems = numbers.pop("problems", ())
    rows = problems if isinstance(problems, list) else []
    return Outcome(
        status=str(job.status),
        phase=str(job.phase),
        reason=str(explanation.reason),
        headline=headline,
        message=explanation.message or f"{headline}.",
        numbers=numbers,
        problems=tuple(row for row in rows if isinstance(row, dict)),
    )


def _identity(job: Job, leases: Sequence[Lease], pool: Pool | None) -> Identity:
    spec = job.spec
    return Identity(
        id=job.id,
        name=spec.name,
        owner=spec.owner,
        team=spec.team,
        pool=spec.pool,
        priority=spec.priority,
        nodes=spec.nodes,
        gpus_per_node=spec.gpus_per_node,
        gpus=spec.gpus,
        attempts=job.attempt,
        devices=devices_in_words(leases[-1], pool) if leases else None,
        submitted_at=job.submitted_at,
        queued_at=job.queued_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        stop_requested_by=job.stop_requested_by,
        restart_of=job.restart_of,
    )


def devices_in_words(lease: Lease, pool: Pool | None) -> str:
    """What a lease holds, as ``2 declared slots`` or ``4 × NVIDIA H200``; a declared slot is never called by a GPU's name."""
    known = {device.id: device for node in (pool.nodes if pool else ()) for device in node.devices}
    names: Counter[str] = Counter()
    for part in lease.slices:
        for device_id in part.devices:
            device = known.get(device_id)
            if _is_declared(device_id, pool):
                names["declared slot"] += 1
            else:
                names[device.model if device else "GPU of unknown model"] += 1
    return ", ".join(_counted(name, count) for name, count in sorted(names.items())) or "no device"


def _counted(name: str, count: int) -> str:
    if name == "declared slot":
        return f"{count} declared slot{'s' if count != 1 else ''}"
    return f"{count} × {name}"


def _is_declared(device_id: str, pool: Pool | None) -> bool:
    for node in pool.nodes if pool else ():
        for device in node.devices:
            if device.id == device_id:
                return device.method is Method.DECLARED
    return device_id.startswith("slot-")


def holds_declared(leases: Sequence[Lease], pool: Pool | None) -> bool:
    """Whether any device of these leases (without one: of the pool) is only declared."""
    held = [device for lease in leases for part in lease.slices for device in part.devices]
    if held:
        return any(_is_declared(device, pool) for device in held)
    return pool is not None and pool.method is Method.DECLARED


# --- where the time went --------------------------------------------------------------------------------------------

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


def _shares(band: Sequence[Stretch]) -> tuple[Share, ...]:
    total = sum(stretch.seconds for stretch in band)
    sums = {activity: sum(s.seconds for s in band if s.activity is activity) for activity in Activity}
    return tuple(
        Share(activity=activity, seconds=seconds, ratio=seconds / total if total else 0.0)
        for activity, seconds in sums.items()
        if seconds > 0
    )


def _stages(
    job: Job, *, leases: Sequence[Lease], spans: Sequence[StageSpan], until: datetime, now: datetime
) -> tuple[Stage, ...]:
    """The recorded stages, with the waits and the training processes that nobody recorded as a stage."""
    stages = [_stage(span, now) for span in spans]
    recorded = {(span.attempt, ACTIVITY_OF_STAGE.get(span.stage)) for span in spans}
    for attempt, start, stop in _waits(job, leases, spans, until):
        if (attempt, Activity.WAITING) not in recorded:
            stages.append(_derived_stage("in_line", Activity.WAITING, attempt, start, stop))
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


# --- figures --------------------------------------------------------------------------------------------------------


def _derived(value: float | int | None, unit: str, source: str, now: datetime, reason: str | None = None) -> Figure:
    return Figure(value=value, unit=unit, source=source, method=Method.DERIVED, observed_at=now, reason=reason)


def _time_figures(job: Job, shares: Sequence[Share], *, end: datetime, now: datetime) -> dict[str, Figure]:
    seconds = {share.activity: share.seconds for share in shares}
    stages, rows = "recorded stages and leases", "the job's submission and end"
    figures = {"wall_seconds": _derived((end - job.submitted_at).total_seconds(), "seconds", rows, now)}
    for activity in Activity:
        figures[f"{activity}_seconds"] = _derived(seconds.get(activity, 0.0), "seconds", stages, now)
    return figures


def _finite(figure: Figure) -> Figure:
    if isinstance(figure.value, float) and not math.isfinite(figure.value):
        return replace(figure, value=None, reason=f"the source said {figure.value}")
    return figure


def _gpu_figures(
    job: Job, leases: Sequence[Lease], sum_of_all: Account, *, pool: Pool | None, now: datetime
) -> dict[str, Figure]:
    held, used = sum_of_all.held, sum_of_all.used
    return {
        "gpus": _gpus(leases, pool, now),
        "gpu_seconds_held": _derived(held, "gpu_seconds", "leases: GPUs × (end − grant)", now),
        "gpu_seconds_used": _derived(used, "gpu_seconds", "leases: held − wasted", now),
        "gpu_seconds_wasted": _derived(
            sum_of_all.wasted_total, "gpu_seconds", "leases: held with no live process", now
        ),
        "used_ratio": _derived(
            used / held if held > 0 else None,
            "ratio",
            "used / held",
            now,
            None if held > 0 else "no GPU-second was held",
        ),
        "attempts": _derived(job.attempt, "attempts", "the job's row", now),
    }


def _gpus(leases: Sequence[Lease], pool: Pool | None, now: datetime) -> Figure:
    if not leases:
        return _derived(None, "gpus", "leases", now, "the job never held a GPU")
    return Figure(
        value=leases[-1].gpus,
        unit="gpus",
        source=f"lease {leases[-1].id}: {devices_in_words(leases[-1], pool)}",
        method=Method.DECLARED if holds_declared(leases, pool) else Method.DERIVED,
        observed_at=now,
    )


def _training_figures(job: Job, model: ModelVersion | None, *, now: datetime) -> dict[str, Figure]:
    progress = job.progress
    silent = progress.at is None and progress.percent == 0 and progress.epoch is None
    observed = progress.at or now
    source = f"progress lines of {workload_name(job.id, job.attempt)}"
    why = "the training reported no progress"
    published = "the repository's manifest"
    return {
        "progress_percent": Figure(
            value=None if silent else progress.percent,
            unit="percent",
            source=source,
            method=Method.MEASURED,
            observed_at=observed,
            reason=why if silent else None,
        ),
        "epochs": Figure(
            value=progress.epoch,
            unit="epochs",
            source=source,
            method=Method.MEASURED,
            observed_at=observed,
            reason=None if progress.epoch is not None else "the training named no epoch",
        ),
        "model_bytes": Figure(
            value=model.size_bytes if model else None,
            unit="bytes",
            source=published,
            method=Method.MEASURED,
            observed_at=model.created_at if model else now,
            reason=None if model else "no model was published",
        ),
    }


def _system_figures(system: Sequence[Series], *, now: datetime) -> dict[str, Figure]:
    """Mean use over the points recorded, and the highest memory."""
    figures: dict[str, Figure] = {}
    for series in system:
        values = [point.value for point in series.points if point.value is not None]
        if series.name.endswith("_mib"):
            figures[f"{series.name}_peak"] = series.highest
        else:
            mean = math.fsum(values) / len(values) if values and not series.is_thinned else None
            why = series.reason or "the recorded points are too many to be averaged here"
            figures[f"{series.name}_mean"] = _derived(
                mean,
                series.unit,
                f"mean of {series.count} points, {series.source}",
                now,
                None if mean is not None else why,
            )
    return figures


def _wasted(sum_of_all: Account, *, now: datetime) -> dict[str, Figure]:
    ordered = sorted(sum_of_all.wasted.items(), key=lambda item: (-item[1], item[0]))
    source = "leases: held with no live process"
    return {str(cause): _derived(seconds, "gpu_seconds", source, now) for cause, seconds in ordered}


# --- series ---------------------------------------------------------------------------------------------------------


def _training_series(points: Sequence[MetricPoint], *, job: Job, now: datetime) -> tuple[Series, ...]:
    names = dict.fromkeys(point.name for point in points if point.kind == "training")
    return tuple(
        build_series(
            name,
            [point for point in points if point.kind == "training" and point.name == name],
            kind="training",
            unit="value",
            source=f"progress lines of {job.id}",
            now=now,
        )
        for name in names
    )


def _system_series(
    points: Sequence[MetricPoint], *, declared: bool, has_lease: bool, now: datetime
) -> tuple[Series, ...]:
    system = [point for point in points if point.kind == "system"]
    names = dict.fromkeys([*SYSTEM_UNITS, *(point.name for point in system)])
    return tuple(
        build_series(
            name,
            [point for point in system if point.name == name],
            kind="system",
            unit=SYSTEM_UNITS.get(name, "value"),
            source="measured by the cluster's driver",
            now=now,
            reason=_why_unmeasured(name, declared=declared, has_lease=has_lease),
        )
        for name in names
    )


def _why_unmeasured(name: str, *, declared: bool, has_lease: bool) -> str:
    if not has_lease:
        return "nothing ran: the job never held a GPU"
    if name.startswith("gpu_") and declared:
        return _DECLARED_SLOTS
    return "no measurement was recorded"


def build_series(
    name: str,
    points: Sequence[MetricPoint],
    *,
    kind: str,
    unit: str,
    source: str,
    now: datetime,
    reason: str = "no point was recorded",
) -> Series:
    """One metric's series with its extremes over all points; ``reason`` is used where there is none."""
    rows = [
        SeriesPoint(
            attempt=point.attempt,
            at=point.at,
            value=point.value if math.isfinite(point.value) else None,
            epoch=point.epoch,
            step=point.step,
        )
        for point in sorted(points, key=lambda point: (point.attempt, point.number))
    ]
    finite = [row for row in rows if row.value is not None]
    why = "no recorded value is a finite number" if rows else reason

    def figure(row: SeriesPoint | None) -> Figure:
        return Figure(
            value=row.value if row else None,
            unit=unit,
            source=source,
            method=Method.MEASURED,
            observed_at=row.at if row else now,
            reason=None if row else why,
        )

    def worth(row: SeriesPoint) -> float:
        return row.value if row.value is not None else math.nan

    return Series(
        name=name,
        kind=kind,
        unit=unit,
        source=source,
        count=len(rows),
        not_finite=len(rows) - len(finite),
        points=thin(rows),
        first=figure(finite[0] if finite else None),
        last=figure(finite[-1] if finite else None),
        lowest=figure(min(finite, key=worth, default=None)),
        highest=figure(max(finite, key=worth, default=None)),
        reason=None if finite else why,
    )


def thin(points: Sequence[SeriesPoint], limit: int = SERIES_POINTS) -> tuple[SeriesPoint, ...]:
    """At most ``limit`` (8 or more) of the points, in order, such that the picture stays honest.

    The first and last stay; of each of equally long buckets between them the lowest, the highest and the first that is
    not a number stay, so that no spike and no gap is smoothed away. Nothing is averaged or made up.
    """
    if len(points) <= limit:
        return tuple(points)
    inner = range(1, len(points) - 1)
    buckets = max(1, (limit - 2) // 3)
    kept = {0, len(points) - 1}
    for bucket in range(buckets):
        indexes = inner[bucket * len(inner) // buckets : (bucket + 1) * len(inner) // buckets]
        finite = [(value, i) for i in indexes if (value := points[i].value) is not None]
        gaps = [i for i in indexes if points[i].value is None]
        if finite:
            kept |= {min(finite)[1], max(finite)[1]}
        kept |= set(gaps[:1])
    return tuple(points[i] for i in sorted(kept))


# --- lineage and reproduction ---------------------------------------------------------------------------------------


def _lease_use(lease: Lease, held: Account) -> LeaseUse:
    return LeaseUse(
        id=lease.id,
        attempt=lease.attempt,
        pool=lease.pool,
        token=lease.token,
        gpus=lease.gpus,
        devices=tuple(f"{part.node}: {', '.join(part.devices)}" for part in lease.slices),
        phase=str(lease.phase),
        end_cause=lease.end_cause,
        granted_at=lease.granted_at,
        exec_at=lease.exec_at,
        exit_at=lease.exit_at,
        ended_at=lease.ended_at,
        held=held.held,
        used=held.used,
        wasted={str(cause): seconds for cause, seconds in held.wasted.items()},
    )


def _model_use(model: ModelVersion | None) -> ModelUse | None:
    if model is None:
        return None
    return ModelUse(
        path=model.path,
        checksum=model.checksum,
        uri=model.uri,
        created_at=model.created_at,
        size_bytes=model.size_bytes,
        files=tuple({"path": entry.path, "size": entry.size, "sha256": entry.sha256} for entry in model.files),
        metrics={name: value if math.isfinite(value) else None for name, value in model.metrics.items()},
    )


def _lineage(job: Job, leases: Sequence[Lease], model: ModelVersion | None) -> Lineage:
    spec, pins = job.spec, job.pins
    dag_id, run_id = job.run or (None, None)
    return Lineage(
        dag_id=dag_id,
        run_id=run_id,
        leases=tuple(lease.id for lease in leases),
        image=spec.image,
        image_digest=pins.image_digest if pins else None,
        repository=without_credentials(spec.repository),
        ref=spec.ref,
        commit=pins.commit if pins else None,
        entrypoint=spec.entrypoint,
        datasets={name: pins.datasets.get(name) if pins else None for name in spec.datasets},
        hyperparameters=dict(spec.hyperparameters),
        checkpoint=spec.checkpoint,
        model=model.path if model else None,
        model_checksum=model.checksum if model else None,
    )


def without_credentials(url: str) -> str:
    """The URL without a password or token in it; a report is passed around. The user of ssh is part of the address."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return re.sub(r"//[^/@]*@", "//", url)
    user, at_sign, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0] + at_sign if parts.scheme == "ssh" else ""
    return urlunsplit(parts._replace(netloc=name + host)) if at_sign else url


def reproduction(job: Job) -> Reproduction:
    """The command that asks for the same again, with the commit instead of the branch; the specification is its input."""
    pins = job.pins
    spec = _again(job)
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in spec.items())
    body = _escape_invisible(f"{{\n{lines}\n}}")
    notes: list[str] = []
    if pins is None:
        notes.append(
            "Nothing was pinned: the check did not get that far, so the names below may mean something else today."
        )
    else:
        names = [f"image {job.spec.image} was {pins.image_digest}"]
        names += [f"dataset {name} was {checksum}" for name, checksum in sorted(pins.datasets.items())]
        notes.append(f"The commit is pinned. Looked up again by name: {'; '.join(names)}.")
    if without_credentials(job.spec.repository) != job.spec.repository:
        notes.append("The repository's credentials were left out.")
    return Reproduction(
        # A quoted delimiter: the shell expands nothing in the body. No line of JSON can be the delimiter itself.
        command=f"fermion train --spec - <<'SPEC'\n{body}\nSPEC\n",
        spec=spec,
        is_pinned=pins is not None,
        notes=tuple(notes),
    )


def _again(job: Job) -> dict[str, object]:
    """The request as the job made it; whoever runs it is its owner."""
    pinned = replace(
        job.spec,
        repository=without_credentials(job.spec.repository),
        ref=job.pins.commit if job.pins else job.spec.ref,
    )
    return {key: _plain(value) for key, value in spec_payload(pinned).items() if key != "owner" and value is not None}


def _decision_line(decision: Decision) -> DecisionLine:
    return DecisionLine(
        id=decision.id,
        kind=decision.kind,
        verdict=decision.verdict,
        reason=decision.reason,
        message=decision.message,
        rule_version=decision.rule_version,
        decided_at=decision.decided_at,
        numbers={key: _plain(value) for key, value in decision.numbers.items()},
    )


# --- text -----------------------------------------------------------------------------------------------------------

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def tail(text: str) -> str:
    """The last lines of a log without terminal control sequences; of a progress bar only what it showed at the end."""
    lines = _ANSI.sub("", text[-4 * LOG_CHARACTERS :]).replace("\r\n", "\n").split("\n")
    kept = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines[-LOG_LINES:])
    return kept[-LOG_CHARACTERS:].strip("\n")


def _escape_invisible(text: str) -> str:
    """Text for a shell window: what cannot be seen (controls, direction marks) as JSON escapes."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _plain(value: object) -> object:
    """A JSON-ready copy of a value that should be one already; what JSON cannot say becomes None or its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return str(value) if isinstance(value, StrEnum) else value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
