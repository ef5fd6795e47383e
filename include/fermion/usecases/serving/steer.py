"""Steer one service: which revision is tried next, what its rollout does, and what weights and replicas follow from that."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from fermion.domain.reasons import Explanation, Reason
from fermion.domain.rollout import steering
from fermion.domain.rollout.looks import Look, Outcome
from fermion.domain.rollout.plan import Share
from fermion.domain.rollout.reasons import Explanation as RolloutExplanation
from fermion.domain.rollout.reasons import Reason as RolloutReason
from fermion.domain.rollout.rollouts import Phase, Rollout
from fermion.domain.serving.goals import Goal, goal_of
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaState
from fermion.domain.serving.routing import copies_of
from fermion.domain.serving.services import (
    Replica,
    ReplicaPhase,
    Revision,
    RevisionPhase,
    Service,
    WhenBusy,
)
from fermion.domain.serving.verdicts import failed_before, told
from fermion.errors import FermionError
from fermion.ports import Driver, Transaction
from fermion.usecases.context import Context
from fermion.usecases.moving import PLATFORM
from fermion.usecases.serving.looking import Looker
from fermion.usecases.serving.routes import share_of
from fermion.usecases.serving.writing import write_revision, write_rollout, write_service

log = logging.getLogger(__name__)

DEAD_AFTER = 4
"""A replica that was started so often and ends again is dead: it does not come back by itself."""

IDLE_FOR = timedelta(seconds=1)
"""A candidate without weight whose counters stand still for so long, and has nothing on its way, gets no requests."""


def rollout_id(revision: str) -> str:
    """The id of the one rollout that a revision ever has."""
    return f"ro-{revision}"


@dataclass(frozen=True, slots=True)
class Steered:
    """The service and its revisions as they are after it."""

    service: Service
    revisions: Mapping[str, Revision]


@dataclass(slots=True)
class Scene:
    """All that one service's steering is decided from."""

    driver: Driver
    service: Service
    revisions: list[Revision]
    rows: Sequence[Replica]
    seen: Mapping[str, ReplicaSeen]
    rollout: Rollout | None = None

    def revision(self, number: int | None) -> Revision | None:
        """One of them."""
        return next((each for each in self.revisions if each.number == number), None)

    def states(self, number: int | None) -> list[ReplicaSeen]:
        """What was seen of the replicas of a revision that hold GPUs and are not leaving."""
        revision = self.revision(number)
        return [
            self.seen[row.name]
            for row in self.rows
            if revision is not None
            and row.revision == revision.id
            and row.phase is ReplicaPhase.HOLDING
            and row.name in self.seen
        ]

    def ready(self) -> dict[int, int]:
        """Ready replicas by revision number."""
        return {
            each.number: sum(seen.state is ReplicaState.READY for seen in self.states(each.number))
            for each in self.revisions
        }

    def in_line(self) -> dict[int, int]:
        """Replicas without GPUs by revision number."""
        waiting = Counter(row.revision for row in self.rows if row.phase is ReplicaPhase.WAITING)
        return {each.number: waiting[each.id] for each in self.revisions}


