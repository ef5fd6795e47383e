"""Create the workload of a job's attempt, suspended: after this only its grant is missing."""

from __future__ import annotations

from fermion.domain.jobs import Job, Move, Phase
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.request import arguments_of
from fermion.domain.workloads import WorkloadSpec, workload_name
from fermion.errors import Conflict
from fermion.ports import Driver, Transaction
from fermion.usecases.context import Context
from fermion.usecases.moving import load, settle, stage_span, write_move
from fermion.usecases.stage import stage_dataset


def prepare(ctx: Context, job_id: str) -> Job:
    """A staged job with its workload suspended, waiting for GPUs. In any later phase: answered as it is."""
    with ctx.store.read() as tx:
        job = load(tx, job_id)
    if job.phase is not Phase.STAGING:
        return job
    driver = ctx.driver_of(job.spec.pool)
    with stage_span(ctx, job, "prepare"):
        driver.workloads.prepare(describe(ctx, driver, job))
    name = workload_name(job.id, job.attempt)

    def write(tx: Transaction, job: Job) -> Job | None:
        if job.phase is not Phase.STAGING or workload_name(job.id, job.attempt) != name:
            return job
        message = f"Everything is fetched; it waits for {job.spec.gpus} GPU{'s' if job.spec.gpus != 1 else ''} of {job.spec.pool}."
        reason = job.explanation.reason if job.attempt > 1 else Reason.WAITING_FOR_QUOTA
        move = Move(to=Phase.WAITING, explanation=Explanation(reason, message, job.explanation.numbers))
        return write_move(ctx, tx, job, move)

    job = settle(ctx, job_id, write)
    if job.is_final:
        driver.workloads.remove(name)  # it ended while its workload was being made: whoever ended it found none
    return job


def describe(ctx: Context, driver: Driver, job: Job) -> WorkloadSpec:
    """The workload of the job's present attempt; its pinned content is fetched again only where it is missing."""
    spec, pins = job.spec, job.pins
    if pins is None:
        raise Conflict(f"job {job.id} was not checked yet (phase {job.phase}).", what="job")
    policy = ctx.rules.policy(spec.pool)
    return WorkloadSpec(
        name=workload_name(job.id, job.attempt),
        job_id=job.id,
        attempt=job.attempt,
        image=driver.images.pull(spec.image, pins.image_digest),
        code=driver.code.checkout(spec.repository, pins.commit),
        entrypoint=spec.entrypoint,
        arguments=arguments_of(spec.hyperparameters),
        parameters=spec.hyperparameters,
        datasets={name: stage_dataset(ctx, job, name, checksum) for name, checksum in pins.datasets.items()},
        output=driver.space.output(job.id, job.attempt),
        checkpoints=driver.space.checkpoints(job.id),
        log=driver.space.log(job.id, job.attempt),
        nodes=spec.nodes,
        gpus_per_node=spec.gpus_per_node,
        memory_mib=spec.memory_mib or ctx.rules.memory_mib,
        resume_from=_resume_from(driver, job),
        environment={"FERMION_JOB_ID": job.id, "FERMION_ATTEMPT": str(job.attempt)},
        stop_grace=policy.stop_grace,
    )


def _resume_from(driver: Driver, job: Job) -> str | None:
    """Its own checkpoint first (a later attempt), then the one it was asked to start from."""
    if driver.space.has_checkpoint(job.id):
        return driver.space.checkpoints(job.id)
    return driver.space.checkpoints(job.spec.checkpoint) if job.spec.checkpoint else None
