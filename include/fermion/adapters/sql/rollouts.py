"""Rollouts, looks, wishes and approvals in the database. Keeps ``ports.Rollouts``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import bindparam, select

from fermion.adapters.sql.codec import Values
from fermion.adapters.sql.link import Link
from fermion.adapters.sql.payload_rows import guarded, read_all, read_one, save
from fermion.adapters.sql.tables import OPEN_ROLLOUT, approvals, looks, rollouts, wishes
from fermion.domain.payloads import to_payload
from fermion.domain.rollout.looks import Look
from fermion.domain.rollout.rollouts import Approval, Rollout, Wish
from fermion.errors import Conflict

_ROLLOUTS = select(rollouts.c.payload)
_BY_ID = _ROLLOUTS.where(rollouts.c.id == bindparam("rollout"))
_OF_SERVICE = _ROLLOUTS.where(rollouts.c.service_id == bindparam("service")).order_by(
    rollouts.c.created_at.desc(), rollouts.c.seq.desc()
)
_OPEN = _ROLLOUTS.where(OPEN_ROLLOUT).order_by(rollouts.c.seq)
_OPEN_OF_SERVICE = _ROLLOUTS.where(OPEN_ROLLOUT, rollouts.c.service_id == bindparam("service"))
_SAVE = guarded(rollouts.c.id)
_WISH, _APPROVAL = (
    select(table.c.payload).where(table.c.rollout_id == bindparam("rollout")).order_by(table.c.seq.desc()).limit(1)
    for table in (wishes, approvals)
)
_OF_ROLLOUT = select(looks.c.payload).where(looks.c.rollout_id == bindparam("rollout"))
_LOOKS = _OF_ROLLOUT.where(looks.c.number > bindparam("after")).order_by(looks.c.number)
_NEWEST_LOOK = _OF_ROLLOUT.order_by(looks.c.number.desc()).limit(1)


class SqlRollouts:
    """Rollouts, guarded by their version; a partial unique index lets a service have one that is open."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def add(self, rollout: Rollout) -> bool:
        """Insert; False when the service has an open one.

        Raises:
            Conflict: another rollout has this id.
        """
        if self._link.write(self._link.insert(rollouts).on_conflict_do_nothing(), _row(rollout)):
            return True
        other = None if rollout.is_final else self._link.row(_OPEN_OF_SERVICE, {"service": rollout.service})
        if other is not None or self.get(rollout.id) is None:
            return False
        raise Conflict(f"rollout {rollout.id} exists already", what="rollout")

    def get(self, rollout_id: str) -> Rollout | None:
        """By id."""
        return read_one(self._link, Rollout, _BY_ID, {"rollout": rollout_id})

    def save(self, rollout: Rollout) -> Rollout | None:
        """One guarded UPDATE."""
        saved = replace(rollout, version=rollout.version + 1)
        try:
            return saved if save(self._link, _SAVE, _row(saved), key="id") else None
        except Conflict as error:
            message = f"service {rollout.service} has another rollout that has not ended; {rollout.id} cannot go on"
            raise Conflict(message, what="rollout") from error

    def of_service(self, service_id: str, limit: int | None = None) -> Sequence[Rollout]:
        """Newest first."""
        return read_all(self._link, Rollout, _OF_SERVICE.limit(limit), {"service": service_id})

    def open(self) -> Sequence[Rollout]:
        """One statement; its index holds only open ones."""
        return read_all(self._link, Rollout, _OPEN)

    # --- people -----------------------------------------------------------------------------------------------------

    def put_wish(self, rollout_id: str, wish: Wish) -> None:
        """Append."""
        self._link.write(self._link.insert(wishes), {"rollout_id": rollout_id, "payload": to_payload(wish)})

    def wish(self, rollout_id: str) -> Wish | None:
        """The last row."""
        return read_one(self._link, Wish, _WISH, {"rollout": rollout_id})

    def put_approval(self, rollout_id: str, approval: Approval) -> None:
        """Append."""
        self._link.write(self._link.insert(approvals), {"rollout_id": rollout_id, "payload": to_payload(approval)})

    def approval(self, rollout_id: str) -> Approval | None:
        """The last row."""
        return read_one(self._link, Approval, _APPROVAL, {"rollout": rollout_id})

    # --- looks ------------------------------------------------------------------------------------------------------

    def add_look(self, rollout_id: str, look: Look) -> bool:
        """Insert, or nothing."""
        row = {"rollout_id": rollout_id, "number": look.number, "payload": to_payload(look)}
        return bool(self._link.write(self._link.insert(looks).on_conflict_do_nothing(), row))

    def looks(self, rollout_id: str, *, after: int = 0, limit: int | None = None) -> Sequence[Look]:
        """A range of the primary key."""
        return read_all(self._link, Look, _LOOKS.limit(limit), {"rollout": rollout_id, "after": after})

    def newest_look(self, rollout_id: str) -> Look | None:
        """The end of the primary key's range."""
        return read_one(self._link, Look, _NEWEST_LOOK, {"rollout": rollout_id})


def _row(rollout: Rollout) -> Values:
    return {
        "id": rollout.id,
        "service_id": rollout.service,
        "version": rollout.version,
        "phase": str(rollout.phase),
        "created_at": rollout.created_at,
        "payload": to_payload(rollout),
    }