@dataclass(slots=True)
class Steering:
    """One caller's steering. What it keeps is only since when something is as it is; begun anew, it waits a little longer."""

    ctx: Context
    unready_since: dict[str, datetime] = field(default_factory=dict)
    still_since: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    looker: Looker = field(init=False)

    def __post_init__(self) -> None:
        self.looker = Looker(self.ctx)

    def steer(
        self,
        driver: Driver,
        service: Service,
        revisions: Sequence[Revision],
        rows: Sequence[Replica],
        seen: Mapping[str, ReplicaSeen],
    ) -> Steered:
        """One step of everything that is due."""
        scene = Scene(driver, service, list(revisions), rows, seen)
        if service.candidate is None and not service.closing:
            self._choose(scene)
        candidate = scene.revision(scene.service.candidate)
        scene.rollout = self._rollout_of(candidate) if candidate is not None else None
        if scene.rollout is not None and scene.rollout.is_final:
            self._follow(scene, scene.rollout)  # whoever ended it did not come to do so
        elif scene.rollout is not None:
            self._steer_rollout(scene, scene.rollout)
        elif scene.service.candidate is not None:
            self._steer_first(scene)
        self._retire_warm(scene)
        self._write_goal(
            scene,
            goal_of(scene.service, scene.revisions, scene.rollout, ready=scene.ready(), in_line=scene.in_line()),
        )
        return Steered(scene.service, {each.id: each for each in scene.revisions})

    # --- who is next ------------------------------------------------------------------------------------------------

    def _rollout_of(self, candidate: Revision) -> Rollout | None:
        with self.ctx.store.read() as tx:
            return tx.rollouts.get(rollout_id(candidate.id))

    def _choose(self, scene: Scene) -> None:
        """The oldest revision that is staged and was not tried becomes the candidate, with a rollout if something serves."""
        ready = [
            each
            for each in scene.revisions
            if each.phase is RevisionPhase.STARTING and each.number != scene.service.stable
        ]
        if not ready:
            return
        chosen = min(ready, key=lambda each: each.number)
        failed = self._failed_meanwhile(scene, chosen)
        if failed is not None:
            self._retire(scene, chosen, Explanation(Reason.FAILED_BEFORE, f"It is not tried: {told(failed)}"))
            return
        now = self.ctx.clock.now()
        with self.ctx.store.begin() as tx:
            message = f"Revision {chosen.id} ({chosen.model_path}) is next."
            saved = write_service(
                self.ctx, tx, replace(scene.service, candidate=chosen.number), "service.candidate", message, PLATFORM
            )
            if saved is None:
                return
            stable = scene.revision(scene.service.stable)
            if stable is not None:
                tx.rollouts.add(_rollout(scene.service, chosen, stable, now))
        scene.service = saved

    def _failed_meanwhile(self, scene: Scene, chosen: Revision) -> Revision | None:
        """The revision that failed with the same thing while this one waited for its turn."""
        if chosen.spec.retry_failed:
            return None
        with self.ctx.store.read() as tx:
            others = [each for each in tx.services.revisions(scene.service.id) if each.number < chosen.number]
        return failed_before(chosen.spec, chosen.pins, others, stable=scene.service.stable)

    # --- the first revision -----------------------------------------------------------------------------------------

    def _steer_first(self, scene: Scene) -> None:
        """Nothing serves yet, so nothing can be compared with: it serves once all replicas are ready and its outputs checked."""
        candidate = scene.revision(scene.service.candidate)
        if candidate is None or candidate.phase is RevisionPhase.RETIRING:
            self._drop_candidate(scene, candidate)
            return
        dead = _dead(scene.states(candidate.number))
        waited = self.ctx.clock.now() - candidate.changed_at
        if dead is not None:
            self._fail_first(scene, candidate, dead)
            return
        is_ready = scene.ready()[candidate.number] >= scene.service.replicas
        checked = (
            self.looker.check_alone(scene.service, candidate, scene.states(candidate.number)) if is_ready else None
        )
        if checked is not None and checked.outcome is Outcome.FAIL:
            self._fail_first(scene, candidate, checked.sentence)
        elif is_ready and (checked is None or checked.outcome is Outcome.PASS):
            self._serve_first(scene, candidate)
        elif waited > candidate.spec.ready_timeout and not scene.in_line()[candidate.number]:
            limit = candidate.spec.ready_timeout.total_seconds()
            what = "Not all of its replicas were ready" if checked is None else "Its outputs could not be checked"
            last = "" if checked is None else f" {checked.sentence}"
            self._fail_first(scene, candidate, f"{what} within {limit:.0f} s.{last}")

    def _serve_first(self, scene: Scene, candidate: Revision) -> None:
        why = Explanation(Reason.SERVING, f"{candidate.model_path} serves all requests of {scene.service.name}.")
        with self.ctx.store.begin() as tx:
            moved = write_revision(self.ctx, tx, candidate, RevisionPhase.SERVING, why)
            service = replace(scene.service, stable=candidate.number, candidate=None)
            saved = moved and write_service(self.ctx, tx, service, "service.serving", why.message, PLATFORM)
        if moved and saved:
            self._take(scene, saved, moved)

    def _fail_first(self, scene: Scene, candidate: Revision, why: str) -> None:
        self._retire(scene, candidate, Explanation(Reason.ROLLED_BACK, why), failed=True)
        self._drop_candidate(scene, candidate)

    def _drop_candidate(self, scene: Scene, candidate: Revision | None) -> None:
        name = candidate.id if candidate else f"revision {scene.service.candidate}"
        with self.ctx.store.begin() as tx:
            service = replace(scene.service, candidate=None)
            saved = write_service(
                self.ctx, tx, service, "service.candidate_dropped", f"{name} does not serve.", PLATFORM
            )
        scene.service = saved or scene.service

    # --- a rollout --------------------------------------------------------------------------------------------------

    def _steer_rollout(self, scene: Scene, rollout: Rollout) -> None:
        """Look if a look is due, decide, and carry the ends out; in between the goal follows from the phase."""
        goal = goal_of(scene.service, scene.revisions, rollout, ready=scene.ready(), in_line=scene.in_line())
        canary = scene.states(scene.service.candidate)
        look = self.looker.look(scene.driver, scene.service, rollout, canary, is_ready=goal.enough_ready)
        now = self.ctx.clock.now()
        move = steering.decide(rollout, self._seen(scene, rollout, look, goal), now)
        if move is None:
            return
        with self.ctx.store.begin() as tx:
            moved = write_rollout(self.ctx, tx, rollout, move)
            if moved is None:
                return
            log.info("rollout %s: %s (%s)", rollout.id, move.explanation.message, moved.phase)
        scene.rollout = moved
        self._follow(scene, moved)

    def _follow(self, scene: Scene, rollout: Rollout) -> None:
        """What a phase means for the revisions and the service."""
        candidate = scene.revision(scene.service.candidate)
        if candidate is None:
            return
        if rollout.has_had_traffic and candidate.phase is RevisionPhase.STARTING:
            why = Explanation(Reason.SERVING, rollout.explanation.message)
            with self.ctx.store.begin() as tx:
                moved = write_revision(self.ctx, tx, candidate, RevisionPhase.SERVING, why)
            if moved is not None:
                candidate = self._put(scene, moved)
        if rollout.phase is Phase.PROMOTED:
            self._promote(scene, candidate, rollout)
        elif rollout.phase in (Phase.ROLLED_BACK, Phase.ABORTED):
            is_fault = rollout.explanation.reason not in (RolloutReason.SUPERSEDED, RolloutReason.ABORTED_BY_HAND)
            why = Explanation(Reason.ROLLED_BACK, rollout.explanation.message)
            self._retire(scene, candidate, why, failed=is_fault)
            self._drop_candidate(scene, candidate)

    def _promote(self, scene: Scene, candidate: Revision, rollout: Rollout) -> None:
        old = scene.revision(scene.service.stable)
        with self.ctx.store.begin() as tx:
            service = replace(scene.service, stable=candidate.number, candidate=None)
            saved = write_service(self.ctx, tx, service, "service.promoted", rollout.explanation.message, PLATFORM)
            moved = saved and old and self._replace(tx, old, candidate)
        scene.service = saved or scene.service
        if moved:
            self._put(scene, moved)

    def _replace(self, tx: Transaction, old: Revision, new: Revision) -> Revision | None:
        """The revision that served: kept warm for a while, or retired at once."""
        why = Explanation(Reason.REPLACED, f"{new.id} serves in its place.")
        keep = new.spec.keep_warm
        if keep <= timedelta(0) or old.phase is not RevisionPhase.SERVING:
            return write_revision(self.ctx, tx, replace(old, wanted=0), RevisionPhase.RETIRING, why)
        until = self.ctx.clock.now() + keep
        return write_revision(self.ctx, tx, replace(old, warm_until=until), RevisionPhase.WARM, why)

    def _seen(self, scene: Scene, rollout: Rollout, look: Look | None, goal: Goal) -> steering.Seen:
        now = self.ctx.clock.now()
        if goal.enough_ready:
            self.unready_since.pop(rollout.id, None)
        else:
            self.unready_since.setdefault(rollout.id, now)
        candidate = scene.revision(scene.service.candidate)
        share = self._share(scene, rollout)
        with self.ctx.store.read() as tx:
            wish, approval = tx.rollouts.wish(rollout.id), tx.rollouts.approval(rollout.id)
        return steering.Seen(
            canary_ready=goal.enough_ready,
            unready_since=self.unready_since.get(rollout.id),
            canary_dead=_gone_reason(candidate) or _dead(scene.states(scene.service.candidate)),
            canary_idle=share is not None and share.is_nothing and self._is_still(scene, rollout, now),
            stable_alive=scene.ready().get(scene.service.stable or 0, 0) > 0,
            share=share,
            look=look,
            wish=wish,
            approval=approval,
            superseded_by=_superseder(scene.revisions, scene.service.candidate),
        )

    def _share(self, scene: Scene, rollout: Rollout) -> Share | None:
        """What the candidate gets by the router's own word."""
        try:
            applied = scene.driver.router.applied()
        except FermionError as error:
            log.warning("the router could not be read back: %s", error)
            return None
        spread = applied.get(scene.service.name)
        return None if spread is None else share_of(spread, rollout.canary)

    def _is_still(self, scene: Scene, rollout: Rollout, now: datetime) -> bool:
        """Whether the candidate was seen to get no request and no copy for a while, and has none on its way."""
        try:
            counters = scene.driver.router.counters([rollout.canary, copies_of(rollout.canary)]).values()
        except FermionError:
            return False
        if not counters:
            return True
        requests = sum(each.requests for each in counters)
        count, since = self.still_since.get(rollout.id, (-1, now))
        if requests != count or any(each.active for each in counters):
            self.still_since[rollout.id] = (requests, now)
            return False
        return now - since >= IDLE_FOR

    # --- ends and goals ---------------------------------------------------------------------------------------------

    def _retire(self, scene: Scene, revision: Revision, why: Explanation, *, failed: bool = False) -> None:
        if revision.phase is RevisionPhase.RETIRING:
            return
        with self.ctx.store.begin() as tx:
            changed = replace(revision, wanted=0, failed=failed)
            moved = write_revision(self.ctx, tx, changed, RevisionPhase.RETIRING, why)
        if moved is not None:
            self._put(scene, moved)

    def _retire_warm(self, scene: Scene) -> None:
        now = self.ctx.clock.now()
        for revision in scene.revisions:
            if revision.phase is RevisionPhase.WARM and (revision.warm_until or now) <= now:
                self._retire(scene, revision, Explanation(Reason.REPLACED, "Its time to be kept warm is over."))

    def _write_goal(self, scene: Scene, goal: Goal) -> None:
        """Store the wished weights, split, copies and numbers of replicas where they changed."""
        before = scene.service
        service = replace(before, weights=dict(goal.weights), split=goal.split, mirror_percent=goal.mirror_percent)
        if service != replace(before, weights=dict(before.weights)):
            with self.ctx.store.begin() as tx:
                told = ", ".join(f"revision {number}: {weight} %" for number, weight in goal.weights.items()) or "none"
                other = Share(split=goal.split, mirror_percent=goal.mirror_percent)
                told += "" if other.is_nothing else f"; revision {before.candidate}: {other.way}, {other}"
                saved = write_service(self.ctx, tx, service, "service.weights", told, PLATFORM)
            scene.service = saved or scene.service
        for revision in list(scene.revisions):
            count = goal.replicas.get(revision.number, 0)
            if revision.wanted == count:
                continue
            with self.ctx.store.begin() as tx:
                saved_revision = tx.services.save_revision(replace(revision, wanted=count))
            if saved_revision is not None:
                self._put(scene, saved_revision)

    def _take(self, scene: Scene, service: Service, revision: Revision) -> None:
        scene.service = service
        self._put(scene, revision)

    @staticmethod
    def _put(scene: Scene, revision: Revision) -> Revision:
        scene.revisions = [revision if each.id == revision.id else each for each in scene.revisions]
        return revision


