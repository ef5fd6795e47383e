"""Rollouts, looks, wishes and approvals in memory. Keeps ``ports.Rollouts``."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fermion.adapters.memory.jsonlike import as_stored
from fermion.adapters.memory.tables import Draft
from fermion.domain.rollout.looks import Look
from fermion.domain.rollout.rollouts import Approval, Rollout, Wish
from fermion.errors import Conflict, NotFound


class MemoryRollouts:
    """Rollouts, guarded by their version."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    @property
    def _rollouts(self) -> Mapping[str, Rollout]:
        return self._draft.see("rollouts")

    def add(self, rollout: Rollout) -> bool:
        """Insert; False when the service has an open one.

        Raises:
            Conflict: another rollout has this id.
        """
        rollouts, stored = self._draft.write("rollouts"), as_stored(rollout)
        if not rollout.is_final and self._open_of(rollout.service):
            return False
        if rollout.id in rollouts:
            raise Conflict(f"rollout {rollout.id} exists already", what="rollout")
        if rollout.service not in self._draft.see("services"):
            raise NotFound(f"service {rollout.service} does not exist", what="service")
        rollouts[rollout.id] = stored
        return True

    def get(self, rollout_id: str) -> Rollout | None:
        """By id."""
        return self._rollouts.get(rollout_id)

    def save(self, rollout: Rollout) -> Rollout | None:
        """Guarded by the version."""
        rollouts = self._draft.write("rollouts")
        stored: Rollout | None = rollouts.get(rollout.id)
        if stored is None or stored.version != rollout.version:
            return None
        if not rollout.is_final and set(self._open_of(rollout.service)) - {rollout.id}:
            message = f"service {rollout.service} has another rollout that has not ended; {rollout.id} cannot go on"
            raise Conflict(message, what="rollout")
        rollouts[rollout.id] = as_stored(replace(rollout, version=rollout.version + 1))
        return self.get(rollout.id)

    def of_service(self, service_id: str, limit: int | None = None) -> Sequence[Rollout]:
        """Newest first."""
        found = [rollout for rollout in self._rollouts.values() if rollout.service == service_id]
        return sorted(found[::-1], key=lambda rollout: rollout.created_at, reverse=True)[:limit]

    def open(self) -> Sequence[Rollout]:
        """In order of insertion."""
        return [rollout for rollout in self._rollouts.values() if not rollout.is_final]

    def _open_of(self, service_id: str) -> list[str]:
        return [rollout.id for rollout in self.open() if rollout.service == service_id]

    # --- people -----------------------------------------------------------------------------------------------------

    def put_wish(self, rollout_id: str, wish: Wish) -> None:
        """Append."""
        self._append("wishes", rollout_id, as_stored(wish))

    def wish(self, rollout_id: str) -> Wish | None:
        """The last one."""
        wishes: Sequence[Wish] = self._draft.see("wishes").get(rollout_id, ())
        return wishes[-1] if wishes else None

    def put_approval(self, rollout_id: str, approval: Approval) -> None:
        """Append."""
        self._append("approvals", rollout_id, as_stored(approval))

    def approval(self, rollout_id: str) -> Approval | None:
        """The last one."""
        approvals: Sequence[Approval] = self._draft.see("approvals").get(rollout_id, ())
        return approvals[-1] if approvals else None

    def _append(self, table: str, rollout_id: str, value: Wish | Approval) -> None:
        stored = self._draft.write(table)
        self._refuse_unknown(rollout_id)
        stored[rollout_id] = (*stored.get(rollout_id, ()), value)

    # --- looks ------------------------------------------------------------------------------------------------------

    def add_look(self, rollout_id: str, look: Look) -> bool:
        """Insert, or nothing."""
        stored, kept = self._draft.write("looks"), as_stored(look)
        self._refuse_unknown(rollout_id)
        looks: tuple[Look, ...] = stored.get(rollout_id, ())
        place = bisect_left(looks, look.number, key=_number)
        if place < len(looks) and looks[place].number == look.number:
            return False
        stored[rollout_id] = (*looks[:place], kept, *looks[place:])
        return True

    def looks(self, rollout_id: str, *, after: int = 0, limit: int | None = None) -> Sequence[Look]:
        """By number."""
        looks: Sequence[Look] = self._draft.see("looks").get(rollout_id, ())
        return list(looks[bisect_right(looks, after, key=_number) :][:limit])

    def newest_look(self, rollout_id: str) -> Look | None:
        """The last one."""
        looks: Sequence[Look] = self._draft.see("looks").get(rollout_id, ())
        return looks[-1] if looks else None

    def _refuse_unknown(self, rollout_id: str) -> None:
        if rollout_id not in self._rollouts:
            raise NotFound(f"rollout {rollout_id} does not exist", what="rollout")


def _number(look: Look) -> int:
    return look.number
