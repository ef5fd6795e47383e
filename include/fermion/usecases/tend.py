"""Look after every job that has not ended: see its workload, take the move that is due, end leases of what is gone.

The triggerer does this several times a second, ``sync_platform`` every 30 s; both may at once, the job's version decides.
Nothing here remembers anything that matters: how far a training's progress was read is stored with the job, a ``Tender``
only keeps its own pace.
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
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import MetricPoint, StageSpan
from fermion.domain.watching import Watched, could_move, decide, with_step
from fermion.domain.workloads import Chunk, Seen, Usage, WorkloadState, workload_name
from fermion.errors import FermionError
from fermion.ports import Driver, Transaction
from fermion.usecases.admit import admit_safely, leave_of
from fermion.usecases.again import follows_in_its_run
from fermion.usecases.context import Context
from fermion.usecases.moving import load, write_move
from fermion.usecases.prepare import prepare
from fermion.usecases.seeing import is_gone, look

log = logging.getLogger(__name__)

OPEN = frozenset(Phase) - FINAL
READ_EVERY = timedelta(seconds=1)
USAGE_EVERY = timedelta(seconds=5)
INSIST_AFTER = timedelta(seconds=2)
PREPARE_EVERY = timedelta(seconds=10)
CHUNKS_AT_ONCE = 1000
"""How many pieces of progress one look reads at most; the drivers keep far fewer of an attempt."""


@dataclass(slots=True)
class _Pace:
    """When this caller last did what it does not do in every round, for one workload. None: not yet."""

    read_at: datetime | None = None
    usage_at: datetime | None = None
    prepared_at: datetime | None = None
    names: frozenset[str] | None = None
    trouble: str = ""


@dataclass(slots=True)
class Tender:
    """One caller's rounds over all open jobs."""

    ctx: Context
    paces: dict[str, _Pace] = field(default_factory=dict)

    def round(self) -> Mapping[str, Job]:
        """Look after every open job once; the jobs by id as they are afterwards (those that ended just now included)."""
        with self.ctx.store.read() as tx:
            jobs = tx.jobs.find(phases=OPEN)
        if not jobs:
            return {}
        with self.ctx.store.read() as tx:
            pools = self.ctx.pools(tx)
        # What holds GPUs comes first: preparing another attempt may take a while.
        ordered = sorted(jobs, key=lambda job: job.phase not in HOLDING)
        after = {job.id: self._tend_safely(job, pools) for job in ordered}
        if any(job.phase is Phase.WAITING for job in after.values()):
            admit_safely(self.ctx)
        self._forget_paces(after)
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
        """The job after its turn; what goes wrong with one is told once and keeps nobody from looking after the others."""
        pace, trouble = self._pace(job), ""
        try:
            return self._tend(job, pools)
        except FermionError as error:
            trouble = str(error)
            if trouble != pace.trouble:
                log.warning("job %s could not be looked after this time: %s", job.id, error)
        except Exception as error:
            trouble = repr(error)
            if trouble != pace.trouble:
                log.exception("job %s could not be looked after", job.id)
        finally:
            pace.trouble = trouble
        return job

    def _pace(self, job: Job) -> _Pace:
        return self.paces.setdefault(workload_name(job.id, job.attempt), _Pace())

    def _tend(self, job: Job, pools: Mapping[str, Pool]) -> Job:
        if job.phase in HOLDING:
            return self._tend_holding(job, pools)
        move = decide(Watched(job=job, policy=self.ctx.rules.policy(job.spec.pool)), self.ctx.clock.now())
        if move is not None:
            return self._end_in_line(job, move)
        if job.phase is Phase.STAGING and (job.attempt > 1 or follows_in_its_run(self.ctx, job)):
            return self._prepare_again(job)
        return job

    def _prepare_again(self, job: Job) -> Job:
        """Prepare an attempt that no task of the run prepares; what cannot be fetched by trying again ends the job."""
        pace, now = self._pace(job), self.ctx.clock.now()
        if pace.prepared_at is not None and now - pace.prepared_at < PREPARE_EVERY:
            return job
        pace.prepared_at = now
        try:
            return prepare(self.ctx, job.id)
        except FermionError as error:
            if error.retryable:
                raise
            message = f"Attempt {job.attempt} could not be prepared: {error.message}"
            return self._end_in_line(
                job, Move(to=Phase.FAILED, explanation=Explanation(Reason.STAGING_FAILED, message))
            )

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
        seen = look(self.ctx, driver.workloads, name)
        is_wanted = job.phase is Phase.STARTING and job.stop_requested_at is None and job.preempted_for is None
        if seen.state is WorkloadState.SUSPENDED and lease is not None and is_wanted:
            driver.workloads.resume(name, leave_of(lease, pools.get(job.spec.pool)))
            seen = driver.workloads.look(name)
        if seen.orphans:
            return job  # what it left does not end yet, so its GPUs are not free
        job = self._read_progress(driver, job, name, whole=is_gone(seen))
        if job.phase not in HOLDING or workload_name(job.id, job.attempt) != name:
            return job  # somebody else moved it on meanwhile
        if lease is not None:
            lease = self._note_seen(job, lease, seen)
        watched = Watched(
            job=job,
            policy=ctx.rules.policy(job.spec.pool),
            seen=seen,
            lease=lease,
            other_nodes=could_move(job, pools.get(job.spec.pool), lease),
        )
        move = decide(watched, ctx.clock.now())
        if move is None:
            self._insist(driver, job, seen)
            return job
        return self._carry_out(driver, watched, move)

    def _insist(self, driver: Driver, job: Job, seen: Seen) -> None:
        """Ask again for a stop that was asked for and has not been obeyed (the asker may have died in between)."""
        if job.phase is not Phase.STOPPING or is_gone(seen):
            return
        grace = self.ctx.rules.policy(job.spec.pool).stop_grace
        if self.ctx.clock.now() - job.changed_at > INSIST_AFTER:
            driver.workloads.stop(seen.name, grace=grace, why=job.explanation.message)

    def _carry_out(self, driver: Driver, watched: Watched, move: Move) -> Job:
        ctx, job, seen = self.ctx, watched.job, watched.seen
        gone = seen is None or is_gone(seen)
        with ctx.store.begin() as tx:
            moved = write_move(ctx, tx, job, move)
            if moved is None:
                return job
            if gone and watched.lease is not None:
                end_lease(ctx, tx, watched.lease, seen, cause=str(move.explanation.reason))
                tx.records.add_points(exit_points(job, seen))
                _write_train_span(tx, watched.lease, seen, move)
        if move.to is Phase.STOPPING and seen is not None:
            grace = ctx.rules.policy(job.spec.pool).stop_grace
            driver.workloads.stop(seen.name, grace=grace, why=move.explanation.message)
        if gone:
            ctx.store.notify("leases", job.spec.pool)
            admit_safely(self.ctx)
        return moved

    def _note_seen(self, job: Job, lease: Lease, seen: Seen) -> Lease:
        """Renew the lease of a live workload before its term runs short, and note when its process began."""
        now = self.ctx.clock.now()
        exec_at = seen.exec_at or (seen.exit.exec_at if seen.exit else None)
        noted = replace(lease, exec_at=lease.exec_at or exec_at)
        if seen.state is WorkloadState.RUNNING and lease.expires_at - now < TERM * 2 / 3:
            noted = renew(noted, now)
        usage = self._due_usage(seen, self._pace(job), now)
        if noted != lease or usage is not None:
            with self.ctx.store.begin() as tx:
                if noted != lease:
                    tx.leases.update(noted)
                if usage is not None:
                    tx.records.add_points(usage_points(job, usage))
        return noted

    def _due_usage(self, seen: Seen, pace: _Pace, now: datetime) -> Usage | None:
        if seen.usage is None or (pace.usage_at is not None and now - pace.usage_at < USAGE_EVERY):
            return None
        pace.usage_at = now
        return seen.usage

    def _read_progress(self, driver: Driver, job: Job, name: str, *, whole: bool) -> Job:
        """The job with what its training said since anybody last read; ``whole``: to the end of it."""
        pace, now = self._pace(job), self.ctx.clock.now()
        if not whole and pace.read_at is not None and now - pace.read_at < READ_EVERY:
            return job
        for _ in range(CHUNKS_AT_ONCE):
            chunk = driver.workloads.progress(name, offset=job.progress.offset)
            if chunk.next_offset == job.progress.offset:
                break
            pace.read_at = now
            job = self._write_progress(job, pace, chunk, now)
            if not whole or job.phase not in HOLDING or workload_name(job.id, job.attempt) != name:
                break
        return job

    def _write_progress(self, job: Job, pace: _Pace, chunk: Chunk, now: datetime) -> Job:
        """Points, progress and how far was read, together or not at all: whoever reads on, no line counts twice."""
        before = job.progress
        names = pace.names if pace.names is not None else _known_names(self.ctx, job)
        parsed = parse(chunk.text, before, first_number=before.lines, names=names, now=now)
        progress = with_step(before, parsed.progress, parsed.next_number - before.lines, now)
        progress = replace(progress, offset=chunk.next_offset, lines=parsed.next_number)
        with self.ctx.store.begin() as tx:
            saved = tx.jobs.save(replace(job, progress=progress))
            if saved is None:
                return load(tx, job.id)
            tx.records.add_points(parsed.to_points(job.id, job.attempt))
        pace.names = parsed.names
        for remark in parsed.remarks:
            log.info("job %s, progress line %s: %s (%s times)", job.id, remark.number, remark.message, remark.count)
        return saved

    def _forget_paces(self, after: Mapping[str, Job]) -> None:
        live = {workload_name(job.id, job.attempt) for job in after.values() if not job.is_final}
        for name in set(self.paces) - live:
            del self.paces[name]


def _known_names(ctx: Context, job: Job) -> frozenset[str]:
    """The metric names that the attempt used so far."""
    if not job.progress.lines:
        return frozenset()
    with ctx.store.read() as tx:
        points = tx.records.points(job.id, kind="training")
    return frozenset(point.name for point in points if point.attempt == job.attempt)


def end_lease(ctx: Context, tx: Transaction, lease: Lease, seen: Seen | None, *, cause: str) -> bool:
    """End a lease whose workload is gone; False when it had ended already."""
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


def exit_points(job: Job, seen: Seen | None) -> list[MetricPoint]:
    """What only the exit record knows, kept for the report: the workload is forgotten soon after."""
    record = seen.exit if seen is not None else None
    if record is None:
        return []
    values = {"peak_memory": record.max_rss_mib, "cpu_time": record.cpu_seconds}
    return [
        MetricPoint(
            job_id=job.id, attempt=job.attempt, number=0, kind="exit", name=name, value=value, at=record.exit_at
        )
        for name, value in values.items()
        if value is not None
    ]


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
