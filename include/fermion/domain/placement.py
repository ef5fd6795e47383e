"""Placement: on which free devices a job fits. Best fit, all or nothing, whole devices; claims of others are respected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from fermion.domain.leases import Lease, Slice
from fermion.domain.line import Waiting
from fermion.domain.pools import Node, Pool


@dataclass(frozen=True, slots=True)
class Claim:
    """``gpus`` of one node promised to a waiting job from ``at`` on (None: nobody knows when).

    ``coming`` are devices that end for this very claim: those of leases asked to end for it.
    """

    gpus: int
    at: datetime | None
    coming: int = 0

    def is_met_by(self, ends_by: datetime | None) -> bool:
        """Whether work that ends by then is gone before the claim begins."""
        return self.at is not None and ends_by is not None and ends_by <= self.at


class NodeRoom:
    """One usable node: its free devices, when the held ones end, and what is claimed of it."""

    __slots__ = ("claims", "ends", "free", "name", "size")

    def __init__(self, node: Node, held: frozenset[str]) -> None:
        self.name = node.name
        self.size = len(node.devices)
        self.free = [device.id for device in node.devices if device.id not in held]
        self.ends: list[tuple[datetime | None, int]] = []
        self.claims: list[Claim] = []

    def claim(self, gpus: int, at: datetime | None, *, coming: Sequence[tuple[datetime | None, int]] = ()) -> None:
        """Promise that many devices from ``at`` on. Of the ``coming`` (out of ``ends``) only what it leaves ends for others."""
        wanted = gpus
        known = sorted((end, count) for end, count in coming if end is not None)
        for end, count in (*known, *(entry for entry in coming if entry[0] is None)):
            self.ends.remove((end, count))
            self.ends.append((end, max(0, count - wanted)))
            wanted = max(0, wanted - count)
        self.claims.append(Claim(gpus, at, sum(count for _, count in coming)))

    def spare(self, ends_by: datetime | None) -> int:
        """Free devices that work ending by ``ends_by`` (None: unknown) may take without delaying a claim."""
        free = len(self.free)
        if not self.claims:
            return free
        binding = [claim for claim in self.claims if not claim.is_met_by(ends_by)]
        if not binding:
            return free
        times = [claim.at for claim in binding if claim.at is not None]
        coming = self._ending_by(min(times)) if len(times) == len(binding) else 0
        coming += sum(claim.coming for claim in binding)
        return max(0, min(free, free + coming - sum(claim.gpus for claim in binding)))

    @property
    def beyond_claims(self) -> int:
        """Free devices less all that is claimed; negative where more is claimed than is free."""
        return len(self.free) - sum(claim.gpus - claim.coming for claim in self.claims)

    def free_at(self, gpus: int, now: datetime) -> datetime | None:
        """When that many devices beside all claims are free; None where nobody knows."""
        free = len(self.free) - sum(max(0, claim.gpus - claim.coming) for claim in self.claims)
        if free >= gpus:
            return now
        for end, count in sorted((end, count) for end, count in self.ends if end is not None):
            free += count
            if free >= gpus:
                return max(end, now)
        return None

    def _ending_by(self, time: datetime) -> int:
        return sum(count for end, count in self.ends if end is not None and end <= time)


class Room:
    """The usable nodes of one pool. Working state of one round; never stored."""

    def __init__(self, pool: Pool, leases: Iterable[Lease]) -> None:
        parts = [(lease, part) for lease in leases for part in lease.slices]
        held: dict[str, set[str]] = {}
        for _, part in parts:
            held.setdefault(part.node, set()).update(part.devices)
        usable = sorted((node for node in pool.nodes if node.is_usable), key=lambda node: node.name)
        self.nodes = [NodeRoom(node, frozenset(held.get(node.name, ()))) for node in usable]
        self.by_name = {node.name: node for node in self.nodes}
        for lease, part in parts:
            if part.node in self.by_name:
                self.by_name[part.node].ends.append((lease.ends_by, len(part.devices)))
        self.free = sum(len(node.free) for node in self.nodes)

    def find(self, job: Waiting, *, ends_by: datetime | None, heed_claims: bool = True) -> Sequence[NodeRoom] | None:
        """The nodes that the job fits on now, the fullest first; None when it does not."""
        if job.gpus > self.free:
            return None
        wanted = job.gpus_per_node
        fitting = [
            (len(node.free), node.name, node)
            for node in self.nodes
            if len(node.free) >= wanted
            and node.name not in job.excluded_nodes
            and (not heed_claims or not node.claims or node.spare(ends_by) >= wanted)
        ]
        if len(fitting) < job.nodes:
            return None
        if job.nodes == 1:
            return [min(fitting)[2]]
        return [node for _, _, node in sorted(fitting)[: job.nodes]]

    def take(self, nodes: Sequence[NodeRoom], gpus_per_node: int, *, ends_by: datetime | None) -> tuple[Slice, ...]:
        """Take that many devices on each of these nodes, in the order of their names."""
        slices = []
        for node in sorted(nodes, key=lambda node: node.name):
            slices.append(Slice(node.name, tuple(node.free[:gpus_per_node])))
            del node.free[:gpus_per_node]
            node.ends.append((ends_by, gpus_per_node))
        self.free -= gpus_per_node * len(slices)
        return tuple(slices)

    def could_hold(self, job: Waiting) -> list[NodeRoom]:
        """Usable nodes that are large enough for a part of the job and not excluded for it."""
        return [node for node in self.nodes if node.size >= job.gpus_per_node and node.name not in job.excluded_nodes]
