"""Team quotas in cohorts: what a team may still take of a pool. Pure sums over live leases, no counter is kept.

The algebra is Kueue's (``pkg/cache/scheduler/resource_node.go``) for one level of cohort: each (pool, team) keeps what
it does not lend, puts the rest of its nominal GPUs into the cohort, and draws from the cohort what it uses beyond what
it keeps. GPUs of a pool that are nobody's nominal belong to the cohort too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from fermion.domain.pools import Pool, TeamQuota

UNLIMITED = 1 << 60

NO_QUOTA = TeamQuota(nominal=0)
"""A team that a pool's policy does not name has nothing of its own and may borrow what is left over."""


@dataclass(frozen=True, slots=True)
class Share:
    """One team's share of one pool, split into what it keeps for itself and what it puts into the cohort."""

    cohort: str
    nominal: int
    kept: int
    lent: int
    limit: int


def cohort_of(pool: Pool) -> str:
    """The pool's cohort; a pool without one is a cohort of its own, so that its teams lend to each other."""
    return f"cohort {pool.policy.cohort}" if pool.policy.cohort else f"pool {pool.id}"


def share_of(pool: Pool, team: str) -> Share:
    """The team's share of the pool as configured."""
    quota = pool.policy.teams.get(team, NO_QUOTA)
    kept = 0 if quota.lending_limit is None else max(0, quota.nominal - quota.lending_limit)
    limit = UNLIMITED if quota.borrowing_limit is None else quota.nominal + quota.borrowing_limit
    return Share(cohort_of(pool), quota.nominal, kept, quota.nominal - kept, limit)


class Quotas:
    """What every team uses, and what it may still take. Working state of one round; never stored.

    With ``whole`` also nodes that are not usable now count as if they were.
    """

    def __init__(self, pools: Iterable[Pool], *, whole: bool = False) -> None:
        self._pools = {pool.id: pool for pool in pools if pool.policy.teams}
        self._shares: dict[tuple[str, str], Share] = {}
        self._used: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._left: defaultdict[str, int] = defaultdict(int)
        for pool in self._pools.values():
            nominal = sum(quota.nominal for quota in pool.policy.teams.values())
            self._left[cohort_of(pool)] += max(0, (pool.total if whole else pool.capacity) - nominal)
            self._left[cohort_of(pool)] += sum(share_of(pool, team).lent for team in pool.policy.teams)

    def copy(self) -> Quotas:
        """A second picture that can be changed without changing this one."""
        twin = Quotas(())
        twin._pools, twin._shares = self._pools, self._shares
        twin._used, twin._left = self._used.copy(), self._left.copy()
        return twin

    def share(self, pool: str, team: str) -> Share | None:
        """The team's share, or None where the pool has no team quotas at all."""
        if pool not in self._pools:
            return None
        found = self._shares.get((pool, team))
        if found is None:
            found = self._shares[pool, team] = share_of(self._pools[pool], team)
        return found

    def used(self, pool: str, team: str) -> int:
        """GPUs that the team holds in the pool."""
        return self._used[pool, team]

    def take(self, pool: str, team: str, gpus: int) -> None:
        """Count these GPUs as the team's; a negative number gives them back."""
        before = self._used[pool, team]
        self._used[pool, team] = before + gpus
        share = self.share(pool, team)
        if share is not None:
            self._left[share.cohort] -= max(0, before + gpus - share.kept) - max(0, before - share.kept)

    def available(self, pool: str, team: str) -> int:
        """GPUs that the team may still take there, of its own and of the cohort's."""
        share = self.share(pool, team)
        if share is None:
            return UNLIMITED
        used = self._used[pool, team]
        own = max(0, share.kept - used)
        from_cohort = min(self._left[share.cohort], share.limit - share.kept - max(0, used - share.kept))
        return own + max(0, from_cohort)
