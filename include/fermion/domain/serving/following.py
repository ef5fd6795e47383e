"""Which versions of a model a service that follows it has yet to be given, in order. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fermion.domain.artifacts import ModelVersion
from fermion.domain.serving.services import Revision, Service

_FOLLOWS = "-follows-"


def followed(service: Service, revisions: Sequence[Revision]) -> Revision | None:
    """The revision whose request is made again with a new version: the newest one. None where nothing is followed."""
    if not service.follow or service.closing or not service.is_open or not revisions:
        return None
    return max(revisions, key=lambda each: each.number)


def due_versions(
    service: Service, revisions: Sequence[Revision], versions: Sequence[ModelVersion], *, upto: int | None = None
) -> tuple[ModelVersion, ...]:
    """The versions to deploy now, oldest first; ``upto`` is the newest that counts, None for all.

    Each once, and none after a newer one: those above all that the service was ever given. So a version whose announcement
    is late comes with the one after it. A request that named a version follows those that were published since.
    """
    model = followed(service, revisions)
    if model is None:
        return ()
    same = [each for each in revisions if each.spec.model == model.spec.model]
    newest = max(each.pins.model_version for each in same)
    first = min(_following(same), key=lambda each: each.number, default=model)
    since = first.created_at if first.spec.version is not None else None
    return tuple(
        each
        for each in sorted(versions, key=lambda each: each.number)
        if each.model == model.spec.model
        and each.number > newest
        and (upto is None or each.number <= upto)
        and (since is None or each.created_at > since)
    )


def _following(revisions: Sequence[Revision]) -> list[Revision]:
    """The newest revisions, back to the first of them whose request followed."""
    found: list[Revision] = []
    for each in sorted(revisions, key=lambda each: each.number, reverse=True):
        if not each.spec.follow:
            break
        found.append(each)
    return found


def follow_run(service_id: str, version: ModelVersion) -> str:
    """The id of the one run that gives this version to the service."""
    return f"{service_id}{_FOLLOWS}{version.model.replace('/', '~')}-{version.number}"


def is_follow_run(run_id: str) -> bool:
    """Whether ``follow_run`` made it."""
    return _FOLLOWS in run_id
