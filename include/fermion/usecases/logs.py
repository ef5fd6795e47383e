"""What a job's training prints, attempt after attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fermion.domain.counting import counted
from fermion.domain.jobs import Job
from fermion.domain.leases import HolderKind
from fermion.domain.workloads import workload_name
from fermion.errors import NotFound
from fermion.usecases.context import Context
from fermion.usecases.moving import load
from fermion.usecases.retain import FOLDERS, forgotten_before

PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that an attempt printed."""

    attempt: int
    text: str


def log_of(
    ctx: Context, job_id: str, *, attempt: int | None = None, until_more: Callable[[], object] | None = None
) -> Iterator[Piece]:
    """What was printed so far, piece by piece: by the attempt that is named, else by the newest that was given GPUs.

    With ``until_more``, called whenever there is nothing new, it goes on until the job has ended: through its further
    attempts, or with the attempt that is named.

    Raises:
        NotFound: (at once) no such job, or it has no such attempt.
    """
    job, newest = _look(ctx, job_id)
    if attempt is not None and not 1 <= attempt <= job.attempt:
        raise NotFound(
            f"job {job_id} has no attempt {attempt}; it has had {counted(job.attempt, 'attempt')}.", what="job"
        )
    return _pieces(ctx, job, attempt or newest, is_named=attempt is not None, until_more=until_more)


def why_missing(ctx: Context, job_id: str, *, attempt: int | None = None) -> str | None:
    """Why there is no log of a job that ran; None where there is one, or it has not run."""
    job, newest = _look(ctx, job_id)
    name = workload_name(job.id, attempt or newest)
    if job.started_at is None or not ctx.driver_of(job.spec.pool).workloads.log(name, limit=1).is_missing:
        return None
    with ctx.store.read() as tx:
        before = forgotten_before(tx, FOLDERS)
    if job.ended_at is not None and before is not None and job.ended_at < before:
        return f"The log of {job_id} was deleted by retention; it is kept as long as workloads are."
    if job.is_final:
        return f"The log of {job_id} is not there any more; its file or its folder was deleted by hand."
    return f"The log of {job_id} is not there; its file was deleted, or its training has not begun to write it."


def _pieces(
    ctx: Context, job: Job, attempt: int, *, is_named: bool, until_more: Callable[[], object] | None
) -> Iterator[Piece]:
    workloads = ctx.driver_of(job.spec.pool).workloads
    newest, offset = attempt, 0
    while True:
        chunk = workloads.log(workload_name(job.id, attempt), offset=offset, limit=PIECE_BYTES)
        if chunk.text:
            yield Piece(attempt, chunk.text)
        is_more = not chunk.at_end and chunk.next_offset != offset
        offset = chunk.next_offset
        if is_more:
            continue
        if until_more is None:
            return
        # The job was looked at before its log: what has ended by then has been read to its end.
        if not is_named and attempt < newest:
            attempt, offset = attempt + 1, 0
            continue
        if job.is_final or (is_named and attempt < job.attempt):
            return
        until_more()
        job, newest = _look(ctx, job.id)


def _look(ctx: Context, job_id: str) -> tuple[Job, int]:
    """The job, and its newest attempt that was given GPUs; the first where none was."""
    with ctx.store.read() as tx:
        leases = tx.leases.of_holder(HolderKind.JOB, job_id)
        return load(tx, job_id), max((lease.attempt for lease in leases), default=1)
