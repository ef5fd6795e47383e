"""Serve the line: decide who starts, write leases and reasons in one transaction, then resume the granted workloads.

Jobs and replicas of services stand in one line; what is particular to replicas is in ``claims.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from uuid import uuid4

from fermion.domain import fairshare
from fermion.domain.admission import RULE_VERSION, Grant, Reservation, Round, Snapshot, decide, waiting_of
from fermion.domain.budgets import longest_window, spent
from fermion.domain.fairshare import Use
from fermion.domain.jobs import Job, Move, Phase
from fermion.domain.leases import TERM, HolderKind, Lease
from fermion.domain.line import Waiting
from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.pools import Pool
from fermion.domain.quota import cohort_of
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Decision, Event, StageSpan
from fermion.domain.workloads import Grant as Leave
from fermion.domain.workloads import workload_name
from fermion.errors import FermionError
from fermion.ports import Transaction
from fermion.usecases.claims import (
    Claim,
    GrantedReplica,
    grant_claims,
    pools_in_line,
    read_claims,
    resume_replica,
    tell_claims,
)
from fermion.usecases.context import Context
from fermion.usecases.lines import Line, is_told, keep_line, take_line
from fermion.usecases.moving import PLATFORM, write_moves

log = logging.getLogger(__name__)

REMEMBERED_HALF_LIVES = 5
"""How far back leases are read when no earlier round left its decayed use: older use weighs less than 3 %."""

REPLAYABLE_JOBS = 200
"""A round over a longer line is stored with names and a digest of its inputs instead of the inputs."""

TOLD_AT_ONCE = 100
"""How many jobs of the line have their stored reason refreshed by one round; `explain` computes any job's at once."""

TOLD_EVERY = timedelta(seconds=1)
"""How often the first in line are asked whether their reason changed; a job that is new in line is told at once."""

REMEMBERED_FOR = timedelta(seconds=10)
"""How long a round's memory may stand while nothing is granted or ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one round leaves to the next one of its cohort."""

    use: Use
    reservations: tuple[Reservation, ...] = ()
    ending: Mapping[str, str] = field(default_factory=dict)
    """Leases that were asked to end, and the job that each was asked for."""


@dataclass(frozen=True, slots=True)
class Granted:
    """One job with the lease it was given."""

    job: Job
    lease: Lease


def admit(ctx: Context) -> Sequence[Granted]:
    """Every job that could be granted now, resumed, and likewise every replica. Repeating it at once grants nothing more.

    Cohorts are decided apart: one that cannot be, because its lock is held for long for example, holds up no other.

    Raises:
        FermionError: some cohort could not be decided (the first one's error); all others were served.
    """
    with ctx.store.read() as tx:
        claimed = pools_in_line(tx)
        wanted = tx.jobs.pools({Phase.WAITING}) | claimed
        if not wanted:
            return ()
        pools = ctx.pools(tx)
        groups = group_pools(pools, wanted)
        poolless = [job for pool in wanted - pools.keys() for job in tx.jobs.find(phases={Phase.WAITING}, pool=pool)]
    _tell_poolless(ctx, poolless)
    granted: list[Granted] = []
    failed: list[FermionError] = []
    for cohort, members in groups.items():
        # A replica that joins the line just now is seen by the next round.
        has_claims = any(pool.id in claimed for pool in members)
        try:
            jobs, replicas = _admit_cohort(ctx, cohort, members, has_claims=has_claims)
        except FermionError as error:
            failed.append(error)
            continue
        granted += jobs
        for replica in replicas:
            resume_replica(ctx, replica, leave_of(replica.lease, pools.get(replica.lease.pool)))
    for each in granted:
        resume(ctx, each, groups)
    if failed:
        raise failed[0]
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
    untold = [job for job in jobs if job.explanation.reason is not Reason.MISCONFIGURED]
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


def _admit_cohort(
    ctx: Context, cohort: str, pools: Sequence[Pool], *, has_claims: bool
) -> tuple[list[Granted], list[GrantedReplica]]:
    with ctx.store.begin(exclusive=f"admission:{cohort}") as tx:
        now = ctx.clock.now()
        line = take_line(ctx, tx, cohort, pools, now)
        claims = read_claims(tx, pools) if has_claims else {}
        memory = recall(tx, cohort)
        waiting = (*line.waiting, *(claim.to_waiting() for claim in claims.values()))
        snapshot = take_snapshot(tx, pools, waiting, memory, now)
        made = decide(snapshot, now, queues=None if claims else line.queues)
        reasons = _due_reasons(line, made)
        fresh = _read_to_write(tx, line, {*reasons, *(grant.job_id for grant in made.grants)})
        round_id = _keep_round(tx, cohort, snapshot, line, made)
        untold = _untold(line, [(fresh[each], reasons[each]) for each in reasons if each in fresh])
        ending = {**snapshot.ending, **_ask_victims(tx, snapshot, made, round_id)}
        left = Memory(use=snapshot.use, reservations=made.reservations, ending=ending)
        _remember(tx, cohort, memory, left, made)
        replicas = _serve_claims(tx, claims, made, round_id)
        granted = _grant_and_tell(ctx, tx, line, fresh, untold, made, round_id)
    keep_line(ctx, cohort, line)
    return granted, replicas


