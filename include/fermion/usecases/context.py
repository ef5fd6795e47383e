"""What a use case is given: the ports and the configured rules, joined once by ``wiring``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fermion.domain.pools import Node, Pool, PoolPolicy, build_pools
from fermion.domain.retention import Retention
from fermion.errors import NotFound
from fermion.ports import (
    Clock,
    DatasetSource,
    Driver,
    EngineUpkeep,
    FormChoices,
    Inference,
    Measurements,
    ModelRepository,
    Reports,
    Runs,
    Store,
    Transaction,
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The configured part of every decision. ``datasets`` maps a dataset's name to its URI; ``looks_from_measurements``:
    rollouts look at what the metrics system recorded, not at the router itself."""

    policies: Mapping[str, PoolPolicy] = field(default_factory=dict)
    default_policy: PoolPolicy = field(default_factory=PoolPolicy)
    datasets: Mapping[str, str] = field(default_factory=dict)
    memory_mib: int | None = None
    retention: Retention = field(default_factory=Retention)
    looks_from_measurements: bool = False

    def policy(self, pool_id: str) -> PoolPolicy:
        """The pool's own policy, else the default."""
        return self.policies.get(pool_id, self.default_policy)


@dataclass(frozen=True, kw_only=True)
class Context:
    """The platform as use cases see it. ``drivers`` maps a cluster's name to its driver; ``runs`` is None where nobody
    can ask the workflow engine (then jobs whose runs vanished are not found), ``upkeep`` where somebody else keeps its
    past in bounds, ``measurements`` where no metrics system is configured: then figures are the router's own."""

    store: Store
    clock: Clock
    drivers: Mapping[str, Driver]
    dataset_source: DatasetSource
    models: ModelRepository
    reports: Reports
    choices: FormChoices
    rules: Rules
    runs: Runs | None = None
    inference: Inference | None = None
    upkeep: EngineUpkeep | None = None
    measurements: Measurements | None = None

    def driver_of(self, pool_id: str) -> Driver:
        """The driver of the pool's cluster.

        Raises:
            NotFound: no such cluster is configured.
        """
        cluster = pool_id.split("/", 1)[0]
        if cluster not in self.drivers:
            raise NotFound(
                f"pool {pool_id!r} names cluster {cluster!r}; configured are: {', '.join(sorted(self.drivers)) or 'none'}.",
                what="cluster",
            )
        return self.drivers[cluster]

    def pools(self, tx: Transaction, nodes: tuple[Node, ...] | None = None) -> Mapping[str, Pool]:
        """Every pool by id, built from the nodes as last seen (or from ``nodes``)."""
        now = self.clock.now()
        seen = tuple(tx.catalog.nodes()) if nodes is None else nodes
        pools = build_pools(
            seen, policy_of=self.rules.policy, first_seen_of=lambda pool: tx.catalog.pool_first_seen(pool, now=now)
        )
        return {pool.id: pool for pool in pools}
