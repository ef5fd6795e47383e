"""What leases held, used and wasted, in GPU-seconds; and whether the ledger agrees with the leases.

``held = used + wasted``, always. Device utilisation is another question and not asked here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from fermion.domain.leases import TERM, HolderKind, Lease
from fermion.domain.records import LedgerEntry


class Waste(StrEnum):
    """Why GPUs were held with no live workload process."""

    STARTING = "starting"  # from the grant to the exec of the process
    ENDING = "ending"  # from the process's exit to the end of the lease
    NEVER_STARTED = "never_started"  # the lease ended and no process was ever seen under it
    LOST = "lost"  # from the last renewal to the end of a lease whose process left no exit record


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One lease, or several, in GPU-seconds. ``wasted`` names only causes that took some."""

    held: float = 0.0
    used: float = 0.0
    wasted: Mapping[Waste, float] = field(default_factory=dict)

    @property
    def wasted_total(self) -> float:
        """GPU-seconds wasted, all causes together."""
        return sum(self.wasted.values())


def account(lease: Lease, now: datetime) -> Account:
    """What one lease held up to ``now`` (or up to its end), split by what the GPUs were held for.

    A process that left no exit record is taken to have lived until the lease's last renewal.
    """
    end = max(lease.granted_at, lease.ended_at or now)
    spans: list[tuple[Waste | None, datetime, datetime]]
    if lease.exec_at is None:
        cause = Waste.NEVER_STARTED if lease.ended_at else Waste.STARTING
        spans = [(cause, lease.granted_at, end)]
    else:
        began = min(max(lease.exec_at, lease.granted_at), end)
        gone, cause = _gone(lease, began=began, end=end)
        spans = [(Waste.STARTING, lease.granted_at, began), (None, began, gone), (cause, gone, end)]
    seconds = {cause: lease.gpus * (to - since).total_seconds() for cause, since, to in spans}
    used = seconds.pop(None, 0.0)
    wasted = {cause: value for cause, value in seconds.items() if cause is not None and value > 0}
    return Account(held=used + sum(wasted.values()), used=used, wasted=wasted)


def _gone(lease: Lease, *, began: datetime, end: datetime) -> tuple[datetime, Waste]:
    """When the process was gone, and what the GPUs were held for from then on."""
    if lease.exit_at is not None:
        return min(max(lease.exit_at, began), end), Waste.ENDING
    if lease.ended_at is None:
        return end, Waste.ENDING
    return min(max(lease.expires_at - TERM, began), end), Waste.LOST


def total(accounts: Iterable[Account]) -> Account:
    """All of them as one."""
    held = used = 0.0
    wasted: defaultdict[Waste, float] = defaultdict(float)
    for part in accounts:
        held += part.held
        used += part.used
        for cause, seconds in part.wasted.items():
            wasted[cause] += seconds
    return Account(held=held, used=used, wasted=dict(wasted))


def allocated(leases: Iterable[Lease], pool: str) -> int:
    """GPUs of the pool that are held now. The sum over holders is G2; there is no other counter."""
    return sum(lease.gpus for lease in leases if lease.is_live and lease.pool == pool)


def allocated_by_kind(leases: Iterable[Lease], pool: str) -> dict[HolderKind, int]:
    """The parts of ``allocated``: what jobs, services and instances hold."""
    parts = dict.fromkeys(HolderKind, 0)
    for lease in leases:
        if lease.is_live and lease.pool == pool:
            parts[lease.holder_kind] += lease.gpus
    return parts


class Imbalance(StrEnum):
    """How the ledger and a lease can disagree."""

    LEAKED = "leaked"  # the ledger says held; no live lease holds it
    GHOST = "ghost"  # a live lease holds it; the ledger says less


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerGap:
    """One lease on which the ledger and the leases disagree: by how many GPUs, since when, and the GPU-seconds so far."""

    lease_id: str
    pool: str
    holder: str
    kind: Imbalance
    gpus: int
    since: datetime
    gpu_seconds: float


def ledger_gaps(entries: Iterable[LedgerEntry], leases: Iterable[Lease], now: datetime) -> tuple[LedgerGap, ...]:
    """Every disagreement between the ledger and the leases, by lease id; empty when both tell the same.

    ``entries`` must hold whole leases (grant and end), ``leases`` at least all that are live.
    """
    live = {lease.id: lease for lease in leases if lease.is_live}
    balance: defaultdict[str, int] = defaultdict(int)
    last: dict[str, LedgerEntry] = {}
    for entry in entries:
        balance[entry.lease_id] += entry.gpus
        if entry.lease_id not in last or last[entry.lease_id].at <= entry.at:
            last[entry.lease_id] = entry
    gaps = []
    for lease_id in sorted(live.keys() | balance.keys()):
        gap = _gap(live.get(lease_id), last.get(lease_id), balance[lease_id], now)
        if gap is not None:
            gaps.append(gap)
    return tuple(gaps)


def _gap(lease: Lease | None, last: LedgerEntry | None, balance: int, now: datetime) -> LedgerGap | None:
    over = balance - (lease.gpus if lease else 0)
    if over == 0:
        return None
    pool, holder, since = ("", "", now)
    if last is not None:
        pool, holder, since = last.pool, last.holder, last.at
    elif lease is not None:
        pool, holder, since = lease.pool, lease.holder_id, lease.granted_at
    kind = Imbalance.LEAKED if over > 0 else Imbalance.GHOST
    seconds = abs(over) * max(0.0, (now - since).total_seconds())
    return LedgerGap(
        lease_id=_id(lease, last), pool=pool, holder=holder, kind=kind, gpus=abs(over), since=since, gpu_seconds=seconds
    )


def _id(lease: Lease | None, last: LedgerEntry | None) -> str:
    if lease is not None:
        return lease.id
    return last.lease_id if last is not None else ""


def leaked_gpu_seconds(gaps: Iterable[LedgerGap]) -> float:
    """GPU-seconds that the ledger counts and no lease holds; 0 while grants and ends are written with their leases."""
    return sum(gap.gpu_seconds for gap in gaps if gap.kind is Imbalance.LEAKED)
