"""The training report: everything worth knowing about one ended run, computed from rows and nothing else.

Pure: the same rows and the same ``now`` give the same report. How it looks on a page is ``adapters/report``.
``to_payload`` is a stable JSON schema (``schema`` tells which); ``from_payload`` reads it back.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import cast

from fermion.domain.accounting import Account, account, total
from fermion.domain.artifacts import ModelVersion
from fermion.domain.figures import Figure, Method
from fermion.domain.jobs import Job, Phase
from fermion.domain.leases import Lease
from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.pools import Pool
from fermion.domain.reasons import Reason
from fermion.domain.records import Decision, MetricPoint, StageSpan
from fermion.domain.reproduction import Reproduction, reproduction, without_credentials
from fermion.domain.series import Series, build_series
from fermion.domain.timeline import Activity, Share, Stage, Stretch, life, shares_of, stages_of
from fermion.domain.workloads import workload_name

SCHEMA = 1
"""Moves on when a field changes its meaning or goes; a new field does not move it."""

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
        return cast("dict[str, object]", _plain(to_payload(self)))

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
    shares = shares_of(band)
    stages = stages_of(job, leases=leases, spans=spans, until=end, now=now)
    system = _system_series(points, declared=holds_declared(leases, pool), has_lease=bool(leases), now=now)
    return Report(
        generated_at=now,
        job=_identity(job, leases, pool),
        outcome=_outcome(job),
        figures={
            **_time_figures(job, shares, stages, end=end, now=now),
            **_gpu_figures(job, leases, total(accounts), pool=pool, now=now),
            **_training_figures(job, model, now=now),
            **_system_figures(system),
            **{name: _finite(figure) for name, figure in (figures or {}).items()},
        },
        wasted=_wasted(total(accounts), now=now),
        band=band,
        shares=shares,
        stages=stages,
        leases=tuple(_lease_use(lease, held) for lease, held in zip(leases, accounts, strict=True)),
        metrics=_training_series(points, job=job, now=now),
        system=system,
        model=_model_use(model),
        lineage=_lineage(job, leases, model),
        reproduction=reproduction(job),
        decisions=_last_decisions(decisions),
        decision_count=len(decisions),
        log_tail=tail(log_tail),
    )


def _last_decisions(decisions: Sequence[Decision]) -> tuple[DecisionLine, ...]:
    return tuple(_decision_line(each) for each in sorted(decisions, key=lambda each: each.decided_at)[-DECISIONS:])


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


# --- figures --------------------------------------------------------------------------------------------------------


def _derived(value: float | int | None, unit: str, source: str, now: datetime, reason: str | None = None) -> Figure:
    return Figure(value=value, unit=unit, source=source, method=Method.DERIVED, observed_at=now, reason=reason)


def _time_figures(
    job: Job, shares: Sequence[Share], stages: Sequence[Stage], *, end: datetime, now: datetime
) -> dict[str, Figure]:
    seconds = {share.activity: share.seconds for share in shares}
    recorded, rows = "recorded stages and leases", "the job's submission and end"
    in_line = sum(stage.seconds for stage in stages if stage.activity is Activity.WAITING)
    figures = {
        "wall_seconds": _derived((end - job.submitted_at).total_seconds(), "seconds", rows, now),
        "in_line_seconds": _derived(in_line, "seconds", "stages wait_for_gpus of all attempts", now),
    }
    for activity in Activity:
        figures[f"{activity}_seconds"] = _derived(seconds.get(activity, 0.0), "seconds", recorded, now)
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


def _system_figures(system: Sequence[Series]) -> dict[str, Figure]:
    """The highest memory; of everything else the mean."""
    return {
        f"{series.name}_peak" if series.unit == "mib" else f"{series.name}_mean": series.highest
        if series.unit == "mib"
        else series.mean
        for series in system
    }


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


# --- lineage ------------------------------------------------------------------------------------------------------


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
