"""What was decided before about the same thing: what failed in a service is not tried in it again by itself. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fermion.domain.problems import Problem
from fermion.domain.reasons import Reason
from fermion.domain.serving.services import Revision, ServicePins, ServiceSpec

FAILED_BEFORE = "failed_before"
"""The code of the problem, and the reason of what is kept of it."""


def is_same(spec: ServiceSpec, pins: ServicePins, other: Revision) -> bool:
    """Whether the other revision's replicas are made of the same files, image and commit, and started the same way.

    The model's number and the names of branch and image do not matter, what they meant does; nor does how many replicas
    there are or by which plan they are tried.
    """
    return _made_of(spec, pins) == _made_of(other.spec, other.pins)


def _made_of(spec: ServiceSpec, pins: ServicePins) -> tuple[object, ...]:
    started = (spec.engine, spec.command, spec.api_type, dict(spec.environment), spec.probes)
    given = (spec.gpus_per_replica, spec.memory_mib, spec.cpus)
    return (pins.model_checksum, pins.image_digest, pins.commit, started, given)


def failed_before(
    spec: ServiceSpec, pins: ServicePins, revisions: Sequence[Revision], *, stable: int | None = None
) -> Revision | None:
    """The revision that failed with the same thing; None where it never did, or came to serve since.

    ``revisions`` are the service's others, ``stable`` the number of the one that serves. The newest verdict counts, so that a
    person who had it tried again, and was right, need not say so again.
    """
    judged = [
        each
        for each in revisions
        if (each.failed or each.number == stable or each.explanation.reason is Reason.REPLACED)
        and is_same(spec, pins, each)
    ]
    newest = max(judged, key=lambda each: each.number, default=None)
    return newest if newest is not None and newest.failed else None


def told(failed: Revision) -> str:
    """What failed, when and why, in a sentence."""
    run = f" (run {failed.run[1]})" if failed.run is not None and failed.run[1] != failed.id else ""
    return (
        f"the same files, image and server failed as {failed.id}{run}, deployed {failed.created_at:%Y-%m-%d %H:%M} UTC:"
        f" {failed.explanation.message}"
    )


def refusal(failed: Revision) -> Problem:
    """Why the same thing is not deployed again by itself, and how a person has it tried all the same."""
    return Problem(
        field="model",
        code=FAILED_BEFORE,
        message=told(failed),
        fix="Deploy another version or a mended server; or try this one again with `retry_failed: true` in the request"
        " (`fermion deploy --retry-failed`).",
    )
