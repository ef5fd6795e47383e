"""Let go of a revision whose run has ended: what never came to serve gives its GPUs back; what serves is left alone."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic, sleep

from fermion.domain.leases import HolderKind
from fermion.domain.serving.services import REVISION_FINAL, Revision
from fermion.errors import OutsideUnavailable
from fermion.usecases.context import Context
from fermion.usecases.serving.giving_up import has_traffic, is_settled, let_go
from fermion.usecases.serving.tend import ServiceTender
from fermion.usecases.serving.wishes import abort_rollout
from fermion.usecases.serving.writing import load_revision


def release(
    ctx: Context, service_id: str, number: int, *, why: str, patience: timedelta = timedelta(seconds=60)
) -> Revision:
    """The revision, settled: serving alone, or with no replica alive and no lease held. Repeating it changes nothing.

    Raises:
        OutsideUnavailable: it is not within ``patience``; whoever tends the service goes on.
    """
    tender, deadline = ServiceTender(ctx), monotonic() + patience.total_seconds()
    revision = load_revision(ctx, service_id, number)
    if not is_settled(ctx, revision) and has_traffic(ctx, revision):
        abort_rollout(ctx, revision, why)
    while True:
        revision = let_go(ctx, service_id, number, why)
        if is_settled(ctx, revision) and (revision.phase not in REVISION_FINAL or not _holds(ctx, revision)):
            return revision
        if monotonic() > deadline:
            raise OutsideUnavailable(
                f"revision {revision.id} is still {revision.phase} after {patience.total_seconds():.0f} s; its GPUs stay"
                " leased until its replicas are seen gone.",
                what=revision.id,
            )
        tender.round()
        sleep(0.1)


def _holds(ctx: Context, revision: Revision) -> bool:
    with ctx.store.read() as tx:
        return bool(tx.leases.of_holder(HolderKind.SERVICE, revision.id, live_only=True))
