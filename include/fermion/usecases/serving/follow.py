"""Give new model versions to the services that follow the model: one deployment for each version, in order, each once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from fermion.domain.artifacts import ModelVersion
from fermion.domain.problems import lines_of
from fermion.domain.records import Decision, Event
from fermion.domain.serving.following import due_versions, follow_run, followed, is_follow_run
from fermion.domain.serving.request import request_of
from fermion.domain.serving.services import SERVICE_DAG, Revision, RevisionPhase, Service
from fermion.domain.serving.verdicts import FAILED_BEFORE
from fermion.errors import Conflict, RequestRefused
from fermion.ports import Runs
from fermion.usecases.context import Context
from fermion.usecases.moving import PLATFORM
from fermion.usecases.serving.submit import submit

KIND = "follow"
RULE_VERSION = "follow/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What became of one version for one service: its revision, or why there is none."""

    service: str
    path: str
    revision: str | None = None
    refused: str | None = None


def release_versions(ctx: Context, runs: Runs, announced: Collection[str] | None = None) -> list[Release]:
    """What is deployed now by the services that follow a model. Repeating it starts nothing twice.

    ``announced`` are the paths (``<model>/<number>``) that were published; None: whatever is there and was not deployed.

    Raises:
        OutsideUnavailable: the engine or the models do not answer; the same call goes on where it stopped.
    """
    with ctx.store.read() as tx:
        services = [each for each in tx.services.find(is_open=True) if each.follow]
    found: list[Release] = []
    for service in sorted(services, key=lambda each: each.id):
        found += _release(ctx, runs, service, announced)
    return found


def _release(ctx: Context, runs: Runs, service: Service, announced: Collection[str] | None) -> list[Release]:
    with ctx.store.read() as tx:
        revisions = tx.services.revisions(service.id)
    base = followed(service, revisions)
    upto = None if base is None or announced is None else newest_of(announced, base.spec.model)
    if base is None or (announced is not None and upto is None):
        return []
    _start_again(runs, revisions)
    due = due_versions(service, revisions, ctx.models.versions(base.spec.model), upto=upto)
    found = [_deploy(ctx, runs, service, base, each) for each in due]
    # What is refused is told by the run of its own version, and kept.
    return [each for each in found if each.refused is None or announced is None or each.path in announced]


def newest_of(announced: Collection[str], model: str) -> int | None:
    """The highest number among the paths that are of the model; None where there is none."""
    parts = (path.rpartition("/") for path in announced)
    return max((int(tail) for head, _, tail in parts if head == model and tail.isdecimal()), default=None)


def _start_again(runs: Runs, revisions: Collection[Revision]) -> None:
    """Runs of revisions that were made here before and whose run may never have been started."""
    for each in revisions:
        if each.phase is RevisionPhase.STAGING and each.run is not None and is_follow_run(each.run[1]):
            runs.trigger(each.run[0], each.run[1], request_of(each.spec))


def _deploy(ctx: Context, runs: Runs, service: Service, base: Revision, version: ModelVersion) -> Release:
    # Whoever wanted it tried again said so of another version.
    asked = request_of(replace(base.spec, version=version.number, retry_failed=False))
    run_id = follow_run(service.id, version)
    try:
        made = submit(ctx, asked, run_id=run_id, actor=service.owner)
    except RequestRefused as refused:
        failed = any(each.code == FAILED_BEFORE for each in refused.problems)
        reason = FAILED_BEFORE if failed else "request_refused"
        return _refuse(ctx, service, version, reason, "\n".join(lines_of(refused.problems)))
    except Conflict:  # somebody else does the same just now
        return Release(service=service.name, path=version.path)
    with ctx.store.begin() as tx:
        message = f"{version.path} was published; {made.id} is to serve it."
        tx.records.add_event(
            Event(actor=PLATFORM, verb="service.followed", target=service.id, at=ctx.clock.now(), message=message)
        )
    runs.trigger(SERVICE_DAG, run_id, asked)
    return Release(service=service.name, path=version.path, revision=made.id)


def _refuse(ctx: Context, service: Service, version: ModelVersion, reason: str, why: str) -> Release:
    """Kept once for each version of each service."""
    name = f"{KIND}-{follow_run(service.id, version)}"
    with ctx.store.begin(exclusive=name) as tx:
        if name not in {each.id for each in tx.records.decisions(subject=service.id, kind=KIND)}:
            tx.records.add_decision(
                Decision(
                    id=name,
                    kind=KIND,
                    subject=service.id,
                    verdict="refused",
                    reason=reason,
                    message=why,
                    rule_version=RULE_VERSION,
                    decided_at=ctx.clock.now(),
                    inputs={"model_path": version.path, "checksum": version.checksum},
                )
            )
    return Release(service=service.name, path=version.path, refused=why)
