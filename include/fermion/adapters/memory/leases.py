"""Leases and the ledger in memory. Keeps ``ports.Leases``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice

from fermion.adapters.ledger import entry_of_end, entry_of_grant
from fermion.adapters.memory.tables import Draft
from fermion.domain.leases import HolderKind, Lease
from fermion.domain.records import LedgerEntry
from fermion.errors import Conflict


class MemoryLeases:
    """Leases; ``devices`` holds each held device once."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def next_token(self) -> int:
        """Counted within the transaction."""
        return self._draft.next("lease-token")

    def next_tokens(self, count: int) -> Sequence[int]:
        """One after the other."""
        return [self.next_token() for _ in range(count)]

    def add_all(self, leases: Sequence[Lease]) -> None:
        """One after the other."""
        for lease in leases:
            self.add(lease)

    def add(self, lease: Lease) -> None:
        """Insert; when it is refused nothing of it is left."""
        if not lease.is_live:
            raise ValueError(f"lease {lease.id} is {lease.phase}; only a held lease can be added")
        leases, attempts, held = (self._draft.write(name) for name in ("leases", "attempts", "devices"))
        attempt = (str(lease.holder_kind), lease.holder_id, lease.attempt)
        if attempt in attempts or lease.id in leases:
            raise Conflict(
                f"attempt {lease.attempt} of {lease.holder_kind} {lease.holder_id} has a lease already", what="lease"
            )
        devices = _devices(lease)
        taken = [key for key in devices if key in held]
        if taken or len(set(devices)) < len(devices):
            holders = [f"{key[2]} on {key[1]} by {_holder(leases[held[key]])}" for key in taken]
            named = ", ".join(holders) or "the same device twice"
            raise Conflict(
                f"{_holder(lease)} cannot have {lease.gpus} GPUs of {lease.pool}: held are {named}", what="lease"
            )
        leases[lease.id] = lease
        attempts[attempt] = lease.id
        held.update(dict.fromkeys(devices, lease.id))
        self._enter(entry_of_grant(lease))

    def end(self, lease: Lease) -> bool:
        """Guarded by the stored lease's being live."""
        entry = entry_of_end(lease)
        stored = self._live(lease.id)
        if stored is None:
            return False
        self._draft.write("leases")[lease.id] = replace(
            stored,
            phase=lease.phase,
            expires_at=lease.expires_at,
            exec_at=lease.exec_at,
            exit_at=lease.exit_at,
            ended_at=lease.ended_at,
            end_cause=lease.end_cause,
        )
        held = self._draft.write("devices")
        for key in _devices(stored):
            del held[key]
        self._enter(entry)
        return True

    def update(self, lease: Lease) -> bool:
        """Guarded by the stored lease's being live."""
        stored = self._live(lease.id)
        if stored is None:
            return False
        self._draft.write("leases")[lease.id] = replace(
            stored, expires_at=lease.expires_at, exec_at=lease.exec_at, exit_at=lease.exit_at
        )
        return True

    def of_holder(self, kind: HolderKind, holder_id: str, *, live_only: bool = False) -> Sequence[Lease]:
        """Oldest first."""
        return [
            lease
            for lease in self._oldest_first()
            if lease.holder_kind == kind and lease.holder_id == holder_id and (lease.is_live or not live_only)
        ]

    def live(self, *, pool: str | None = None) -> Sequence[Lease]:
        """Oldest first."""
        leases = self._draft.see("leases")
        held: set[str] = set(self._draft.see("devices").values())
        found = [leases[lease_id] for lease_id in held if pool is None or leases[lease_id].pool == pool]
        return sorted(found, key=lambda lease: (lease.token, lease.id))

    def overlapping(self, since: datetime, *, pools: Collection[str] | None = None) -> Sequence[Lease]:
        """Oldest first."""
        return [
            lease
            for lease in self._oldest_first()
            if (lease.ended_at is None or lease.ended_at >= since) and (pools is None or lease.pool in pools)
        ]

    def ledger(self, *, since: datetime | None = None, limit: int | None = None) -> Sequence[LedgerEntry]:
        """Oldest first."""
        entries: Sequence[LedgerEntry] = sorted(self._draft.see("ledger").values(), key=lambda entry: entry.at)
        return list(islice((entry for entry in entries if since is None or entry.at >= since), limit))

    def _live(self, lease_id: str) -> Lease | None:
        stored: Lease | None = self._draft.see("leases").get(lease_id)
        return stored if stored is not None and stored.is_live else None

    def _oldest_first(self) -> Sequence[Lease]:
        return sorted(self._draft.see("leases").values(), key=lambda lease: (lease.token, lease.id))

    def _enter(self, entry: LedgerEntry) -> None:
        self._draft.write("ledger")[self._draft.next("ledger")] = entry


def _devices(lease: Lease) -> list[tuple[str, str, str]]:
    return [(lease.pool, part.node, device) for part in lease.slices for device in part.devices]


def _holder(lease: Lease) -> str:
    return f"{lease.holder_kind} {lease.holder_id}"
