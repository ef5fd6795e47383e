"""Leases, held devices and the ledger in the database. Keeps ``ports.Leases``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, delete, or_, select, update

from fermion.adapters.ledger import entry_of_end, entry_of_grant
from fermion.adapters.sql.bulk import Appended, Duplicate, Kind, among, insert_all, insert_skipping
from fermion.adapters.sql.codec import Values, device_values, entry_of, entry_values, lease_of, lease_values
from fermion.adapters.sql.counters import next_value
from fermion.adapters.sql.link import Link
from fermion.adapters.sql.tables import lease_devices, leases, ledger
from fermion.domain.leases import HolderKind, Lease, LeasePhase
from fermion.domain.records import LedgerEntry
from fermion.errors import Conflict

_ENTRY = Kind(ledger)
_ENTRIES = select(ledger).order_by(ledger.c.at, ledger.c.seq)
_OLDEST_FIRST = leases.c.token, leases.c.id
_LEASES = select(leases).order_by(*_OLDEST_FIRST)
_LIVE = _LEASES.where(leases.c.phase == str(LeasePhase.HELD))
_STATE = ("phase", "expires_at", "exec_at", "exit_at", "ended_at", "end_cause")
"""What of a lease changes after it was granted. The token tells it from another of the same id."""
_STATES = select(leases.c.id, leases.c.token, *(leases.c[name] for name in _STATE)).order_by(*_OLDEST_FIRST)
_OVERLAPPING = _STATES.where(or_(leases.c.phase == str(LeasePhase.HELD), leases.c.ended_at >= bindparam("since")))
_CHANGE_LIVE = update(leases).where(leases.c.id == bindparam("lease_id"), leases.c.phase == str(LeasePhase.HELD))
_FREE = update(lease_devices).where(lease_devices.c.lease_id == bindparam("lease")).values(live=False)
_HOLDER_OF = (
    select(leases.c.holder_kind, leases.c.holder_id, lease_devices.c.node, lease_devices.c.device)
    .join(leases, leases.c.id == lease_devices.c.lease_id)
    .where(
        lease_devices.c.live,
        lease_devices.c.pool == bindparam("pool"),
        lease_devices.c.node == bindparam("node"),
        lease_devices.c.device == bindparam("device"),
    )
)


@cache
def _overlapping_in(dialect: str) -> Select[Any]:
    return _OVERLAPPING.where(among(dialect, leases.c.pool, "pools"))


@cache
def _by_ids(dialect: str) -> Select[Any]:
    return select(leases).where(among(dialect, leases.c.id, "ids"))


MOST_KNOWN = 10_000
"""How many leases are kept; with more, all are forgotten."""


class KnownLeases:
    """Leases as they were read or granted last: a round reads the state of all that are held, and few are new to it."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}

    def learn(self, found: Collection[Lease]) -> None:
        """Take these as they are stored; only once they are committed."""
        if len(self._leases) + len(found) > MOST_KNOWN:
            self._leases.clear()
        self._leases.update((lease.id, lease) for lease in found)

    def lease_of(self, row: Any) -> Lease | None:
        """The lease in the state of this row, or None when it is not known."""
        known = self._leases.get(row.id)
        if known is None or known.token != row.token:
            return None
        state = {name: getattr(row, name) for name in _STATE}
        if all(getattr(known, name) == value for name, value in state.items()):
            return known
        changed = replace(known, **{**state, "phase": LeasePhase(row.phase)})
        self._leases[row.id] = changed
        return changed


