"""GPU-hour budgets: what a user or a team may hold of a pool within a sliding window."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from fermion.domain.leases import Lease
from fermion.domain.pools import Budget, Pool

HOUR_S = 3600.0


class Scope(StrEnum):
    """Whom a budget binds."""

    USER = "user"
    TEAM = "team"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """GPU-seconds that a user or a team held in a pool within its budget's sliding window."""

    pool: str
    scope: Scope
    name: str
    gpu_seconds: float


def budgets_for(pool: Pool, *, owner: str, team: str) -> Iterator[tuple[Scope, str, Budget]]:
    """The budgets that bind a job of this owner and team in the pool."""
    if pool.policy.user_budget is not None:
        yield Scope.USER, owner, pool.policy.user_budget
    if team in pool.policy.team_budgets:
        yield Scope.TEAM, team, pool.policy.team_budgets[team]


def spent(leases: Iterable[Lease], pools: Iterable[Pool], now: datetime) -> tuple[Spent, ...]:
    """What every budget has seen held within its window, up to ``now``. ``leases`` must reach back to the longest window."""
    by_id = {pool.id: pool for pool in pools}
    sums: defaultdict[tuple[str, Scope, str], float] = defaultdict(float)
    for lease in leases:
        pool = by_id.get(lease.pool)
        for scope, name, budget in budgets_for(pool, owner=lease.owner, team=lease.team) if pool else ():
            begin = max(lease.granted_at, now - budget.window)
            seconds = (min(lease.ended_at or now, now) - begin).total_seconds()
            if seconds > 0:
                sums[lease.pool, scope, name] += lease.gpus * seconds
    return tuple(
        Spent(pool=pool, scope=scope, name=name, gpu_seconds=sums[pool, scope, name])
        for pool, scope, name in sorted(sums)
    )


def longest_window(pools: Iterable[Pool]) -> timedelta:
    """How far back leases are needed for the budgets of these pools; zero where there is none."""
    windows = [timedelta(0)]
    for pool in pools:
        windows.extend(budget.window for budget in pool.policy.team_budgets.values())
        if pool.policy.user_budget is not None:
            windows.append(pool.policy.user_budget.window)
    return max(windows)
