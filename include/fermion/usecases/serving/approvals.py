"""Questions to a person: what is asked before a rollout may go on, and what becomes of the answer.

What follows from an answer is decided where all is decided (``domain/rollout/steering.py``). Each is kept with who gave it,
when, and the look that it was given on, also one that came too late to count.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fermion.domain.records import Decision
from fermion.domain.rollout.looks import RULE_VERSION, Look
from fermion.domain.rollout.plan import OnApprovalTimeout, Way
from fermion.domain.rollout.reasons import Reason
from fermion.domain.rollout.rollouts import Approval, Phase, Rollout, Wish, WishKind
from fermion.domain.rollout.steering import names_of
from fermion.domain.tasks import instance_name
from fermion.errors import Conflict, FermionError, NotFound, NotPermitted
from fermion.ports import Runs, Transaction
from fermion.usecases.context import Context
from fermion.usecases.serving.queries import Deployment
from fermion.usecases.serving.wishes import rollout_of

log = logging.getLogger(__name__)

APPROVE, REJECT = "Approve", "Reject"
"""The two options of a question at the workflow engine."""

TASK = "approve"
"""The task of ``deploy_service`` that asks: one instance for each step of the plan that does."""

TAKEN = "taken"
"""Beside an option: the id of the answer that was taken elsewhere, so that it is not taken twice."""

KIND = "approval"
"""The kind of the decisions that keep answers."""

REFUSED = "refused"
"""The verdict on an approval of somebody who may not approve."""

GRACE = timedelta(seconds=5)
"""A question outlives its time by so much: what the plan says then is done by whoever tends the service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a person is asked: ``body`` in Markdown. It is open for ``patience``, which is what is left of the plan's time."""

    subject: str
    body: str
    patience: timedelta


def question(ctx: Context, found: Deployment) -> Question | None:
    """What a person must answer now; None while nobody is asked."""
    rollout = found.rollout
    if rollout is None or not found.is_asked:
        return None
    with ctx.store.read() as tx:
        look = tx.rollouts.newest_look(rollout.id)
    refused = [each for each in answers(ctx, rollout) if each.verdict == REFUSED and _is_of(each, rollout)]
    left = rollout.changed_at + rollout.plan.approval_timeout - ctx.clock.now()
    return Question(
        subject=f"May {found.revision.model_path} go on as {found.service.name}?",
        body=_body(found, rollout, look, refused[-1].message if refused else None),
        patience=max(left, timedelta(0)) + GRACE,
    )


def _is_of(given: Decision, rollout: Rollout) -> bool:
    """Whether the answer was given to the question that is open now."""
    return given.inputs.get("step") == rollout.step and given.decided_at >= rollout.changed_at


def _body(found: Deployment, rollout: Rollout, look: Look | None, refused: str | None) -> str:
    steps, now = rollout.plan.steps, rollout.present_step
    then = steps[rollout.step + 1].share
    rolls_back = rollout.plan.on_approval_timeout is OnApprovalTimeout.ROLL_BACK
    lines = [
        f"**{found.revision.id}** ({found.revision.model_path}) has passed {now.share}"
        f"{'' if now.share.way is Way.MATCHED else ' of the requests'}, beside {rollout.stable}.",
        "",
        *(
            [f"- look {look.number} at {look.measured.ended_at:%H:%M:%S} UTC: {look.outcome}. {look.sentence}"]
            if look
            else []
        ),
        *([f"- {each.metric}: {each.sentence}" for each in look.metrics] if look else []),
        *([f"- {refused}"] if refused else []),
        "",
        *([f"**Who may approve**: {', '.join(rollout.plan.approvers)}.", ""] if rollout.plan.approvers else []),
        f"**Approve**: {then} next. **Reject**: back to {rollout.stable}. Nobody by"
        f" {rollout.changed_at + rollout.plan.approval_timeout:%Y-%m-%d %H:%M} UTC:"
        f" {'back too' if rolls_back else 'the rollout pauses'}. Looks go on meanwhile (`fermion rollout status"
        f" {found.service.name}`); one that fails goes back by itself. At the terminal: `fermion rollout approve"
        f" {found.service.name}`, or `reject`.",
    ]
    return "\n".join(lines)


