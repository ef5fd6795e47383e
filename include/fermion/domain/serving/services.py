"""Services, their revisions and the rows of their replicas: what is asked for, what is true of each, which moves are legal.

A service is a name and a route; a revision is one pinned thing that it serves; a replica's row says whether it is in line,
holds GPUs or leaves. Whether a replica is ready is never stored: it is looked at. What is due is decided in ``fleet.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from fermion.domain.reasons import Explanation
from fermion.domain.rollout.plan import Plan, SplitRule
from fermion.domain.serving.autoscaling import Autoscaling
from fermion.domain.serving.replicas import Probes, replica_name, revision_id
from fermion.domain.serving.routing import ApiType as ApiType
from fermion.domain.serving.routing import Balancing
from fermion.errors import InvalidTransition

SERVICE_DAG = "deploy_service"
"""The DAG whose runs deploy revisions."""


class Capacity(StrEnum):
    """What a new revision does where its pool has no GPUs to spare."""

    WAIT = "wait"  # stand in line; the revision that serves keeps its GPUs
    BORROW = "borrow"  # take them from preemptible work of lower priority, as a job of high priority does
    SWAP = "swap"  # replace replica by replica: one of the old ends before one of the new begins (surge 0)


class WhenBusy(StrEnum):
    """What a new revision does while its service is in a rollout."""

    WAIT = "wait"  # until that one has ended
    SUPERSEDE = "supersede"  # end that one, and take its place


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """What was asked for, as validated by ``serving/request.py``. Nothing here is looked up or pinned yet.

    ``version`` None means the model's newest. ``command`` is the server's command line where the engine's own is not
    wanted; ``repository`` and ``ref`` are where its code is, None where the image or the model holds it. ``replicas`` is
    what to start with. ``follow``: each new version of the model is deployed by itself, by this request. ``keep_warm`` is how long the
    revision that was replaced keeps its replicas, so that a rollback starts nothing. ``retry_failed``: a person wants it tried
    although the same thing failed in this service before.
    """

    name: str
    model: str
    engine: str
    image: str
    pool: str
    plan: Plan
    version: int | None = None
    command: tuple[str, ...] = ()
    repository: str | None = None
    ref: str = "main"
    api_type: ApiType = ApiType.REST
    replicas: int = 1
    gpus_per_replica: int = 1
    memory_mib: int | None = None
    cpus: float | None = None
    prefix: str | None = None
    port: int | None = None
    balancing: Balancing = Balancing.LEAST_REQUEST
    autoscaling: Autoscaling | None = None
    probes: Probes | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    capacity: Capacity = Capacity.WAIT
    when_busy: WhenBusy = WhenBusy.WAIT
    keep_warm: timedelta = timedelta(minutes=10)
    ready_timeout: timedelta = timedelta(minutes=10)
    priority: int = 100
    follow: bool = False
    retry_failed: bool = False
    owner: str = "unknown"
    team: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePins:
    """What the names in a spec meant when it was checked. ``commit`` is None where no repository was named."""

    model_version: int
    model_checksum: str
    image_digest: str
    commit: str | None = None


class RevisionPhase(StrEnum):
    """Where a revision is. The comment says what is true of the world."""

    STAGING = "staging"  # image, model and code are being fetched; nothing of it runs
    STARTING = "starting"  # its replicas are in line or starting; it gets no requests
    SERVING = "serving"  # the route names it, whatever its share
    WARM = "warm"  # it gets no requests; its replicas live on for a rollback
    RETIRING = "retiring"  # its replicas are being drained and ended
    RETIRED = "retired"  # it holds nothing
    FAILED = "failed"  # it holds nothing, and what it pinned is not deployed again by itself


REVISION_TRANSITIONS: Mapping[RevisionPhase, frozenset[RevisionPhase]] = {
    RevisionPhase.STAGING: frozenset({RevisionPhase.STARTING, RevisionPhase.RETIRING, RevisionPhase.FAILED}),
    RevisionPhase.STARTING: frozenset({RevisionPhase.SERVING, RevisionPhase.RETIRING}),
    RevisionPhase.SERVING: frozenset({RevisionPhase.WARM, RevisionPhase.RETIRING}),
    RevisionPhase.WARM: frozenset({RevisionPhase.SERVING, RevisionPhase.RETIRING}),
    RevisionPhase.RETIRING: frozenset({RevisionPhase.RETIRED, RevisionPhase.FAILED}),
    RevisionPhase.RETIRED: frozenset(),
    RevisionPhase.FAILED: frozenset(),
}

REVISION_FINAL = frozenset({RevisionPhase.RETIRED, RevisionPhase.FAILED})


class ReplicaPhase(StrEnum):
    """Where a replica's row is. The comment says what is true of the world."""

    WAITING = "waiting"  # in line for its GPUs; its workload is prepared, or about to be
    HOLDING = "holding"  # holds a lease; it may get requests while it is ready
    DRAINING = "draining"  # holds a lease; it is taken out of the router and finishes what is on its way
    STOPPING = "stopping"  # holds a lease; was asked to end and has not been seen gone
    ENDED = "ended"  # gone, and its lease has ended


