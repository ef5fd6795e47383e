"""Questions to a person: what is asked, what an answer does, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving_world import PLAN, ServingWorld

from builders import seconds
from fermion.domain.rollout.rollouts import Phase, WishKind
from fermion.domain.rollout.steering import names_of
from fermion.domain.serving.services import SERVICE_DAG, Revision
from fermion.errors import Conflict, NotFound, NotPermitted
from fermion.usecases.serving.approvals import TAKEN, answer, answer_open, answers, question, was_taken
from fermion.usecases.serving.queries import Deployment, deployment, has_reached
from fermion.usecases.serving.wishes import wish

ASKING = {**PLAN, "steps": [{"weight": 20, "approval": True}, {"weight": 50, "approval": True}, 100]}


@pytest.fixture
def world(tmp_path: Path) -> ServingWorld:
    return ServingWorld(tmp_path)


def asked(world: ServingWorld, **plan: Any) -> Revision:
    """A canary whose first step has passed, so that a person is asked."""
    world.serving()
    world.publish("better")
    made = world.deploy(plan={**ASKING, **plan})
    world.rounds(1)
    until(world, made, Phase.AWAITING_APPROVAL)
    return made


def until(world: ServingWorld, made: Revision, phase: Phase, requests: int = 60) -> None:
    for _ in range(300):
        if world.rollout(made).phase is phase:
            return
        world.rounds(1, requests=requests)
    raise AssertionError(f"it is {world.rollout(made).phase}: {world.rollout(made).explanation.message}")


def found(world: ServingWorld, made: Revision) -> Deployment:
    return deployment(world.ctx, made.service_id, made.number)


def say(
    world: ServingWorld, made: Revision, *, approved: bool = True, by: str = "ann", note: str = "", ago: float = 0
) -> str:
    at = world.clock.now() - seconds(ago)
    return answer(world.ctx, f"ro-{made.id}", approved=approved, by=by, at=at, note=note).message


def test_a_question_holds_the_evidence_what_comes_next_and_how_long_it_is_open(world: ServingWorld) -> None:
    made = asked(world, approval_timeout="1h")
    put = question(world.ctx, found(world, made))
    assert put is not None
    assert put.subject == "May digits/2 go on as digits?"
    look = world.looks(made)[-1]
    for words in (
        f"has passed 20 % of the requests, beside {made.service_id}-r1",
        f"look {look.number} at",
        "50 % next",
    ):
        assert words in put.body
    assert look.metrics[0].sentence in put.body
    assert "the rollout pauses" in put.body
    assert seconds(3590) < put.patience <= seconds(3605)


def test_nobody_is_asked_before_a_step_has_passed_or_after_the_answer(world: ServingWorld) -> None:
    world.serving()
    made = world.deploy(plan=ASKING)
    world.rounds(6, requests=60)
    assert question(world.ctx, found(world, made)) is None
    until(world, made, Phase.AWAITING_APPROVAL)
    assert question(world.ctx, found(world, made)) is not None
    say(world, made)
    assert question(world.ctx, found(world, made)) is None


def test_each_step_that_asks_is_asked_for_and_the_stages_follow(world: ServingWorld) -> None:
    made = asked(world)
    for weight in (50, 100):
        now = found(world, made)
        assert (has_reached(now, "asked"), has_reached(now, "answered")) == (True, False)
        world.clock.advance(seconds(1))
        say(world, made, note=f"to {weight}")
        assert not has_reached(found(world, made), "asked")
        world.rounds(1, requests=60)
        assert world.rollout(made).wanted_weight_percent == weight
        if weight == 50:
            until(world, made, Phase.AWAITING_APPROVAL)
    assert has_reached(found(world, made), "answered")
    until(world, made, Phase.PROMOTED)


def test_an_answer_is_kept_with_who_when_why_and_the_look_it_was_given_on(world: ServingWorld) -> None:
    made = asked(world)
    look = world.looks(made)[-1]
    for _ in range(2):
        assert say(world, made, note="looks fine") == "Approved by ann: 20 % may be left."
    (kept,) = answers(world.ctx, world.rollout(made))
    assert (kept.verdict, kept.reason, kept.decided_at) == ("approved", "answered", world.clock.now())
    assert (kept.inputs["by"], kept.inputs["note"], kept.inputs["step"]) == ("ann", "looks fine", 0)
    assert (kept.numbers["look"], kept.numbers["outcome"]) == (look.number, "pass")
    assert "error_rate" in str(kept.numbers["metrics"])


def test_a_rejection_goes_back_and_names_who_said_it(world: ServingWorld) -> None:
    made = asked(world)
    say(world, made, approved=False, note="not on a Friday")
    world.rounds(30, requests=20)
    rollout = world.rollout(made)
    assert (rollout.phase, rollout.explanation.reason) == (Phase.ROLLED_BACK, "rejected")
    assert "Rejected by ann. not on a Friday" in rollout.explanation.message


def test_an_answer_to_the_question_before_does_not_count_for_the_next(world: ServingWorld) -> None:
    made = asked(world)
    assert "asked for again" in say(world, made, ago=60)
    world.rounds(2, requests=60)
    assert world.rollout(made).phase is Phase.AWAITING_APPROVAL


def test_an_approval_after_its_time_begins_the_step_anew_and_a_rejection_goes_back(world: ServingWorld) -> None:
    made = asked(world, approval_timeout="10s")
    until(world, made, Phase.PAUSED)
    assert world.rollout(made).explanation.reason == "approval_timeout"
    now = found(world, made)
    assert (has_reached(now, "asked"), has_reached(now, "answered")) == (False, False)
    assert "begins anew" in say(world, made)
    until(world, made, Phase.AWAITING_APPROVAL)
    until(world, made, Phase.PAUSED)
    assert "goes back" in say(world, made, approved=False)
    until(world, made, Phase.ROLLED_BACK)
    assert [each.reason for each in answers(world.ctx, world.rollout(made))] == ["resumes", "aborts"]


def test_an_approval_does_not_end_somebody_elses_pause(world: ServingWorld) -> None:
    made = asked(world)
    wish(world.ctx, "digits", WishKind.PAUSE, by="bob")
    world.rounds(2, requests=60)
    assert "asked for again" in say(world, made)
    world.rounds(5, requests=60)
    assert world.rollout(made).phase is Phase.PAUSED


def test_an_answer_that_comes_when_all_is_decided_changes_nothing_and_is_kept(world: ServingWorld) -> None:
    made = asked(world)
    world.driver.router.answers(made.id, 500)
    until(world, made, Phase.ROLLED_BACK)
    assert "changes nothing" in say(world, made)
    assert [each.reason for each in answers(world.ctx, world.rollout(made))] == ["late"]
    with pytest.raises(NotFound):
        answer(world.ctx, "ro-nothing", approved=True, by="ann", at=world.clock.now())


# --- who may approve --------------------------------------------------------------------------------------------------


def test_an_approval_of_somebody_whom_the_plan_does_not_name_is_refused_kept_and_told_in_the_next_question(
    world: ServingWorld,
) -> None:
    made = asked(world, approvers=["cara", "dan"])
    put = question(world.ctx, found(world, made))
    assert put is not None
    assert "**Who may approve**: cara, dan." in put.body
    refused = "An approval by bob was refused: cara or dan may approve this rollout."
    assert say(world, made, by="bob", note="please") == refused
    (kept,) = answers(world.ctx, world.rollout(made))
    assert (kept.verdict, kept.reason, kept.inputs["by"], kept.inputs["note"]) == (
        "refused",
        "not_an_approver",
        "bob",
        "please",
    )
    world.rounds(5, requests=60)
    assert world.rollout(made).phase is Phase.AWAITING_APPROVAL
    put = question(world.ctx, found(world, made))
    assert put is not None
    assert refused in put.body
    assert say(world, made, by="dan") == "Approved by dan: 20 % may be left."
    world.rounds(1, requests=60)
    assert world.rollout(made).wanted_weight_percent == 50
    until(world, made, Phase.AWAITING_APPROVAL)
    put = question(world.ctx, found(world, made))
    assert put is not None
    assert "refused" not in put.body, "that was another question"


def test_a_rejection_is_everybodys(world: ServingWorld) -> None:
    made = asked(world, approvers=["cara"])
    assert say(world, made, approved=False, by="bob") == "Rejected by bob: 20 % may not be left."
    until(world, made, Phase.ROLLED_BACK)


def test_an_approval_that_comes_late_must_be_an_approvers_too(world: ServingWorld) -> None:
    made = asked(world, approvers=["cara"], approval_timeout="10s")
    until(world, made, Phase.PAUSED)
    assert "was refused" in say(world, made, by="bob")
    world.rounds(5, requests=60)
    assert world.rollout(made).phase is Phase.PAUSED
    assert "begins anew" in say(world, made, by="cara")


def test_promoting_by_hand_is_no_way_past_the_approvers(world: ServingWorld) -> None:
    made = asked(world, approvers=["cara"])
    with pytest.raises(NotPermitted, match=r"bob may not promote .* cara may"):
        wish(world.ctx, "digits", WishKind.PROMOTE, by="bob")
    wish(world.ctx, "digits", WishKind.PROMOTE, by="cara")
    until(world, made, Phase.PROMOTED)


@pytest.mark.parametrize(
    ("people", "told"), [(("a",), "a"), (("a", "b"), "a or b"), (("a", "b", "c"), "a, b or c")], ids=len
)
def test_people_are_named_as_in_a_sentence(people: tuple[str, ...], told: str) -> None:
    assert names_of(people) == told


# --- at the terminal --------------------------------------------------------------------------------------------------


def at_terminal(world: ServingWorld, *, approved: bool = True, by: str = "ann") -> str:
    return answer_open(world.ctx, world.runs, "digits", approved=approved, by=by, note="seen").message


def test_an_answer_at_the_terminal_counts_and_closes_the_question_at_the_engine(world: ServingWorld) -> None:
    made = asked(world)
    world.runs.trigger(SERVICE_DAG, made.id, {})
    world.runs.put_task(SERVICE_DAG, made.id, "approve[0]", "awaiting_input")
    assert at_terminal(world) == "Approved by ann: 20 % may be left."
    (kept,) = answers(world.ctx, world.rollout(made))
    given = world.runs.answers(SERVICE_DAG, made.id)["approve[0]"]
    assert given == {"chosen_options": ["Approve"], "params_input": {"note": "seen", TAKEN: kept.id}}
    assert was_taken(world.ctx, world.rollout(made), kept.id)
    assert not was_taken(world.ctx, world.rollout(made), "another")
    world.rounds(1, requests=60)
    until(world, made, Phase.AWAITING_APPROVAL)
    at_terminal(world, approved=False)
    until(world, made, Phase.ROLLED_BACK)


def test_an_answer_at_the_terminal_counts_also_while_the_engine_is_away(world: ServingWorld) -> None:
    made = asked(world)
    world.runs.line.cut()
    at_terminal(world)
    world.rounds(1, requests=60)
    assert world.rollout(made).wanted_weight_percent == 50


def test_nobody_can_answer_at_the_terminal_what_is_not_asked_or_not_theirs(world: ServingWorld) -> None:
    made = asked(world, approvers=["cara"])
    with pytest.raises(NotPermitted, match="ann was refused"):
        at_terminal(world)
    assert [each.verdict for each in answers(world.ctx, world.rollout(made))] == ["refused"]
    world.clock.advance(seconds(1))
    at_terminal(world, by="cara")
    world.rounds(1, requests=60)
    for approved in (True, False):
        with pytest.raises(Conflict, match="nobody is asked"):
            at_terminal(world, approved=approved, by="cara")
