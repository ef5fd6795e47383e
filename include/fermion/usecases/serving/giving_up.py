"""Give up a revision that its run will not bring to serve: it is written that it is to end; what serves is left alone."""

from __future__ import annotations

from dataclasses import replace

from fermion.domain.reasons import Explanation, Reason
from fermion.domain.rollout.rollouts import Phase
from fermion.domain.serving.services import REVISION_FINAL, Revision, RevisionPhase
from fermion.errors import OutsideUnavailable
from fermion.usecases.context import Context
from fermion.usecases.serving.steer import rollout_id
from fermion.usecases.serving.writing import load_revision, write_revision

TRIES = 20


def is_settled(ctx: Context, revision: Revision) -> bool:
    """Whether the revision is what its run wanted: it serves alone, or served and was replaced since, or holds nothing."""
    with ctx.store.read() as tx:
        service = tx.services.get(revision.service_id)
    if revision.phase in REVISION_FINAL or service is None:
        return True
    return revision.phase in (RevisionPhase.SERVING, RevisionPhase.WARM) and service.candidate != revision.number


def let_go(ctx: Context, service_id: str, number: int, why: str, *, reason: Reason = Reason.RUN_ENDED) -> Revision:
    """The revision after it was written that it is to end; one that serves, served, or has ended, as it is.

    A candidate that gets requests loses them first: its rollout sees that it was given up, and goes back to stable. One that
    goes back already is left to its rollout too, which knows whether it failed.
    """
    for _ in range(TRIES):
        revision = load_revision(ctx, service_id, number)
        if is_settled(ctx, revision) or revision.phase is RevisionPhase.RETIRING or _is_led_back(ctx, revision):
            return revision
        told = Explanation(reason, why)
        to = RevisionPhase.RETIRING
        with ctx.store.begin() as tx:
            moved = write_revision(ctx, tx, replace(revision, wanted=0), to, told)
        if moved is not None:
            return moved
    raise OutsideUnavailable(f"revision {service_id} r{number} was changed by others {TRIES} times; ask again.")


def _is_led_back(ctx: Context, revision: Revision) -> bool:
    """Whether only its rollout may take it down: it gets requests, or goes back."""
    with ctx.store.read() as tx:
        rollout = tx.rollouts.get(rollout_id(revision.id))
    return has_traffic(ctx, revision) or (rollout is not None and rollout.phase is Phase.ROLLING_BACK)


def has_traffic(ctx: Context, revision: Revision) -> bool:
    """Whether it gets requests now."""
    with ctx.store.read() as tx:
        service = tx.services.get(revision.service_id)
    return service is not None and service.weights.get(str(revision.number), 0) > 0
