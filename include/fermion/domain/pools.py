"""Nodes, devices and pools. A pool is one cluster's nodes of one GPU model; it is computed, never stored as numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from fermion.domain.figures import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, or one declared slot where the machine has no GPU.

    ``id`` is the device's UUID (``GPU-…``) or ``slot-N``; ``memory_mib`` is None for a declared slot.
    """

    id: str
    model: str
    method: Method
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of a cluster as last seen. Only ``ready and schedulable`` nodes give capacity.

    ``memory_mib`` is main memory that workloads may use in all, as measured; None where nobody knows.
    """

    name: str
    cluster: str
    devices: tuple[Device, ...]
    observed_at: datetime
    memory_mib: int | None = None
    ready: bool = True
    schedulable: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    detail: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether its devices count as capacity."""
        return self.ready and self.schedulable


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """GPU-hours that a user or team may hold within a sliding ``window``."""

    gpu_hours: float
    window: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamQuota:
    """One team's share of one pool, in GPUs. None means no limit of that kind.

    ``nominal`` is guaranteed; ``borrowing_limit`` caps what it may take beyond it from the cohort;
    ``lending_limit`` caps how much of its own unused nominal others may take.
    """

    nominal: int
    borrowing_limit: int | None = None
    lending_limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """The rules of one pool, as configured. Durations are per job unless the job asks for less."""

    max_gpus_per_job: int | None = None
    max_gpus_per_user: int | None = None
    teams: Mapping[str, TeamQuota] = field(default_factory=dict)
    cohort: str | None = None
    user_budget: Budget | None = None
    team_budgets: Mapping[str, Budget] = field(default_factory=dict)
    preemption: bool = True
    half_life: timedelta = timedelta(days=7)
    head_grace: timedelta = timedelta(minutes=5)
    max_runtime: timedelta | None = None
    queue_timeout: timedelta | None = None
    start_timeout: timedelta = timedelta(minutes=2)
    hang_factor: float = 20.0
    hang_floor: timedelta = timedelta(minutes=10)
    stop_grace: timedelta = timedelta(seconds=15)
    max_attempts: int = 3
    policy_version: str = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One cluster's nodes of one GPU model, with its policy.

    ``model`` is the device's own name (``NVIDIA H200``) or ``declared``. ``first_seen_at`` is its createdAt, derived.
    ``node_selector`` holds the labels that its nodes match.
    """

    id: str
    cluster: str
    model: str
    nodes: tuple[Node, ...]
    policy: PoolPolicy
    first_seen_at: datetime
    node_selector: Mapping[str, str] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        """GPUs on usable nodes."""
        return sum(len(node.devices) for node in self.nodes if node.is_usable)

    @property
    def total(self) -> int:
        """GPUs on all nodes, usable or not."""
        return sum(len(node.devices) for node in self.nodes)

    @property
    def method(self) -> Method:
        """DECLARED when any of its devices is only declared, else MEASURED."""
        devices = [device for node in self.nodes for device in node.devices]
        return Method.MEASURED if devices and all(d.method is Method.MEASURED for d in devices) else Method.DECLARED


def model_slug(model: str) -> str:
    """A GPU model's name as it stands in a pool id: ``NVIDIA H200`` becomes ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-") or "unknown"


def build_pools(
    nodes: Sequence[Node],
    *,
    policy_of: Callable[[str], PoolPolicy],
    first_seen_of: Callable[[str], datetime],
) -> tuple[Pool, ...]:
    """Pools from nodes, by id: one per (cluster, model). A node with two models is in two pools, with its devices split."""
    parts: dict[tuple[str, str], list[Node]] = {}
    for node in nodes:
        for model in sorted({device.model for device in node.devices}):
            devices = tuple(device for device in node.devices if device.model == model)
            parts.setdefault((node.cluster, model), []).append(replace(node, devices=devices))
    pools = []
    for (cluster, model), members in sorted(parts.items()):
        pool_id = f"{cluster}/{model_slug(model)}"
        pools.append(
            Pool(
                id=pool_id,
                cluster=cluster,
                model=model,
                nodes=tuple(sorted(members, key=lambda node: node.name)),
                policy=policy_of(pool_id),
                first_seen_at=first_seen_of(pool_id),
                node_selector={"fermion.dev/gpu-model": model_slug(model)},
            )
        )
    return tuple(pools)
