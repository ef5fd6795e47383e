"""A pool in simulated time: jobs arrive, rounds are decided by the real code, leases end. Nothing sleeps.

Victims of a preemption end ``grace_s`` later and join the line again with all of their work, as a job without a
checkpoint would. ``on_step`` sees the simulation after every round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from builders import NOW, make_lease
from fermion.domain import fairshare
from fermion.domain.admission import Grant, Reservation, Round, Snapshot, Waiting, decide
from fermion.domain.budgets import spent
from fermion.domain.leases import Lease, LeasePhase, end
from fermion.domain.pools import Pool


@dataclass(frozen=True)
class Arrival:
    """A job, when it comes (``job.queued_at``) and how long it then really runs."""

    job: Waiting
    runs: timedelta


@dataclass
class Simulation:
    """The state between rounds, and what happened so far."""

    pools: Sequence[Pool]
    arrivals: Sequence[Arrival]
    grace_s: float = 1.0
    on_step: Callable[[Simulation, Round], None] = lambda simulation, outcome: None
    now: datetime = NOW
    waiting: dict[str, Waiting] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    ended: list[Lease] = field(default_factory=list)
    ending: dict[str, str] = field(default_factory=dict)
    reservations: tuple[Reservation, ...] = ()
    starts: dict[str, datetime] = field(default_factory=dict)
    rounds: int = 0
    _use: fairshare.Use | None = None
    _ends_at: dict[str, datetime] = field(default_factory=dict)
    _fresh: list[Lease] = field(default_factory=list)

    def run(self, *, until: datetime | None = None) -> Simulation:
        """Go through all arrivals and ends, or up to ``until``; bounded by the number of events."""
        coming = sorted(self.arrivals, key=lambda arrival: (arrival.job.queued_at, arrival.job.job_id))
        self._of = {arrival.job.job_id: arrival for arrival in coming}
        index = 0
        for _ in range(50 * len(coming) + 50):
            times = [self._ends_at[lease_id] for lease_id in self.leases]
            times += [coming[index].job.queued_at] if index < len(coming) else []
            times = [time for time in times if until is None or time <= until]
            if not times:
                break
            self.now = max(self.now, min(times))
            self._end_due()
            while index < len(coming) and coming[index].job.queued_at <= self.now:
                self.waiting[coming[index].job.job_id] = coming[index].job
                index += 1
            self._step()
        return self

    def snapshot(self) -> Snapshot:
        """All that the next round is decided from."""
        self._use = fairshare.decayed(
            [*self._fresh, *self.leases.values()],
            half_lives=fairshare.half_lives(self.pools),
            now=self.now,
            since=self._use,
        )
        self._fresh = []
        return Snapshot(
            pools=tuple(self.pools),
            waiting=tuple(self.waiting.values()),
            leases=tuple(self.leases.values()),
            ending=dict(self.ending),
            use=self._use,
            spent=spent([*self.ended, *self.leases.values()], self.pools, self.now),
            reservations=self.reservations,
        )

    def _end_due(self) -> None:
        for lease_id in [lease_id for lease_id in self.leases if self._ends_at[lease_id] <= self.now]:
            lease = end(self.leases.pop(lease_id), LeasePhase.RELEASED, cause="ended", now=self.now)
            self.ended.append(lease)
            self._fresh.append(lease)
            if self.ending.pop(lease_id, None) is not None:
                self.waiting[lease.holder_id] = self._of[lease.holder_id].job

    def _step(self) -> None:
        outcome = decide(self.snapshot(), self.now)
        self.rounds += 1
        self.reservations = outcome.reservations
        for grant in outcome.grants:
            self._start(grant)
        for preemption in outcome.preemptions:
            for lease_id in preemption.lease_ids:
                self.ending[lease_id] = preemption.job_id
                ends_at = self.now + timedelta(seconds=self.grace_s)
                self._ends_at[lease_id] = min(self._ends_at[lease_id], ends_at)
        self.on_step(self, outcome)

    def _start(self, grant: Grant) -> None:
        job = self.waiting.pop(grant.job_id)
        lease_id = f"{grant.job_id}/{len(self.ended) + len(self.leases)}"
        self.leases[lease_id] = make_lease(
            lease_id,
            holder_id=job.job_id,
            owner=job.owner,
            team=job.team,
            pool=grant.pool,
            slices=grant.slices,
            priority=job.priority,
            preemptible=job.preemptible,
            granted_at=self.now,
            ends_by=grant.ends_by,
        )
        self.starts[job.job_id] = self.now
        self._ends_at[lease_id] = self.now + self._of[job.job_id].runs


def arrival(job: Waiting, *, runs_s: float) -> Arrival:
    """A job that really runs that long."""
    return Arrival(replace(job), timedelta(seconds=runs_s))