REPLICA_TRANSITIONS: Mapping[ReplicaPhase, frozenset[ReplicaPhase]] = {
    ReplicaPhase.WAITING: frozenset({ReplicaPhase.HOLDING, ReplicaPhase.ENDED}),
    ReplicaPhase.HOLDING: frozenset({ReplicaPhase.DRAINING, ReplicaPhase.STOPPING, ReplicaPhase.ENDED}),
    ReplicaPhase.DRAINING: frozenset({ReplicaPhase.STOPPING, ReplicaPhase.ENDED}),
    ReplicaPhase.STOPPING: frozenset({ReplicaPhase.ENDED}),
    ReplicaPhase.ENDED: frozenset(),
}

HOLDING = frozenset({ReplicaPhase.HOLDING, ReplicaPhase.DRAINING, ReplicaPhase.STOPPING})
"""Phases in which a replica has a lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A name and a route. ``version`` is the store's guard.

    ``stable`` is the number of the revision that serves, ``candidate`` of the one that a rollout tries. ``weights`` is the
    wish (revision number to percent, 100 in all); the router is made to follow it and is read back. ``split`` and
    ``mirror_percent`` are what the candidate gets otherwise (``rollout/plan.py``). ``replicas`` is how many the stable
    revision should have: set by people, or by ``autoscaling`` within its bounds. ``closing``: somebody took it down; it is
    closed once nothing of it is left.
    """

    id: str
    name: str
    owner: str
    team: str
    pool: str
    created_at: datetime
    changed_at: datetime
    prefix: str
    api_type: ApiType
    replicas: int
    port: int | None = None
    autoscaling: Autoscaling | None = None
    follow: bool = False
    stable: int | None = None
    candidate: int | None = None
    newest: int = 0
    weights: Mapping[str, int] = field(default_factory=dict)
    split: SplitRule | None = None
    mirror_percent: int = 0
    closing: bool = False
    closed_at: datetime | None = None
    version: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it was not taken down for good."""
        return self.closed_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One pinned thing that a service serves. Its spec and pins never change.

    ``wanted`` is how many replicas it should have now; ``replica_count`` how many numbers were given, so that none is given
    twice. ``failed`` is set when a rollout decided against it: what it pinned is then not deployed again by itself.
    """

    service_id: str
    number: int
    spec: ServiceSpec
    pins: ServicePins
    phase: RevisionPhase
    explanation: Explanation
    created_at: datetime
    changed_at: datetime
    run: tuple[str, str] | None = None
    wanted: int = 0
    replica_count: int = 0
    warm_until: datetime | None = None
    failed: bool = False
    version: int = 0

    @property
    def id(self) -> str:
        """``inf-<slug>-NNN-rN``; also the name of its backend."""
        return revision_id(self.service_id, self.number)

    @property
    def model_path(self) -> str:
        """``<model>/<version>`` in the model repository."""
        return f"{self.spec.model}/{self.pins.model_version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """The row of one replica. ``lease_id`` is set from the grant on; ``queued_at`` is when it joined the line.

    ``prepared_at`` is when its workload was made: only then it may be granted GPUs.
    """

    revision: str
    service_id: str
    number: int
    pool: str
    phase: ReplicaPhase
    explanation: Explanation
    queued_at: datetime
    changed_at: datetime
    prepared_at: datetime | None = None
    lease_id: str | None = None
    draining_since: datetime | None = None
    version: int = 0

    @property
    def name(self) -> str:
        """The name of its workload."""
        return replica_name(self.revision, self.number)


def move_revision(revision: Revision, to: RevisionPhase, why: Explanation, now: datetime) -> Revision:
    """The revision in its next phase; the only door through which that changes.

    Raises:
        InvalidTransition: the table has no such move.
    """
    if to not in REVISION_TRANSITIONS[revision.phase]:
        raise InvalidTransition(f"revision {revision.id} cannot go from {revision.phase} to {to}", what="revision")
    return replace(revision, phase=to, explanation=why, changed_at=now)


def move_replica(row: Replica, to: ReplicaPhase, why: Explanation, now: datetime) -> Replica:
    """The row in its next phase; the only door through which that changes.

    Raises:
        InvalidTransition: the table has no such move.
    """
    if to not in REPLICA_TRANSITIONS[row.phase]:
        raise InvalidTransition(f"replica {row.name} cannot go from {row.phase} to {to}", what="replica")
    since = now if to is ReplicaPhase.DRAINING else row.draining_since
    return replace(row, phase=to, explanation=why, changed_at=now, draining_since=since)


def slug_of(name: str) -> str:
    """A service's name as it stands in its id."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "service"
