"""What became of a deployment, from its stored looks: one text for the log, and a decision that can be replayed."""

from __future__ import annotations

from fermion.domain.payloads import to_payload
from fermion.domain.records import Decision
from fermion.domain.rollout.looks import RULE_VERSION
from fermion.domain.rollout.replay import replay
from fermion.usecases.context import Context
from fermion.usecases.serving.queries import Deployment


def write_verdict(ctx: Context, found: Deployment) -> str:
    """The verdict in a few lines; stored as a decision about the revision. Written again it changes nothing."""
    rollout, revision = found.rollout, found.revision
    if rollout is None:
        return f"{revision.id} ({revision.model_path}) is {revision.phase}: {revision.explanation.message}"
    with ctx.store.read() as tx:
        looks = tx.rollouts.looks(rollout.id)
        known = {each.id for each in tx.records.decisions(subject=revision.id, kind="rollout")}
    differs = replay(rollout.plan, looks)
    lines = [
        f"{revision.id} ({revision.model_path}) is {revision.phase}; its rollout {rollout.phase}: {rollout.explanation.message}",
        *(f"look {look.number} at {look.measured.share}: {look.outcome}. {look.sentence}" for look in looks),
        f"Judged again from the stored counts: {differs or 'the same'}.",
    ]
    verdict_id = f"verdict-{rollout.id}"
    if rollout.is_final and verdict_id not in known:
        with ctx.store.begin() as tx:
            tx.records.add_decision(
                Decision(
                    id=verdict_id,
                    kind="rollout",
                    subject=revision.id,
                    verdict=str(rollout.phase),
                    reason=str(rollout.explanation.reason),
                    message=rollout.explanation.message,
                    rule_version=RULE_VERSION,
                    decided_at=rollout.ended_at or ctx.clock.now(),
                    inputs={"plan": to_payload(rollout.plan), "rollout": rollout.id, "looks": len(looks)},
                )
            )
    return "\n".join(lines)
