"""The working picture of one round: what is free, held and promised while the line is walked. Never stored.

``book`` counts what is held; ``promised`` counts what is promised to jobs earlier in line as well. Work that is gone
before every promise begins is checked against the first, all other work against both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

from fermion.domain import preemption
from fermion.domain.book import Book, Held
from fermion.domain.counting import counted
from fermion.domain.leases import Lease
from fermion.domain.limits import never_fits
from fermion.domain.line import Reservation, ReservedFor, Waiting
from fermion.domain.placement import NodeRoom, Room
from fermion.domain.problems import Problem
from fermion.domain.reservations import reserve
from fermion.domain.snapshots import Grant, Preemption, Snapshot


class Picture:
    """The pools, leases and promises of one round, changed as the line is walked."""

    def __init__(self, snapshot: Snapshot, now: datetime) -> None:
        self.now = now
        self.pools = {pool.id: pool for pool in sorted(snapshot.pools, key=lambda pool: pool.id)}
        self.leases = sorted((lease for lease in snapshot.leases if lease.is_live), key=lambda lease: lease.id)
        of_pool: defaultdict[str, list[Lease]] = defaultdict(list)
        for lease in self.leases:
            of_pool[lease.pool].append(lease)
        self.rooms = {pool.id: Room(pool, of_pool[pool.id]) for pool in self.pools.values()}
        self.book = Book(self.pools.values(), self.leases, snapshot.spent, now)
        self.promised = self.book
        self.grants: dict[str, Grant] = {}
        self.preemptions: dict[str, Preemption] = {}
        self.reservations: dict[str, Reservation] = {}
        self._held: list[Held] = [(lease.ends_by, lease) for lease in self.leases]
        self._gone: list[Held] = []
        self._kept = {reservation.job_id: reservation for reservation in snapshot.reservations}
        self._unseen = set(self._kept)
        self._heads = {job_id for job_id, kept in self._kept.items() if kept.why is ReservedFor.HEAD}
        self._ending: defaultdict[str, list[Lease]] = defaultdict(list)
        for lease in self.leases:
            if lease.id in snapshot.ending:
                self._ending[snapshot.ending[lease.id]].append(lease)
        self._asked_to_end = set(snapshot.ending)
        self._promised_at: list[datetime | None] = []
        self._headed: set[str] = set()
        self._reserves_from = {pool.id: now - pool.policy.head_grace for pool in snapshot.pools}
        self._cannot_start: set[object] = set()
        self._cannot_preempt: set[object] = set()
        self._problems: dict[object, list[Problem]] = {}
        self._candidates: dict[int, list[Lease]] = {}
        self._lowest = self._lowest_preemptible()

    # --- questions --------------------------------------------------------------------------------------------------

    def problems(self, job: Waiting) -> list[Problem]:
        """Why the job could never start in its pool; empty when it could."""
        key = (*_kind(job), job.owner)
        if key not in self._problems:
            self._problems[key] = never_fits(
                job, self.pools[job.pool], cohort=self.pools.values(), excluded_nodes=job.excluded_nodes
            )
        return self._problems[key]

    def where(self, job: Waiting) -> Sequence[NodeRoom] | None:
        """The nodes on which the job may start now, or None."""
        ends_by = job.ends_by(self.now)
        if not self.book.admits(job) or self.problems(job):
            return None
        if self._delays_a_promise(ends_by) and not self.promised.admits(job):
            return None
        return self.rooms[job.pool].find(job, ends_by=ends_by)

    def is_settled(self, job: Waiting, *, oldest: datetime) -> bool:
        """Whether nobody behind this job can start, take or be promised anything; ``oldest`` came before all of them."""
        if self._unseen or self._ending or any(room.free for room in self.rooms.values()):
            return False
        if self._lowest is not None and self._lowest < job.priority:
            return False
        return all(pool in self._headed or oldest > since for pool, since in self._reserves_from.items())

    def victims_of(self, job_id: str) -> list[str]:
        """Ids of the leases asked to end for that job, now or earlier."""
        earlier = [lease.id for lease in self._ending.get(job_id, ())]
        return earlier + list(self.preemptions[job_id].lease_ids if job_id in self.preemptions else ())

    # --- moves ------------------------------------------------------------------------------------------------------

    def start(self, job: Waiting) -> bool:
        """Grant the job what it asks for if it may start now."""
        self._unseen.discard(job.job_id)
        kind = (*_kind(job), job.owner)
        if kind in self._cannot_start:
            return False
        nodes = self.where(job)
        if nodes is None:
            self._cannot_start.add(kind)
            return False
        ends_by = job.ends_by(self.now)
        slices = self.rooms[job.pool].take(nodes, job.gpus_per_node, ends_by=ends_by)
        self.book.take(job)
        if self.promised is not self.book:
            self.promised.take(job)
        self._held.append((ends_by, job))
        self.grants[job.job_id] = Grant(job_id=job.job_id, pool=job.pool, slices=slices, ends_by=ends_by)
        return True

    def hold(self, job: Waiting) -> None:
        """Take from lower priorities for a job that cannot start, or reserve for it, where it may have that."""
        self._unseen.discard(job.job_id)
        can_preempt = (
            job.preempts and self._lowest is not None and self._lowest < job.priority and self._may_preempt(job)
        ) or job.job_id in self._ending
        can_reserve = job.job_id in self._heads or (
            job.queued_at <= self._reserves_from[job.pool] and job.pool not in self._headed
        )
        if not (can_preempt or can_reserve) or self.problems(job):
            return
        if can_preempt and self._preempt(job):
            return
        if can_reserve and self._book_at_promise(job).over_limit(job) is None:
            self._reserve(job)

    def _book_at_promise(self, job: Waiting) -> Book:
        """The book when a kept promise falls due: who was let pass until then may use the job's own limits until then."""
        kept = self._kept.get(job.job_id)
        if kept is None or kept.starts_by is None:
            return self.promised
        then = self.promised.copy()
        for ends_by, holder in self._held:
            if ends_by is not None and ends_by <= kept.starts_by:
                then.give_back(holder)
        return then

    def _may_preempt(self, job: Waiting) -> bool:
        has_tried = (*_kind(job), job.owner, job.priority) in self._cannot_preempt
        return self.pools[job.pool].policy.preemption and not has_tried

    def _preempt(self, job: Waiting) -> bool:
        ending = self._ending.get(job.job_id, [])
        victims = self._victims(job.priority) if self.pools[job.pool].policy.preemption else []
        plan = preemption.plan(job, room=self.rooms[job.pool], book=self.promised, victims=victims, ending=ending)
        if plan is None:
            self._cannot_preempt.add((*_kind(job), job.owner, job.priority))
            return False
        if plan.victims:
            self._ask_to_end(job, plan.victims)
        gone = (*ending, *plan.victims)
        self._promise(
            job,
            Reservation(
                job_id=job.job_id,
                pool=job.pool,
                nodes=plan.nodes,
                gpus_per_node=job.gpus_per_node,
                starts_by=None,
                made_at=self._kept[job.job_id].made_at if job.job_id in self._kept else self.now,
                why=ReservedFor.PREEMPTION,
            ),
            gone,
        )
        return True

    def _ask_to_end(self, job: Waiting, victims: Sequence[Lease]) -> None:
        gpus = sum(lease.gpus for lease in victims)
        highest = max(lease.priority for lease in victims)
        self.preemptions[job.job_id] = Preemption(
            job_id=job.job_id,
            pool=job.pool,
            lease_ids=tuple(lease.id for lease in victims),
            why=f"job {job.job_id!r} of priority {job.priority} needs {counted(job.gpus, 'GPU')} of pool {job.pool!r};"
            f" {counted(len(victims), 'preemptible lease')} of priority {highest} or lower give {gpus}",
        )
        self._asked_to_end.update(lease.id for lease in victims)
        self._candidates.clear()
        self._lowest = self._lowest_preemptible()

    def _reserve(self, job: Waiting) -> None:
        books = [(self.promised, self._held)]
        if self._gone:
            books.append((self.book, self._held + self._gone))
        kept = self._kept.get(job.job_id)
        reservation = reserve(job, room=self.rooms[job.pool], books=books, now=self.now, kept=kept)
        if reservation is not None:
            self._headed.add(job.pool)
            self._promise(job, reservation, ())

    def _promise(self, job: Waiting, reservation: Reservation, gone: Sequence[Lease]) -> None:
        """Keep the reserved GPUs, and the quota for them, from whoever comes later in line."""
        room = self.rooms[job.pool]
        for name in reservation.nodes:
            here = [(lease.ends_by, part) for lease in gone if lease.pool == job.pool for part in lease.slices]
            coming = [(ends_by, len(part.devices)) for ends_by, part in here if part.node == name]
            room.by_name[name].claim(job.gpus_per_node, reservation.starts_by, coming=coming)
        self.reservations[job.job_id] = reservation
        self._promised_at.append(reservation.starts_by)
        if self.promised is self.book:
            self.promised = self.book.copy()
        for lease in gone:
            self.promised.give_back(lease)
            self._held.remove((lease.ends_by, lease))
            self._gone.append((lease.ends_by, lease))
        self.promised.take(job)

    def _delays_a_promise(self, ends_by: datetime | None) -> bool:
        return any(at is None or ends_by is None or ends_by > at for at in self._promised_at)

    def _victims(self, priority: int) -> list[Lease]:
        if priority not in self._candidates:
            self._candidates[priority] = preemption.candidates(
                self._preemptible(), priority=priority, spared=self._asked_to_end
            )
        return self._candidates[priority]

    def _preemptible(self) -> list[Lease]:
        return [
            lease
            for lease in self.leases
            if lease.preemptible and lease.pool in self.pools and self.pools[lease.pool].policy.preemption
        ]

    def _lowest_preemptible(self) -> int | None:
        return min(
            (lease.priority for lease in self._preemptible() if lease.id not in self._asked_to_end), default=None
        )


def _kind(job: Waiting) -> tuple[str, str, int, int, timedelta | None, tuple[str, ...]]:
    """Jobs of one kind and owner fare alike at one point of the line: what one cannot start, the next cannot either."""
    return job.pool, job.team, job.nodes, job.gpus_per_node, job.max_runtime, job.excluded_nodes