class SqlLeases:
    """Leases; the devices they hold are rows that a unique index keeps apart."""

    def __init__(self, link: Link, appended: Appended, known: KnownLeases) -> None:
        self._link = link
        self._appended = appended
        self._known = known
        self._tokens = range(0)
        self._reserved = 0
        self.granted: list[Lease] = []
        """What this transaction added."""

    def next_token(self) -> int:
        """Counted within the transaction, like a job's id; one that takes many reserves ever more at once."""
        if not self._tokens:
            count = max(1, self._reserved)
            self._reserved += count
            last = next_value(self._link, "lease-token", count=count)
            self._tokens = range(last - count + 1, last + 1)
        token, self._tokens = self._tokens[0], self._tokens[1:]
        return token

    def next_tokens(self, count: int) -> Sequence[int]:
        """One statement for all."""
        if not count:
            return ()
        last = next_value(self._link, "lease-token", count=count)
        return range(last - count + 1, last + 1)

    def add_all(self, leases_: Sequence[Lease]) -> None:
        """Written together; only when one of them is refused are they looked at one by one, to say which."""
        if not leases_:
            return
        for lease in leases_:
            _refuse_ended(lease)
        self._appended.flush()  # Postgres writes it while the leases are put together
        devices = sorted(
            (row for lease in leases_ for row in device_values(lease)), key=lambda row: (row["node"], row["device"])
        )
        values = [lease_values(lease) for lease in leases_]
        entries = [entry_values(entry_of_grant(lease)) for lease in leases_]
        if insert_skipping(self._link, [(leases, values), (lease_devices, devices)], then=(ledger, entries)):
            self.granted += leases_
            return
        self._link.write(delete(leases).where(leases.c.token.in_([lease.token for lease in leases_])))
        for lease in leases_:
            self.add(lease)

    def add(self, lease: Lease) -> None:
        """Insert; when it is refused nothing of it is left, and the transaction may go on."""
        _refuse_ended(lease)
        if not self._link.write(self._link.insert(leases).on_conflict_do_nothing(), lease_values(lease)):
            raise Conflict(
                f"attempt {lease.attempt} of {lease.holder_kind} {lease.holder_id} has a lease already", what="lease"
            )
        devices = device_values(lease)
        if insert_all(self._link, lease_devices, devices, Duplicate.SKIPPED) < len(devices):
            self._link.write(delete(leases).where(leases.c.id == lease.id))  # its devices go with it
            raise Conflict(self._held_sentence(lease, devices), what="lease")
        self._enter(entry_of_grant(lease))
        self.granted.append(lease)

    def _held_sentence(self, lease: Lease, devices: Sequence[Values]) -> str:
        keys = ("pool", "node", "device")
        rows = (self._link.row(_HOLDER_OF, {key: device[key] for key in keys}) for device in devices)
        held = [f"{row.device} on {row.node} by {row.holder_kind} {row.holder_id}" for row in rows if row is not None]
        named = ", ".join(held) or "the same device twice"
        return f"{lease.holder_kind} {lease.holder_id} cannot have {lease.gpus} GPUs of {lease.pool}: held are {named}"

    def end(self, lease: Lease) -> bool:
        """One guarded UPDATE; its devices become free in the same transaction."""
        entry = entry_of_end(lease)
        values = {key: getattr(lease, key) for key in ("expires_at", "exec_at", "exit_at", "ended_at", "end_cause")}
        if not self._link.write(_CHANGE_LIVE, {**values, "phase": str(lease.phase), "lease_id": lease.id}):
            return False
        self._link.write(_FREE, {"lease": lease.id})
        self._enter(entry)
        return True

    def update(self, lease: Lease) -> bool:
        """One guarded UPDATE."""
        values = {"expires_at": lease.expires_at, "exec_at": lease.exec_at, "exit_at": lease.exit_at}
        return bool(self._link.write(_CHANGE_LIVE, {**values, "lease_id": lease.id}))

    def of_holder(self, kind: HolderKind, holder_id: str, *, live_only: bool = False) -> Sequence[Lease]:
        """Oldest first."""
        query = _LIVE if live_only else _LEASES
        query = query.where(leases.c.holder_kind == str(kind), leases.c.holder_id == holder_id)
        return [lease_of(row) for row in self._link.rows(query)]

    def live(self, *, pool: str | None = None) -> Sequence[Lease]:
        """Oldest first."""
        query = _LIVE if pool is None else _LIVE.where(leases.c.pool == pool)
        return [lease_of(row) for row in self._link.rows(query)]

    def overlapping(self, since: datetime, *, pools: Collection[str] | None = None) -> Sequence[Lease]:
        """Oldest first."""
        query = _OVERLAPPING if pools is None else _overlapping_in(self._link.dialect)
        values = {"since": since} if pools is None else {"since": since, "pools": list(pools)}
        rows = self._link.rows(query, values)
        found = {row.id: self._known.lease_of(row) for row in rows}
        if unknown := [lease_id for lease_id, lease in found.items() if lease is None]:
            read = {row.id: lease_of(row) for row in self._link.rows(_by_ids(self._link.dialect), {"ids": unknown})}
            if not self.granted:  # what this transaction granted is not committed
                self._known.learn(read.values())
            found |= read
        return [lease for lease in found.values() if lease is not None]

    def ledger(self, *, since: datetime | None = None, limit: int | None = None) -> Sequence[LedgerEntry]:
        """Oldest first; ``since`` itself is in."""
        self._appended.flush()
        query = _ENTRIES.limit(limit) if since is None else _ENTRIES.where(ledger.c.at >= since).limit(limit)
        return [entry_of(row) for row in self._link.rows(query)]

    def _enter(self, entry: LedgerEntry) -> None:
        self._appended.add(_ENTRY, entry_values(entry))


def _refuse_ended(lease: Lease) -> None:
    if not lease.is_live:
        raise ValueError(f"lease {lease.id} is {lease.phase}; only a held lease can be added")
