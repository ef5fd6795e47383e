"""Verify a submitted job against what exists, and pin what its names mean; all problems at once, before the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from fermion.domain.artifacts import DatasetVersion
from fermion.domain.entrypoints import script_of
from fermion.domain.jobs import Job, JobSpec, Move, Phase, Pins
from fermion.domain.limits import never_fits
from fermion.domain.problems import Problem
from fermion.domain.reasons import Explanation, Reason
from fermion.errors import NotFound, RequestRefused
from fermion.ports import Driver, Transaction
from fermion.usecases.context import Context
from fermion.usecases.moving import load, settle, stage_span, write_move

T = TypeVar("T")


@dataclass(slots=True)
class _Findings:
    """What the checks gather while they run."""

    problems: list[Problem] = field(default_factory=list)
    image_digest: str = ""
    commit: str = ""
    datasets: dict[str, DatasetVersion] = field(default_factory=dict)


def check(ctx: Context, job_id: str) -> Job:
    """The job with its pins, ready to join the line. Checked before: answered as it is.

    Raises:
        RequestRefused: it can never run as asked; the job has failed with ``check_refused`` and all problems.
        OutsideUnavailable: a git server or store did not answer; the same call may succeed later.
    """
    with ctx.store.read() as tx:
        job = load(tx, job_id)
    if job.phase is not Phase.SUBMITTED or job.pins is not None:
        return _again(job)
    with stage_span(ctx, job, "check_quota"):
        found = _examine(ctx, job.spec)

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


def _examine(ctx: Context, spec: JobSpec) -> _Findings:
    found = _Findings()
    try:
        driver = ctx.driver_of(spec.pool)
    except NotFound:
        driver = None
    _check_pool(ctx, spec, driver, found)
    if driver is not None:
        _check_image(driver, spec, found)
        _check_code(driver, spec, found)
        _check_checkpoint(ctx, driver, spec, found)
    _check_datasets(ctx, spec, found)
    return found


def _check_pool(ctx: Context, spec: JobSpec, driver: Driver | None, found: _Findings) -> None:
    fresh = tuple(driver.nodes.list_nodes()) if driver is not None else ()
    with ctx.store.begin() as tx:
        if driver is not None and fresh:
            tx.catalog.put_nodes(fresh[0].cluster, fresh)
        pools = ctx.pools(tx)
    pool = pools.get(spec.pool)
    if pool is None:
        found.problems.append(
            _problem("pool", "unknown_pool", f"there is no pool {spec.pool!r}.", f"Choose one of: {_listed(pools)}.")
        )
        return
    found.problems.extend(never_fits(spec, pool, cohort=pools.values()))


def _check_image(driver: Driver, spec: JobSpec, found: _Findings) -> None:
    known = {image.id: image for image in driver.images.known()}
    image = known.get(spec.image)
    if image is None:
        found.problems.append(
            _problem(
                "image",
                "unknown_image",
                f"there is no image {spec.image!r} on this cluster.",
                f"Choose one of: {_listed(known)}.",
            )
        )
    else:
        found.image_digest = image.digest


def _check_code(driver: Driver, spec: JobSpec, found: _Findings) -> None:
    commit = _gather(found, lambda: driver.code.resolve(spec.repository, spec.ref))
    if commit is None:
        return
    found.commit = commit
    script = script_of(spec.entrypoint)
    if script is not None and not driver.code.has_file(spec.repository, commit, script):
        found.problems.append(
            _problem(
                "entrypoint",
                "entrypoint_missing",
                f"commit {commit[:12]} of {spec.repository} has no file {script!r}.",
                "Name a file of the repository, relative to its root.",
            )
        )


def _check_datasets(ctx: Context, spec: JobSpec, found: _Findings) -> None:
    for name in spec.datasets:
        uri = ctx.rules.datasets.get(name)
        if uri is None:
            found.problems.append(
                _problem(
                    "datasets",
                    "unknown_dataset",
                    f"there is no dataset {name!r}.",
                    f"Choose from: {_listed(ctx.rules.datasets)}.",
                )
            )
            continue
        version = _gather(found, partial(ctx.dataset_source.scan, name, uri, now=ctx.clock.now()))
        if version is not None:
            found.datasets[name] = version


def _check_checkpoint(ctx: Context, driver: Driver, spec: JobSpec, found: _Findings) -> None:
    if spec.checkpoint is None:
        return
    with ctx.store.read() as tx:
        other = tx.jobs.get(spec.checkpoint)
    if other is None or not driver.space.has_checkpoint(spec.checkpoint):
        found.problems.append(
            _problem(
                "checkpoint",
                "no_checkpoint",
                f"job {spec.checkpoint!r} left no checkpoint on this cluster.",
                "Name a job that wrote one, or leave the field empty to start from scratch.",
            )
        )


def _gather(found: _Findings, call: Callable[[], T]) -> T | None:
    """The call's answer; problems it refuses with join the others, everything else passes through."""
    try:
        return call()
    except RequestRefused as refused:
        found.problems.extend(refused.problems)
        return None


def _pin(tx: Transaction, job: Job, found: _Findings) -> Job | None:
    for version in found.datasets.values():
        tx.catalog.put_dataset_version(version)
    pins = Pins(
        image_digest=found.image_digest,
        commit=found.commit,
        datasets={name: version.checksum for name, version in found.datasets.items()},
    )
    return tx.jobs.save(replace(job, pins=pins))


def _refusal(problems: list[Problem]) -> Move:
    count = len(problems)
    message = f"The request has {count} problem{'s' if count != 1 else ''}: " + " | ".join(
        str(problem) for problem in problems
    )
    return Move(
        to=Phase.FAILED,
        explanation=Explanation(
            Reason.CHECK_REFUSED, message, {"problems": [problem.to_payload() for problem in problems]}
        ),
    )


def _problem(field_name: str, code: str, message: str, fix: str) -> Problem:
    return Problem(field=field_name, code=code, message=message, fix=fix)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none is known yet"
