"""Look after every job that has not ended: see its workload, take the move that is due, end leases of what is gone.

The triggerer does this several times a second, ``sync_platform`` every 30 s; both may at once, the job's version decides.
Nothing here remembers anything that matters: a ``Tender`` only caches how far it has read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from fermion.domain.jobs import FINAL, HOLDING, Job, Move, Phase
from fermion.domain.leases import TERM, HolderKind, Lease, LeasePhase, end, renew
from fermion.domain.pools import Pool
from fermion.domain.progress import parse
from fermion.domain.records import MetricPoint, StageSpan
from fermion.domain.watching import Watched, decide, with_step
from fermion.domain.workloads import Seen, Usage, WorkloadState, workload_name
from fermion.errors import FermionError
from fermion.ports import Driver, Transaction
from fermion.usecases.admit import admit, leave_of
from fermion.usecases.again import follows_in_its_run
from fermion.usecases.context import Context
from fermion.usecases.moving import load, write_move
from fermion.usecases.prepare import prepare

log = logging.getLogger(__name__)

OPEN = frozenset(Phase) - FINAL
GONE = frozenset({WorkloadState.EXITED, WorkloadState.LOST, WorkloadState.ABSENT})
WRITE_EVERY = timedelta(seconds=1)
USAGE_EVERY = timedelta(seconds=5)


@dataclass(slots=True)
class _Cursor:
    """How far one workload's progress was read; rebuilt from the start of the file when lost."""

    offset: int = 0
    line: int = 0
    names: frozenset[str] = frozenset()
    written_at: datetime | None = None
    usage_at: datetime | None = None


@dataclass(slots=True)
class Tender:
    """One caller's rounds over all open jobs."""

    ctx: Context
    cursors: dict[str, _Cursor] = field(default_factory=dict)

    def round(self) -> Mapping[str, Job]:
        """Look after every open job once; the jobs by id as they are afterwards (those that ended just now included)."""
        with self.ctx.store.read() as tx:
            jobs = tx.jobs.find(phases=OPEN)
        if not jobs:
            return {}
        with self.ctx.store.read() as tx:
            pools = self.ctx.pools(tx)
        after = {job.id: self._tend_safely(job, pools) for job in jobs}
        if any(job.phase is Phase.WAITING for job in after.values()):
            self._admit_safely()
        self._forget_cursors(after)
        return after

    def look_after(self, job_id: str) -> Job:
        """One job as it is after having been looked after; an ended one as it is.

        Raises:
            NotFound: no such job.
        """
        with self.ctx.store.read() as tx:
            job = load(tx, job_id)
            pools = self.ctx.pools(tx)
        return job if job.is_final else self._tend(job, pools)

    def _tend_safely(self, job: Job, pools: Mapping[str, Pool]) -> Job:
        try:
            return self._tend(job, pools)
        except FermionError as error:
            log.warning("job %s could not be looked after this time: %s", job.id, error)
            return job

    def _admit_safely(self) -> None:
        try:
            admit(self.ctx)
        except FermionError as error:
            log.warning("the line could not be served this time: %s", error)

    def _tend(self, job: Job, pools: Mapping[str, Pool]) -> Job:
        if job.phase in HOLDING:
            return self._tend_holding(job, pools)
        move = decide(Watched(job=job, policy=self.ctx.rules.policy(job.spec.pool)), self.ctx.clock.now())
        if move is not None:
            return self._end_in_line(job, move)
        if job.phase is Phase.STAGING and (job.attempt > 1 or follows_in_its_run(self.ctx, job)):
            return prepare(self.ctx, job.id)
        return job

    def _end_in_line(self, job: Job, move: Move) -> Job:
        with self.ctx.store.begin() as tx:
            moved = write_move(self.ctx, tx, job, move)
        if moved is None:
            return job
        driver = self.ctx.driver_of(job.spec.pool)
        driver.workloads.remove(workload_name(job.id, job.attempt))
        return moved

    def _tend_holding(self, job: Job, pools: Mapping[str, Pool]) -> Job:
        ctx, driver, name = self.ctx, self.ctx.driver_of(job.spec.pool), workload_name(job.id, job.attempt)
        lease = _lease_of(ctx, job)
        seen = driver.workloads.look(name)
        if seen.state is WorkloadState.SUSPENDED and lease is not None:
            driver.workloads.resume(name, leave_of(lease, pools.get(job.spec.pool)))
            seen = driver.workloads.look(name)
        job = self._read_progress(driver, job, name, whole=seen.state in GONE)
        if lease is not None:
            lease = self._note_seen(job, lease, seen)
        pool = pools.get(job.spec.pool)
        watched = Watched(
            job=job,
            policy=ctx.rules.policy(job.spec.pool),
            seen=seen,
            lease=lease,
            other_nodes=pool is not None and sum(node.is_usable for node in pool.nodes) > 1,
        )
        move = decide(watched, ctx.clock.now())
        if move is None:
            self._insist(driver, job, seen)
            return job
        return self._carry_out(driver, watched, move)

    def _insist(self, driver: Driver, job: Job, seen: Seen) -> None:
        """Ask again for a stop that was asked for and has not been obeyed (the asker may have died in between)."""
        if job.phase is not Phase.STOPPING or seen.state in GONE:
            return
        grace = self.ctx.rules.policy(job.spec.pool).stop_grace
        if self.ctx.clock.now() - job.changed_at > timedelta(seconds=2):
            driver.workloads.stop(seen.name, grace=grace, why=job.explanation.message)

    def _carry_out(self, driver: Driver, watched: Watched, move: Move) -> Job:
        ctx, job, seen = self.ctx, watched.job, watched.seen
        gone = seen is None or seen.state in GONE
        with ctx.store.begin() as tx:
            moved = write_move(ctx, tx, job, move)
            if moved is None:
                return job
            if gone and watched.lease is not None:
                end_lease(ctx, tx, watched.lease, seen, cause=str(move.explanation.reason))
                _write_train_span(tx, watched.lease, seen, move)
        if move.to is Phase.STOPPING and seen is not None:
            grace = ctx.rules.policy(job.spec.pool).stop_grace
            driver.workloads.stop(seen.name, grace=grace, why=move.explanation.message)
        if gone:
            ctx.store.notify("leases", job.spec.pool)
            self._admit_safely()
        return moved

    def _note_seen(self, job: Job, lease: Lease, seen: Seen) -> Lease:
        """Renew the lease of a live workload before its term runs short, and note when its process began."""
        now = self.ctx.clock.now()
        exec_at = seen.exec_at or (seen.exit.exec_at if seen.exit else None)
        noted = replace(lease, exec_at=lease.exec_at or exec_at)
        if seen.state is WorkloadState.RUNNING and lease.expires_at - now < TERM * 2 / 3:
            noted = renew(noted, now)
        usage = self._due_usage(job, seen, now)
        if noted != lease or usage is not None:
            with self.ctx.store.begin() as tx:
                if noted != lease:
                    tx.leases.update(noted)
                if usage is not None:
                    tx.records.add_points(usage_points(job, usage))
        return noted

    def _due_usage(self, job: Job, seen: Seen, now: datetime) -> Usage | None:
        cursor = self.cursors.setdefault(seen.name, _Cursor())
        if seen.usage is None or (cursor.usage_at is not None and now - cursor.usage_at < USAGE_EVERY):
            return None
        cursor.usage_at = now
        return seen.usage

    def _read_progress(self, driver: Driver, job: Job, name: str, *, whole: bool) -> Job:
        cursor = self.cursors.setdefault(name, _Cursor())
        now = self.ctx.clock.now()
        if not whole and cursor.written_at is not None and now - cursor.written_at < WRITE_EVERY:
            return job
        while True:
            chunk = driver.workloads.progress(name, offset=cursor.offset)
            if chunk.next_offset == cursor.offset:
                return job
            job = self._write_progress(job, cursor, chunk.text, now)
            cursor.offset, cursor.written_at = chunk.next_offset, now
            if chunk.at_end or not whole:
                return job

    def _write_progress(self, job: Job, cursor: _Cursor, text: str, now: datetime) -> Job:
        parsed = parse(text, job.progress, first_number=cursor.line, names=cursor.names, now=now)
        for remark in parsed.remarks:
            log.info("job %s, progress line %s: %s (%s times)", job.id, remark.number, remark.message, remark.count)
        progress = with_step(job.progress, parsed.progress, parsed.next_number - cursor.line)
        with self.ctx.store.begin() as tx:
            tx.records.add_points(parsed.to_points(job.id, job.attempt))
            saved = tx.jobs.save(replace(job, progress=progress))
        cursor.line, cursor.names = parsed.next_number, parsed.names
        return saved or job

    def _forget_cursors(self, after: Mapping[str, Job]) -> None:
        live = {workload_name(job.id, job.attempt) for job in after.values() if not job.is_final}
        for name in set(self.cursors) - live:
            del self.cursors[name]


