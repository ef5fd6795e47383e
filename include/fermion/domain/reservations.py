"""Reservations: which nodes, from when, are kept for a job that cannot start yet.

The nodes are those that are free soonest by what is known (``ends_by`` of the leases on them). A kept reservation moves
to other nodes only where that is certainly sooner, so its time never moves back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from fermion.domain.book import Book
from fermion.domain.leases import Lease
from fermion.domain.line import Reservation, ReservedFor, Waiting
from fermion.domain.placement import NodeRoom, Room


def reserve(
    job: Waiting, *, room: Room, book: Book, leases: Sequence[Lease], now: datetime, kept: Reservation | None
) -> Reservation | None:
    """The reservation that the job gets (or keeps); None when the pool as it is now could not hold it even when empty."""
    fresh = _soonest(job, room, now)
    if fresh is None:
        return None
    nodes, nodes_at = fresh
    if kept is not None:
        old = [room.by_name[name] for name in kept.nodes if name in room.by_name]
        old_at = _latest([node.free_at(job.gpus_per_node, now) for node in old])
        if _holds(old, job) and not _is_sooner(nodes_at, old_at):
            nodes, nodes_at = old, old_at
    is_possible, quota_at = _quota_at(job, book, leases, now)
    if not is_possible:
        return None
    known = None if nodes_at is None or quota_at is None else max(nodes_at, quota_at)
    return Reservation(
        job_id=job.job_id,
        pool=job.pool,
        nodes=tuple(sorted(node.name for node in nodes)),
        gpus_per_node=job.gpus_per_node,
        starts_by=known,
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


def _quota_at(job: Waiting, book: Book, leases: Sequence[Lease], now: datetime) -> tuple[bool, datetime | None]:
    """Whether limits and quota let the job start once the leases that hold them end, and when that is known to be."""
    if book.admits(job):
        return True, now
    later = book.copy()
    known = sorted((lease.ends_by, lease.id, lease) for lease in leases if lease.ends_by is not None)
    for ends_by, _, lease in known:
        later.give_back(lease)
        if later.admits(job):
            return True, max(ends_by, now)
    for lease in leases:
        if lease.ends_by is None:
            later.give_back(lease)
    return later.admits(job), None