def _serve_claims(tx: Transaction, claims: Mapping[str, Claim], made: Round, round_id: str) -> list[GrantedReplica]:
    """Grant replicas, and store why the others wait, each with its decision."""
    if not claims:
        return []
    granted = grant_claims(tx, claims, [grant for grant in made.grants if grant.job_id in claims], made)
    names = {each.row.name for each in granted}
    told = tell_claims(
        tx,
        claims,
        {name: made.explain(name) for name in claims if name not in names},
        made.decided_at,
    )
    for name in names:
        tx.records.add_decision(_decision("admit", name, "granted", made.explain(name), round_id, made.decided_at))
    for name, why in told:
        tx.records.add_decision(_decision("admit", name, "waits", why, round_id, made.decided_at))
    return granted


def take_snapshot(
    tx: Transaction, pools: Sequence[Pool], waiting: tuple[Waiting, ...], memory: Memory | None, now: datetime
) -> Snapshot:
    """All that a round of these pools is decided from, read in one transaction."""
    lives = fairshare.half_lives(pools)
    since = memory.use.at if memory else now - max(lives.values()) * REMEMBERED_HALF_LIVES
    recent = tx.leases.overlapping(since, pools=[pool.id for pool in pools])
    window = longest_window(pools)
    for_budgets = tx.leases.overlapping(now - window, pools=[pool.id for pool in pools]) if window else ()
    leases = tuple(lease for lease in recent if lease.is_live)
    return Snapshot(
        pools=tuple(pools),
        waiting=waiting,
        leases=leases,
        ending={each.id: memory.ending[each.id] for each in leases if each.id in memory.ending} if memory else {},
        use=fairshare.decayed(recent, half_lives=lives, now=now, since=memory.use if memory else None),
        spent=spent(for_budgets, pools, now),
        reservations=memory.reservations if memory else (),
    )


def _read_to_write(tx: Transaction, line: Line, ids: set[str]) -> dict[str, Job]:
    """The jobs as stored, kept from being changed by others until the commit."""
    found = {job_id: line.jobs[job_id] for job_id in ids & line.fresh}
    known = [line.jobs[job_id] for job_id in ids - line.fresh if job_id in line.jobs]
    found |= {job.id: job for job in tx.jobs.hold(known)}
    return found | {job.id: job for job in tx.jobs.get_all(ids - found.keys())}


def _grant_and_tell(
    ctx: Context,
    tx: Transaction,
    line: Line,
    fresh: Mapping[str, Job],
    untold: Sequence[Job],
    made: Round,
    round_id: str,
) -> list[Granted]:
    """Move, lease, span and decision of each that starts, and why the others wait; every kind in one statement.

    A job that is not waiting any more gets nothing.
    """
    asked = [(fresh[grant.job_id], grant) for grant in made.grants if grant.job_id in fresh]
    waiting = [(job, grant) for job, grant in asked if job.phase is Phase.WAITING and job.stop_requested_at is None]
    why = {job.id: made.explain(job.id) for job, _ in waiting}
    moves = [(job, Move(to=Phase.STARTING, explanation=why[job.id])) for job, _ in waiting]
    tokens = tx.leases.next_tokens(len(waiting))
    saved = write_moves(ctx, tx, moves, also=untold)
    granted = [
        Granted(saved[job.id], _lease(job, grant, token, made.decided_at))
        for (job, grant), token in zip(waiting, tokens, strict=True)
        if job.id in saved
    ]
    tx.records.put_spans([_waited(tx, job, made.decided_at) for job, _ in waiting if job.id in saved])
    for each in granted:
        tx.records.add_decision(_decision("admit", each.job.id, "granted", why[each.job.id], round_id, made.decided_at))
    for job in (saved[job.id] for job in untold if job.id in saved):
        tx.records.add_decision(_decision("admit", job.id, "waits", job.explanation, round_id, made.decided_at))
        line.tell(job)
    # Last of all: the store may be writing the rest while all the above is made.
    tx.leases.add_all([each.lease for each in granted])
    return granted


def _lease(job: Job, grant: Grant, token: int, now: datetime) -> Lease:
    return Lease(
        id=f"lease-{workload_name(job.id, job.attempt)}",
        holder_kind=HolderKind.JOB,
        holder_id=job.id,
        attempt=job.attempt,
        owner=job.spec.owner,
        team=job.spec.team,
        pool=grant.pool,
        token=token,
        slices=grant.slices,
        granted_at=now,
        expires_at=now + TERM,
        priority=job.spec.priority,
        preemptible=job.spec.preemptible,
        ends_by=grant.ends_by,
    )


