"""What runs on a cluster for one attempt of a job: how it is described, and what can be seen of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from fermion.domain.leases import Slice


def workload_name(job_id: str, attempt: int) -> str:
    """The deterministic name of an attempt's workload; a DNS label, so that every driver can use it."""
    return f"{job_id}-a{attempt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """One attempt, ready to be prepared.

    ``image``, ``code`` and ``datasets`` are locations answered by the same driver's staging ports; only that driver can
    read them. ``arguments`` come after the entrypoint. ``output`` and ``checkpoints`` are locations that outlive the
    workload; the checkpoints are shared by all attempts of a job. ``log_limit`` and ``progress_limit`` are bytes kept.
    """

    name: str
    job_id: str
    attempt: int
    image: str
    code: str
    entrypoint: tuple[str, ...]
    arguments: tuple[str, ...]
    parameters: Mapping[str, str | int | float | bool]
    datasets: Mapping[str, str]
    output: str
    checkpoints: str
    log: str
    nodes: int = 1
    gpus_per_node: int = 1
    memory_mib: int | None = None
    resume_from: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    log_limit: int = 64 * 1024 * 1024
    progress_limit: int = 16 * 1024 * 1024
    stop_grace: timedelta = timedelta(seconds=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Leave to run: the devices and the fencing token. ``devices_are_declared`` means: hand over no CUDA ids."""

    token: int
    slices: tuple[Slice, ...]
    devices_are_declared: bool


class WorkloadState(StrEnum):
    """What was seen of a workload."""

    ABSENT = "absent"  # nothing by that name exists
    SUSPENDED = "suspended"  # prepared; waits for its grant
    RUNNING = "running"  # its process is alive
    EXITED = "exited"  # it ended and left an exit record
    LOST = "lost"  # it is gone without an exit record


class ExitCause(StrEnum):
    """Who or what ended the process, as the runner (or the kubelet) recorded it."""

    EXITED = "exited"  # by itself, with ``code``
    SIGNALLED = "signalled"  # by ``signal`` from outside
    OUT_OF_MEMORY = "out_of_memory"  # ended at its memory limit
    STOPPED = "stopped"  # ended because a stop was asked for
    NEVER_STARTED = "never_started"  # the command could not be executed; ``detail`` says why


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """How it ended. ``code`` is 0 to 255, None where a signal ended it."""

    cause: ExitCause
    code: int | None
    signal: int | None
    exec_at: datetime | None
    exit_at: datetime
    detail: str = ""
    max_rss_mib: float | None = None
    cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Measured use of one workload. ``gpu_utilisation`` is 0 to 1 over its devices; None with ``gpu_reason``."""

    observed_at: datetime
    source: str
    cpu_cores: float | None = None
    memory_mib: float | None = None
    gpu_utilisation: float | None = None
    gpu_memory_mib: float | None = None
    gpu_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look at a workload. ``token`` is that of the grant it runs under, None while suspended.

    ``orphans`` counts live processes that a lost one left behind; as long as there are any, its GPUs are not free.
    """

    name: str
    state: WorkloadState
    observed_at: datetime
    token: int | None = None
    exec_at: datetime | None = None
    exit: ExitRecord | None = None
    usage: Usage | None = None
    detail: str = ""
    orphans: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a log: ``text`` and the byte offset to go on from. ``at_end`` means nothing more is there now.

    ``is_missing``: there is no log, which is something else than an empty one.
    """

    text: str
    next_offset: int
    at_end: bool
    is_missing: bool = False
