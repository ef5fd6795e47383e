"""Training jobs in the database. Keeps ``ports.Jobs``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime

from sqlalchemy import Select, bindparam, select, tuple_, update

from fermion.adapters.sql.codec import job_of, job_values
from fermion.adapters.sql.counters import next_value
from fermion.adapters.sql.link import Link
from fermion.adapters.sql.tables import jobs
from fermion.domain.jobs import HOLDING, Job, Phase
from fermion.errors import Conflict, NotFound

_BY_ID = select(jobs).where(jobs.c.id == bindparam("job_id"))
_BY_RUN = (
    select(jobs)
    .where(jobs.c.dag_id == bindparam("dag"), jobs.c.run_id == bindparam("run"))
    .order_by(jobs.c.seq.desc())
    .limit(1)
)
_BY_IDS = select(jobs).where(jobs.c.id.in_(bindparam("ids", expanding=True))).order_by(jobs.c.id)
_BY_IDS = _BY_IDS.with_for_update()
_VERSIONS = select(jobs.c.id, jobs.c.version).where(jobs.c.id.in_(bindparam("ids", expanding=True)))
_VERSIONS = _VERSIONS.order_by(jobs.c.id).with_for_update()
_POOLS = select(jobs.c.pool).distinct().where(jobs.c.phase.in_(bindparam("phases", expanding=True)))
_PREEMPTED = select(jobs.c.id, jobs.c.preempted_for).where(
    jobs.c.phase.in_(sorted(map(str, HOLDING))), jobs.c.preempted_for.is_not(None)
)
_SAVE = update(jobs).where(jobs.c.id == bindparam("job_id"), jobs.c.version == bindparam("expected"))


_FIXED = ("id", "dag_id", "run_id", "pool", "owner", "spec", "pins", "submitted_at", "restart_of")
"""Columns that `save_all` leaves alone."""


class SqlJobs:
    """Jobs, guarded by their version."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._locked: dict[str, int] = {}

    def new_id(self, day: date) -> str:
        """Counted within the transaction: a rollback takes the number back, so that no number is left out."""
        number = next_value(self._link, f"job-{day:%Y%m%d}")
        return f"job-{day:%Y%m%d}-{number:03d}"

    def add(self, job: Job) -> bool:
        """Insert; False when the run has an open job.

        Raises:
            Conflict: another job has this id.
        """
        if self._link.write(self._link.insert(jobs).on_conflict_do_nothing(), job_values(job)):
            return True
        if job.run is not None and (carried := self.by_run(*job.run)) is not None and not carried.is_final:
            return False
        raise Conflict(f"job {job.id} exists already; ask for a new id", what="job")

    def get(self, job_id: str) -> Job | None:
        """By id."""
        row = self._link.row(_BY_ID, {"job_id": job_id})
        return None if row is None else job_of(row)

    def by_run(self, dag_id: str, run_id: str) -> Job | None:
        """The newest of the run that carries it."""
        row = self._link.row(_BY_RUN, {"dag": dag_id, "run": run_id})
        return None if row is None else job_of(row)

    def save(self, job: Job) -> Job | None:
        """One guarded UPDATE.

        Raises:
            Conflict: the job was given a run that another open job has; the transaction cannot go on.
        """
        saved = replace(job, version=job.version + 1)
        values = job_values(saved)
        del values["id"]
        try:
            written = self._link.write(_SAVE, {**values, "job_id": job.id, "expected": job.version})
        except Conflict as error:
            message = f"run {job.run} carries another job that has not ended; {job.id} cannot have it"
            raise Conflict(message, what="job") from error
        self._locked.pop(job.id, None)
        return saved if written else None

    def save_all(self, changed: Sequence[Job]) -> Mapping[str, Job]:
        """One statement for all whose rows this transaction has locked by reading them; others are locked first."""
        unlocked = [job.id for job in changed if job.id not in self._locked]
        if unlocked:
            self._locked |= {row.id: row.version for row in self._link.rows(_VERSIONS, {"ids": unlocked})}
        saved = {
            job.id: replace(job, version=job.version + 1) for job in changed if self._locked.get(job.id) == job.version
        }
        rows = [{**job_values(job), "job_id": job.id, "expected": job.version - 1} for job in saved.values()]
        for row in rows:
            for name in _FIXED:
                del row[name]
        if rows:
            self._link.write(_SAVE, rows)
            self._locked |= {job.id: job.version for job in saved.values()}
        return saved

    def get_all(
        self, ids: Collection[str], *, pools: Collection[str] | None = None, phases: Collection[Phase] | None = None
    ) -> Sequence[Job]:
        """One statement for all; their rows are locked."""
        if not ids:
            return ()
        query = _BY_IDS
        if pools is not None:
            query = query.where(jobs.c.pool.in_(sorted(pools)))
        if phases is not None:
            query = query.where(jobs.c.phase.in_(sorted(map(str, phases))))
        found = [job_of(row) for row in self._link.rows(query, {"ids": sorted(ids)})]
        self._locked |= {job.id: job.version for job in found}
        return found

    def pools(self, phases: Collection[Phase]) -> frozenset[str]:
        """Out of an index."""
        return frozenset(row[0] for row in self._link.rows(_POOLS, {"phases": sorted(map(str, phases))}))

    def preempted(self) -> Mapping[str, str]:
        """Out of the few that hold GPUs."""
        return {row[0]: row[1] for row in self._link.rows(_PREEMPTED)}

    def find(
        self,
        *,
        phases: Collection[Phase] | None = None,
        pool: str | None = None,
        owner: str | None = None,
        changed_since: datetime | None = None,
        before: str | None = None,
        limit: int | None = None,
    ) -> Sequence[Job]:
        """Newest first.

        Raises:
            NotFound: ``before`` is no job.
        """
        query = select(jobs).order_by(jobs.c.submitted_at.desc(), jobs.c.seq.desc()).limit(limit)
        if phases is not None:
            query = query.where(jobs.c.phase.in_(sorted(map(str, phases))))
        if pool is not None:
            query = query.where(jobs.c.pool == pool)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if changed_since is not None:
            query = query.where(jobs.c.changed_at >= changed_since)
        if before is not None:
            query = self._below(query, before)
        return [job_of(row) for row in self._link.rows(query)]

    def _below(self, query: Select[tuple[object, ...]], before: str) -> Select[tuple[object, ...]]:
        last = self._link.row(select(jobs.c.submitted_at, jobs.c.seq).where(jobs.c.id == before))
        if last is None:
            raise NotFound(f"job {before!r} does not exist; a page can only follow a job that does", what="job")
        return query.where(tuple_(jobs.c.submitted_at, jobs.c.seq) < (last.submitted_at, last.seq))
