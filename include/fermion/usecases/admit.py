"""Serve the line: decide who starts, write leases and reasons in one transaction, then resume the granted workloads."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import uuid4

from fermion.domain import fairshare
from fermion.domain.admission import RULE_VERSION, Grant, Preemption, Reservation, Round, Snapshot, decide, waiting_of
from fermion.domain.budgets import longest_window, spent
from fermion.domain.fairshare import Use
from fermion.domain.jobs import HOLDING, IN_LINE, Job, Move, Phase
from fermion.domain.leases import TERM, HolderKind, Lease
from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.pools import Pool
from fermion.domain.quota import cohort_of
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Decision, Event, StageSpan
from fermion.domain.workloads import Grant as Leave
from fermion.domain.workloads import workload_name
from fermion.errors import FermionError
from fermion.ports import Transaction
from fermion.usecases.context import Context
from fermion.usecases.moving import PLATFORM, write_move

log = logging.getLogger(__name__)

REMEMBERED_HALF_LIVES = 5
"""How far back leases are read when no earlier round left its decayed use: older use weighs less than 3 %."""

REPLAYABLE_JOBS = 200
"""A round over a longer line is stored with a digest of its inputs instead of the inputs."""

TOLD_AT_ONCE = 100
"""How many jobs of the line have their stored reason refreshed by one round; `explain` computes any job's at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one round leaves to the next one of its cohort."""

    use: Use
    reservations: tuple[Reservation, ...] = ()


@dataclass(frozen=True, slots=True)
class Granted:
    """One job with the lease it was given."""

    job: Job
    lease: Lease


def admit(ctx: Context) -> Sequence[Granted]:
    """Everything that could be granted now, resumed. Repeating it at once grants nothing more."""
    with ctx.store.read() as tx:
        line = tx.jobs.find(phases=IN_LINE)
        if not any(job.phase is Phase.WAITING for job in line):
            return ()
        pools = ctx.pools(tx)
        groups = group_pools(pools, {job.spec.pool for job in line})
    _tell_poolless(ctx, [job for job in line if job.spec.pool not in pools])
    granted: list[Granted] = []
    for cohort, members in groups.items():
        granted += _admit_cohort(ctx, cohort, members)
    for each in granted:
        resume(ctx, each, groups)
    return granted


def admit_safely(ctx: Context) -> None:
    """Serve the line for the others: whoever came for a job of its own does not fail because of it."""
    try:
        admit(ctx)
    except FermionError as error:
        log.warning("the line could not be served this time: %s", error)


def without_pool(job: Job, now: datetime) -> Explanation:
    """Why a job waits whose pool is not there any more."""
    return decide(Snapshot(pools=(), waiting=(waiting_of(job),)), now).explain(job.id)


def _tell_poolless(ctx: Context, jobs: Sequence[Job]) -> None:
    """Say of jobs whose pool is gone that no round decides about them; they keep their place until it is back."""
    untold = [job for job in jobs if job.phase is Phase.WAITING and job.explanation.reason is not Reason.MISCONFIGURED]
    if not untold:
        return
    with ctx.store.begin() as tx:
        for job in untold:
            tx.jobs.save(replace(job, explanation=without_pool(job, ctx.clock.now())))


def group_pools(pools: Mapping[str, Pool], wanted: Iterable[str]) -> dict[str, tuple[Pool, ...]]:
    """The pools that must be decided together, by cohort; only cohorts of the wanted pools. A missing pool has none."""
    cohorts = {cohort_of(pools[pool]) for pool in wanted if pool in pools}
    return {cohort: tuple(pool for pool in pools.values() if cohort_of(pool) == cohort) for cohort in sorted(cohorts)}


def resume(ctx: Context, granted: Granted, groups: Mapping[str, Sequence[Pool]]) -> None:
    """Start what was granted. A failure here is mended by whoever tends the job: the lease is there, the workload waits."""
    lease = granted.lease
    pools = {pool.id: pool for members in groups.values() for pool in members}
    try:
        ctx.driver_of(lease.pool).workloads.resume(
            workload_name(granted.job.id, lease.attempt), leave_of(lease, pools.get(lease.pool))
        )
    except FermionError as error:
        log.warning("job %s was granted but not resumed yet: %s", granted.job.id, error)


