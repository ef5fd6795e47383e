"""Write a job's move and the event that tells of it; every use case that changes a phase goes through here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from fermion.domain.jobs import Job, Move, apply
from fermion.domain.records import Event, StageSpan
from fermion.errors import FermionError, NotFound, OutsideUnavailable
from fermion.ports import Transaction
from fermion.usecases.context import Context

PLATFORM = "platform"
"""The actor of what nobody asked for by hand."""

TRIES = 20
"""How often a change is tried again after a lost race: each loss means that somebody else got on."""


def load(tx: Transaction, job_id: str) -> Job:
    """The job.

    Raises:
        NotFound: no job has this id.
    """
    job = tx.jobs.get(job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id!r}; `fermion jobs` lists them.", what="job")
    return job


def write_move(ctx: Context, tx: Transaction, job: Job, move: Move, *, actor: str = PLATFORM) -> Job | None:
    """The moved job as stored, or None when somebody else changed it first (the caller looks again)."""
    moved = tx.jobs.save(apply(job, move, ctx.clock.now()))
    if moved is not None:
        tx.records.add_event(_told(job, moved, move, actor))
    return moved


def write_moves(
    ctx: Context, tx: Transaction, moves: Sequence[tuple[Job, Move]], *, also: Sequence[Job] = ()
) -> dict[str, Job]:
    """``write_move`` of many different jobs at once, and ``also`` saved as they are in the same statement: the saved ones by
    id; the others lost their race."""
    now = ctx.clock.now()
    saved = tx.jobs.save_all([*(apply(job, move, now) for job, move in moves), *also])
    for job, move in moves:
        if job.id in saved:
            tx.records.add_event(_told(job, saved[job.id], move, PLATFORM))
    return dict(saved)


def _told(job: Job, moved: Job, move: Move, actor: str) -> Event:
    return Event(
        actor=actor,
        verb=f"job.{move.to}",
        target=job.id,
        at=moved.changed_at,
        message=move.explanation.message,
        data={
            "from": str(job.phase),
            "to": str(move.to),
            "reason": str(move.explanation.reason),
            "attempt": moved.attempt,
        },
        pool=moved.spec.pool,
    )


def settle(ctx: Context, job_id: str, write: Callable[[Transaction, Job], Job | None]) -> Job:
    """What ``write`` stored of the job, or answered as it is; after a lost race (None) it is asked again about the fresh job.

    Raises:
        NotFound: no such job.
        OutsideUnavailable: others changed the job each time; the same call may succeed later.
    """
    for _ in range(TRIES):
        with ctx.store.begin() as tx:
            written = write(tx, load(tx, job_id))
        if written is not None:
            return written
    raise OutsideUnavailable(f"job {job_id} was changed by others {TRIES} times in a row; ask again.", what="job")


@contextmanager
def stage_span(ctx: Context, job: Job, stage: str) -> Iterator[None]:
    """Record how long a stage took and how it ended; a repeat of the stage replaces its span."""
    span = StageSpan(job_id=job.id, attempt=job.attempt, stage=stage, started_at=ctx.clock.now())
    try:
        yield
    except FermionError as error:
        _close(ctx, span, "failed", error.message)
        raise
    except Exception as error:
        _close(ctx, span, "failed", f"{type(error).__name__}: {error}")
        raise
    _close(ctx, span, "succeeded", "")


def _close(ctx: Context, span: StageSpan, outcome: str, detail: str) -> None:
    with ctx.store.begin() as tx:
        tx.records.put_span(replace(span, ended_at=ctx.clock.now(), outcome=outcome, detail=detail[:2000]))
