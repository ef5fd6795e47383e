"""Leases: who holds which GPUs, from when to when. The only source of what is allocated (invariant G2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from fermion.errors import InvalidTransition


class HolderKind(StrEnum):
    """What may hold GPUs."""

    JOB = "job"  # a training job; holder_id is the job's id
    SERVICE = "service"  # a revision of an inference service
    INSTANCE = "instance"  # an interactive workspace


class LeasePhase(StrEnum):
    """Where a lease is."""

    HELD = "held"  # the GPUs are the holder's; nobody else can be granted them
    RELEASED = "released"  # ended because the workload was seen gone, or it never started
    EXPIRED = "expired"  # ended because nobody renewed it and no live workload was found


TRANSITIONS: Mapping[LeasePhase, frozenset[LeasePhase]] = {
    LeasePhase.HELD: frozenset({LeasePhase.RELEASED, LeasePhase.EXPIRED}),
    LeasePhase.RELEASED: frozenset(),
    LeasePhase.EXPIRED: frozenset(),
}

TERM = timedelta(seconds=90)
"""How long a lease lives without renewal: three times the sync's interval, so that one missed sync expires nothing."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The devices taken on one node."""

    node: str
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One holder's GPUs in one pool. ``token`` fences: it grows with every grant, and a workload obeys only its own.

    ``exec_at`` and ``exit_at`` are when the workload's process was seen to begin and end; None where never seen.
    """

    id: str
    holder_kind: HolderKind
    holder_id: str
    attempt: int
    owner: str
    team: str
    pool: str
    token: int
    slices: tuple[Slice, ...]
    granted_at: datetime
    expires_at: datetime
    phase: LeasePhase = LeasePhase.HELD
    priority: int = 0
    preemptible: bool = True
    ends_by: datetime | None = None
    exec_at: datetime | None = None
    exit_at: datetime | None = None
    ended_at: datetime | None = None
    end_cause: str | None = None

    @property
    def gpus(self) -> int:
        """Whole devices held."""
        return sum(len(part.devices) for part in self.slices)

    @property
    def is_live(self) -> bool:
        """Whether the GPUs are still the holder's."""
        return self.phase is LeasePhase.HELD

    def to_seconds(self, until: datetime) -> float:
        """Held GPU-seconds up to ``until`` (or up to its end)."""
        return self.gpus * max(0.0, ((self.ended_at or until) - self.granted_at).total_seconds())


def renew(lease: Lease, now: datetime) -> Lease:
    """The lease with a full term from ``now``; a lease that has ended stays as it is."""
    return replace(lease, expires_at=now + TERM) if lease.is_live else lease


def end(lease: Lease, to: LeasePhase, *, cause: str, now: datetime) -> Lease:
    """The lease, ended.

    Raises:
        InvalidTransition: it has ended already.
    """
    if to not in TRANSITIONS[lease.phase]:
        raise InvalidTransition(f"lease {lease.id} cannot go from {lease.phase} to {to}", what="lease")
    return replace(lease, phase=to, ended_at=now, end_cause=cause)