def end_lease(ctx: Context, tx: Transaction, lease: Lease, seen: Seen | None, *, cause: str) -> bool:
    """End a lease whose workload is gone; False when it had ended already. Writes the event with the held GPU-seconds."""
    now = ctx.clock.now()
    record = seen.exit if seen is not None else None
    noted = replace(
        lease,
        exec_at=lease.exec_at or (record.exec_at if record else None),
        exit_at=record.exit_at if record and record.exec_at is not None else lease.exit_at,
    )
    return tx.leases.end(end(noted, LeasePhase.RELEASED, cause=cause, now=now))


def _write_train_span(tx: Transaction, lease: Lease, seen: Seen | None, move: Move) -> None:
    """How long the process ran, by its own record; nothing where it left none."""
    record = seen.exit if seen is not None else None
    if record is None or record.exec_at is None:
        return
    tx.records.put_span(
        StageSpan(
            job_id=lease.holder_id,
            attempt=lease.attempt,
            stage="train",
            started_at=record.exec_at,
            ended_at=record.exit_at,
            outcome="succeeded" if move.to is Phase.SAVING else str(move.explanation.reason),
        )
    )


def usage_points(job: Job, usage: Usage) -> list[MetricPoint]:
    """The measured use as points; what was not measured gives none."""
    values = {
        "cpu_cores": usage.cpu_cores,
        "memory_mib": usage.memory_mib,
        "gpu_utilisation": usage.gpu_utilisation,
        "gpu_memory_mib": usage.gpu_memory_mib,
    }
    number = int(usage.observed_at.timestamp())
    return [
        MetricPoint(
            job_id=job.id, attempt=job.attempt, number=number, kind="system", name=name, value=value, at=usage.observed_at
        )
        for name, value in values.items()
        if value is not None
    ]  # fmt: skip


def _lease_of(ctx: Context, job: Job) -> Lease | None:
    with ctx.store.read() as tx:
        live = [
            lease
            for lease in tx.leases.of_holder(HolderKind.JOB, job.id, live_only=True)
            if lease.attempt == job.attempt
        ]
    return live[-1] if live else None
