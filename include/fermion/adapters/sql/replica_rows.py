"""The rows of replicas in the database. Keeps ``ports.ReplicaRows``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from sqlalchemy import bindparam, select

from fermion.adapters.sql.bulk import Duplicate, insert_all
from fermion.adapters.sql.codec import Values
from fermion.adapters.sql.link import Link
from fermion.adapters.sql.payload_rows import guarded, read_all, read_one, save
from fermion.adapters.sql.tables import replicas
from fermion.domain.payloads import to_payload
from fermion.domain.serving.services import Replica, ReplicaPhase
from fermion.errors import Conflict

_ROWS = select(replicas.c.payload)
_BY_NAME = _ROWS.where(replicas.c.name == bindparam("row_name"))
_IN_LINE = _ROWS.order_by(replicas.c.queued_at, replicas.c.seq)
_SAVE = guarded(replicas.c.name)


class SqlReplicaRows:
    """Rows, guarded by their version."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def add_all(self, rows: Sequence[Replica]) -> None:
        """One statement for all."""
        if insert_all(self._link, replicas, [_row(row) for row in rows], Duplicate.SKIPPED) < len(rows):
            names = ", ".join(row.name for row in rows)
            raise Conflict(
                f"one of the replicas {names} exists already; their numbers were given before", what="replica"
            )

    def get(self, name: str) -> Replica | None:
        """By its workload's name."""
        return read_one(self._link, Replica, _BY_NAME, {"row_name": name})

    def save(self, row: Replica) -> Replica | None:
        """One guarded UPDATE."""
        saved = replace(row, version=row.version + 1)
        return saved if save(self._link, _SAVE, _row(saved), key="name") else None

    def find(
        self,
        *,
        service_id: str | None = None,
        phases: Collection[ReplicaPhase] | None = None,
        pools: Collection[str] | None = None,
    ) -> Sequence[Replica]:
        """One statement."""
        query = _IN_LINE
        if service_id is not None:
            query = query.where(replicas.c.service_id == service_id)
        if phases is not None:
            query = query.where(replicas.c.phase.in_(sorted(map(str, phases))))
        if pools is not None:
            query = query.where(replicas.c.pool.in_(sorted(pools)))
        return read_all(self._link, Replica, query)


def _row(row: Replica) -> Values:
    return {
        "name": row.name,
        "service_id": row.service_id,
        "revision_id": row.revision,
        "pool": row.pool,
        "version": row.version,
        "phase": str(row.phase),
        "queued_at": row.queued_at,
        "payload": to_payload(row),
    }
