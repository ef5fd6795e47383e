"""Preemption: whose work is asked to end so that a job of higher priority can start. Pure; it only names the victims.

Victims are taken lowest priority first, then newest first. A last pass puts back whoever is not needed, so no victim of
the answer could be spared. When the job would still not fit, nobody is asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fermion.domain.book import Book
from fermion.domain.leases import Lease
from fermion.domain.line import Waiting
from fermion.domain.placement import NodeRoom, Room


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is asked to end (``victims``), and the nodes that the job then starts on."""

    victims: tuple[Lease, ...]
    nodes: tuple[str, ...]


def candidates(leases: Iterable[Lease], *, priority: int, spared: Collection[str]) -> list[Lease]:
    """Those of these preemptible leases that work of ``priority`` may take from, in the order in which they are asked."""
    return sorted(
        (lease for lease in leases if lease.priority < priority and lease.id not in spared),
        key=lambda lease: (lease.priority, -lease.granted_at.timestamp(), lease.id),
    )


def plan(
    job: Waiting, *, room: Room, book: Book, victims: Sequence[Lease], ending: Sequence[Lease] = ()
) -> Plan | None:
    """The smallest set out of ``victims`` (in their order) with which the job fits, or None.

    ``ending`` are leases that were already asked to end for this job; ``book`` counts everything that lives, and what
    is promised to jobs before this one.
    """
    coming = _by_node(ending, job.pool)
    chosen = _for_nodes(job, room, victims, coming)
    if chosen is None:
        return None
    freed = book.copy()
    for lease in (*ending, *chosen):
        freed.give_back(lease)
    ids = {lease.id for lease in chosen}
    for lease in victims:
        if freed.admits(job):
            break
        if lease.id not in ids:
            chosen.append(lease)
            freed.give_back(lease)
    if not freed.admits(job):
        return None

    def is_enough(taken: Sequence[Lease]) -> bool:
        return _admits(job, book, (*ending, *taken)) and _nodes(job, room, coming, taken) is not None

    turn = {lease.id: index for index, lease in enumerate(victims)}
    kept = _minimal(sorted(chosen, key=lambda lease: turn[lease.id]), is_enough)
    nodes = _nodes(job, room, coming, kept)
    return Plan(tuple(kept), tuple(sorted(node.name for node in nodes or ())))


def _for_nodes(job: Waiting, room: Room, victims: Sequence[Lease], coming: Mapping[str, int]) -> list[Lease] | None:
    """Victims that free enough on as many nodes as the job needs: on the nodes where that costs least."""
    on_node: defaultdict[str, list[Lease]] = defaultdict(list)
    for lease in victims:
        for part in lease.slices if lease.pool == job.pool else ():
            on_node[part.node].append(lease)
    offers = []
    for node in room.could_hold(job):
        taken = _for_node(node, job.gpus_per_node, on_node[node.name], coming.get(node.name, 0))
        if taken is not None:
            offers.append((max((v.priority for v in taken), default=-1), len(taken), _gpus(taken), node.name, taken))
    if len(offers) < job.nodes:
        return None
    best = sorted(offers, key=lambda offer: (bool(offer[4]), *offer[:4]))[: job.nodes]
    return list({lease.id: lease for *_, taken in best for lease in taken}.values())


def _for_node(node: NodeRoom, wanted: int, victims: Sequence[Lease], coming: int) -> list[Lease] | None:
    """The victims on one node that free ``wanted`` devices there, none of them needless; None when all are too few."""
    have = node.beyond_claims + coming
    taken: list[Lease] = []
    for lease in victims:
        if have >= wanted:
            break
        taken.append(lease)
        have += _on(lease, node.name)
    if have < wanted:
        return None

    def is_enough(kept: Sequence[Lease]) -> bool:
        return node.beyond_claims + coming + sum(_on(lease, node.name) for lease in kept) >= wanted

    return _minimal(taken, is_enough)


def _minimal(taken: Sequence[Lease], is_enough: Callable[[Sequence[Lease]], bool]) -> list[Lease]:
    """The reverse pass: whoever came last is put back first, if the rest is enough without."""
    kept = list(taken)
    for lease in reversed(taken):
        rest = [other for other in kept if other is not lease]
        if is_enough(rest):
            kept = rest
    return kept


def _admits(job: Waiting, book: Book, gone: Iterable[Lease]) -> bool:
    left = book.copy()
    for lease in gone:
        left.give_back(lease)
    return left.admits(job)


def _nodes(job: Waiting, room: Room, coming: Mapping[str, int], taken: Iterable[Lease]) -> list[NodeRoom] | None:
    """The nodes that the job fits on once these are gone: those with least left over; None when they are too few."""
    gone = _by_node(taken, job.pool)
    fitting = []
    for node in room.could_hold(job):
        have = node.beyond_claims + coming.get(node.name, 0) + gone.get(node.name, 0)
        if have >= job.gpus_per_node:
            fitting.append((have, node.name, node))
    return [node for *_, node in sorted(fitting)[: job.nodes]] if len(fitting) >= job.nodes else None


def _by_node(leases: Iterable[Lease], pool: str) -> dict[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for lease in leases:
        for part in lease.slices if lease.pool == pool else ():
            counts[part.node] += len(part.devices)
    return dict(counts)


def _on(lease: Lease, node: str) -> int:
    return sum(len(part.devices) for part in lease.slices if part.node == node)


def _gpus(leases: Iterable[Lease]) -> int:
    return sum(lease.gpus for lease in leases)
