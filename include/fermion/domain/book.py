"""The running count of who holds how much of which pool, against limits, quotas and budgets, while a round is decided."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from fermion.domain.budgets import HOUR_S, Scope, Spent, budgets_for
from fermion.domain.leases import Lease
from fermion.domain.line import Waiting
from fermion.domain.pools import Pool
from fermion.domain.quota import Quotas


class Limit(StrEnum):
    """Which limit is reached."""

    USER = "user_limit"
    TEAM = "team_limit"
    USER_BUDGET = "user_budget"
    TEAM_BUDGET = "team_budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """A limit that a job would cross: ``used`` of ``limit``, in GPUs or (budgets) in GPU-hours, ``asked`` for by the job."""

    limit: Limit
    name: str
    used: float
    most: float
    asked: float


class Holder(Protocol):
    """A lease, or a job that is taken to run."""

    @property
    def pool(self) -> str: ...
    @property
    def team(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def gpus(self) -> int: ...


Held = tuple[datetime | None, Holder]
"""Who holds GPUs, and by when that has ended for sure (None: unknown)."""


class Book:
    """Who holds how much of which pool now, against the limits. Working state of one round; never stored."""

    def __init__(self, pools: Iterable[Pool], leases: Iterable[Lease], spent: Iterable[Spent], now: datetime) -> None:
        known = tuple(pools)
        self._pools = {pool.id: pool for pool in known}
        self._quotas = Quotas(known)
        self._of_user: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._spent: defaultdict[tuple[str, str, str], float] = defaultdict(float)
        for row in spent:
            self._spent[row.pool, row.scope, row.name] += row.gpu_seconds
        for lease in leases:
            self._count(lease.pool, lease.team, lease.owner, lease.gpus)
            self._promise(
                lease.pool, lease.team, lease.owner, lease.gpus, None if lease.ends_by is None else lease.ends_by - now
            )

    def copy(self) -> Book:
        """A second book that can be changed without changing this one."""
        twin = Book((), (), (), datetime.min)  # noqa: DTZ901 - no lease is counted against it
        twin._pools, twin._quotas = self._pools, self._quotas.copy()
        twin._of_user, twin._spent = self._of_user.copy(), self._spent.copy()
        return twin

    def take(self, job: Waiting) -> None:
        """Count the job as holding what it asks for, and its run-time against the budgets."""
        self._count(job.pool, job.team, job.owner, job.gpus)
        self._promise(job.pool, job.team, job.owner, job.gpus, job.max_runtime)

    def give_back(self, holder: Holder) -> None:
        """Count it as ended. Budgets keep it: what was held was held."""
        self._count(holder.pool, holder.team, holder.owner, -holder.gpus)

    def over_limit(self, job: Waiting) -> Excess | None:
        """The first limit of the job's own user or team that it would cross now, or None."""
        policy = self._pools[job.pool].policy
        held = self._of_user[job.pool, job.owner]
        if policy.max_gpus_per_user is not None and held + job.gpus > policy.max_gpus_per_user:
            return Excess(limit=Limit.USER, name=job.owner, used=held, most=policy.max_gpus_per_user, asked=job.gpus)
        share = self._quotas.share(job.pool, job.team)
        if share is not None:
            used = self._quotas.used(job.pool, job.team)
            if used + job.gpus > share.limit:
                return Excess(limit=Limit.TEAM, name=job.team, used=used, most=share.limit, asked=job.gpus)
        if policy.user_budget is None and not policy.team_budgets:
            return None
        return self._over_budget(job)

    def quota_left(self, job: Waiting) -> int:
        """GPUs that the job's team may take now out of its own and the cohort's."""
        return self._quotas.available(job.pool, job.team)

    def admits(self, job: Waiting) -> bool:
        """Whether limits and quota let the job start now."""
        return self.quota_left(job) >= job.gpus and self.over_limit(job) is None

    def _over_budget(self, job: Waiting) -> Excess | None:
        asked = job.gpus * (job.max_runtime or timedelta(0)).total_seconds()
        for scope, name, budget in budgets_for(self._pools[job.pool], owner=job.owner, team=job.team):
            used = self._spent[job.pool, scope, name]
            if used >= budget.gpu_hours * HOUR_S or used + asked > budget.gpu_hours * HOUR_S:
                limit = Limit.USER_BUDGET if scope is Scope.USER else Limit.TEAM_BUDGET
                return Excess(limit=limit, name=name, used=used / HOUR_S, most=budget.gpu_hours, asked=asked / HOUR_S)
        return None

    def _count(self, pool: str, team: str, owner: str, gpus: int) -> None:
        self._quotas.take(pool, team, gpus)
        self._of_user[pool, owner] += gpus

    def _promise(self, pool: str, team: str, owner: str, gpus: int, remaining: timedelta | None) -> None:
        known = self._pools.get(pool)
        if known is None or remaining is None or remaining <= timedelta(0):
            return
        for scope, name, _ in budgets_for(known, owner=owner, team=team):
            self._spent[pool, scope, name] += gpus * remaining.total_seconds()
