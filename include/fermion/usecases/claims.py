"""Replicas of services in line: what a round is told of them, and what is written when they are granted GPUs.

The line treats a replica as it treats a job that asks for one node; ``admit.py`` decides about both in one round.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from fermion.domain.admission import Grant, Round
from fermion.domain.leases import TERM, HolderKind, Lease
from fermion.domain.line import Waiting
from fermion.domain.pools import Pool
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Event
from fermion.domain.serving.services import Capacity, Replica, ReplicaPhase, Revision, Service, move_replica
from fermion.domain.workloads import Grant as Leave
from fermion.errors import FermionError
from fermion.ports import Transaction
from fermion.usecases.context import Context
from fermion.usecases.moving import PLATFORM

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """One replica in line, with what its revision and service say of it."""

    row: Replica
    revision: Revision
    service: Service

    def to_waiting(self) -> Waiting:
        """The replica as it stands in line. It runs for good, so it promises no end."""
        spec = self.revision.spec
        return Waiting(
            job_id=self.row.name,
            owner=self.service.owner,
            team=self.service.team,
            pool=self.row.pool,
            queued_at=self.row.queued_at,
            gpus_per_node=spec.gpus_per_replica,
            priority=spec.priority,
            preemptible=False,
            preempts=spec.capacity is Capacity.BORROW,
            staged=self.row.prepared_at is not None,
        )


@dataclass(frozen=True, slots=True)
class GrantedReplica:
    """One replica with the lease it was given."""

    row: Replica
    lease: Lease


def pools_in_line(tx: Transaction) -> frozenset[str]:
    """The pools that replicas wait for."""
    return frozenset(row.pool for row in tx.replicas.find(phases={ReplicaPhase.WAITING}))


def read_claims(tx: Transaction, pools: Sequence[Pool]) -> dict[str, Claim]:
    """Replicas in line for these pools, by name."""
    claims: dict[str, Claim] = {}
    for row in tx.replicas.find(phases={ReplicaPhase.WAITING}, pools=[pool.id for pool in pools]):
        service = tx.services.get(row.service_id)
        revision = tx.services.revision(row.service_id, number_of(row.revision))
        if service is not None and revision is not None:
            claims[row.name] = Claim(row, revision, service)
    return claims


def number_of(revision_id: str) -> int:
    """The number in a revision's id."""
    return int(revision_id.rpartition("-r")[2])


def grant_claims(
    tx: Transaction, claims: Mapping[str, Claim], grants: Sequence[Grant], made: Round
) -> list[GrantedReplica]:
    """Rows and leases of the replicas that were granted; one that somebody else changed meanwhile gets nothing."""
    granted: list[GrantedReplica] = []
    for grant in grants:
        claim = claims[grant.job_id]
        lease = _lease(claim, grant, tx.leases.next_token(), made.decided_at)
        why = made.explain(grant.job_id)
        moved = move_replica(claim.row, ReplicaPhase.HOLDING, why, made.decided_at)
        saved = tx.replicas.save(replace(moved, lease_id=lease.id))
        if saved is None:
            continue
        tx.leases.add(lease)
        tx.records.add_event(_granted(saved, why, made.decided_at))
        granted.append(GrantedReplica(saved, lease))
    return granted


def tell_claims(
    tx: Transaction, claims: Mapping[str, Claim], reasons: Mapping[str, Explanation], now: datetime
) -> list[tuple[str, Explanation]]:
    """Store why replicas wait, where that changed; those told, by name. Why one cannot be staged tells more than its place."""
    told = []
    for name, why in reasons.items():
        row = claims[name].row
        if row.explanation.reason is why.reason and row.explanation.numbers.get("position") is not None:
            continue
        if row.explanation.reason is Reason.STAGING_FAILED and why.reason is Reason.STAGING:
            continue
        if tx.replicas.save(replace(row, explanation=why, changed_at=now)) is not None:
            told.append((name, why))
    return told


def resume_replica(ctx: Context, granted: GrantedReplica, leave: Leave) -> None:
    """Start what was granted. A failure here is mended by whoever tends the service: the lease is there."""
    try:
        ctx.driver_of(granted.lease.pool).replicas.resume(granted.row.name, leave)
    except FermionError as error:
        log.warning("replica %s was granted but not resumed yet: %s", granted.row.name, error)


def lease_id(name: str) -> str:
    """The id of the one lease that a replica ever has."""
    return f"lease-{name}"


def _lease(claim: Claim, grant: Grant, token: int, now: datetime) -> Lease:
    return Lease(
        id=lease_id(claim.row.name),
        holder_kind=HolderKind.SERVICE,
        holder_id=claim.row.revision,
        attempt=claim.row.number,
        owner=claim.service.owner,
        team=claim.service.team,
        pool=grant.pool,
        token=token,
        slices=grant.slices,
        granted_at=now,
        expires_at=now + TERM,
        priority=claim.revision.spec.priority,
        preemptible=False,
    )


def _granted(row: Replica, why: Explanation, now: datetime) -> Event:
    return Event(
        actor=PLATFORM,
        verb="replica.holding",
        target=row.name,
        at=now,
        message=why.message,
        data={"service": row.service_id, "revision": row.revision, "reason": str(why.reason)},
    )
