"""The ledger entry of a grant and of an end: every store writes the same one, beside the lease it belongs to."""

from __future__ import annotations

from fermion.domain.leases import Lease
from fermion.domain.records import LedgerEntry

GRANTED = "granted"
"""The kind of a grant's entry; that of an end is the lease's phase (``released``, ``expired``)."""


def entry_of_grant(lease: Lease) -> LedgerEntry:
    """What a grant adds: +gpus at the time of the grant."""
    return LedgerEntry(
        lease_id=lease.id,
        pool=lease.pool,
        holder=f"{lease.holder_kind}/{lease.holder_id}",
        kind=GRANTED,
        gpus=lease.gpus,
        at=lease.granted_at,
    )


def entry_of_end(lease: Lease) -> LedgerEntry:
    """What an end adds: -gpus at the time of the end, with its cause.

    Raises:
        ValueError: the lease has not ended.
    """
    if lease.is_live or lease.ended_at is None:
        raise ValueError(f"lease {lease.id} has not ended; end it with fermion.domain.leases.end first")
    return LedgerEntry(
        lease_id=lease.id,
        pool=lease.pool,
        holder=f"{lease.holder_kind}/{lease.holder_id}",
        kind=str(lease.phase),
        gpus=-lease.gpus,
        at=lease.ended_at,
        cause=lease.end_cause or "",
    )
