"""Give a service that lost model servers others in their place, and end one that is taken down, now. By the sync's rounds alone
each step takes half a minute."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic, sleep

from fermion.domain.serving.replicas import ReplicaState
from fermion.domain.serving.services import Replica, ReplicaPhase
from fermion.usecases.context import Context
from fermion.usecases.serving.tend import ServiceTender

POLL_S = 0.2
COMING = frozenset({ReplicaState.SUSPENDED, ReplicaState.STARTING})


def mend(ctx: Context, *, patience: timedelta) -> None:
    """Tend all services as long as one that serves gets servers that it lacks, or one is being taken down; what takes longer
    is left to the next sync."""
    deadline = monotonic() + patience.total_seconds()
    if not is_mending(ctx):
        return
    tender = ServiceTender(ctx)
    while monotonic() < deadline and is_mending(ctx):
        tender.round()
        sleep(POLL_S)
    tender.round()  # what is ready by now gets its requests


def is_mending(ctx: Context) -> bool:
    """Whether a few more rounds bring a server that a stable revision lacks, or close a service. A server that waits for GPUs,
    or that fails and is tried again after a pause, is not brought by rounds."""
    with ctx.store.read() as tx:
        services = tx.services.find(is_open=True)
        if any(each.closing for each in services):
            return True
        stable = {(each.id, each.stable) for each in services}
        revisions = [each for each in tx.services.open_revisions() if (each.service_id, each.number) in stable]
        rows = tx.replicas.find(phases=frozenset({ReplicaPhase.WAITING, ReplicaPhase.HOLDING}))
    for revision in revisions:
        mine = [row for row in rows if row.revision == revision.id]
        if len(mine) < revision.wanted or any(_is_coming(ctx, row) for row in mine):
            return True
    return False


def _is_coming(ctx: Context, row: Replica) -> bool:
    if row.prepared_at is None:
        return True
    seen = ctx.driver_of(row.pool).replicas.look(row.name)
    return row.phase is ReplicaPhase.HOLDING and (seen.is_gone or seen.state in COMING)
