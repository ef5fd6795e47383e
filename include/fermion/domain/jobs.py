"""Training jobs: what is asked for, what is true of one, and which moves are legal.

A job's status is never stored: it is derived from its phase. The phase moves only through ``apply``.
Deciding which move is due from what was seen of the workload is ``domain/watching.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from fermion.domain.reasons import Explanation
from fermion.errors import InvalidTransition


class Status(StrEnum):
    """The four words that the outside sees."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class Phase(StrEnum):
    """Where a job is. The comment says what is true of the world."""

    SUBMITTED = "submitted"  # has an id; its references are not verified yet
    STAGING = "staging"  # in line; image, data and code are being fetched; holds no GPU
    WAITING = "waiting"  # in line; staged, its workload prepared and suspended; holds no GPU
    STARTING = "starting"  # holds a lease; its process has not been seen yet
    RUNNING = "running"  # holds a lease; its process has been seen alive
    STOPPING = "stopping"  # holds a lease; was asked to end and has not been seen gone
    SAVING = "saving"  # lease ended, process ended well; the model is being published
    COMPLETED = "completed"  # the model version is published
    FAILED = "failed"  # ended without a model; the reason says why


TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    Phase.SUBMITTED: frozenset({Phase.STAGING, Phase.FAILED}),
    Phase.STAGING: frozenset({Phase.WAITING, Phase.FAILED}),
    Phase.WAITING: frozenset({Phase.STARTING, Phase.FAILED}),
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.STOPPING, Phase.SAVING, Phase.STAGING, Phase.FAILED}),
    Phase.RUNNING: frozenset({Phase.STOPPING, Phase.SAVING, Phase.STAGING, Phase.FAILED}),
    Phase.STOPPING: frozenset({Phase.STAGING, Phase.SAVING, Phase.FAILED}),
    Phase.SAVING: frozenset({Phase.COMPLETED, Phase.FAILED}),
    Phase.COMPLETED: frozenset(),
    Phase.FAILED: frozenset(),
}

FINAL: frozenset[Phase] = frozenset({Phase.COMPLETED, Phase.FAILED})
IN_LINE: frozenset[Phase] = frozenset({Phase.STAGING, Phase.WAITING})
HOLDING: frozenset[Phase] = frozenset({Phase.STARTING, Phase.RUNNING, Phase.STOPPING})

_STATUS: Mapping[Phase, Status] = {
    Phase.SUBMITTED: Status.PENDING,
    Phase.STAGING: Status.PENDING,
    Phase.WAITING: Status.PENDING,
    Phase.STARTING: Status.RUNNING,
    Phase.RUNNING: Status.RUNNING,
    Phase.STOPPING: Status.RUNNING,
    Phase.SAVING: Status.RUNNING,
    Phase.COMPLETED: Status.COMPLETED,
    Phase.FAILED: Status.FAILED,
}


