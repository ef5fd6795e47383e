"""Fair share: who used how much lately, and the order of a line that follows from it.

Use decays: a GPU-second counts half after one half-life. Nothing is stored but leases; use is computed from them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Generic, TypeVar

from fermion.domain.leases import Lease
from fermion.domain.line import Waiting
from fermion.domain.pools import Pool

Who = TypeVar("Who", str, tuple[str, str])

DEFAULT_HALF_LIFE = timedelta(days=7)
"""For leases of a pool that has gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerUse:
    """Decayed GPU-seconds of one owner, for one team, in one pool."""

    pool: str
    team: str
    owner: str
    gpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Decayed use up to ``at``, one row per (pool, team, owner), in that order."""

    at: datetime
    owners: tuple[OwnerUse, ...] = ()


def decayed(
    leases: Iterable[Lease], *, half_lives: Mapping[str, timedelta], now: datetime, since: Use | None = None
) -> Use:
    """Decayed use at ``now`` of these leases.

    With ``since`` only the leases that were live after ``since.at`` are needed: the older use is carried over, exactly.
    """
    sums: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for row in since.owners if since else ():
        fade = _fade(since.at, now, half_lives.get(row.pool, DEFAULT_HALF_LIFE)) if since else 1.0
        sums[row.pool, row.team, row.owner] += row.gpu_seconds * fade
    for lease in leases:
        begin = max(lease.granted_at, since.at) if since else lease.granted_at
        half_life = half_lives.get(lease.pool, DEFAULT_HALF_LIFE)
        sums[lease.pool, lease.team, lease.owner] += lease.gpus * _faded_seconds(
            begin, min(lease.ended_at or now, now), now, half_life
        )
    rows = (
        OwnerUse(pool=pool, team=team, owner=owner, gpu_seconds=sums[pool, team, owner])
        for pool, team, owner in sorted(sums)
    )
    return Use(at=now, owners=tuple(rows))


def _fade(then: datetime, now: datetime, half_life: timedelta) -> float:
    return float(0.5 ** ((now - then) / half_life))


def _faded_seconds(begin: datetime, end: datetime, now: datetime, half_life: timedelta) -> float:
    """The integral of ``0.5 ** (age / half_life)`` over [begin, end], in seconds."""
    if end <= begin:
        return 0.0
    scale = half_life.total_seconds() / math.log(2)
    return scale * (_fade(end, now, half_life) - _fade(begin, now, half_life))


def half_lives(pools: Iterable[Pool]) -> dict[str, timedelta]:
    """Each pool's half-life."""
    return {pool.id: pool.policy.half_life for pool in pools}


def order(
    waiting: Sequence[Waiting], *, use: Use, weights: Mapping[str, int], first: Sequence[str] = ()
) -> list[Waiting]:
    """The line: by priority, then jobs in ``first`` in that order, then fair share, then arrival.

    Fair share compares teams (use divided by the team's weight), then owners within a team. A job counts not only what
    its team and owner used, but also what their jobs before it would use: so ten jobs of one owner do not all pass the
    first job of another. Three sorts by plain keys: O(n log n), and near n where ``waiting`` comes as it arrived.
    """
    of_owner, of_team = _sums(use)
    turns = {job_id: turn for turn, job_id in enumerate(first)}
    levels: defaultdict[tuple[int, int], list[Waiting]] = defaultdict(list)
    for job in sorted(waiting, key=attrgetter("queued_at", "job_id")):
        levels[-job.priority, turns.get(job.job_id, len(turns))].append(job)
    owners = _Queues(of_owner, {})
    teams = _Queues(of_team, weights)
    line: list[Waiting] = []
    for level in sorted(levels):
        by_owner = owners.sort(levels[level], [(job.team, job.owner) for job in levels[level]])
        line += teams.sort(by_owner, [job.team for job in by_owner])
    return line


class _Queues(Generic[Who]):
    """What each team or owner used, and would use for its jobs so far in line. A weight is 1 or more."""

    def __init__(self, used: Mapping[Who, float], weights: Mapping[Who, int]) -> None:
        self._used: Mapping[Who, float] = used
        self._weights: Mapping[Who, int] = weights
        self._counts: dict[Who, list[float]] = {}

    def sort(self, jobs: Sequence[Waiting], of: Sequence[Who]) -> list[Waiting]:
        """The jobs by the share that theirs had before them; counts these as used too."""
        shares: list[float] = []
        counts = self._counts
        for job, who in zip(jobs, of, strict=True):
            count = counts.get(who)
            if count is None:
                count = counts[who] = [self._used.get(who, 0.0), max(1, self._weights.get(who, 1))]
            before, weight = count
            shares.append(before / weight)
            count[0] = before + job.gpu_seconds
        return [jobs[index] for index in sorted(range(len(jobs)), key=shares.__getitem__)]


def weights(pools: Iterable[Pool]) -> dict[str, int]:
    """Each team's nominal GPUs over these pools; a team without any weighs 1."""
    sums: defaultdict[str, int] = defaultdict(int)
    for pool in pools:
        for team, quota in pool.policy.teams.items():
            sums[team] += quota.nominal
    return dict(sums)


def _sums(use: Use) -> tuple[defaultdict[tuple[str, str], float], defaultdict[str, float]]:
    of_owner: defaultdict[tuple[str, str], float] = defaultdict(float)
    of_team: defaultdict[str, float] = defaultdict(float)
    for row in use.owners:
        of_owner[row.team, row.owner] += row.gpu_seconds
        of_team[row.team] += row.gpu_seconds
    return of_owner, of_team
