"""The line in its order, worked out only as far as somebody asks.

``Queues`` holds who waits, each owner's jobs of one priority as they came, and is kept while jobs come and go. ``Order``
is the line of one round: it merges the queues by what their owners and teams used, and knows a job's place without having
walked to it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, chain
from operator import attrgetter, itemgetter

from fermion.domain.fairshare import Use
from fermion.domain.line import Waiting

_arrival = attrgetter("queued_at", "job_id")
_gpu_seconds = attrgetter("gpu_seconds")

_Mark = tuple[float, float, datetime, str]
"""A job is compared by it with those of other teams: shares of its team and of its owner, then arrival."""


class Queues:
    """Everybody in line, by priority and then by team and owner, as they came."""

    def __init__(self, waiting: Iterable[Waiting] = ()) -> None:
        line = sorted(waiting, key=_arrival)
        self._jobs = {job.job_id: job for job in line}
        self._levels: defaultdict[int, dict[tuple[str, str], list[Waiting]]] = defaultdict(dict)
        self._of_pool = Counter(job.pool for job in line)
        for job in line:
            self._levels[job.priority].setdefault((job.team, job.owner), []).append(job)

    def put(self, job: Waiting) -> None:
        """Insert or replace."""
        self.drop(job.job_id)
        self._jobs[job.job_id] = job
        self._of_pool[job.pool] += 1
        queue = self._levels[job.priority].setdefault((job.team, job.owner), [])
        if queue and _arrival(queue[-1]) > _arrival(job):
            insort(queue, job, key=_arrival)
        else:
            queue.append(job)

    def drop(self, job_id: str) -> None:
        """Forget; absent is fine."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        self._of_pool[job.pool] -= 1
        level = self._levels[job.priority]
        queue = level[job.team, job.owner]
        del queue[bisect_left(queue, _arrival(job), key=_arrival)]
        if not queue:
            del level[job.team, job.owner]
        if not level:
            del self._levels[job.priority]

    def get(self, job_id: str) -> Waiting | None:
        """The job, if it is in line."""
        return self._jobs.get(job_id)

    def __len__(self) -> int:
        return len(self._jobs)

    def count(self, pool: str) -> int:
        """How many wait for the pool."""
        return self._of_pool[pool]

    def oldest(self) -> datetime | None:
        """When the one came that waits longest."""
        return min((queue[0].queued_at for level in self._levels.values() for queue in level.values()), default=None)

    def levels(self) -> Iterator[tuple[int, Mapping[tuple[str, str], Sequence[Waiting]]]]:
        """Each priority with its owners' jobs, the highest first."""
        for priority in sorted(self._levels, reverse=True):
            yield priority, self._levels[priority]


class Order:
    """One round's line: by priority, then jobs in ``first`` in that order, then fair share, then arrival.

    Fair share compares teams (use divided by the team's weight), then owners within a team. A job counts not only what
    its team and owner used, but also what their jobs before it would use: so ten jobs of one owner do not all pass the
    first job of another. The queues must not change meanwhile. Shares are summed for all at once; a walk then costs what
    it passes, and a place the number of teams.
    """

    def __init__(self, queues: Queues, *, use: Use, weights: Mapping[str, int], first: Sequence[str] = ()) -> None:
        self.queues = queues
        self.walked: list[Waiting] = []
        """The jobs that were passed so far."""
        self._levels = list(_levels(queues, use, weights, first))
        self._ahead = chain.from_iterable(level.walk() for level in self._levels)

    def __iter__(self) -> Iterator[Waiting]:
        index = 0
        while True:
            if index == len(self.walked):
                job = next(self._ahead, None)
                if job is None:
                    return
                self.walked.append(job)
            yield self.walked[index]
            index += 1

    def ahead_of(self, job: Waiting) -> int:
        """How many jobs for the same pool stand before this one, which is in line."""
        pool = None if self.queues.count(job.pool) == len(self.queues) else job.pool
        higher = sum(level.count(pool) for level in self._levels if level.priority > job.priority)
        (own,) = (level for level in self._levels if level.priority == job.priority)
        return higher + own.ahead_of(job, pool)


