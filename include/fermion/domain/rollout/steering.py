"""Which move a rollout is due, given what was seen of the world. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fermion.domain.rollout.looks import Look, Outcome, has_passed, missing
from fermion.domain.rollout.plan import FULL, OnApprovalTimeout, OnUndecided, Share, Way
from fermion.domain.rollout.reasons import Explanation, Reason
from fermion.domain.rollout.rollouts import FINAL, Approval, Move, Phase, Rollout, Wish, WishKind

WEIGHT_TOLERANCE: Final = 0.01
"""How far a weight that was read back may be from the wanted one, in percent of all traffic: rounding, nothing else."""

FRESH_LOOKS: Final = 2
"""A look older than so many intervals says nothing about now, so no step is passed by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the world showed. ``look`` is the newest one of this rollout, ``wish`` the newest one of a person.

    ``canary_ready``: all its replicas are, else ``unready_since`` tells from when on not. ``canary_dead`` says what killed
    it, where it does not come back by itself. ``share`` is what it gets by the router's own word, None where that could not
    be read. ``canary_idle``: it was seen to get no requests and no copies any more. ``superseded_by`` is a newer revision.
    """

    canary_ready: bool = False
    unready_since: datetime | None = None
    canary_dead: str | None = None
    canary_idle: bool = False
    stable_alive: bool = True
    share: Share | None = None
    look: Look | None = None
    wish: Wish | None = None
    approval: Approval | None = None
    superseded_by: str | None = None


def decide(rollout: Rollout, seen: Seen, now: datetime) -> Move | None:
    """The move that is due, or None. The first rule that matches wins.

    1. Ended: nothing. 2. Rolling back: ended once stable has all the weight and the canary no traffic.
    In every other phase: 3. a person aborts; 4. a newer revision comes, unless it is being promoted; 5. the canary is dead,
    or has traffic and was not ready for too long; 6. a look has failed: back, or paused where no stable replica lives.
    7. Promoting: done once read back, back to stable when not in time.
    8. A person promotes, once the replicas are ready. 9. A person pauses.
    Waiting: 10. ready, and the output checks have passed: the first step; 11. not in time.
    Shifting: 12. the weight, split and copies are read back; 13. they are not, in time.
    Warming, baking, awaiting approval: 14. the router has others: order them again.
    Warming: 15. warm. Baking: 16. the step has passed; 17. it is undecided for too long.
    Awaiting approval: 18. rejected; 19. approved, and the last look could measure; 20. nobody answered in time.
    Paused: 21. a person resumes: the step begins anew.
    """
    if rollout.phase in FINAL:
        return None
    if rollout.phase is Phase.ROLLING_BACK:
        return _decide_rolling_back(rollout, seen)
    back = _decide_back(rollout, seen, now)
    if back is not None:
        return back
    if rollout.phase is Phase.PROMOTING:
        return _decide_promoting(rollout, seen, now)
    return _decide_wish(rollout, seen) or _BY_PHASE[rollout.phase](rollout, seen, now)


def unpermitted(rollout: Rollout, kind: WishKind, by: str) -> str | None:
    """Why that user may not wish that, or None: promoting by hand passes the questions that are left."""
    left = rollout.plan.steps[rollout.step :]
    if kind is not WishKind.PROMOTE or rollout.plan.may_approve(by) or not any(step.approval for step in left):
        return None
    return f"{by} may not promote {rollout.id}, which has to be approved; {names_of(rollout.plan.approvers)} may."


def names_of(people: Sequence[str]) -> str:
    """``ann, bob or cy``."""
    return " or ".join([", ".join(people[:-1]), people[-1]] if len(people) > 1 else people)


def refusal(rollout: Rollout, kind: WishKind) -> str | None:
    """Why such a wish makes no sense now, or None. A wish that is not refused is obeyed as soon as it can be."""
    if rollout.is_final or rollout.phase is Phase.ROLLING_BACK:
        return f"rollout {rollout.id} is {rollout.phase}; nothing can be asked of it any more."
    if rollout.phase is Phase.PROMOTING and kind is not WishKind.ABORT:
        return f"rollout {rollout.id} is promoting; it can only be aborted."
    if kind is WishKind.RESUME and rollout.phase is not Phase.PAUSED:
        return f"rollout {rollout.id} is {rollout.phase}, not paused."
    if kind is WishKind.PAUSE and rollout.phase is Phase.PAUSED:
        return f"rollout {rollout.id} is paused already."
    return None


# --- anywhere ---------------------------------------------------------------------------------------------------------


def _decide_rolling_back(rollout: Rollout, seen: Seen) -> Move | None:
    if not (_is_at(seen, Share()) and seen.canary_idle):
        return None
    why = rollout.explanation
    message = f"{why.message} Stable serves everything; the canary gets no requests any more."
    return Move(to=Phase.ROLLED_BACK, explanation=Explanation(why.reason, message, why.numbers))


def _decide_back(rollout: Rollout, seen: Seen, now: datetime) -> Move | None:
    wish = _open_wish(rollout, seen, WishKind.ABORT)
    if wish is not None:
        return _back(rollout, Reason.ABORTED_BY_HAND, f"Aborted by {wish.by}.{_note(wish.note)}", wish=wish)
    if seen.superseded_by is not None and rollout.phase is not Phase.PROMOTING:
        message = f"{seen.superseded_by} takes the place of {rollout.canary}."
        return _back(rollout, Reason.SUPERSEDED, message, superseded_by=seen.superseded_by)
    if seen.canary_dead is not None:
        return _back(rollout, Reason.CANARY_DEAD, f"The canary is dead: {seen.canary_dead.rstrip('.')}.")
    if rollout.has_had_traffic and seen.unready_since is not None:
        unready = now - seen.unready_since
        if unready > rollout.plan.unready_limit:
            limit = rollout.plan.unready_limit.total_seconds()
            message = (
                f"Not all replicas of the canary were ready for {unready.total_seconds():.0f} s; {limit:g} s may be."
            )
            return _back(rollout, Reason.CANARY_UNREADY, message, unready_s=unready.total_seconds())
    return _decide_failed(rollout, seen)


def _decide_failed(rollout: Rollout, seen: Seen) -> Move | None:
    look = seen.look
    if look is None or look.failed_look is None:
        return None
    if rollout.explanation.reason is Reason.PROMOTED_BY_HAND:
        return None  # somebody decided, knowing that no stable replica lives
    message = f"Look {look.failed_look} failed: {look.failure}"
    if seen.stable_alive:
        return _back(rollout, Reason.FAILED, message, look=look.failed_look)
    if rollout.phase in (Phase.PAUSED, Phase.PROMOTING):
        return None
    message = f"{message} No stable replica is alive, so a rollback would leave nobody to answer."
    return _pause(Reason.STABLE_DOWN, message, look=look.failed_look)


def _decide_promoting(rollout: Rollout, seen: Seen, now: datetime) -> Move | None:
    if _is_at(seen, Share(weight_percent=FULL)):
        why = rollout.explanation
        message = f"{why.message} The router was read back: {rollout.canary} serves everything."
        return Move(to=Phase.PROMOTED, explanation=Explanation(Reason.SERVES_ALL, message, {"why": str(why.reason)}))
    return _decide_not_shifted(rollout, seen, now)


def _decide_wish(rollout: Rollout, seen: Seen) -> Move | None:
    promote, pause = (_open_wish(rollout, seen, kind) for kind in (WishKind.PROMOTE, WishKind.PAUSE))
    if promote is not None and seen.canary_ready:
        message = f"Promoted by {promote.by}, skipping what was left.{_note(promote.note)}"
        return _promote(rollout, Explanation(Reason.PROMOTED_BY_HAND, message, {"by": promote.by}), wish=promote)
    if pause is not None and rollout.phase is not Phase.PAUSED:
        return _pause(Reason.PAUSED, f"Paused by {pause.by}.{_note(pause.note)}", wish=pause)
    return None


# --- by phase ---------------------------------------------------------------------------------------------------------


def _decide_waiting(rollout: Rollout, seen: Seen, now: datetime) -> Move | None:
    waited, limit = now - rollout.changed_at, rollout.plan.ready_timeout
    if seen.canary_ready and _has_passed_checks(rollout, seen):
        checked = " It gives the outputs that are expected." if rollout.plan.output_checks else ""
        return _onward(rollout, 0, f"All replicas of the canary are ready.{checked}")
    if waited <= limit:
        return None
    message = f"Not all replicas of the canary were ready within {limit.total_seconds():g} s."
    if seen.canary_ready:
        last = seen.look.sentence if seen.look is not None else "No look was made."
        message = f"The canary's outputs could not be checked within {limit.total_seconds():g} s. {last}"
    return _back(rollout, Reason.READY_TIMEOUT, message, waited_s=waited.total_seconds())


def _decide_shifting(rollout: Rollout, seen: Seen, now: datetime) -> Move | None:
    share = rollout.wanted_share
    if _is_at(seen, share):
        part = "" if share.way is Way.MATCHED else " of the traffic"
        message = f"The canary has {share}{part}; the warm-up runs."
        return Move(to=Phase.WARMING, explanation=Explanation(Reason.WEIGHT_APPLIED, message))
    return _decide_not_shifted(rollout, seen, now)


def _decide_not_shifted(rollout: Rollout, seen: Seen, now: datetime) -> Move | None:
    # A weight may have to wait for the replicas that carry it.
    limit = rollout.plan.shift_timeout if seen.canary_ready else rollout.plan.ready_timeout
    if now - rollout.changed_at <= limit:
        return None
    found = "could not be read" if seen.share is None else f"is at {seen.share}"
    message = f"{_ordered(rollout.wanted_share)} {limit.total_seconds():g} s ago, and the router {found}."
    return _back(rollout, Reason.SHIFT_TIMEOUT, message)


def _decide_warming(rollout: Rollout, seen: Seen, now: datetime) -> Move | None:
    if (lost := _lost_weight(rollout, seen)) is not None:
        return lost
    if now - rollout.changed_at < rollout.plan.warm_up:
        return None
    message = f"Warmed up at {rollout.present_step.share}; looks count from now on."
    return Move(to=Phase.BAKING, explanation=Explanation(Reason.WARMED_UP, message))


def _decide_baking(rollout: Rollout, seen: Seen, now: datetime) -> Move | None:
    if (lost := _lost_weight(rollout, seen)) is not None:
        return lost
    step = rollout.present_step
    if now - rollout.changed_at >= step.bake_min and _has_passed(rollout, seen, now):
        message = f"{_capital(step.share)} has passed."
        if not step.approval:
            return _onward(rollout, rollout.step + 1, message)
        message = f"{message} A person has to approve the next step; looks go on."
        return Move(to=Phase.AWAITING_APPROVAL, explanation=Explanation(Reason.APPROVAL_NEEDED, message))
    if rollout.undecided_at is None or now < rollout.undecided_at:
        return None
    return _undecided(rollout, seen, now)


def _undecided(rollout: Rollout, seen: Seen, now: datetime) -> Move:
    baked = (now - (rollout.baking_since or now)).total_seconds()
    message = f"{_capital(rollout.present_step.share)} was neither passed nor failed in {baked:.0f} s."
    look = seen.look
    if look is None or look.measured.step != rollout.step or look.measured.is_before_traffic:
        message = f"{message} No look was made."
    else:
        names = ", ".join(rule.name for rule in missing(rollout.plan, look, since=rollout.changed_at))
        message = f"{message} {'Missing: ' + names + '. ' if names else ''}Last look: {look.sentence}"
    if rollout.plan.on_undecided is OnUndecided.ROLL_BACK:
        return _back(rollout, Reason.UNDECIDED, message)
    return _pause(Reason.UNDECIDED, message)


def _decide_approval(rollout: Rollout, seen: Seen, now: datetime) -> Move | None:
    if (lost := _lost_weight(rollout, seen)) is not None:
        return lost
    answer = seen.approval
    if answer is not None and answer.step == rollout.step and answer.at >= rollout.changed_at:
        if not answer.approved:
            message = f"Rejected by {answer.by}.{_note(answer.note)}"
            return _back(rollout, Reason.REJECTED, message, by=answer.by)
        if seen.look is None or seen.look.outcome is not Outcome.ERROR:
            return _onward(rollout, rollout.step + 1, f"Approved by {answer.by}.{_note(answer.note)}", by=answer.by)
    limit = rollout.plan.approval_timeout
    if now - rollout.changed_at <= limit:
        return None
    message = f"Nobody let it go on within {limit.total_seconds():g} s."
    if rollout.plan.on_approval_timeout is OnApprovalTimeout.ROLL_BACK:
        return _back(rollout, Reason.APPROVAL_TIMEOUT, message)
    return _pause(Reason.APPROVAL_TIMEOUT, message)


def _decide_paused(rollout: Rollout, seen: Seen, now: datetime) -> Move | None:
    wish = _open_wish(rollout, seen, WishKind.RESUME)
    if wish is None or wish.at < rollout.changed_at or (seen.look is not None and seen.look.failed_look is not None):
        return None
    to = Phase.SHIFTING if rollout.has_had_traffic else Phase.WAITING
    message = f"Resumed by {wish.by}.{_note(wish.note)}"
    return Move(to=to, explanation=Explanation(Reason.RESUMED, message, {"by": wish.by}), obeys=wish.at)


_BY_PHASE: Final[Mapping[Phase, Callable[[Rollout, Seen, datetime], Move | None]]] = {
    Phase.WAITING: _decide_waiting,
    Phase.SHIFTING: _decide_shifting,
    Phase.WARMING: _decide_warming,
    Phase.BAKING: _decide_baking,
    Phase.AWAITING_APPROVAL: _decide_approval,
    Phase.PAUSED: _decide_paused,
}


# --- parts ------------------------------------------------------------------------------------------------------------


def _has_passed(rollout: Rollout, seen: Seen, now: datetime) -> bool:
    """Whether a look of this bake, and not an old one, lets the step be left."""
    look = seen.look
    if look is None or look.measured.step != rollout.step or look.measured.ended_at <= rollout.changed_at:
        return False
    is_fresh = now - look.measured.ended_at <= FRESH_LOOKS * rollout.plan.interval
    return is_fresh and has_passed(rollout.plan, look, since=rollout.changed_at)


def _has_passed_checks(rollout: Rollout, seen: Seen) -> bool:
    """Whether the output checks, if there are any, have passed before the first weight, since it waits."""
    if not rollout.plan.output_checks:
        return True
    look = seen.look
    return look is not None and look.measured.ended_at >= rollout.changed_at and look.outcome is Outcome.PASS


def _is_at(seen: Seen, share: Share) -> bool:
    has = seen.share
    if has is None or abs(has.weight_percent - share.weight_percent) > WEIGHT_TOLERANCE:
        return False
    return (has.split, has.mirror_percent) == (share.split, share.mirror_percent)


def _lost_weight(rollout: Rollout, seen: Seen) -> Move | None:
    wanted = rollout.wanted_share
    if seen.share is None or _is_at(seen, wanted):
        return None
    message = f"The router is at {seen.share} instead of {wanted}; {_what(wanted)} is ordered again."
    return Move(to=Phase.SHIFTING, explanation=Explanation(Reason.WEIGHT_LOST, message))


def _open_wish(rollout: Rollout, seen: Seen, kind: WishKind) -> Wish | None:
    wish = seen.wish
    if wish is None or wish.kind is not kind or (rollout.obeyed_at is not None and wish.at <= rollout.obeyed_at):
        return None
    return wish


def _capital(share: Share) -> str:
    """At the beginning of a sentence."""
    text = str(share)
    return text[:1].upper() + text[1:]


def _what(share: Share) -> str:
    return {Way.MATCHED: "the split", Way.MIRRORED: "the copy"}.get(share.way, "the weight")


def _ordered(share: Share) -> str:
    return f"{_capital(share)} {'were' if share.weight_percent or share.is_nothing else 'was'} ordered"


def _note(note: str) -> str:
    return f" {note.strip()}" if note.strip() else ""


def _onward(rollout: Rollout, step: int, message: str, **numbers: object) -> Move:
    """To that step, which may be the promotion."""
    if rollout.plan.is_last(step):
        message = f"{message} {rollout.canary} gets all the traffic."
        return _promote(rollout, Explanation(Reason.PASSED, message, numbers))
    share = rollout.plan.steps[step].share
    message = f"{message} {_ordered(share)} to the canary."
    told = {"weight_percent": share.weight_percent, "share": str(share), **numbers}
    why = Explanation(Reason.STEP_STARTED, message, told)
    return Move(to=Phase.SHIFTING, explanation=why, step=step)


def _promote(rollout: Rollout, why: Explanation, *, wish: Wish | None = None) -> Move:
    last = len(rollout.plan.steps) - 1
    return Move(to=Phase.PROMOTING, explanation=why, step=last, obeys=None if wish is None else wish.at)


def _pause(reason: Reason, message: str, *, wish: Wish | None = None, **numbers: object) -> Move:
    why = Explanation(reason, message, numbers)
    return Move(to=Phase.PAUSED, explanation=why, obeys=None if wish is None else wish.at)


def _back(rollout: Rollout, reason: Reason, message: str, *, wish: Wish | None = None, **numbers: object) -> Move:
    """To stable; where the canary never had traffic that is the end."""
    to = Phase.ROLLING_BACK if rollout.has_had_traffic else Phase.ABORTED
    why = Explanation(reason, message, numbers if wish is None else {"by": wish.by, **numbers})
    return Move(to=to, explanation=why, obeys=None if wish is None else wish.at)
