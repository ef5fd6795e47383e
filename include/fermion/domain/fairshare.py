"""Fair share: who used how much lately. The order of a line follows from it (``queues.py``).

Use decays: a GPU-second counts half after one half-life. Nothing is stored but leases; use is computed from them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from fermion.domain.leases import Lease
from fermion.domain.pools import Pool

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


def weights(pools: Iterable[Pool]) -> dict[str, int]:
    """Each team's nominal GPUs over these pools; a team without any weighs 1."""
    sums: defaultdict[str, int] = defaultdict(int)
    for pool in pools:
        for team, quota in pool.policy.teams.items():
            sums[team] += quota.nominal
    return dict(sums)
