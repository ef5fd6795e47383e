"""Look at a workload so that *gone* means that nothing of it lives: only then its GPUs are free."""

from __future__ import annotations

from fermion.domain.records import Event
from fermion.domain.workloads import Seen, WorkloadState
from fermion.ports import Workloads
from fermion.usecases.context import Context
from fermion.usecases.moving import PLATFORM

GONE = frozenset({WorkloadState.EXITED, WorkloadState.LOST, WorkloadState.ABSENT})

ORPHAN_ENDED = "a process of ours with no runner; it was ended."


def look(ctx: Context, workloads: Workloads, name: str) -> Seen:
    """What is true of it now. Where it is lost and left processes behind, those are ended first, each with an event."""
    seen = workloads.look(name)
    if seen.state is not WorkloadState.LOST or not seen.orphans:
        return seen
    orphans = workloads.orphans()
    workloads.end_orphans()
    with ctx.store.begin() as tx:
        for orphan in orphans:
            tx.records.add_event(
                Event(
                    actor=PLATFORM,
                    verb="reconcile.orphan",
                    target=orphan,
                    at=ctx.clock.now(),
                    message=ORPHAN_ENDED,
                )
            )
    return workloads.look(name)


def is_gone(seen: Seen) -> bool:
    """Whether nothing of it lives any more."""
    return seen.state in GONE and not seen.orphans