def _waited(tx: Transaction, job: Job, until: datetime) -> StageSpan:
    """The attempt's time in line, while it was fetched too: from joining it, or from the end of the last lease, to the grant."""
    before = tx.leases.of_holder(HolderKind.JOB, job.id) if job.attempt > 1 else ()
    ends = [lease.ended_at for lease in before if lease.ended_at is not None]
    return StageSpan(
        job_id=job.id,
        attempt=job.attempt,
        stage="wait_for_gpus",
        started_at=max(ends, default=job.queued_at or job.changed_at),
        ended_at=until,
        outcome="succeeded",
    )


def _ask_victims(tx: Transaction, snapshot: Snapshot, made: Round, round_id: str) -> dict[str, str]:
    """Store the wish on each victim; whoever tends it asks its workload to end. The leases, and whom each was asked for."""
    leases = {lease.id: lease for lease in snapshot.leases if lease.holder_kind is HolderKind.JOB}
    asked: dict[str, str] = {}
    for preemption in made.preemptions:
        held = {leases[name].holder_id: name for name in preemption.lease_ids if name in leases}
        victims = tx.jobs.get_all(held)
        asked |= {held[job.id]: job.preempted_for for job in victims if job.preempted_for is not None}
        wishes = [replace(job, preempted_for=preemption.job_id) for job in victims if job.preempted_for is None]
        for victim in tx.jobs.save_all(wishes).values():
            asked[held[victim.id]] = preemption.job_id
            numbers = {"for": preemption.job_id, "lease": held[victim.id]}
            why = Explanation(Reason.PREEMPTED, preemption.why, numbers)
            tx.records.add_decision(_decision("preempt", victim.id, "asked_to_end", why, round_id, made.decided_at))
            tx.records.add_event(_asked(victim, preemption.why, made.decided_at))
    return asked


def _asked(victim: Job, why: str, now: datetime) -> Event:
    return Event(actor=PLATFORM, verb="job.preemption_asked", target=victim.id, at=now, message=why)


def _due_reasons(line: Line, made: Round) -> dict[str, Explanation]:
    """The reasons to be stored now: of jobs that were never told theirs, and each second of the first in line that changed."""
    granted = {grant.job_id for grant in made.grants}
    new = [job_id for job_id in islice(line.untold, TOLD_AT_ONCE + len(granted)) if job_id not in granted]
    due = {job_id: made.explain(job_id) for job_id in new[:TOLD_AT_ONCE]}
    if line.told_at is None or made.decided_at - line.told_at >= TOLD_EVERY:
        line.told_at = made.decided_at
        for job_id, explanation in made.explanations(limit=TOLD_AT_ONCE).items():
            place = line.places.get(job_id)  # a replica has none
            if place is not None and place.reason is not explanation.reason:
                due[job_id] = explanation
    return due


def _untold(line: Line, reasons: Sequence[tuple[Job, Explanation]]) -> list[Job]:
    """These jobs with why they wait, to be stored. Of one that stages, or that another process told the same, nothing."""
    due = []
    for job, why in reasons:
        if is_told(job) and job.explanation.reason is why.reason:
            line.tell(job)
        elif job.phase is Phase.WAITING:
            due.append(replace(job, explanation=why))
    return due


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


def _keep_round(tx: Transaction, cohort: str, snapshot: Snapshot, line: Line, made: Round) -> str:
    """Store what a round that changed something was decided from; its id."""
    round_id = uuid4().hex
    if not made.grants and not made.preemptions:
        return round_id
    is_short = len(snapshot.waiting) <= REPLAYABLE_JOBS
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
            inputs=snapshot.to_payload() if is_short else _named_inputs(snapshot, line),
            numbers=made.to_payload(explain=()),
        )
    )
    return round_id


def _named_inputs(snapshot: Snapshot, line: Line) -> dict[str, object]:
    """What a long line was: everybody in line at that event, whose marks sum up to the digest, beside these leases."""
    return {
        "event": line.event,
        "line": len(snapshot.waiting),
        "line_digest": f"{line.digest:032x}",
        "leases": [lease.id for lease in snapshot.leases],
        "reservations": to_payload(snapshot.reservations),
    }


def recall(tx: Transaction, cohort: str) -> Memory | None:
    """What the cohort's last round left."""
    kept = tx.records.memory(f"admission:{cohort}")
    return None if kept is None else from_payload(Memory, kept)


def _remember(tx: Transaction, cohort: str, before: Memory | None, after: Memory, made: Round) -> None:
    """Write the memory, unless nothing happened since it was written lately: use is then computed from the older one."""
    is_same = before is not None and replace(before, use=after.use) == after and not made.grants
    if is_same and before is not None and made.decided_at - before.use.at < REMEMBERED_FOR:
        return
    tx.records.put_memory(f"admission:{cohort}", to_payload(after), now=made.decided_at)
