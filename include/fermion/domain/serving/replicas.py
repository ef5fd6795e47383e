"""Model servers: how one replica of a revision is described, and what can be seen of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from fermion.domain.artifacts import FileEntry
from fermion.domain.serving.routing import Endpoint
from fermion.domain.workloads import ExitRecord, Usage


def revision_id(service_id: str, number: int) -> str:
    """The id of a service's revision; also the name of its backend in the router."""
    return f"{service_id}-r{number}"


def replica_name(revision: str, number: int) -> str:
    """The deterministic name of one replica; a DNS label. A number is never given again within a revision."""
    return f"{revision}-{number}"


def is_replica(workload: str) -> bool:
    """Whether a workload of that name is a replica, by the form of its service's id; else it is a training."""
    return workload.startswith("inf-")


class ProbeKind(StrEnum):
    """How a replica is asked."""

    HTTP = "http"  # GET of a path answers 200 to 399
    GRPC = "grpc"  # grpc.health.v1.Health/Check answers SERVING
    TCP = "tcp"  # the port takes a connection
    EXEC = "exec"  # a command exits with 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One question, asked every ``period`` until ``failure_threshold`` answers in a row were wrong or missing.

    ``port`` names one of the replica's ports. The meaning of the numbers is Kubernetes' own.
    """

    kind: ProbeKind
    path: str = "/"
    port: str = "http"
    command: tuple[str, ...] = ()
    period: timedelta = timedelta(seconds=1)
    timeout: timedelta = timedelta(seconds=1)
    success_threshold: int = 1
    failure_threshold: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """What a replica is asked. None: not asked.

    ``startup`` must succeed once before the others are asked; when it runs out of tries the process is started again.
    ``readiness`` decides whether it gets requests. ``liveness`` failing starts the process again.
    """

    startup: Probe | None = None
    readiness: Probe | None = None
    liveness: Probe | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """One replica, ready to be prepared.

    ``image``, ``code`` and ``model`` are locations answered by the same driver's staging ports. ``argv`` may hold
    ``{port:NAME}`` for each of ``ports`` (``http``, ``grpc``), ``{model_dir}``, ``{model_name}`` and ``{model_version}``;
    the same are in its environment (``PORT``, ``GRPC_PORT``, ``FERMION_MODEL_DIR``, …). ``cpus`` are cores, ``drain``
    is how long it may take to end after TERM. ``backoff`` is the first pause between two starts of a process that ended
    within ``settled``; it doubles up to ``backoff_limit``. ``model_files`` is what was published: no process is started
    while a file in ``model`` was changed since it was placed there and has other content.
    """

    name: str
    revision: str
    service: str
    image: str
    code: str
    model: str
    model_name: str
    model_version: int
    argv: tuple[str, ...]
    log: str
    model_files: tuple[FileEntry, ...] = ()
    ports: tuple[str, ...] = ("http",)
    probes: Probes = Probes()
    environment: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 1
    memory_mib: int | None = None
    cpus: float | None = None
    drain: timedelta = timedelta(seconds=30)
    backoff: timedelta = timedelta(seconds=1)
    backoff_limit: timedelta = timedelta(minutes=1)
    settled: timedelta = timedelta(seconds=10)
    log_limit: int = 64 * 1024 * 1024


class ReplicaState(StrEnum):
    """What was seen of a replica. Derived from its process and its probes, never from a wish."""

    ABSENT = "absent"  # nothing by that name exists
    SUSPENDED = "suspended"  # prepared; waits for its grant
    STARTING = "starting"  # its process is alive; its startup probe has not succeeded yet
    READY = "ready"  # it answers its readiness probe (or has none): it may get requests
    UNREADY = "unready"  # alive and started, but its readiness probe fails
    BACKING_OFF = "backing_off"  # its process ended; it is started again after a pause
    STOPPING = "stopping"  # asked to end; still alive
    EXITED = "exited"  # ended for good, with an exit record
    LOST = "lost"  # gone without an exit record


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSeen:
    """One look at a replica.

    ``endpoints`` maps the name of a port to where it listens, empty before its process began. ``exec_at`` is when its
    first process was executed, ``started_at`` when the present one was; ``ready_at`` when that one was first ready.
    ``starts`` counts processes, those that could not be executed included; ``last_exit`` is how the one before ended.
    ``exit`` is there only when it ended for good. ``orphans`` counts live processes that a lost one left behind.
    """

    name: str
    state: ReplicaState
    observed_at: datetime
    token: int | None = None
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    exec_at: datetime | None = None
    started_at: datetime | None = None
    ready_at: datetime | None = None
    starts: int = 0
    last_exit: ExitRecord | None = None
    exit: ExitRecord | None = None
    usage: Usage | None = None
    detail: str = ""
    orphans: int = 0

    @property
    def is_gone(self) -> bool:
        """Whether nothing of it lives any more: only then its GPUs are free."""
        if self.state is ReplicaState.LOST:
            return not self.orphans
        return self.state in (ReplicaState.ABSENT, ReplicaState.EXITED)
