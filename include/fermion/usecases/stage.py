"""Join the line, and fetch image, data and code while no GPU is held."""

from __future__ import annotations

from fermion.domain.jobs import Job, Move, Phase, Pins
from fermion.domain.reasons import Explanation, Reason
from fermion.errors import Conflict, OutsideBroken
from fermion.usecases.context import Context
from fermion.usecases.moving import load, settle, stage_span, write_move


def enqueue(ctx: Context, job_id: str) -> Job:
    """Put a checked job into the line; it keeps that place while it is staged. In line already: answered as it is."""
    move = Move(to=Phase.STAGING, explanation=Explanation(Reason.STAGING, "Image, data and code are being fetched."))
    return settle(ctx, job_id, lambda tx, job: write_move(ctx, tx, job, move) if job.phase is Phase.SUBMITTED else job)


def pull_image(ctx: Context, job_id: str) -> str:
    """The location of the job's image, fetched."""
    job, pins = _pinned(ctx, job_id)
    with stage_span(ctx, job, "pull_image"):
        return ctx.driver_of(job.spec.pool).images.pull(job.spec.image, pins.image_digest)


def mount_dataset(ctx: Context, job_id: str) -> dict[str, str]:
    """Dataset name to the location of the pinned version, each staged and verified."""
    job, pins = _pinned(ctx, job_id)
    with stage_span(ctx, job, "mount_dataset"):
        return {name: stage_dataset(ctx, job, name, checksum) for name, checksum in pins.datasets.items()}


def stage_dataset(ctx: Context, job: Job, name: str, checksum: str) -> str:
    """The location of one pinned dataset version."""
    with ctx.store.read() as tx:
        versions = [version for version in tx.catalog.dataset_versions(name) if version.checksum == checksum]
    if not versions:
        raise OutsideBroken(f"job {job.id} pins dataset {name!r} at {checksum}, which is not recorded.", what=name)
    return ctx.driver_of(job.spec.pool).datasets.stage(versions[0])


def clone_repository(ctx: Context, job_id: str) -> str:
    """The location of the pinned commit's files."""
    job, pins = _pinned(ctx, job_id)
    with stage_span(ctx, job, "clone_repository"):
        return ctx.driver_of(job.spec.pool).code.checkout(job.spec.repository, pins.commit)


def _pinned(ctx: Context, job_id: str) -> tuple[Job, Pins]:
    with ctx.store.read() as tx:
        job = load(tx, job_id)
    if job.pins is None:
        raise Conflict(f"job {job_id} was not checked yet (phase {job.phase}).", what="job")
    return job, job.pins
