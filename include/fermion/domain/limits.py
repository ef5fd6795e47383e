"""Could this ever start? Every limit that a request is over however empty its pool gets; asked once, before the line."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import Protocol

from fermion.domain.budgets import HOUR_S, budgets_for
from fermion.domain.pools import Budget, Pool
from fermion.domain.problems import Problem
from fermion.domain.quota import NO_QUOTA


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


def never_fits(asks: Asks, pool: Pool, *, excluded_nodes: Collection[str] = ()) -> list[Problem]:
    """Every reason why this could never start in the pool, however empty it gets; empty when it could.

    Nodes that are not ready now count: they may come back.
    """
    return [*_over_policy(asks, pool), *_over_size(asks, pool, excluded_nodes), *_over_budgets(asks, pool)]


def _over_policy(asks: Asks, pool: Pool) -> Iterator[Problem]:
    policy = pool.policy
    if policy.max_gpus_per_job is not None and asks.gpus > policy.max_gpus_per_job:
        yield _problem(
            "over_job_limit",
            f"pool {pool.id!r} allows {policy.max_gpus_per_job} GPUs per job; this job asks for {_asked(asks)}.",
            f"Ask for {policy.max_gpus_per_job} GPUs or fewer.",
        )
    if policy.max_gpus_per_user is not None and asks.gpus > policy.max_gpus_per_user:
        yield _problem(
            "over_user_limit",
            f"pool {pool.id!r} allows {policy.max_gpus_per_user} GPUs per user; this job alone asks for {_asked(asks)}.",
            f"Ask for {policy.max_gpus_per_user} GPUs or fewer.",
        )
    quota = policy.teams.get(asks.team, NO_QUOTA)
    if policy.teams and quota.borrowing_limit is not None and asks.gpus > quota.nominal + quota.borrowing_limit:
        most = quota.nominal + quota.borrowing_limit
        yield _problem(
            "over_team_limit",
            f"team {asks.team!r} may hold {most} GPUs of pool {pool.id!r} ({quota.nominal} nominal and"
            f" {quota.borrowing_limit} borrowed); this job asks for {_asked(asks)}.",
            f"Ask for {most} GPUs or fewer, or have the team's quota raised."
            if most
            else "Ask for a quota for the team.",
        )


def _over_size(asks: Asks, pool: Pool, excluded_nodes: Collection[str]) -> Iterator[Problem]:
    sizes = [len(node.devices) for node in pool.nodes]
    if asks.gpus > sum(sizes):
        yield _problem(
            "over_pool",
            f"pool {pool.id!r} has {sum(sizes)} GPUs in all; this job asks for {_asked(asks)}.",
            f"Ask for {sum(sizes)} GPUs or fewer, or choose a larger pool.",
        )
    largest = max(sizes, default=0)
    if asks.gpus_per_node > largest:
        yield _problem(
            "over_node",
            f"the largest node of pool {pool.id!r} has {largest} GPUs; this job asks for {asks.gpus_per_node} on one node.",
            f"Ask for {largest} GPUs per node or fewer, on more nodes.",
        )
        return
    wide = [node.name for node in pool.nodes if len(node.devices) >= asks.gpus_per_node]
    left = [name for name in wide if name not in excluded_nodes]
    if asks.nodes > len(wide):
        yield _problem(
            "too_few_nodes",
            f"pool {pool.id!r} has {len(wide)} nodes with {asks.gpus_per_node} GPUs or more; this job asks for {asks.nodes}.",
            f"Ask for {len(wide)} nodes or fewer, or for fewer GPUs per node.",
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
                f" {in_words(budget.window)}; this job may take {hours:g} ({asks.gpus} GPUs for {in_words(asks.max_runtime)}).",
                f"Ask for fewer GPUs, or a max_runtime of {in_words(_affordable(budget, asks.gpus))} or less.",
                field="max_runtime",
            )


def _affordable(budget: Budget, gpus: int) -> timedelta:
    return timedelta(seconds=int(budget.gpu_hours * HOUR_S / gpus))


def _problem(code: str, message: str, fix: str, *, field: str = "gpus") -> Problem:
    return Problem(field=field, code=code, message=message, fix=fix)


def _asked(asks: Asks) -> str:
    return str(asks.gpus) if asks.nodes == 1 else f"{asks.gpus} ({asks.nodes} nodes x {asks.gpus_per_node})"


def in_words(duration: timedelta) -> str:
    """``90 s``, ``5 min``, ``36 h`` or ``7 days``: the largest unit that leaves a whole number."""
    seconds = int(duration.total_seconds())
    for unit, size, least in (("days", 86400, 2), ("h", 3600, 1), ("min", 60, 1)):
        if seconds % size == 0 and seconds // size >= least:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
