"""Reservations: which nodes, from when, are kept for a job that cannot start yet.

The nodes are those that are free soonest by what is known (``ends_by`` of the leases on them). A kept reservation moves
to other nodes only where that is certainly sooner, or known at last; so its time moves back only for a higher priority.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from fermion.domain.book import Book, Held
from fermion.domain.line import Reservation, ReservedFor, Waiting
from fermion.domain.placement import NodeRoom, Room


def reserve(
    job: Waiting,
    *,
    room: Room,
    books: Iterable[tuple[Book, Sequence[Held]]],
    now: datetime,
    kept: Reservation | None,
) -> Reservation | None:
    """The reservation that the job gets (or keeps); None when the pool as it is now could not hold it even when empty.

    All ``books`` must admit it, each once enough of what it counts as held has ended. A kept reservation outlasts promises
    to jobs that came later but go before it, also where there is no room for both.
    """
    found = _soonest(job, room, now)
    old = [room.by_name[name] for name in kept.nodes if name in room.by_name] if kept else []
    if _holds(old, job):
        old_at = _latest([node.free_at(job.gpus_per_node, now) for node in old])
        if found is None or not _is_sooner(found[1], old_at):
            found = old, old_at
    answers = [_quota_at(job, book, held, now) for book, held in books]
    if found is None or not (kept or all(is_possible for is_possible, _ in answers)):
        return None
    nodes, nodes_at = found
    return Reservation(
        job_id=job.job_id,
        pool=job.pool,
        nodes=tuple(sorted(node.name for node in nodes)),
        gpus_per_node=job.gpus_per_node,
        starts_by=_latest([nodes_at, *(quota_at for _, quota_at in answers)]),
        made_at=kept.made_at if kept else now,
        why=ReservedFor.HEAD,
    )


def _soonest(job: Waiting, room: Room, now: datetime) -> tuple[Sequence[NodeRoom], datetime | None] | None:
    """The nodes that can take the job soonest, and when; ties go to the emptier node, then by name."""
    ranked = []
    for node in room.could_hold(job):
        if node.size < job.gpus_per_node + sum(claim.gpus for claim in node.claims):
            continue
        at = node.free_at(job.gpus_per_node, now)
        ranked.append((at is None, at or now, -len(node.free), node.name, node))
    if len(ranked) < job.nodes:
        return None
    chosen = sorted(ranked, key=lambda entry: entry[:4])[: job.nodes]
    at = _latest([node.free_at(job.gpus_per_node, now) for *_, node in chosen])
    return [node for *_, node in chosen], at


def _holds(nodes: Sequence[NodeRoom], job: Waiting) -> bool:
    fitting = [node for node in nodes if node.size >= job.gpus_per_node and node.name not in job.excluded_nodes]
    return len(fitting) == job.nodes


def _latest(times: Sequence[datetime | None]) -> datetime | None:
    known = [time for time in times if time is not None]
    return max(known) if known and len(known) == len(times) else None


def _is_sooner(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and (other is None or one < other)


def _quota_at(job: Waiting, book: Book, held: Sequence[Held], now: datetime) -> tuple[bool, datetime | None]:
    """Whether limits and quota let the job start once all that is held ends, and when that is known to be."""
    if book.admits(job):
        return True, now
    later = book.copy()
    known = [(ends_by, holder) for ends_by, holder in held if ends_by is not None]
    for ends_by, holder in sorted(known, key=lambda entry: entry[0]):
        later.give_back(holder)
        if later.admits(job):
            return True, max(ends_by, now)
    for unknown, holder in held:
        if unknown is None:
            later.give_back(holder)
    return later.admits(job), None
