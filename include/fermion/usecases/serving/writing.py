"""Write what moved of a service, each with the event that tells of it. A lost race is None: the caller looks again."""

from __future__ import annotations

from dataclasses import replace

from fermion.domain.reasons import Explanation
from fermion.domain.records import Event
from fermion.domain.rollout.rollouts import Move, Rollout, apply
from fermion.domain.serving.services import (
    Replica,
    ReplicaPhase,
    Revision,
    RevisionPhase,
    Service,
    move_replica,
    move_revision,
)
from fermion.errors import NotFound
from fermion.ports import Transaction
from fermion.usecases.context import Context
from fermion.usecases.moving import PLATFORM


def load_service(tx: Transaction, name_or_id: str) -> Service:
    """The service of that id, or the open one of that name.

    Raises:
        NotFound: there is none.
    """
    service = tx.services.get(name_or_id) or tx.services.by_name(name_or_id)
    if service is None:
        raise NotFound(f"there is no service {name_or_id!r}; `fermion services` lists them.", what="service")
    return service


def load_revision(ctx: Context, service_id: str, number: int) -> Revision:
    """The revision as it is now.

    Raises:
        NotFound: there is none.
    """
    with ctx.store.read() as tx:
        revision = tx.services.revision(service_id, number)
    if revision is None:
        raise NotFound(f"service {service_id} has no revision {number}.", what="revision")
    return revision


def write_revision(
    ctx: Context, tx: Transaction, revision: Revision, to: RevisionPhase, why: Explanation, *, actor: str = PLATFORM
) -> Revision | None:
    """The revision in its next phase, as stored."""
    moved = tx.services.save_revision(move_revision(revision, to, why, ctx.clock.now()))
    if moved is not None:
        tell(ctx, tx, f"revision.{to}", revision.id, why, actor=actor, before=str(revision.phase))
    return moved


def write_replica(ctx: Context, tx: Transaction, row: Replica, to: ReplicaPhase, why: Explanation) -> Replica | None:
    """The replica's row in its next phase, as stored."""
    moved = tx.replicas.save(move_replica(row, to, why, ctx.clock.now()))
    if moved is not None:
        tell(ctx, tx, f"replica.{to}", row.name, why, before=str(row.phase))
    return moved


def write_rollout(ctx: Context, tx: Transaction, rollout: Rollout, move: Move) -> Rollout | None:
    """The rollout after the move, as stored."""
    moved = tx.rollouts.save(apply(rollout, move, ctx.clock.now()))
    if moved is not None:
        why = move.explanation
        tx.records.add_event(
            Event(
                actor=str(why.numbers.get("by", PLATFORM)),
                verb=f"rollout.{move.to}",
                target=rollout.id,
                at=moved.changed_at,
                message=why.message,
                data={"from": str(rollout.phase), "to": str(move.to), "reason": str(why.reason), "step": moved.step},
            )
        )
    return moved


def write_service(
    ctx: Context, tx: Transaction, service: Service, verb: str, message: str, actor: str
) -> Service | None:
    """The changed service as stored, told of by ``verb``."""
    saved = tx.services.save(replace(service, changed_at=ctx.clock.now()))
    if saved is not None:
        tx.records.add_event(Event(actor=actor, verb=verb, target=service.id, at=ctx.clock.now(), message=message))
    return saved


def tell(
    ctx: Context, tx: Transaction, verb: str, target: str, why: Explanation, *, before: str, actor: str = PLATFORM
) -> None:
    """The event of a move."""
    tx.records.add_event(
        Event(
            actor=actor,
            verb=verb,
            target=target,
            at=ctx.clock.now(),
            message=why.message,
            data={"from": before, "reason": str(why.reason)},
        )
    )
