"""The rows of replicas in memory. Keeps ``ports.ReplicaRows``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from fermion.adapters.memory.jsonlike import as_stored
from fermion.adapters.memory.tables import Draft
from fermion.domain.serving.services import Replica, ReplicaPhase
from fermion.errors import Conflict, NotFound


class MemoryReplicaRows:
    """Rows, guarded by their version."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def add_all(self, rows: Sequence[Replica]) -> None:
        """One after the other."""
        stored = self._draft.write("replicas")
        for row in rows:
            if row.name in stored:
                raise Conflict(f"replica {row.name} exists already; its number was given before", what="replica")
            if row.service_id not in self._draft.see("services") or row.revision not in self._draft.see("revisions"):
                raise NotFound(f"revision {row.revision} of {row.service_id} does not exist", what="revision")
            stored[row.name] = as_stored(row)

    def get(self, name: str) -> Replica | None:
        """By its workload's name."""
        return self._draft.see("replicas").get(name)

    def save(self, row: Replica) -> Replica | None:
        """Guarded by the version."""
        rows = self._draft.write("replicas")
        stored: Replica | None = rows.get(row.name)
        if stored is None or stored.version != row.version:
            return None
        rows[row.name] = as_stored(replace(row, version=row.version + 1))
        return self.get(row.name)

    def find(
        self,
        *,
        service_id: str | None = None,
        phases: Collection[ReplicaPhase] | None = None,
        pools: Collection[str] | None = None,
    ) -> Sequence[Replica]:
        """By the time at which they joined the line."""
        found = (
            row
            for row in self._draft.see("replicas").values()
            if (service_id is None or row.service_id == service_id)
            and (phases is None or row.phase in phases)
            and (pools is None or row.pool in pools)
        )
        return sorted(found, key=lambda row: row.queued_at)
