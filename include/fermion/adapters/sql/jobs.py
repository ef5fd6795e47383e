"""Training jobs in the database. Keeps ``ports.Jobs``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, select, text, tuple_, update

from fermion.adapters.sql.bulk import among, update_all
from fermion.adapters.sql.codec import changed_fields, job_changes, job_of, job_values
from fermion.adapters.sql.counters import next_value
from fermion.adapters.sql.link import Link
from fermion.adapters.sql.tables import jobs
from fermion.domain.jobs import Job, Phase
from fermion.errors import Conflict, NotFound

_BY_ID = select(jobs).where(jobs.c.id == bindparam("job_id"))
_BY_RUN = (
    select(jobs)
    .where(jobs.c.dag_id == bindparam("dag"), jobs.c.run_id == bindparam("run"))
    .order_by(jobs.c.seq.desc())
    .limit(1)
)
# From one pool to the next by the index, however many jobs are in each.
_POOLS = text("""
    WITH RECURSIVE found(pool) AS (
        SELECT min(pool) FROM jobs WHERE phase = :phase
        UNION ALL
        SELECT (SELECT min(jobs.pool) FROM jobs WHERE jobs.phase = :phase AND jobs.pool > found.pool)
        FROM found WHERE found.pool IS NOT NULL
    )
    SELECT pool FROM found WHERE pool IS NOT NULL
""")
_SAVE = update(jobs).where(jobs.c.id == bindparam("job_id"), jobs.c.version == bindparam("expected"))


@cache
def _versions(dialect: str) -> Select[tuple[str, int]]:
    query = select(jobs.c.id, jobs.c.version).where(among(dialect, jobs.c.id, "ids"))
    return query.order_by(jobs.c.id).with_for_update()


@cache
def _by_ids(dialect: str, narrowed_by: tuple[str, ...]) -> Select[tuple[Any, ...]]:
    """The ids alone decide what is read; as plain columns these others would lure Postgres into reading the whole line."""
    query = select(jobs).where(among(dialect, jobs.c.id, "ids")).order_by(jobs.c.id).with_for_update()
    return query.where(*(among(dialect, jobs.c[name].concat(""), name) for name in narrowed_by))


class SqlJobs:
    """Jobs, guarded by their version."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._locked: dict[str, int] = {}
        self._read: dict[str, Job] = {}

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
        self._read.pop(job.id, None)
        return saved if written else None

    def save_all(self, changed: Sequence[Job]) -> Mapping[str, Job]:
        """One statement, of the columns that changed, for all whose rows this transaction has locked by reading them; others
        are locked first."""
        unlocked = [job.id for job in changed if job.id not in self._locked]
        self._lock(unlocked)
        saved = {
            job.id: replace(job, version=job.version + 1) for job in changed if self._locked.get(job.id) == job.version
        }
        fields = self._changed(saved)
        update_all(self._link, jobs, [job_changes(job, fields) for job in saved.values()])
        self._locked |= {job.id: job.version for job in saved.values()}
        self._read |= saved
        return saved

    def _changed(self, saved: Mapping[str, Job]) -> list[str] | None:
        """The fields in which one of them differs from what was read, in order; None when one was not read."""
        if not saved.keys() <= self._read.keys():
            return None
        return sorted(set[str]().union(*(changed_fields(self._read[job_id], job) for job_id, job in saved.items())))

    def get_all(
        self, ids: Collection[str], *, pools: Collection[str] | None = None, phases: Collection[Phase] | None = None
    ) -> Sequence[Job]:
        """One statement for all; their rows are locked."""
        if not ids:
            return ()
        narrowed = {"pool": pools, "phase": phases}
        wanted = {name: sorted(map(str, values)) for name, values in narrowed.items() if values is not None}
        query = _by_ids(self._link.dialect, tuple(wanted))
        found = [job_of(row) for row in self._link.rows(query, {"ids": sorted(ids), **wanted})]
        self._locked |= {job.id: job.version for job in found}
        self._read |= {job.id: job for job in found}
        return found

    def hold(self, jobs: Collection[Job]) -> Sequence[Job]:
        """One statement, which reads nothing of them but their versions; the rows are locked."""
        stored = self._lock([job.id for job in jobs])
        same = sorted((job for job in jobs if stored.get(job.id) == job.version), key=lambda job: job.id)
        self._read |= {job.id: job for job in same}
        return same

    def _lock(self, ids: Sequence[str]) -> dict[str, int]:
        """Lock the rows; their versions."""
        if not ids:
            return {}
        found = self._link.rows(_versions(self._link.dialect), {"ids": list(ids)})
        stored = {row.id: row.version for row in found}
        self._locked |= stored
        return stored

    def pools(self, phases: Collection[Phase]) -> frozenset[str]:
        """One statement for each phase."""
        return frozenset(row[0] for phase in phases for row in self._link.rows(_POOLS, {"phase": str(phase)}))

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
