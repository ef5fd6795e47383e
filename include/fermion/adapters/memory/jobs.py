"""Training jobs in memory. Keeps ``ports.Jobs``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime
from itertools import islice

from fermion.adapters.memory.jsonlike import as_json
from fermion.adapters.memory.tables import Draft
from fermion.adapters.wording import clean
from fermion.domain.jobs import Job, Phase
from fermion.errors import Conflict, NotFound


class MemoryJobs:
    """Jobs, guarded by their version."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def new_id(self, day: date) -> str:
        """Counted within the transaction."""
        number = self._draft.next(f"job-{day:%Y%m%d}")
        return f"job-{day:%Y%m%d}-{number:03d}"

    def add(self, job: Job) -> bool:
        """Insert; False when the run has a job."""
        runs = self._draft.write("runs")
        if job.run is not None and job.run in runs:
            return False
        jobs = self._draft.write("jobs")
        if job.id in jobs:
            raise Conflict(f"job {job.id} exists already; ask for a new id", what="job")
        jobs[job.id] = _stored(job)
        if job.run is not None:
            runs[job.run] = job.id
        return True

    def get(self, job_id: str) -> Job | None:
        """By id."""
        return self._draft.see("jobs").get(job_id)

    def by_run(self, dag_id: str, run_id: str) -> Job | None:
        """By the run that carries it."""
        job_id = self._draft.see("runs").get((dag_id, run_id))
        return None if job_id is None else self.get(job_id)

    def save(self, job: Job) -> Job | None:
        """Guarded by the version."""
        jobs, runs = self._draft.write("jobs"), self._draft.write("runs")
        if job.run is not None and runs.get(job.run, job.id) != job.id:
            raise Conflict(
                f"run {job.run[1]!r} of {job.run[0]!r} carries job {runs[job.run]}; job {job.id} cannot have it",
                what="job",
            )
        stored: Job | None = jobs.get(job.id)
        if stored is None or stored.version != job.version:
            return None
        saved = _stored(replace(job, version=job.version + 1))
        jobs[job.id] = saved
        if stored.run is not None:
            del runs[stored.run]
        if saved.run is not None:
            runs[saved.run] = saved.id
        return saved

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
        """Newest first."""
        found = (
            job
            for job in self._newest_first(before)
            if (phases is None or job.phase in phases)
            and (pool is None or job.spec.pool == pool)
            and (owner is None or job.spec.owner == owner)
            and (changed_since is None or job.changed_at >= changed_since)
        )
        return list(islice(found, limit))

    def _newest_first(self, before: str | None) -> Iterator[Job]:
        jobs = self._draft.see("jobs")
        if before is not None and before not in jobs:
            raise NotFound(f"job {before!r} does not exist; a page can only follow a job that does", what="job")
        # Sorting keeps the order of equal ones, so of two submitted at one instant the later insert comes first.
        ordered = iter(sorted(list(jobs.values())[::-1], key=lambda job: job.submitted_at, reverse=True))
        if before is not None:
            next(job for job in ordered if job.id == before)
        return ordered


def _stored(job: Job) -> Job:
    told = job.explanation
    explanation = replace(told, message=clean(told.message), numbers=as_json(told.numbers))
    return replace(job, explanation=explanation)
