"""When a waiting job may start: p50 and p90 out of many simulated futures of its line.

Each future draws how long running jobs still run (by their own pace where they report progress) and waiting ones will run
(from runs of the same pool, and the same size where there are enough) and which jobs will join (like those of late), and
lets the line proceed by a light model: the true order, limits and quotas; placement by counts of free devices per node; a
head past its grace time keeps its nodes. Not modelled: preemptions to come, nodes that come or go. The seed is an argument: same inputs, same answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from types import MappingProxyType

from fermion.domain import fairshare
from fermion.domain.futures import Run, arrival, future_starts
from fermion.domain.leases import Lease, LeasePhase
from fermion.domain.limits import never_fits
from fermion.domain.line import Waiting
from fermion.domain.queues import Order, Queues
from fermion.domain.snapshots import Snapshot

MIN_RUNS = 5
"""Fewer past runs than this are too few to draw from."""

RECENT = 200
"""How many of the latest leases tell which jobs join the line, and how often."""

EXTRA_ARRIVALS = 20

PACE_VARIES = 0.2
"""How much sooner or later than by its progress a run ends, as a share of what is left of it."""

NOBODY: Mapping[str, datetime] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """When a job starts with a chance of one half (``p50``) and nine tenths (``p90``); None only with a ``reason``."""

    p50: datetime | None
    p90: datetime | None
    futures: int
    reason: str | None = None


class RunTimes:
    """Past run times to draw from: seconds from the grant to the end of the lease.

    A run that gave a limit is told by it: the share of its limit that it took. Others are told by their pool and size.
    """

    def __init__(self, runs: Sequence[tuple[tuple[str, int], float, float | None]]) -> None:
        self._runs = runs
        self._seconds: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        self._shares: defaultdict[str, list[float]] = defaultdict(list)
        for (pool, gpus), seconds, limit in runs:
            self._seconds[pool, gpus].append(seconds)
            self._seconds[pool, ANY_SIZE].append(seconds)
            if limit:
                self._shares[pool].append(seconds / limit)

    def has(self, pool: str) -> bool:
        """Whether enough runs of that pool have ended."""
        return len(self._seconds[pool, ANY_SIZE]) >= MIN_RUNS

    def resampled(self, chance: Random) -> RunTimes:
        """As many runs, drawn from these: another history that could have been. Widens a forecast out of few runs."""
        return RunTimes(chance.choices(self._runs, k=len(self._runs)) if self._runs else ())

    def draw(self, pool: str, gpus: int, chance: Random, *, ran: float = 0.0, limit: float | None = None) -> float:
        """How many seconds such a run takes in all, of which it ran ``ran`` already; at most ``limit``."""
        shares = self._shares[pool]
        if limit and len(shares) >= MIN_RUNS:
            return max(ran, min(limit, limit * _longer(shares, ran / limit, chance)))
        runs = self._seconds[pool, gpus]
        drawn = _longer(runs if len(runs) >= MIN_RUNS else self._seconds[pool, ANY_SIZE], ran, chance)
        return drawn if limit is None else max(ran, min(limit, drawn))


ANY_SIZE = 0


def run_times(history: Sequence[Lease]) -> RunTimes:
    """The run times of leases that ended with their workload; those that expired tell nothing."""
    runs = []
    for lease in sorted(history, key=lambda lease: (lease.granted_at, lease.id)):
        if lease.phase is LeasePhase.RELEASED and lease.ended_at is not None:
            limit = None if lease.ends_by is None else (lease.ends_by - lease.granted_at).total_seconds()
            runs.append(((lease.pool, lease.gpus), (lease.ended_at - lease.granted_at).total_seconds(), limit))
    return RunTimes(runs)


def _longer(past: Sequence[float], than: float, chance: Random) -> float:
    """One of the past values beyond ``than``; where there is none, ``than`` and up to as much again."""
    longer = [value for value in past if value > than] if than else past
    return chance.choice(longer) if longer else than * (1.0 + chance.random())


def expected_starts(
    snapshot: Snapshot,
    *,
    history: Sequence[Lease],
    now: datetime,
    seed: int = 0,
    futures: int = 60,
    depth: int = 500,
    paced: Mapping[str, datetime] = NOBODY,
) -> dict[str, Forecast]:
    """A forecast for every waiting job of the snapshot. ``history`` are ended leases of its pools, the more the better.

    ``paced`` tells of leases when they end by the pace of their run; of one that should have ended, and of all others, it is drawn.
    Only the first ``depth`` jobs of the line are simulated; cost grows with ``futures`` times ``depth``.
    """
    runs = run_times(history)
    reasons = {job.job_id: reason for job in snapshot.waiting if (reason := _unknowable(job, snapshot, runs))}
    line = _line(snapshot, [job for job in snapshot.waiting if job.job_id not in reasons])
    for job in line[depth:]:
        reasons[job.job_id] = (
            f"it stands behind the first {depth} jobs of the line, for which alone starts are simulated"
        )
    targets = line[:depth]
    starts: defaultdict[str, list[float]] = defaultdict(list)
    chance = Random(seed)
    recent = _recent(history, snapshot)
    left = {lease: (end - now).total_seconds() for lease, end in paced.items() if end > now}
    for _ in range(futures if targets else 0):
        drawn = runs.resampled(chance)
        for job_id, after_s in _one_future(snapshot, targets, recent, drawn, left, now, chance).items():
            starts[job_id].append(after_s)
    promised = {reservation.job_id: reservation.starts_by for reservation in snapshot.reservations}
    found = {job.job_id: _forecast(starts[job.job_id], futures, promised.get(job.job_id), now) for job in targets}
    missing = {job_id: Forecast(p50=None, p90=None, futures=0, reason=reason) for job_id, reason in reasons.items()}
    return {**found, **missing}


def _unknowable(job: Waiting, snapshot: Snapshot, runs: RunTimes) -> str | None:
    pool = next((pool for pool in snapshot.pools if pool.id == job.pool), None)
    if pool is None:
        return f"pool {job.pool!r} does not exist any more"
    if never_fits(job, pool, cohort=snapshot.pools, excluded_nodes=job.excluded_nodes):
        return "it can never start as it is"
    if not runs.has(job.pool):
        return f"fewer than {MIN_RUNS} runs have ended in pool {job.pool!r}"
    return None


def _line(snapshot: Snapshot, jobs: Sequence[Waiting]) -> list[Waiting]:
    first = [reservation.job_id for reservation in snapshot.reservations]
    return list(Order(Queues(jobs), use=snapshot.use, weights=fairshare.weights(snapshot.pools), first=first))


def _recent(history: Sequence[Lease], snapshot: Snapshot) -> list[Lease]:
    pools = {pool.id for pool in snapshot.pools}
    leases = [lease for lease in (*history, *snapshot.leases) if lease.pool in pools]
    return sorted(leases, key=lambda lease: (lease.granted_at, lease.id))[-RECENT:]


def _one_future(
    snapshot: Snapshot,
    targets: Sequence[Waiting],
    recent: Sequence[Lease],
    runs: RunTimes,
    left: Mapping[str, float],
    now: datetime,
    chance: Random,
) -> Mapping[str, float]:
    """Seconds from now to the start of each target, in one drawn future."""
    running = [
        Run(lease, _paced(left[lease.id], chance) if lease.id in left else _seconds_left(lease, runs, now, chance))
        for lease in snapshot.leases
    ]
    waiting = [*targets, *_newcomers(snapshot, targets, recent, now, chance)]
    graces = {pool.id: pool.policy.head_grace for pool in snapshot.pools}
    arrivals = [
        arrival(job, now=now, grace=graces[job.pool], runs_s=_draw_run(job, runs, chance))
        for job in _line(snapshot, waiting)
    ]
    return future_starts(snapshot, running, arrivals, targets={job.job_id for job in targets}, now=now)


def _paced(left_s: float, chance: Random) -> float:
    """What is left of a run that keeps its pace only about: up to a fifth less or more."""
    return left_s * chance.uniform(1 - PACE_VARIES, 1 + PACE_VARIES)


def _seconds_left(lease: Lease, runs: RunTimes, now: datetime, chance: Random) -> float:
    ran = max(0.0, (now - lease.granted_at).total_seconds())
    limit = None if lease.ends_by is None else (lease.ends_by - lease.granted_at).total_seconds()
    if not runs.has(lease.pool):
        return ran if limit is None else max(0.0, limit - ran)
    return runs.draw(lease.pool, lease.gpus, chance, ran=ran, limit=limit) - ran


def _draw_run(job: Waiting, runs: RunTimes, chance: Random) -> float:
    limit = None if job.max_runtime is None else job.max_runtime.total_seconds()
    return runs.draw(job.pool, job.gpus, chance, limit=limit)


def _newcomers(
    snapshot: Snapshot, targets: Sequence[Waiting], recent: Sequence[Lease], now: datetime, chance: Random
) -> list[Waiting]:
    """Jobs that may join the line, as often as of late and like those of late."""
    if len(recent) < MIN_RUNS or recent[0].granted_at >= now:
        return []
    since = recent[0].granted_at
    joined = len(recent) + sum(job.queued_at > since for job in snapshot.waiting)
    gap_s = (now - since).total_seconds() / chance.gammavariate(joined, 1.0)
    jobs, time = [], now
    for number in range(len(targets) + EXTRA_ARRIVALS):
        time += timedelta(seconds=chance.expovariate(1.0 / gap_s))
        jobs.append(_like(chance.choice(recent), f"~{number}", time))
    return jobs


def _like(lease: Lease, job_id: str, queued_at: datetime) -> Waiting:
    return Waiting(
        job_id=job_id,
        owner=lease.owner,
        team=lease.team,
        pool=lease.pool,
        queued_at=queued_at,
        nodes=len(lease.slices),
        gpus_per_node=max(len(part.devices) for part in lease.slices),
        priority=lease.priority,
        max_runtime=None if lease.ends_by is None else lease.ends_by - lease.granted_at,
    )


def _forecast(starts: Sequence[float], futures: int, promised: datetime | None, now: datetime) -> Forecast:
    """Quantiles of the simulated starts; a reservation's time is an upper bound of both."""
    p50, p90 = (_quantile(starts, futures, share, promised, now) for share in (0.5, 0.9))
    reason = None
    if p90 is None:
        reason = (
            f"in {futures - len(starts)} of {futures} simulated futures it did not start while the line was followed"
        )
    return Forecast(p50=p50, p90=p90, futures=futures, reason=reason)


def _quantile(
    starts: Sequence[float], futures: int, share: float, promised: datetime | None, now: datetime
) -> datetime | None:
    rank = min(futures - 1, int(share * futures))
    if rank >= len(starts):
        return promised
    found = now + timedelta(seconds=sorted(starts)[rank])
    return found if promised is None else max(now, min(found, promised))