class _Team:
    """One team's jobs of one priority in order, with what the team (by its weight) and the owner have used before each."""

    def __init__(self, jobs: Sequence[Waiting], shares: Sequence[float], of_owners: Sequence[float]) -> None:
        self.jobs = jobs
        self._shares = shares
        self._of_owners = of_owners
        self._places: dict[str, int] = {}

    def mark(self, index: int) -> _Mark:
        """What the job is compared by with those of other teams."""
        job = self.jobs[index]
        return self._shares[index], self._of_owners[index], job.queued_at, job.job_id

    def mark_of(self, job: Waiting) -> _Mark:
        """The same of a job wherever it stands."""
        if not self._places:
            self._places = {each.job_id: index for index, each in enumerate(self.jobs)}
        return self.mark(self._places[job.job_id])

    def before(self, mark: _Mark) -> int:
        """How many of them stand before a job with that mark."""
        index = bisect_left(self._shares, mark[0])
        while index < len(self.jobs) and self.mark(index) < mark:
            index += 1
        return index


@dataclass(frozen=True, slots=True)
class _Level:
    """All jobs of one priority: those with a promise first, then the teams' jobs by their marks."""

    priority: int
    heads: Sequence[Waiting]
    teams: Mapping[str, _Team]

    def walk(self) -> Iterator[Waiting]:
        yield from self.heads
        marks = [(*team.mark(0), 0, team) for team in self.teams.values()]
        heapq.heapify(marks)
        while marks:
            *_, index, team = marks[0]
            yield team.jobs[index]
            if index + 1 < len(team.jobs):
                heapq.heapreplace(marks, (*team.mark(index + 1), index + 1, team))
            else:
                heapq.heappop(marks)

    def count(self, pool: str | None) -> int:
        """How many there are, of that pool if given."""
        return _count(self.heads, pool) + sum(_count(team.jobs, pool) for team in self.teams.values())

    def ahead_of(self, job: Waiting, pool: str | None) -> int:
        """How many stand before this one, of that pool if given."""
        if job in self.heads:
            return _count(self.heads[: self.heads.index(job)], pool)
        mark = self.teams[job.team].mark_of(job)
        ahead = sum(_count(team.jobs[: team.before(mark)], pool) for team in self.teams.values())
        return _count(self.heads, pool) + ahead


def _levels(queues: Queues, use: Use, weights: Mapping[str, int], first: Sequence[str]) -> Iterator[_Level]:
    of_owner, of_team = _sums(use)
    promised = [job for job in map(queues.get, first) if job is not None]
    for priority, owners in queues.levels():
        heads = [job for job in promised if job.priority == priority]
        for job in heads:
            of_owner[job.team, job.owner] += job.gpu_seconds
            of_team[job.team] += job.gpu_seconds
        teams: defaultdict[str, list[tuple[Sequence[Waiting], list[float]]]] = defaultdict(list)
        for (team, owner), jobs in owners.items():
            others = [job for job in jobs if job not in heads] if heads else jobs
            shares, of_owner[team, owner] = _before(others, of_owner[team, owner])
            teams[team].append((others, shares))
        parts = {}
        for team, sequences in teams.items():
            line, of_owners = _merged(sequences)
            shares, of_team[team] = _before(line, of_team[team])
            weight = max(1, weights.get(team, 1))
            if line:
                parts[team] = _Team(line, [share / weight for share in shares] if weight > 1 else shares, of_owners)
        yield _Level(priority, heads, parts)


def _before(jobs: Sequence[Waiting], used: float) -> tuple[list[float], float]:
    """What was used before each of these jobs, and after all of them."""
    sums = list(accumulate(map(_gpu_seconds, jobs), initial=used))
    return sums, sums.pop()


def _merged(sequences: Sequence[tuple[Sequence[Waiting], list[float]]]) -> tuple[Sequence[Waiting], Sequence[float]]:
    """The jobs of a team's owners by what each had used before, then by arrival."""
    if len(sequences) == 1:
        return sequences[0]
    marked = [
        (share, _arrival(job), job) for jobs, shares in sequences for job, share in zip(jobs, shares, strict=True)
    ]
    marked.sort(key=itemgetter(0, 1))
    return [job for _, _, job in marked], [share for share, _, _ in marked]


def _count(jobs: Sequence[Waiting], pool: str | None) -> int:
    return len(jobs) if pool is None else sum(job.pool == pool for job in jobs)


def _sums(use: Use) -> tuple[defaultdict[tuple[str, str], float], defaultdict[str, float]]:
    of_owner: defaultdict[tuple[str, str], float] = defaultdict(float)
    of_team: defaultdict[str, float] = defaultdict(float)
    for row in use.owners:
        of_owner[row.team, row.owner] += row.gpu_seconds
        of_team[row.team] += row.gpu_seconds
    return of_owner, of_team