def leave_of(lease: Lease, pool: Pool | None) -> Leave:
    """What the workload is told: its devices, and whether they are only declared."""
    by_id = {device.id: device for node in (pool.nodes if pool else ()) for device in node.devices}
    held = [by_id[name] for part in lease.slices for name in part.devices if name in by_id]
    declared = not held or any(device.method == "declared" for device in held)
    return Leave(token=lease.token, slices=lease.slices, devices_are_declared=declared)


def _admit_cohort(ctx: Context, cohort: str, pools: Sequence[Pool]) -> list[Granted]:
    with ctx.store.begin(exclusive=f"admission:{cohort}") as tx:
        now = ctx.clock.now()
        ids = {pool.id for pool in pools}
        waiting = (job for job in tx.jobs.find(phases=IN_LINE) if job.spec.pool in ids)
        line = {job.id: job for job in waiting if job.stop_requested_at is None}
        snapshot = take_snapshot(ctx, tx, cohort, pools, line.values(), now)
        made = decide(snapshot, now)
        round_id = _keep_round(tx, cohort, snapshot, made)
        granted = [_grant(ctx, tx, line[grant.job_id], grant, made, round_id) for grant in made.grants]
        for preemption in made.preemptions:
            _ask_victims(tx, preemption, round_id, now)
        _tell(tx, line, made, round_id, now)
        _remember(tx, cohort, Memory(use=snapshot.use, reservations=made.reservations), now)
    return [each for each in granted if each is not None]


def take_snapshot(
    ctx: Context, tx: Transaction, cohort: str, pools: Sequence[Pool], line: Iterable[Job], now: datetime
) -> Snapshot:
    """All that a round of this cohort is decided from, read in one transaction."""
    ids = {pool.id for pool in pools}
    leases = tuple(lease for lease in tx.leases.live() if lease.pool in ids)
    memory = _recall(tx, cohort)
    lives = fairshare.half_lives(pools)
    reach = max(lives.values()) * REMEMBERED_HALF_LIVES
    recent = tx.leases.overlapping(memory.use.at if memory else now - reach)
    window = longest_window(pools)
    for_budgets = tx.leases.overlapping(now - window) if window else ()
    return Snapshot(
        pools=tuple(pools),
        waiting=tuple(waiting_of(job, ctx.rules.policy(job.spec.pool)) for job in line),
        leases=leases,
        ending=_ending(tx, leases),
        use=fairshare.decayed(
            [lease for lease in recent if lease.pool in ids],
            half_lives=lives,
            now=now,
            since=memory.use if memory else None,
        ),
        spent=spent([lease for lease in for_budgets if lease.pool in ids], pools, now),
        reservations=memory.reservations if memory else (),
    )


def _ending(tx: Transaction, leases: Sequence[Lease]) -> dict[str, str]:
    asked = {job.id: job.preempted_for for job in tx.jobs.find(phases=HOLDING) if job.preempted_for is not None}
    return {
        lease.id: asked[lease.holder_id]
        for lease in leases
        if lease.holder_kind is HolderKind.JOB and lease.holder_id in asked
    }


def _grant(ctx: Context, tx: Transaction, job: Job, grant: Grant, made: Round, round_id: str) -> Granted | None:
    now = made.decided_at
    explanation = made.explain(job.id)
    moved = write_move(
        ctx,
        tx,
        job,
        Move(to=Phase.STARTING, explanation=Explanation(Reason.GRANTED, explanation.message, explanation.numbers)),
    )
    if moved is None:
        return None
    lease = Lease(
        id=f"lease-{workload_name(job.id, job.attempt)}",
        holder_kind=HolderKind.JOB,
        holder_id=job.id,
        attempt=job.attempt,
        owner=job.spec.owner,
        team=job.spec.team,
        pool=grant.pool,
        token=tx.leases.next_token(),
        slices=grant.slices,
        granted_at=now,
        expires_at=now + TERM,
        priority=job.spec.priority,
        preemptible=job.spec.preemptible,
        ends_by=grant.ends_by,
    )
    tx.leases.add(lease)
    tx.records.put_span(
        StageSpan(
            job_id=job.id,
            attempt=job.attempt,
            stage="wait_for_gpus",
            started_at=job.changed_at,
            ended_at=now,
            outcome="succeeded",
        )
    )
    tx.records.add_decision(_decision("admit", job.id, "granted", explanation, round_id, now))
    return Granted(moved, lease)


