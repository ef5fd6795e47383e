"""What a round of admission is decided from (``Snapshot``), and what it can answer (``Grant``, ``Preemption``). Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fermion.domain import payloads
from fermion.domain.budgets import Spent
from fermion.domain.fairshare import Use
from fermion.domain.leases import Lease, Slice
from fermion.domain.line import Reservation, Waiting
from fermion.domain.pools import Pool

NOBODY = Use(at=datetime.fromtimestamp(0, UTC))
"""No use yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a round is decided from: the pools of one cohort (or one pool), who waits and who holds.

    ``leases`` are the live ones. ``ending`` maps the id of a lease that was asked to end to the job it was asked for.
    ``use`` comes from ``fairshare.decayed``, ``spent`` from ``budgets.spent``. ``reservations`` are those of the last
    round in its order, which is theirs in line. Any other order does not matter: the answer is the same.
    """

    pools: tuple[Pool, ...]
    waiting: tuple[Waiting, ...] = ()
    leases: tuple[Lease, ...] = ()
    ending: Mapping[str, str] = field(default_factory=dict)
    use: Use = NOBODY
    spent: tuple[Spent, ...] = ()
    reservations: tuple[Reservation, ...] = ()

    def to_payload(self) -> dict[str, Any]:
        """The snapshot as JSON-ready data, from which the round can be replayed."""
        return dict(payloads.to_payload(self))

    @staticmethod
    def from_payload(payload: Mapping[str, Any]) -> Snapshot:
        """The snapshot that ``to_payload`` wrote."""
        return payloads.from_payload(Snapshot, payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Devices given to a job now. ``ends_by`` belongs on the lease: backfill counts on it."""

    job_id: str
    pool: str
    slices: tuple[Slice, ...]
    ends_by: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemption:
    """Leases to be asked to end, newest first within the lowest priority, so that ``job_id`` can start."""

    job_id: str
    pool: str
    lease_ids: tuple[str, ...]
    why: str
