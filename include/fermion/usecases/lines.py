"""The line of one cohort as this process knows it: read whole once, then only what events tell of.

Every change that moves a job into the line, within it or out of it writes an event in the same transaction, and whoever
goes on after the last event's number misses none. So a round costs what changed since the last one, not what waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import islice
from weakref import WeakKeyDictionary

from fermion.domain.jobs import IN_LINE, Job, Phase
from fermion.domain.line import Waiting, waiting_of
from fermion.domain.pools import Pool
from fermion.domain.queues import Queues
from fermion.domain.reasons import Reason
from fermion.ports import Store, Transaction
from fermion.usecases.context import Context

READ_WHOLE_EVERY = timedelta(minutes=5)
"""A line is read whole again after that long, whatever the events told (retention may have deleted some)."""

MOST_TOUCHED = 5000
"""When more jobs changed than that, reading the line whole costs less."""

MOST_KNOWN = 2000
"""How many jobs of a line are kept whole; one that is not is read again when it starts."""

_MASK = (1 << 128) - 1


@dataclass(frozen=True, slots=True)
class Place:
    """One job of the line: what is decided about, its stored reason, and whether it was ever told where it stands."""

    waiting: Waiting
    reason: Reason
    is_told: bool
    mark: int


@dataclass(slots=True)
class Line:
    """Everybody in line for some pools, also as ``queues``. ``digest`` is the sum of the marks: the same for the same jobs in
    any order.

    ``untold`` are staged jobs whose reason was never stored, oldest first; ``told_at`` is when reasons were looked at last.
    ``jobs`` are the latest of them as this process read or wrote them last, ``fresh`` names those that this transaction has
    read to write them.
    """

    pools: tuple[Pool, ...]
    event: int
    read_at: datetime
    places: dict[str, Place] = field(default_factory=dict)
    queues: Queues = field(default_factory=Queues)
    digest: int = 0
    told_at: datetime | None = None
    untold: dict[str, None] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)

    def put(self, place: Place) -> None:
        """Insert or replace."""
        self.drop(place.waiting.job_id)
        self.places[place.waiting.job_id] = place
        self.queues.put(place.waiting)
        self.digest = (self.digest + place.mark) & _MASK
        if place.waiting.staged and not place.is_told:
            self.untold[place.waiting.job_id] = None

    def drop(self, job_id: str) -> None:
        """Forget; absent is fine."""
        self.jobs.pop(job_id, None)
        self.fresh.discard(job_id)
        place = self.places.pop(job_id, None)
        self.queues.drop(job_id)
        if place is not None:
            self.digest = (self.digest - place.mark) & _MASK
            self.untold.pop(job_id, None)

    def tell(self, job: Job) -> None:
        """Note that the job is stored like this now, with its reason; its place stays."""
        self.places[job.id] = replace(self.places[job.id], reason=job.explanation.reason, is_told=True)
        self.untold.pop(job.id, None)
        self.jobs[job.id] = job

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """All of them, in no order."""
        return tuple([place.waiting for place in self.places.values()])


_lines: WeakKeyDictionary[Store, dict[str, Line]] = WeakKeyDictionary()


def take_line(ctx: Context, tx: Transaction, cohort: str, pools: Sequence[Pool], now: datetime) -> Line:
    """The line as it is in this transaction, which must be the cohort's exclusive one. ``keep_line`` gives it back."""
    line = _lines.get(ctx.store, {}).pop(cohort, None)
    if line is None or not _is_of(line, pools) or not timedelta(0) <= now - line.read_at < READ_WHOLE_EVERY:
        return read_line(ctx, tx, pools, now)
    ids = [pool.id for pool in pools]
    line.event, touched = tx.records.touched(line.event, pools=ids)
    if len(touched) > MOST_TOUCHED:
        return read_line(ctx, tx, pools, now)
    for job_id in touched & line.places.keys():
        line.drop(job_id)
    for job in tx.jobs.get_all(touched, pools=ids, phases=IN_LINE):
        if _stands(job, line):
            line.put(_place_of(ctx, job))
            line.jobs[job.id] = job
            line.fresh.add(job.id)
    return line


def keep_line(ctx: Context, cohort: str, line: Line) -> None:
    """Remember the line for the next round. Only after the commit: a transaction that failed leaves nothing to go on from."""
    line.fresh.clear()
    for job_id in list(islice(line.jobs, max(0, len(line.jobs) - MOST_KNOWN))):
        del line.jobs[job_id]
    _lines.setdefault(ctx.store, {})[cohort] = line


def read_line(ctx: Context, tx: Transaction, pools: Sequence[Pool], now: datetime) -> Line:
    """The line, read whole."""
    event, _ = tx.records.touched(None, pools=())
    line = Line(pools=tuple(pools), event=event, read_at=now)
    for pool in pools:
        for job in reversed(tx.jobs.find(phases=IN_LINE, pool=pool.id)):
            if _stands(job, line):
                line.put(_place_of(ctx, job))
    return line


def _is_of(line: Line, pools: Sequence[Pool]) -> bool:
    """Whether it stands for these pools, under the same policies."""
    return [(pool.id, pool.policy) for pool in line.pools] == [(pool.id, pool.policy) for pool in pools]


def _stands(job: Job, line: Line) -> bool:
    return job.stop_requested_at is None and any(pool.id == job.spec.pool for pool in line.pools)


def _place_of(ctx: Context, job: Job) -> Place:
    waiting = waiting_of(job, ctx.rules.policy(job.spec.pool))
    mark = int.from_bytes(blake2b(repr(waiting).encode(), digest_size=16).digest(), "big")
    return Place(waiting, job.explanation.reason, is_told(job), mark)


def is_told(job: Job) -> bool:
    """Whether a round stored where the job stands in line."""
    return job.phase is Phase.WAITING and "position" in job.explanation.numbers
