"""Training jobs in memory. Keeps ``ports.Jobs``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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
        """Insert; False when the run has an open job."""
        jobs = self._draft.write("jobs")
        if job.run is not None and not job.is_final and self._open_jobs(job.run):
            return False
        if job.id in jobs:
            raise Conflict(f"job {job.id} exists already; ask for a new id", what="job")
        jobs[job.id] = _stored(job)
        self._carry(job, before=None)
        return True

    def get(self, job_id: str) -> Job | None:
        """By id."""
        return self._draft.see("jobs").get(job_id)

    def by_run(self, dag_id: str, run_id: str) -> Job | None:
        """The newest of the run that carries it."""
        carried = self._draft.see("runs").get((dag_id, run_id), ())
        return self.get(carried[-1]) if carried else None

    def save(self, job: Job) -> Job | None:
        """Guarded by the version."""
        jobs = self._draft.write("jobs")
        stored: Job | None = jobs.get(job.id)
        if stored is None or stored.version != job.version:
            return None
        if job.run is not None and not job.is_final and set(self._open_jobs(job.run)) - {job.id}:
            raise Conflict(f"run {job.run} carries another job that has not ended; {job.id} cannot have it", what="job")
        saved = _stored(replace(job, version=job.version + 1))
        jobs[job.id] = saved
        if stored.run != saved.run:
            self._carry(saved, before=stored.run)
        return saved

    def save_all(self, jobs: Sequence[Job]) -> Mapping[str, Job]:
        """One after the other."""
        saved = (self.save(job) for job in jobs)
        return {job.id: job for job in saved if job is not None}

    def get_all(
        self, ids: Collection[str], *, pools: Collection[str] | None = None, phases: Collection[Phase] | None = None
    ) -> Sequence[Job]:
        """By id; the only writer need not keep others away."""
        jobs = self._draft.see("jobs")
        found = [jobs[job_id] for job_id in sorted(ids) if job_id in jobs]
        return [
            job
            for job in found
            if (pools is None or job.spec.pool in pools) and (phases is None or job.phase in phases)
        ]

    def hold(self, jobs: Collection[Job]) -> Sequence[Job]:
        """By id; the only writer need not keep others away."""
        stored = self._draft.see("jobs")
        same = [job for job in jobs if job.id in stored and stored[job.id].version == job.version]
        return sorted(same, key=lambda job: job.id)

    def pools(self, phases: Collection[Phase]) -> frozenset[str]:
        """Of all jobs in these phases."""
        return frozenset(job.spec.pool for job in self._draft.see("jobs").values() if job.phase in phases)

    def _open_jobs(self, run: tuple[str, str]) -> list[str]:
        jobs = self._draft.see("jobs")
        return [each for each in self._draft.see("runs").get(run, ()) if not jobs[each].is_final]

    def _carry(self, job: Job, *, before: tuple[str, str] | None) -> None:
        """Note the job's run, in place of the one it had before."""
        runs = self._draft.write("runs")
        if before is not None:
            runs[before] = tuple(each for each in runs[before] if each != job.id)
        if job.run is not None:
            runs[job.run] = (*runs.get(job.run, ()), job.id)

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