def _ask_victims(tx: Transaction, preemption: Preemption, round_id: str, now: datetime) -> None:
    """Store the wish on each victim; whoever tends it asks its workload to end."""
    wanted = set(preemption.lease_ids)
    for lease in tx.leases.live(pool=preemption.pool):
        if lease.id not in wanted or lease.holder_kind is not HolderKind.JOB:
            continue
        victim = tx.jobs.get(lease.holder_id)
        if victim is None or victim.preempted_for is not None:
            continue
        if tx.jobs.save(replace(victim, preempted_for=preemption.job_id)) is None:
            continue
        explanation = Explanation(Reason.PREEMPTED, preemption.why, {"for": preemption.job_id, "lease": lease.id})
        tx.records.add_decision(_decision("preempt", victim.id, "asked_to_end", explanation, round_id, now))
        tx.records.add_event(
            Event(actor=PLATFORM, verb="job.preemption_asked", target=victim.id, at=now, message=preemption.why)
        )


def _tell(tx: Transaction, line: Mapping[str, Job], made: Round, round_id: str, now: datetime) -> None:
    """Refresh the stored reason of jobs that still wait, where it changed."""
    for job_id, explanation in made.explanations(limit=TOLD_AT_ONCE).items():
        job = line.get(job_id)
        if job is None or job.phase is not Phase.WAITING or job.explanation.reason is explanation.reason:
            continue
        if tx.jobs.save(replace(job, explanation=explanation)) is not None:
            tx.records.add_decision(_decision("admit", job_id, "waits", explanation, round_id, now))


def _decision(kind: str, subject: str, verdict: str, why: Explanation, round_id: str, now: datetime) -> Decision:
    return Decision(
        id=uuid4().hex,
        kind=kind,
        subject=subject,
        verdict=verdict,
        reason=str(why.reason),
        message=why.message,
        rule_version=RULE_VERSION,
        decided_at=now,
        inputs={"round": round_id},
        numbers=why.numbers,
    )


def _keep_round(tx: Transaction, cohort: str, snapshot: Snapshot, made: Round) -> str:
    """Store what a round that changed something was decided from; its id."""
    round_id = uuid4().hex
    if not made.grants and not made.preemptions:
        return round_id
    payload = snapshot.to_payload() if len(snapshot.waiting) <= REPLAYABLE_JOBS else {"digest": _digest(snapshot)}
    tx.records.add_decision(
        Decision(
            id=round_id,
            kind="round",
            subject=cohort,
            verdict=f"{len(made.grants)} granted, {len(made.preemptions)} preemptions",
            reason="round",
            message=f"{len(snapshot.waiting)} jobs in line, {sum(lease.gpus for lease in snapshot.leases)} GPUs held.",
            rule_version=RULE_VERSION,
            decided_at=made.decided_at,
            inputs=payload,
            numbers=made.to_payload(explain=[grant.job_id for grant in made.grants]),
        )
    )
    return round_id


def _digest(snapshot: Snapshot) -> str:
    text = json.dumps(snapshot.to_payload(), sort_keys=True, default=str)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _recall(tx: Transaction, cohort: str) -> Memory | None:
    kept = tx.records.memory(f"admission:{cohort}")
    return None if kept is None else from_payload(Memory, kept)


def _remember(tx: Transaction, cohort: str, memory: Memory, now: datetime) -> None:
    tx.records.put_memory(f"admission:{cohort}", to_payload(memory), now=now)
