"""Verify a submitted job against what exists, and pin what its names mean; all problems at once, before the queue."""

from __future__ import annotations

from dataclasses import replace

from fermion.domain.counting import counted
from fermion.domain.jobs import Job, Move, Phase, Pins
from fermion.domain.problems import Problem, lines_of
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.request import Reading
from fermion.errors import RequestRefused
from fermion.ports import Transaction
from fermion.usecases.context import Context
from fermion.usecases.examine import Findings, examine
from fermion.usecases.moving import load, settle, stage_span, write_move


def check(ctx: Context, job_id: str, answered: Findings | None = None) -> Job:
    """The job with its pins, ready to join the line. Checked before: answered as it is.

    ``answered`` is what looking its request up has just answered, before there was a job whose time it could be; without it,
    it is looked up now, as a stage of the job.

    Raises:
        RequestRefused: it can never run as asked; the job has failed with ``check_refused`` and all problems.
        OutsideUnavailable: a git server or store did not answer; the same call may succeed later.
    """
    with ctx.store.read() as tx:
        job = load(tx, job_id)
    if job.phase is not Phase.SUBMITTED or job.pins is not None:
        return _again(job)
    if answered is None:
        with stage_span(ctx, job, "check_quota"):
            answered = examine(ctx, Reading.of(job.spec))
    found = answered

    def write(tx: Transaction, job: Job) -> Job | None:
        if job.phase is not Phase.SUBMITTED or job.pins is not None:
            return job
        return write_move(ctx, tx, job, _refusal(found.problems)) if found.problems else _pin(tx, job, found)

    return _again(settle(ctx, job_id, write))


def _again(job: Job) -> Job:
    if job.phase is Phase.FAILED and job.explanation.reason is Reason.CHECK_REFUSED:
        raise RequestRefused(problems_of(job), what=f"request of {job.id}")
    return job


def problems_of(job: Job) -> list[Problem]:
    """The problems that a refused job was refused with; empty for any other job."""
    listed = job.explanation.numbers.get("problems")
    return [Problem(**entry) for entry in listed] if isinstance(listed, list) else []


def _pin(tx: Transaction, job: Job, found: Findings) -> Job | None:
    for version in found.datasets.values():
        tx.catalog.put_dataset_version(version)
    pins = Pins(
        image_digest=found.image_digest,
        commit=found.commit,
        datasets={name: version.checksum for name, version in found.datasets.items()},
    )
    return tx.jobs.save(replace(job, pins=pins))


def _refusal(problems: list[Problem]) -> Move:
    message = "\n- ".join([f"The request has {counted(len(problems), 'problem')}:", *lines_of(problems)])
    return Move(
        to=Phase.FAILED,
        explanation=Explanation(
            Reason.CHECK_REFUSED, message, {"problems": [problem.to_payload() for problem in problems]}
        ),
    )
