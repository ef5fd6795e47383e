"""What people ask of a service and of its rollout. Each is stored as a wish; whoever tends the service obeys it."""

from __future__ import annotations

from dataclasses import replace

from fermion.domain.problems import Problem
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.rollout.rollouts import Rollout, Wish, WishKind
from fermion.domain.rollout.steering import refusal, unpermitted
from fermion.domain.serving.limits import over_quota
from fermion.domain.serving.services import Revision, RevisionPhase, Service
from fermion.errors import Conflict, NotFound, NotPermitted, OutsideUnavailable, RequestRefused
from fermion.usecases.context import Context
from fermion.usecases.moving import PLATFORM
from fermion.usecases.serving.steer import rollout_id
from fermion.usecases.serving.writing import load_service, write_revision, write_service

TRIES = 20


def rollout_of(ctx: Context, name_or_id: str) -> Rollout:
    """The rollout of that id, else the newest one of that service.

    Raises:
        NotFound: there is none.
    """
    with ctx.store.read() as tx:
        found = tx.rollouts.get(name_or_id)
        if found is None:
            newest = tx.rollouts.of_service(load_service(tx, name_or_id).id, 1)
            found = newest[0] if newest else None
    if found is None:
        raise NotFound(f"service {name_or_id!r} had no rollout yet.", what="rollout")
    return found


def wish(ctx: Context, name_or_id: str, kind: WishKind, *, by: str, note: str = "") -> Rollout:
    """The rollout, with the wish stored.

    Raises:
        Conflict: it makes no sense in the rollout's phase.
        NotPermitted: it would pass a question that only others may answer.
    """
    rollout = rollout_of(ctx, name_or_id)
    if (why := refusal(rollout, kind)) is not None:
        raise Conflict(why, what=rollout.id)
    if (why := unpermitted(rollout, kind, by)) is not None:
        raise NotPermitted(why, what=rollout.id)
    with ctx.store.begin() as tx:
        tx.rollouts.put_wish(rollout.id, Wish(kind=kind, by=by, at=ctx.clock.now(), note=note))
    ctx.store.notify("services", rollout.service)
    return rollout


def abort_rollout(ctx: Context, revision: Revision, why: str) -> None:
    """Send the requests of a candidate back to stable, because the run that carries it has ended."""
    with ctx.store.begin() as tx:
        rollout = tx.rollouts.get(rollout_id(revision.id))
        if rollout is not None and not rollout.is_final:
            tx.rollouts.put_wish(rollout.id, Wish(kind=WishKind.ABORT, by=PLATFORM, at=ctx.clock.now(), note=why))


def scale(ctx: Context, name: str, replicas: int, *, by: str) -> Service:
    """The service, with so many replicas wanted.

    Raises:
        RequestRefused: out of its bounds, or more than its pool could hold.
    """
    for _ in range(TRIES):
        with ctx.store.begin() as tx:
            service = load_service(tx, name)
            stable = tx.services.revision(service.id, service.stable or 0)
            pool = ctx.pools(tx).get(service.pool)
            problems = _scale_problems(service, replicas)
            if stable is not None and pool is not None and not problems:
                problems = over_quota(
                    pool, replicas=replicas, gpus_per_replica=stable.spec.gpus_per_replica, team=service.team
                )
            if problems:
                raise RequestRefused(problems, what="scaling")
            message = f"{service.replicas} → {replicas} replicas"
            saved = write_service(ctx, tx, replace(service, replicas=replicas), "service.scaled", message, by)
        if saved is not None:
            ctx.store.notify("services", saved.id)
            return saved
    raise OutsideUnavailable(f"service {name} was changed by others {TRIES} times in a row; ask again.", what=name)


def _scale_problems(service: Service, replicas: int) -> list[Problem]:
    if replicas < 1:
        fix = "Ask for 1 or more; `fermion close` takes a service down."
        return [Problem(field="replicas", code="out_of_range", message=f"{replicas} is below 1.", fix=fix)]
    wish_ = service.autoscaling
    if wish_ is not None and not wish_.min_replicas <= replicas <= wish_.max_replicas:
        message = f"{replicas} is outside its autoscaling bounds {wish_.min_replicas} to {wish_.max_replicas}."
        return [Problem(field="replicas", code="out_of_bounds", message=message, fix="Change the bounds first.")]
    return []


def roll_back(ctx: Context, name: str, *, to: int | None, by: str) -> Service:
    """The service, sending all requests to an earlier revision that is still warm.

    Raises:
        Conflict: a rollout is under way, or that revision has no replicas any more.
    """
    for _ in range(TRIES):
        with ctx.store.begin() as tx:
            service = load_service(tx, name)
            if service.candidate is not None:
                raise Conflict(
                    f"service {name!r} is in a rollout; `fermion rollout abort {name}` ends it.", what="rollout"
                )
            warm = [each for each in tx.services.revisions(service.id) if each.phase is RevisionPhase.WARM]
            chosen = next((each for each in reversed(warm) if to is None or each.number == to), None)
            if chosen is None:
                kept = ", ".join(f"r{each.number}" for each in warm) or "none"
                raise Conflict(
                    f"service {name!r} has no warm revision{'' if to is None else f' {to}'} (warm: {kept});"
                    " deploy that model version again.",
                    what="revision",
                )
            why = Explanation(Reason.SERVING, f"{by} went back to {chosen.model_path}.")
            moved = write_revision(ctx, tx, replace(chosen, warm_until=None), RevisionPhase.SERVING, why, actor=by)
            old = tx.services.revision(service.id, service.stable or 0)
            if old is not None:
                gone = Explanation(Reason.ROLLED_BACK, f"{by} went back to {chosen.id}.")
                write_revision(ctx, tx, replace(old, wanted=0, failed=True), RevisionPhase.RETIRING, gone, actor=by)
            weights = {str(chosen.number): 100}
            changed = replace(service, stable=chosen.number, weights=weights)
            saved = moved and write_service(ctx, tx, changed, "service.rolled_back", why.message, by)
        if saved:
            ctx.store.notify("services", saved.id)
            return saved
    raise OutsideUnavailable(f"service {name} was changed by others {TRIES} times in a row; ask again.", what=name)


def close(ctx: Context, name: str, *, by: str) -> Service:
    """The service, taken down for good: all of its revisions retire.

    Raises:
        OutsideUnavailable: others changed it each time.
    """
    for _ in range(TRIES):
        with ctx.store.begin() as tx:
            service = load_service(tx, name)
            why = Explanation(Reason.SERVICE_CLOSED, f"{by} took {service.name} down.")
            retirable = (RevisionPhase.STAGING, RevisionPhase.STARTING, RevisionPhase.SERVING, RevisionPhase.WARM)
            for revision in tx.services.revisions(service.id):
                if revision.phase in retirable:
                    write_revision(ctx, tx, replace(revision, wanted=0), RevisionPhase.RETIRING, why, actor=by)
            changed = replace(service, stable=None, candidate=None, weights={}, closing=True)
            saved = write_service(ctx, tx, changed, "service.closing", why.message, by)
        if saved is not None:
            return saved
    raise OutsideUnavailable(f"service {name} was changed by others {TRIES} times in a row; ask again.", what=name)