def _rollout(service: Service, chosen: Revision, stable: Revision, now: datetime) -> Rollout:
    why = RolloutExplanation(RolloutReason.CREATED, f"{chosen.model_path} is to replace {stable.model_path}.")
    return Rollout(
        id=rollout_id(chosen.id),
        service=service.id,
        canary=chosen.id,
        stable=stable.id,
        plan=chosen.spec.plan,
        phase=Phase.WAITING,
        explanation=why,
        created_at=now,
        changed_at=now,
    )


def _dead(states: Sequence[ReplicaSeen]) -> str | None:
    """Why a replica does not come back by itself, or None."""
    for seen in states:
        if seen.state is ReplicaState.BACKING_OFF and seen.starts >= DEAD_AFTER:
            last = seen.last_exit
            how = f"{last.cause}{f' with code {last.code}' if last.code is not None else ''}" if last else "unknown"
            detail = f" ({last.detail})" if last and last.detail else ""
            return f"replica {seen.name} was started {seen.starts} times and ends again: {how}{detail}"
    return None


def _gone_reason(candidate: Revision | None) -> str | None:
    """Why the candidate cannot serve whatever its replicas do: somebody let go of it."""
    if candidate is None or candidate.phase in (RevisionPhase.RETIRING, RevisionPhase.RETIRED, RevisionPhase.FAILED):
        return "its revision was given up" if candidate is None else candidate.explanation.message
    return None


def _superseder(revisions: Sequence[Revision], candidate: int | None) -> str | None:
    """The newer revision that is to take the candidate's place, if one asked for that."""
    newer = [
        each
        for each in revisions
        if candidate is not None
        and each.number > candidate
        and each.phase in (RevisionPhase.STAGING, RevisionPhase.STARTING)
        and each.spec.when_busy is WhenBusy.SUPERSEDE
    ]
    return newer[-1].id if newer else None
