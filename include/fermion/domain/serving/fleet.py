"""What is due for the replicas of one service, given what was seen of them and of the router. Pure.

Nothing here remembers: the same rows and looks give the same steps, so whoever looks next goes on where a killed one ended.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from fermion.domain.serving.replicas import ReplicaSeen, ReplicaState
from fermion.domain.serving.services import Capacity, Replica, ReplicaPhase, Revision, RevisionPhase, Service

DRAIN_LEAST = timedelta(milliseconds=500)
"""How long a replica stays after the router let go of it: a request may have been handed over in that very moment."""

DRAIN_MOST = timedelta(seconds=30)
"""Requests on their way are waited for at most that long."""

NEVER_LOOKS = (RevisionPhase.STAGING, RevisionPhase.RETIRED, RevisionPhase.FAILED)


class Due(StrEnum):
    """One thing to do about one replica."""

    PREPARE = "prepare"  # create its workload, suspended
    GIVE_UP = "give_up"  # it waits in line and is not wanted any more
    DRAIN = "drain"  # it is not wanted any more: out of the router first
    STOP = "stop"  # drained: ask it to end
    INSIST = "insist"  # it was asked to end and lives
    CLOSE = "close"  # it is gone: its lease ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is due for one replica, and why."""

    due: Due
    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All that the steps of one service are decided from.

    ``seen`` maps a replica's name to what was seen of it. ``routed`` holds the names of replicas that the router has as
    endpoints, by its own word; ``active`` maps a revision to its requests on their way, absent where that is not known.
    """

    service: Service
    revisions: Sequence[Revision]
    replicas: Sequence[Replica]
    seen: Mapping[str, ReplicaSeen] = field(default_factory=dict)
    routed: Collection[str] = frozenset()
    active: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What is due: steps, and how many replicas are missing of each revision (by its number)."""

    steps: tuple[Step, ...] = ()
    missing: Mapping[int, int] = field(default_factory=dict)


def decide(fleet: Fleet, now: datetime) -> Steps:
    """Every step that is due. For each replica the first rule that matches wins.

    1. It is gone: its lease ends. 2. It was asked to end and lives: ask again. 3. It drains, and nothing is on its way or
    the time for it is over: stop. 4. It is one too many: give up its place, or drain it. 5. It waits and has no workload:
    prepare it. Of a revision with too few, as many as are missing are added.
    """
    steps: list[Step] = []
    missing: dict[int, int] = {}
    for revision in fleet.revisions:
        rows = [row for row in fleet.replicas if row.revision == revision.id and row.phase is not ReplicaPhase.ENDED]
        surplus = _surplus(fleet, revision, rows)
        for row in rows:
            step = _step(fleet, revision, row, row.name in surplus, now)
            if step is not None:
                steps.append(step)
        stay = sum(
            row.phase in (ReplicaPhase.WAITING, ReplicaPhase.HOLDING) and not _is_gone(fleet, row) for row in rows
        )
        if stay < revision.wanted and revision.phase not in NEVER_LOOKS:
            missing[revision.number] = revision.wanted - stay
    return Steps(steps=tuple(steps), missing=missing)


def _step(fleet: Fleet, revision: Revision, row: Replica, is_surplus: bool, now: datetime) -> Step | None:
    seen = fleet.seen.get(row.name)
    if row.phase is ReplicaPhase.WAITING:
        return _step_in_line(row, seen, is_surplus)
    if _is_gone(fleet, row):
        return Step(due=Due.CLOSE, name=row.name, why=_end_of(seen))
    if row.phase is ReplicaPhase.STOPPING:
        return Step(due=Due.INSIST, name=row.name, why=row.explanation.message)
    if row.phase is ReplicaPhase.DRAINING:
        return _step_draining(fleet, row, now)
    if is_surplus:
        return Step(due=Due.DRAIN, name=row.name, why=f"revision {revision.id} wants {revision.wanted} replicas.")
    return None


def _step_in_line(row: Replica, seen: ReplicaSeen | None, is_surplus: bool) -> Step | None:
    if is_surplus:
        return Step(due=Due.GIVE_UP, name=row.name, why="it is not wanted any more.")
    if seen is None or seen.is_gone:
        return Step(due=Due.PREPARE, name=row.name, why="it waits and has no workload yet.")
    return None


def _step_draining(fleet: Fleet, row: Replica, now: datetime) -> Step | None:
    waited = now - (row.draining_since or row.changed_at)
    if waited > DRAIN_MOST:
        return Step(due=Due.STOP, name=row.name, why=f"requests were waited for {waited.total_seconds():.0f} s.")
    if row.name in fleet.routed or waited < DRAIN_LEAST:
        return None
    others = any(
        other.name in fleet.routed for other in fleet.replicas if other.revision == row.revision and other is not row
    )
    if fleet.active.get(row.revision, 0) > 0 and not others:
        return None
    return Step(due=Due.STOP, name=row.name, why="no request is on its way to it.")


def _surplus(fleet: Fleet, revision: Revision, rows: Sequence[Replica]) -> frozenset[str]:
    """Replicas beyond what is wanted: those in line first, then those not ready, then the newest."""
    stay = [
        row for row in rows if row.phase in (ReplicaPhase.WAITING, ReplicaPhase.HOLDING) and not _is_gone(fleet, row)
    ]

    def worth(row: Replica) -> tuple[bool, bool, int]:
        seen = fleet.seen.get(row.name)
        ready = seen is not None and seen.state is ReplicaState.READY
        return (row.phase is ReplicaPhase.HOLDING, ready, -row.number)

    ordered = sorted(stay, key=worth, reverse=True)
    return frozenset(row.name for row in ordered[revision.wanted :])


def _is_gone(fleet: Fleet, row: Replica) -> bool:
    """Whether a replica that holds a lease is seen gone. One that was never looked at is not."""
    seen = fleet.seen.get(row.name)
    return row.phase is not ReplicaPhase.WAITING and seen is not None and seen.is_gone


def _end_of(seen: ReplicaSeen | None) -> str:
    if seen is None or seen.exit is None:
        return f"it is gone without an exit record. {seen.detail if seen else ''}".strip()
    return f"it ended: {seen.exit.cause}{', ' + seen.exit.detail if seen.exit.detail else ''}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How many replicas the stable revision and the candidate should have."""

    stable: int
    candidate: int


def wanted(*, replicas: int, weight_percent: int, capacity: Capacity, is_promoting: bool = False) -> Wanted:
    """Replicas of both sides while a candidate has ``weight_percent`` of the requests (0: it gets none yet).

    The candidate has as many as its share needs, at least one; at promotion all. With ``swap`` the stable revision has
    that many fewer, but one at least until the candidate is promoted: then there are never more than ``replicas``.
    """
    candidate = replicas if is_promoting else max(1, math.ceil(replicas * weight_percent / 100))
    if capacity is not Capacity.SWAP:
        return Wanted(stable=replicas, candidate=candidate)
    least = 0 if is_promoting else 1
    return Wanted(stable=max(least, replicas - candidate), candidate=min(candidate, max(1, replicas - least)))
