"""Could this ever start? Every limit that a request is over however empty its pool gets; asked once, before the line."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Protocol

from fermion.domain.budgets import HOUR_S, budgets_for
from fermion.domain.counting import counted
from fermion.domain.pools import Budget, Pool
from fermion.domain.problems import Problem
from fermion.domain.quota import Quotas, cohort_of, share_of


class Asks(Protocol):
    """What a limit is checked against: a ``JobSpec`` or a ``Waiting``."""

    @property
    def nodes(self) -> int: ...
    @property
    def gpus_per_node(self) -> int: ...
    @property
    def gpus(self) -> int: ...
    @property
    def owner(self) -> str: ...
    @property
    def team(self) -> str: ...
    @property
    def max_runtime(self) -> timedelta | None: ...


def never_fits(
    asks: Asks, pool: Pool, *, cohort: Collection[Pool] = (), excluded_nodes: Collection[str] = ()
) -> list[Problem]:
    """Every reason why this could never start in the pool, however empty it gets; empty when it could.

    Nodes that are not ready now count: they may come back. ``cohort`` are all pools of the pool's cohort; without them
    what a pool with a named cohort could borrow is not judged.
    """
    return [
        *_over_policy(asks, pool),
        *_over_cohort(asks, pool, cohort),
        *_over_size(asks, pool, excluded_nodes),
        *_over_budgets(asks, pool),
    ]


def over_memory(memory_mib: int, pool: Pool, *, gpus_per_node: int = 1) -> list[Problem]:
    """The problem of a workload that needs more memory than every usable node of its size has; empty when one may have it.

    Only nodes that are usable now count: placement does not look at memory, so the job could start on any of them. A node
    whose memory nobody knows may have enough.
    """
    known = {node.name: node.memory_mib for node in pool.nodes if node.is_usable and len(node.devices) >= gpus_per_node}
    sizes = [size for size in known.values() if size is not None]
    if not sizes or len(sizes) < len(known) or memory_mib <= max(sizes):
        return []
    most = max(sizes)
    largest = next(name for name, size in known.items() if size == most)
    return [
        _problem(
            "over_memory",
            f"the usable node of pool {pool.id!r} with the most memory, {largest!r}, has {most} MiB;"
            f" this job asks for {memory_mib} MiB on one node.",
            f"Ask for {most} MiB or less, or choose a pool whose nodes have more.",
            field="memory_mib",
        )
    ]


def _over_policy(asks: Asks, pool: Pool) -> Iterator[Problem]:
    policy = pool.policy
    if policy.max_gpus_per_job is not None and asks.gpus > policy.max_gpus_per_job:
        yield _problem(
            "over_job_limit",
            f"pool {pool.id!r} allows {counted(policy.max_gpus_per_job, 'GPU')} per job; this job asks for {_asked(asks)}.",
            f"Ask for {counted(policy.max_gpus_per_job, 'GPU')} or fewer.",
        )
    if policy.max_gpus_per_user is not None and asks.gpus > policy.max_gpus_per_user:
        yield _problem(
            "over_user_limit",
            f"pool {pool.id!r} allows {counted(policy.max_gpus_per_user, 'GPU')} per user; this job alone asks for {_asked(asks)}.",
            f"Ask for {counted(policy.max_gpus_per_user, 'GPU')} or fewer.",
        )
    share = share_of(pool, asks.team)
    if policy.teams and asks.gpus > share.limit:
        yield _problem(
            "over_team_limit",
            f"team {asks.team!r} may hold {counted(share.limit, 'GPU')} of pool {pool.id!r} ({share.nominal} nominal and"
            f" {share.limit - share.nominal} borrowed); this job asks for {_asked(asks)}.",
            _less(share.limit),
        )


def _over_cohort(asks: Asks, pool: Pool, cohort: Collection[Pool]) -> Iterator[Problem]:
    """More than the team's own and all that others could lend it, though within its borrowing limit."""
    lenders = [other for other in cohort or (pool,) if cohort_of(other) == cohort_of(pool)]
    share = share_of(pool, asks.team)
    if not pool.policy.teams or asks.gpus > share.limit or (pool.policy.cohort and not cohort):
        return
    if asks.gpus <= share.nominal:
        return
    most = Quotas(lenders, whole=True).available(pool.id, asks.team)
    if asks.gpus > most:
        yield _problem(
            "over_cohort",
            f"team {asks.team!r} has {counted(share.nominal, 'nominal GPU')} in pool {pool.id!r} and could borrow {most - share.nominal}"
            f" at most; this job asks for {_asked(asks)}.",
            _less(most),
        )