def answer(ctx: Context, rollout_id: str, *, approved: bool, by: str, at: datetime, note: str = "") -> Decision:
    """What became of a person's answer, as it is kept. The same one again (same moment) changes nothing.

    The door for whoever answers, at the engine's pages or at the terminal. An approval of somebody whom the plan does not
    name is refused, and kept; a rejection is everybody's. It counts for the question that is open. After its time was over, or while the step is tried once more, a rejection is
    obeyed all the same; an approval then lets a rollout that paused for want of it begin its step anew, and else it is
    asked for again.

    Raises:
        NotFound: there is no such rollout.
    """
    word = "approved" if approved else "rejected"
    with ctx.store.begin(exclusive=f"approval:{rollout_id}") as tx:
        rollout = tx.rollouts.get(rollout_id)
        if rollout is None:
            raise NotFound(f"there is no rollout {rollout_id!r}.", what="rollout")
        decision_id = f"{KIND}-{rollout.id}-{at.timestamp():.6f}"
        known = {each.id: each for each in tx.records.decisions(subject=rollout.canary, kind=KIND)}
        if decision_id in known:
            return known[decision_id]
        if approved and not rollout.plan.may_approve(by):
            word, reason = REFUSED, "not_an_approver"
            message = f"An approval by {by} was refused: {names_of(rollout.plan.approvers)} may approve this rollout."
        else:
            reason, became = _carry_out(tx, rollout, approved=approved, by=by, at=at, note=note)
            message = f"{word.capitalize()} by {by}: {became}"
        kept = Decision(
            id=decision_id,
            kind=KIND,
            subject=rollout.canary,
            verdict=word,
            reason=reason,
            message=message,
            rule_version=RULE_VERSION,
            decided_at=at,
            inputs={"rollout": rollout.id, "step": rollout.step, "by": by, "note": note, "phase": str(rollout.phase)},
            numbers=_evidence(rollout, tx.rollouts.newest_look(rollout_id)),
        )
        tx.records.add_decision(kept)
    ctx.store.notify("services", rollout.service)
    return kept


def answer_open(ctx: Context, runs: Runs, name_or_id: str, *, approved: bool, by: str, note: str = "") -> Decision:
    """What became of an answer given at the terminal to the question that is open; the engine's is closed with it.

    Raises:
        Conflict: nobody is asked now.
        NotPermitted: the plan names others; kept all the same.
    """
    rollout = rollout_of(ctx, name_or_id)
    is_late = rollout.phase is Phase.PAUSED and rollout.explanation.reason is Reason.APPROVAL_TIMEOUT
    if rollout.phase is not Phase.AWAITING_APPROVAL and not is_late:
        raise Conflict(f"nobody is asked about {rollout.id}: it is {rollout.phase}.", what=rollout.id)
    kept = answer(ctx, rollout.id, approved=approved, by=by, at=ctx.clock.now(), note=note)
    if kept.verdict == REFUSED:
        raise NotPermitted(kept.message, what=rollout.id)
    with ctx.store.read() as tx:
        revision = next((each for each in tx.services.revisions(rollout.service) if each.id == rollout.canary), None)
    if revision is not None and revision.run is not None:
        try:
            runs.answer(
                *revision.run, task_of(rollout), APPROVE if approved else REJECT, {"note": note, TAKEN: kept.id}
            )
        except FermionError as error:  # the answer counts all the same
            log.warning("the question is still shown at the workflow engine: %s", error.message)
    return kept


def task_of(rollout: Rollout) -> str:
    """The task that asks before the present step is left, as ``ports.Runs`` names it."""
    return instance_name(TASK, rollout.plan.asking_steps.index(rollout.step))


def was_taken(ctx: Context, rollout: Rollout, decision_id: object) -> bool:
    """Whether an answer with that id was taken already, where it was given."""
    return any(each.id == decision_id for each in answers(ctx, rollout))


def _carry_out(
    tx: Transaction, rollout: Rollout, *, approved: bool, by: str, at: datetime, note: str
) -> tuple[str, str]:
    """What the answer counts as, in a word and a sentence; stored so."""
    if rollout.phase is Phase.AWAITING_APPROVAL and at >= rollout.changed_at:
        tx.rollouts.put_approval(rollout.id, Approval(step=rollout.step, approved=approved, by=by, at=at, note=note))
        return "answered", f"{rollout.present_step.share} may {'' if approved else 'not '}be left."
    if rollout.is_final or rollout.phase in (Phase.PROMOTING, Phase.ROLLING_BACK):
        return "late", f"it changes nothing, since the rollout is {rollout.phase}."
    if not approved:
        tx.rollouts.put_wish(rollout.id, Wish(kind=WishKind.ABORT, by=by, at=at, note=note))
        return "aborts", "the rollout goes back."
    if (
        rollout.phase is Phase.PAUSED
        and rollout.explanation.reason is Reason.APPROVAL_TIMEOUT
        and at >= rollout.changed_at
    ):
        tx.rollouts.put_wish(rollout.id, Wish(kind=WishKind.RESUME, by=by, at=at, note=note))
        return "resumes", "its time was over, so the step begins anew and is asked for again."
    return "asked_again", f"it does not count, since the rollout is {rollout.phase}; it is asked for again."


def _evidence(rollout: Rollout, look: Look | None) -> dict[str, object]:
    """What was known when the answer was given."""
    given = rollout.present_step.share
    told: dict[str, object] = {"weight_percent": given.weight_percent, "share": str(given)}
    if look is None:
        return told
    return {
        **told,
        "look": look.number,
        "outcome": str(look.outcome),
        "metrics": {
            each.metric: {
                "outcome": str(each.outcome),
                "canary": each.canary_value,
                "stable": each.stable_value,
                "statistic": each.statistic,
                "bound": each.bound,
            }
            for each in look.metrics
        },
    }


def answers(ctx: Context, rollout: Rollout) -> Sequence[Decision]:
    """All answers about a rollout, oldest first."""
    with ctx.store.read() as tx:
        found = tx.records.decisions(subject=rollout.canary, kind=KIND)
    return sorted(
        (each for each in found if each.inputs.get("rollout") == rollout.id), key=lambda each: each.decided_at
    )
