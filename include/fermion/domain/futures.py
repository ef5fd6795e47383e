"""One drawn future of a line: run times are known here, and the line proceeds by counts of free devices per node.

The light model behind ``forecast``. It shares the order, the limits and the quotas with admission (``fairshare``,
``Book``); devices are only counted, and of reservations only the head's is kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from fermion.domain.book import Book, Holder
from fermion.domain.leases import Lease
from fermion.domain.line import Waiting
from fermion.domain.snapshots import Snapshot


@dataclass(frozen=True, slots=True)
class Run:
    """A lease and how many seconds it lives on."""

    lease: Lease
    left_s: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job in the order of the line: in how many seconds it joins (0: it stands there), and how long it then runs.

    From ``grace_s`` on it may keep nodes as the head of the line. Jobs of one ``kind`` fare alike at one moment.
    """

    job: Waiting
    joins_s: float
    grace_s: float
    runs_s: float
    kind: Hashable


def arrival(job: Waiting, *, now: datetime, grace: timedelta, runs_s: float) -> Arrival:
    """The job as seen from ``now``."""
    joins_s = (job.queued_at - now).total_seconds()
    kind = (job.pool, job.team, job.owner, job.nodes, job.gpus_per_node, job.max_runtime, job.excluded_nodes)
    return Arrival(job, max(0.0, joins_s), joins_s + grace.total_seconds(), runs_s, kind)


def future_starts(
    snapshot: Snapshot, running: Sequence[Run], line: Sequence[Arrival], *, targets: Collection[str], now: datetime
) -> dict[str, float]:
    """Seconds from now to the start of each target that starts before nothing happens any more."""
    world = _World(snapshot, running, now)
    joins = sorted({arrival.joins_s for arrival in line}, reverse=True)
    pending = list(line)
    starts: dict[str, float] = {}
    missing = set(targets)
    while missing and (joins or world.ends):
        time_s = min(joins[-1:] + [entry.at_s for entry in world.ends[:1]])
        if joins and joins[-1] <= time_s:
            joins.pop()
        world.end_until(time_s)
        started = world.start(pending, time_s) if world.has_room else ()
        if started:
            pending = [arrival for arrival in pending if arrival.job.job_id not in started]
            starts.update(dict.fromkeys(started, time_s))
            missing.difference_update(started)
    return {job_id: starts[job_id] for job_id in targets if job_id in starts}


@dataclass(order=True, slots=True)
class _Held:
    """GPUs held until ``at_s``: so many on each node. ``is_limited`` tells whether the true rules would know an end."""

    at_s: float
    number: int
    holder: Holder = field(compare=False)
    taken: dict[str, int] = field(compare=False)
    is_limited: bool = field(compare=False)


class _World:
    """Free devices by pool and node, what is held until when, and who is within limits."""

    def __init__(self, snapshot: Snapshot, running: Sequence[Run], now: datetime) -> None:
        self._pools = {pool.id: pool for pool in snapshot.pools}
        self._book = Book(snapshot.pools, [run.lease for run in running], snapshot.spent, now)
        self._free = {
            pool.id: {node.name: len(node.devices) for node in pool.nodes if node.is_usable} for pool in snapshot.pools
        }
        self.ends: list[_Held] = []
        self._number = 0
        for run in running:
            taken = {part.node: len(part.devices) for part in run.lease.slices}
            self._hold(run.lease, taken, until_s=run.left_s, is_limited=run.lease.ends_by is not None)

    def end_until(self, time_s: float) -> None:
        """End what ends by then."""
        while self.ends and self.ends[0].at_s <= time_s:
            held = heapq.heappop(self.ends)
            self._book.give_back(held.holder)
            free = self._free.get(held.holder.pool, {})
            for node, count in held.taken.items():
                if node in free:
                    free[node] += count

    @property
    def has_room(self) -> bool:
        """Whether any device is free."""
        return any(count for free in self._free.values() for count in free.values())

    def start(self, line: Sequence[Arrival], time_s: float) -> set[str]:
        """Walk the line once; the ids of the jobs that start now."""
        started: set[str] = set()
        blocked: set[Hashable] = set()
        kept: dict[str, _Kept] = {}
        most = {pool: max(free.values(), default=0) for pool, free in self._free.items()}
        for arrival in line:
            if arrival.joins_s > time_s:
                continue
            job, pool = arrival.job, arrival.job.pool
            nodes = None
            if job.gpus_per_node <= most[pool] and arrival.kind not in blocked and self._book.admits(job):
                nodes = self._nodes(job, time_s, kept.get(pool))
            if nodes is not None:
                self._book.take(job)
                taken = dict.fromkeys(nodes, job.gpus_per_node)
                self._hold(job, taken, until_s=time_s + arrival.runs_s, is_limited=job.max_runtime is not None)
                most[pool] = max(self._free[pool].values())
                started.add(job.job_id)
                continue
            blocked.add(arrival.kind)
            if arrival.grace_s <= time_s and pool not in kept:
                self._keep(job, time_s, kept)
        return started

    def _hold(self, holder: Holder, taken: dict[str, int], *, until_s: float, is_limited: bool) -> None:
        free = self._free.get(holder.pool, {})
        for node, count in taken.items():
            if node in free:
                free[node] -= count
        self._number += 1
        heapq.heappush(self.ends, _Held(until_s, self._number, holder, taken, is_limited))

    def _nodes(self, job: Waiting, time_s: float, kept: _Kept | None) -> list[str] | None:
        closed = kept.nodes if kept is not None and not kept.lets_pass(job, time_s) else frozenset()
        fitting = sorted(
            (free, node)
            for node, free in self._free[job.pool].items()
            if free >= job.gpus_per_node and node not in closed and node not in job.excluded_nodes
        )
        return [node for _, node in fitting[: job.nodes]] if len(fitting) >= job.nodes else None

    def _keep(self, job: Waiting, time_s: float, kept: dict[str, _Kept]) -> None:
        """Keep the nodes that are free soonest for the first in line that has waited its grace time."""
        if self._book.over_limit(job) is not None:
            return
        sizes = {node.name: len(node.devices) for node in self._pools[job.pool].nodes if node.is_usable}
        ready = []
        for name, free in self._free[job.pool].items():
            if name in job.excluded_nodes or sizes[name] < job.gpus_per_node:
                continue
            at_s = self._ready(job.pool, name, free, job.gpus_per_node, time_s)
            ready.append((at_s is None, at_s or 0.0, -free, name))
        chosen = sorted(ready)[: job.nodes]
        if len(chosen) == job.nodes:
            until = None if any(is_unknown for is_unknown, *_ in chosen) else max(at_s for _, at_s, *_ in chosen)
            kept[job.pool] = _Kept(frozenset(name for *_, name in chosen), until)

    def _ready(self, pool: str, node: str, free: int, wanted: int, time_s: float) -> float | None:
        """When the node has that many free devices; None where the true rules would not know."""
        at_s = time_s
        for held in sorted(held for held in self.ends if held.holder.pool == pool and node in held.taken):
            if free >= wanted:
                break
            if not held.is_limited:
                return None
            free += held.taken[node]
            at_s = held.at_s
        return at_s


@dataclass(frozen=True, slots=True)
class _Kept:
    """The nodes kept for the head of the line, and until when others may use them (None: not at all)."""

    nodes: frozenset[str]
    until_s: float | None

    def lets_pass(self, job: Waiting, time_s: float) -> bool:
        limit = job.max_runtime
        return self.until_s is not None and limit is not None and time_s + limit.total_seconds() <= self.until_s