def _over_size(asks: Asks, pool: Pool, excluded_nodes: Collection[str]) -> Iterator[Problem]:
    sizes = [len(node.devices) for node in pool.nodes]
    if asks.gpus > sum(sizes):
        yield _problem(
            "over_pool",
            f"pool {pool.id!r} has {counted(sum(sizes), 'GPU')} in all; this job asks for {_asked(asks)}.",
            f"Ask for {counted(sum(sizes), 'GPU')} or fewer, or choose a larger pool.",
        )
    largest = max(sizes, default=0)
    if asks.gpus_per_node > largest:
        yield _problem(
            "over_node",
            f"the largest node of pool {pool.id!r} has {counted(largest, 'GPU')}; this job asks for {asks.gpus_per_node} on one node.",
            f"Ask for {counted(largest, 'GPU')} per node or fewer, on more nodes.",
        )
        return
    wide = [node.name for node in pool.nodes if len(node.devices) >= asks.gpus_per_node]
    left = [name for name in wide if name not in excluded_nodes]
    if asks.nodes > len(wide):
        yield _problem(
            "too_few_nodes",
            f"pool {pool.id!r} has {counted(len(wide), 'node')} with {counted(asks.gpus_per_node, 'GPU')} or more; this job asks for {asks.nodes}.",
            f"Ask for {counted(len(wide), 'node')} or fewer, or for fewer GPUs per node.",
            field="nodes",
        )
    elif asks.nodes > len(left):
        yield _problem(
            "nodes_excluded",
            f"this job asks for {asks.nodes} nodes; of the {len(wide)} that are large enough, {len(wide) - len(left)}"
            f" are excluded because they lost an attempt of it ({', '.join(sorted(set(wide) - set(left)))}).",
            "Restart the job to try all nodes again.",
            field="nodes",
        )


def _over_budgets(asks: Asks, pool: Pool) -> Iterator[Problem]:
    if asks.max_runtime is None:
        return
    hours = asks.gpus * asks.max_runtime.total_seconds() / HOUR_S
    for scope, name, budget in budgets_for(pool, owner=asks.owner, team=asks.team):
        if hours > budget.gpu_hours:
            yield _problem(
                f"over_{scope}_budget",
                f"{scope} {name!r} may hold {budget.gpu_hours:g} GPU-hours of pool {pool.id!r} in"
                f" {in_words(budget.window)}; this job may take {hours:g} ({counted(asks.gpus, 'GPU')} for {in_words(asks.max_runtime)}).",
                f"Ask for fewer GPUs, or a max_runtime of {in_words(_affordable(budget, asks.gpus))} or less.",
                field="max_runtime",
            )


def _affordable(budget: Budget, gpus: int) -> timedelta:
    return timedelta(seconds=int(budget.gpu_hours * HOUR_S / gpus))


def _problem(code: str, message: str, fix: str, *, field: str = "gpus") -> Problem:
    return Problem(field=field, code=code, message=message, fix=fix)


def _less(most: int) -> str:
    return (
        f"Ask for {counted(most, 'GPU')} or fewer, or have the team's quota raised."
        if most
        else "Ask for a quota for the team."
    )


def _asked(asks: Asks) -> str:
    return str(asks.gpus) if asks.nodes == 1 else f"{asks.gpus} ({asks.nodes} nodes x {asks.gpus_per_node})"


def in_words(duration: timedelta) -> str:
    """``90 s``, ``5 min``, ``36 h`` or ``7 days``: the largest unit that leaves a whole number."""
    seconds = int(duration.total_seconds())
    for unit, size, least in (("days", 86400, 2), ("h", 3600, 1), ("min", 60, 1)):
        if seconds % size == 0 and seconds // size >= least:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
