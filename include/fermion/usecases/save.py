"""Publish the model of a training that ended well. No GPU is held any more."""

from __future__ import annotations

from collections.abc import Sequence

from fermion.domain.artifacts import ModelDraft, ModelVersion
from fermion.domain.counting import counted
from fermion.domain.jobs import Job, Move, Phase
from fermion.domain.leases import HolderKind, Lease
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Event, MetricPoint
from fermion.domain.workloads import workload_name
from fermion.errors import Conflict, NotFound, RequestRefused
from fermion.ports import Transaction
from fermion.usecases.context import Context
from fermion.usecases.moving import PLATFORM, load, settle, stage_span, write_move


def save_model(ctx: Context, job_id: str) -> ModelVersion:
    """The published version, and the job completed. Published before: the same version.

    Raises:
        Conflict: the job is not at the point where a model can be saved, or was ended while its model was published.
        RequestRefused: the training wrote no file, or a link that leads out of its output; the job has failed.
        OutsideUnavailable: the model repository does not answer; the same call may succeed later.
    """
    with ctx.store.read() as tx:
        job = load(tx, job_id)
        leases = tx.leases.of_holder(HolderKind.JOB, job_id)
        points = tx.records.points(job_id, kind="training")
    if job.phase is Phase.COMPLETED and job.model_version is not None:
        return _published(ctx, job)
    if job.phase is not Phase.SAVING:
        raise Conflict(
            f"job {job_id} is {job.phase} ({job.explanation.message}); only a saving job has a model to publish."
        )
    space = ctx.driver_of(job.spec.pool).space
    draft = ModelDraft(
        model=job.spec.output_model,
        metrics=last_metrics(points, job.attempt),
        lineage=lineage_of(job, leases),
        created_at=ctx.clock.now(),
    )
    with stage_span(ctx, job, "save_model"):
        folder = space.fetch_output(space.output(job.id, job.attempt))
        try:
            version = ctx.models.publish(draft, folder, key=workload_name(job.id, job.attempt))
        except RequestRefused as refused:
            _fail(ctx, job, Reason.NO_MODEL, str(refused))
            raise
    _complete(ctx, job, version)
    return version


def _published(ctx: Context, job: Job) -> ModelVersion:
    version = ctx.models.get(job.spec.output_model, job.model_version or 0)
    if version is None:
        raise NotFound(
            f"job {job.id} published {job.output_model_path}, which is not in the repository any more.", what="model"
        )
    return version


def _complete(ctx: Context, job: Job, version: ModelVersion) -> None:
    message = f"Published {version.path}, {counted(len(version.files), 'file')}, {counted(version.size_bytes, 'byte')}, {version.checksum}."
    move = Move(
        to=Phase.COMPLETED,
        explanation=Explanation(Reason.MODEL_PUBLISHED, message, {"path": version.path, "checksum": version.checksum}),
        model_version=version.number,
    )

    def write(tx: Transaction, job: Job) -> Job | None:
        if job.phase is not Phase.SAVING:
            return job
        moved = write_move(ctx, tx, job, move)
        if moved is not None:
            tx.records.add_event(
                Event(
                    actor=PLATFORM, verb="model.published", target=version.path, at=ctx.clock.now(),
                    message=message, data={"job": job.id, "checksum": version.checksum},
                )
            )  # fmt: skip
        return moved

    after = settle(ctx, job.id, write)
    if after.model_version != version.number:
        raise Conflict(
            f"{version.path} was published, but job {job.id} had ended meanwhile ({after.explanation.message}).",
            what="job",
        )


def _fail(ctx: Context, job: Job, reason: Reason, message: str) -> None:
    move = Move(to=Phase.FAILED, explanation=Explanation(reason, message))
    settle(ctx, job.id, lambda tx, now: write_move(ctx, tx, now, move) if now.phase is Phase.SAVING else now)


def last_metrics(points: Sequence[MetricPoint], attempt: int) -> dict[str, float]:
    """The last value of each training metric, the latest attempt's before earlier ones'."""
    latest: dict[str, tuple[int, int, float]] = {}
    for point in points:
        rank = (point.attempt, point.number, point.value)
        if point.attempt <= attempt and (point.name not in latest or rank[:2] >= latest[point.name][:2]):
            latest[point.name] = rank
    return {name: rank[2] for name, rank in sorted(latest.items())}


def lineage_of(job: Job, leases: Sequence[Lease]) -> dict[str, object]:
    """run → leases → image digest → commit → dataset checksums → parameters, JSON-ready."""
    pins = job.pins
    return {
        "job": job.id,
        "run": {"dag_id": job.run[0], "run_id": job.run[1]} if job.run else None,
        "leases": [
            {"id": lease.id, "token": lease.token, "gpus": lease.gpus, "attempt": lease.attempt} for lease in leases
        ],
        "pool": job.spec.pool,
        "image": {"id": job.spec.image, "digest": pins.image_digest if pins else None},
        "code": {"repository": job.spec.repository, "ref": job.spec.ref, "commit": pins.commit if pins else None},
        "datasets": dict(pins.datasets) if pins else {},
        "entrypoint": list(job.spec.entrypoint),
        "hyperparameters": dict(job.spec.hyperparameters),
        "resumed_from": job.spec.checkpoint,
        "owner": job.spec.owner,
    }