def phases_of(status: Status) -> frozenset[Phase]:
    """The phases that one of the four words covers."""
    return frozenset(phase for phase, word in _STATUS.items() if word is status)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What was asked for, as validated by ``domain/request.py``. Nothing here is looked up or pinned yet.

    GPUs are whole devices: the job takes ``nodes * gpus_per_node`` of one pool, all or nothing.
    ``hyperparameters`` is a flat mapping of JSON scalars. ``checkpoint`` names the job whose last checkpoint to resume from.
    A timeout of None means the policy's default.
    """

    name: str
    pool: str
    image: str
    repository: str
    entrypoint: tuple[str, ...]
    output_model: str
    ref: str = "main"
    datasets: tuple[str, ...] = ()
    hyperparameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    nodes: int = 1
    gpus_per_node: int = 1
    memory_mib: int | None = None
    priority: int = 0
    preemptible: bool = True
    max_runtime: timedelta | None = None
    queue_timeout: timedelta | None = None
    checkpoint: str | None = None
    owner: str = "unknown"
    team: str = "default"

    @property
    def gpus(self) -> int:
        """GPUs in all (the mission's gpuCount)."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """What the names in a spec meant when the job was checked; a run never resolves them again.

    ``image_digest`` is ``sha256:…``, ``commit`` 40 hex digits, ``datasets`` maps a dataset's name to its version's checksum.
    """

    image_digest: str
    commit: str
    datasets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the training says it is. ``percent`` is clamped to 0 to 100.

    ``at`` is when it was last heard; ``usual_step`` is the running mean of the time between two lines, None before there
    were two. ``offset`` (bytes) and ``lines`` tell how much of the present attempt's progress was read: stored with what
    was read, so that whoever reads on, each line counts once.
    """

    percent: float = 0.0
    epoch: int | None = None
    epochs: int | None = None
    at: datetime | None = None
    usual_step: timedelta | None = None
    offset: int = 0
    lines: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training job. ``version`` is the store's guard: a save with another version is a lost race.

    ``attempt`` counts from 1 and moves on when a fresh workload is needed (preempted, node lost).
    ``run`` is the (dag id, run id) that carries it, None until one is known. ``stop_requested_at`` is a stored wish
    that whoever watches the workload obeys, ``preempted_for`` (a job's id) likewise; ``explanation`` is why the job is in its phase.
    ``model_version`` is set when the model is published; ``excluded_nodes`` are nodes that lost an attempt of this job.
    """

    id: str
    spec: JobSpec
    phase: Phase
    explanation: Explanation
    submitted_at: datetime
    changed_at: datetime
    run: tuple[str, str] | None = None
    pins: Pins | None = None
    attempt: int = 1
    progress: Progress = Progress()
    queued_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    stop_requested_at: datetime | None = None
    stop_requested_by: str | None = None
    preempted_for: str | None = None
    excluded_nodes: tuple[str, ...] = ()
    model_version: int | None = None
    restart_of: str | None = None
    version: int = 0

    @property
    def status(self) -> Status:
        """One of the four words, derived from the phase."""
        return _STATUS[self.phase]

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.phase in FINAL

    @property
    def is_failed(self) -> bool:
        """Whether it ended without a model."""
        return self.phase is Phase.FAILED

    @property
    def is_waiting(self) -> bool:
        """Whether it has still to be given GPUs."""
        return self.phase in IN_LINE or self.phase is Phase.SUBMITTED

    @property
    def is_training(self) -> bool:
        """Whether its training has still to end: in line, or holding GPUs."""
        return self.is_waiting or self.phase in HOLDING

    @property
    def output_model_path(self) -> str | None:
        """``<model>/<version>`` in the model repository once published, else None."""
        return None if self.model_version is None else f"{self.spec.output_model}/{self.model_version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A due change of phase, with its reason. ``fresh_attempt`` starts the next attempt (only towards STAGING)."""

    to: Phase
    explanation: Explanation
    fresh_attempt: bool = False
    exclude_node: str | None = None
    model_version: int | None = None


def apply(job: Job, move: Move, now: datetime) -> Job:
    """The job after the move; the only door through which a phase changes.

    Raises:
        InvalidTransition: the table has no such move.
    """
    if move.to not in TRANSITIONS[job.phase]:
        raise InvalidTransition(f"job {job.id} cannot go from {job.phase} to {move.to}", what="job")
    changes: dict[str, object] = {"phase": move.to, "explanation": move.explanation, "changed_at": now}
    if move.to is Phase.STAGING and job.queued_at is None:
        changes["queued_at"] = now  # a fresh attempt keeps the place in the line
    if move.to is Phase.STARTING and job.started_at is None:
        changes["started_at"] = now
    if move.to in FINAL:
        changes["ended_at"] = now
    if move.fresh_attempt:
        changes["attempt"] = job.attempt + 1
        changes["progress"] = replace(job.progress, at=None, offset=0, lines=0)
        changes["preempted_for"] = None
    if move.exclude_node:
        changes["excluded_nodes"] = (*job.excluded_nodes, move.exclude_node)
    if move.model_version is not None:
        changes["model_version"] = move.model_version
    return replace(job, **changes)  # type: ignore[arg-type]
