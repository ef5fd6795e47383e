"""Fetch what a revision needs while it holds no GPU, and make its replicas' workloads, suspended."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from fermion.domain.artifacts import FileEntry
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.serving import engines
from fermion.domain.serving.replicas import ReplicaSpec
from fermion.domain.serving.services import Replica, Revision, RevisionPhase
from fermion.errors import FermionError, OutsideBroken
from fermion.ports import Driver
from fermion.usecases.context import Context
from fermion.usecases.serving.giving_up import let_go
from fermion.usecases.serving.writing import load_revision, write_revision

MAKING = Explanation(Reason.STAGING, "Its workload is being made.")


class Locations(NamedTuple):
    """What a revision's servers run from; ``model_files`` as they were published."""

    image: str
    model: str
    code: str
    model_files: tuple[FileEntry, ...]


def stage(ctx: Context, service_id: str, number: int) -> Revision:
    """The revision with everything fetched and verified, ready for replicas. In any later phase: answered as it is.

    Raises:
        OutsideBroken: its model's files are not what was published. The revision ends with that as its reason.
        OutsideUnavailable: something did not answer; the same call may succeed later.
    """
    revision = load_revision(ctx, service_id, number)
    if revision.phase is not RevisionPhase.STAGING:
        return revision
    try:
        locations_of(ctx, ctx.driver_of(revision.spec.pool), revision)
    except FermionError as error:
        if not error.retryable:
            let_go(ctx, service_id, number, error.message, reason=Reason.STAGING_FAILED)
        raise
    why = Explanation(Reason.REVISION_STARTING, "Image, model and code are there; its replicas come next.")
    while revision.phase is RevisionPhase.STAGING:
        with ctx.store.begin() as tx:
            moved = write_revision(ctx, tx, revision, RevisionPhase.STARTING, why)
        revision = moved or load_revision(ctx, service_id, number)
    return revision


def locations_of(ctx: Context, driver: Driver, revision: Revision) -> Locations:
    """Where its image, model and code lie on the cluster; fetched where they are missing, put right where they changed.

    Raises:
        OutsideBroken: the model version is gone, or is not what was pinned.
    """
    spec, pins = revision.spec, revision.pins
    version = ctx.models.get(spec.model, pins.model_version)
    if version is None or version.checksum != pins.model_checksum:
        found = "is not in the repository any more" if version is None else f"has checksum {version.checksum} now"
        raise OutsideBroken(
            f"model {revision.model_path} was pinned as {pins.model_checksum} and {found};"
            " restore it from a backup, or deploy another version.",
            what=revision.model_path,
        )
    image = driver.images.pull(spec.image, pins.image_digest)
    model = driver.models.stage(version)
    code = driver.code.checkout(spec.repository, pins.commit) if spec.repository and pins.commit else model
    return Locations(image, model, code, version.files)


def describe(ctx: Context, driver: Driver, revision: Revision, row: Replica) -> ReplicaSpec:
    """The workload of one replica."""
    spec = revision.spec
    there = locations_of(ctx, driver, revision)
    return ReplicaSpec(
        name=row.name,
        revision=revision.id,
        service=spec.name,
        image=there.image,
        code=there.code,
        model=there.model,
        model_files=there.model_files,
        model_name=spec.name,
        model_version=revision.pins.model_version,
        argv=engines.argv_of(spec),
        log=driver.replicas.log_location(row.name),
        ports=engines.ports_of(spec),
        probes=engines.probes_of(spec),
        environment={
            **engines.environment_of(spec, driver.kind),
            "FERMION_SERVICE_ID": row.service_id,
            "FERMION_REVISION": revision.id,
            "FERMION_REPLICA": row.name,
        },
        gpus=spec.gpus_per_replica,
        memory_mib=spec.memory_mib or ctx.rules.memory_mib,
        cpus=spec.cpus,
    )


def prepare(ctx: Context, driver: Driver, revision: Revision, row: Replica) -> Replica | None:
    """The replica's row once its workload waits, suspended; None for a lost race."""
    driver.replicas.prepare(describe(ctx, driver, revision, row))
    if row.prepared_at is not None:
        return row
    with ctx.store.begin() as tx:
        prepared = replace(row, explanation=MAKING, prepared_at=ctx.clock.now())
        return tx.replicas.save(prepared)
