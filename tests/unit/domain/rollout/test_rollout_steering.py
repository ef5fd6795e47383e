"""Steering: every numbered rule of ``decide`` with its boundary, that the first match wins, and whole lives of rollouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_builders import errors, make_look, make_plan, make_rollout, make_step

from builders import NOW, at, seconds
from fermion.domain.rollout.looks import Look, Outcome, Reading
from fermion.domain.rollout.plan import OnApprovalTimeout, OnUndecided, Plan, Share
from fermion.domain.rollout.reasons import Explanation, Reason
from fermion.domain.rollout.rollouts import (
    FINAL,
    TRANSITIONS,
    Approval,
    Move,
    Phase,
    Rollout,
    Wish,
    WishKind,
    apply,
)
from fermion.domain.rollout.steering import Seen, decide, refusal, unpermitted

OPEN = [phase for phase in Phase if phase not in FINAL and phase is not Phase.ROLLING_BACK]
TRAFFIC = [phase for phase in OPEN if phase is not Phase.WAITING]
GONE = Reading(metric="error_rate", error="prometheus is gone")
FAILED = make_look(errors((90, 100), (9, 900)))


def wish(kind: WishKind, offset_s: float = 1) -> Wish:
    return Wish(kind=kind, by="ann", at=at(offset_s), note="because")


def seen(rollout: Rollout | None = None, **changes: Any) -> Seen:
    """All is well: ready, the weight as wanted."""
    usual = 10.0 if rollout is None else rollout.wanted_weight_percent
    weight = changes.pop("weight_percent", usual)
    share = None if weight is None else Share(weight_percent=weight)
    return Seen(**{"canary_ready": True, "share": share, **changes})


def due(phase: Phase | Rollout, offset_s: float = 10, /, **changes: Any) -> Move | None:
    """The move that is due then."""
    rollout = make_rollout(phase) if isinstance(phase, Phase) else phase
    return decide(rollout, seen(rollout, **changes), at(offset_s))


def outcome(move: Move | None) -> tuple[Phase, Reason] | None:
    """Where it goes, and why."""
    return None if move is None else (move.to, move.explanation.reason)


def passing(ended_s: float = 60, **changes: Any) -> Look:
    return make_look(ended_s=ended_s, **changes)


def approval(approved: bool = True, *, step: int = 0, offset_s: float = 5) -> Approval:
    return Approval(step=step, approved=approved, by="bob", at=at(offset_s), note="looks good")


# --- anywhere ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", sorted(FINAL))
def test_rule_1_what_has_ended_stays(phase: Phase) -> None:
    everything = {"wish": wish(WishKind.ABORT), "canary_dead": "crashed", "look": FAILED, "superseded_by": "digits-3"}
    assert due(phase, 9999, canary_idle=True, **everything) is None


@pytest.mark.parametrize(
    ("weight", "idle", "ends"),
    [
        pytest.param(0.0, True, True, id="no weight and no traffic"),
        pytest.param(0.0, False, False, id="requests still come"),
        pytest.param(10.0, True, False, id="the weight is still there"),
        pytest.param(None, True, False, id="the router could not be read"),
    ],
)
def test_rule_2_a_rollback_ends_when_weight_and_traffic_were_seen_gone(
    weight: float | None, idle: bool, ends: bool
) -> None:
    why = Explanation(Reason.FAILED, "Look 3 failed.", {"look": 3})
    rollout = make_rollout(Phase.ROLLING_BACK, explanation=why)
    move = due(rollout, 9999, weight_percent=weight, canary_idle=idle, wish=wish(WishKind.PROMOTE), look=FAILED)
    assert outcome(move) == ((Phase.ROLLED_BACK, Reason.FAILED) if ends else None)
    if move is not None:
        assert move.explanation.message.startswith("Look 3 failed. Stable serves everything")
        assert move.explanation.numbers == {"look": 3}


@pytest.mark.parametrize("phase", OPEN)
def test_rule_3_a_person_aborts(phase: Phase) -> None:
    move = due(phase, wish=wish(WishKind.ABORT), canary_dead="crashed")
    to = Phase.ABORTED if phase is Phase.WAITING else Phase.ROLLING_BACK
    assert outcome(move) == (to, Reason.ABORTED_BY_HAND)
    assert move is not None
    assert (move.obeys, move.explanation.message) == (at(1), "Aborted by ann. because")


def test_rule_3_a_pause_before_any_traffic_is_aborted_without_a_rollback() -> None:
    rollout = make_rollout(Phase.PAUSED, step_since=None, baking_since=None)
    assert outcome(due(rollout, wish=wish(WishKind.ABORT))) == (Phase.ABORTED, Reason.ABORTED_BY_HAND)


@pytest.mark.parametrize("phase", OPEN)
def test_rule_4_a_newer_revision_comes(phase: Phase) -> None:
    found = outcome(due(phase, superseded_by="digits-3", weight_percent=None))
    expected = {Phase.WAITING: (Phase.ABORTED, Reason.SUPERSEDED), Phase.PROMOTING: None}
    assert found == expected.get(phase, (Phase.ROLLING_BACK, Reason.SUPERSEDED))


@pytest.mark.parametrize("phase", OPEN)
def test_rule_5_the_canary_is_dead(phase: Phase) -> None:
    move = due(phase, canary_dead="crashed 5 times.", look=FAILED, stable_alive=False)
    assert outcome(move) == (Phase.ABORTED if phase is Phase.WAITING else Phase.ROLLING_BACK, Reason.CANARY_DEAD)
    assert move is not None
    assert move.explanation.message == "The canary is dead: crashed 5 times."


@pytest.mark.parametrize("phase", OPEN)
@pytest.mark.parametrize(
    ("unready_s", "over"), [pytest.param(60, False, id="at the limit"), pytest.param(61, True, id="over it")]
)
def test_rule_5_the_canary_was_not_ready_for_too_long(phase: Phase, unready_s: float, over: bool) -> None:
    found = outcome(due(phase, 70, canary_ready=False, unready_since=at(70 - unready_s)))
    is_back = over and phase is not Phase.WAITING
    assert (found == (Phase.ROLLING_BACK, Reason.CANARY_UNREADY)) is is_back
    assert is_back or found is None or found[1] is not Reason.CANARY_UNREADY


@pytest.mark.parametrize("phase", TRAFFIC)
def test_rule_6_a_failed_look_rolls_back_wherever_it_is(phase: Phase) -> None:
    move = due(phase, look=FAILED, wish=wish(WishKind.PROMOTE), weight_percent=None, approval=approval())
    assert outcome(move) == (Phase.ROLLING_BACK, Reason.FAILED)
    assert move is not None
    assert move.explanation.message.startswith("Look 1 failed: error_rate is surely worse")


@pytest.mark.parametrize("phase", TRAFFIC)
def test_rule_6_a_failure_is_acted_on_also_after_another_look(phase: Phase) -> None:
    assert outcome(due(phase, look=make_look(GONE, previous=FAILED))) == (Phase.ROLLING_BACK, Reason.FAILED)


@pytest.mark.parametrize("phase", TRAFFIC)
def test_rule_6_without_a_stable_replica_a_person_decides(phase: Phase) -> None:
    found = outcome(due(phase, look=FAILED, stable_alive=False, weight_percent=None))
    is_held = phase in (Phase.PAUSED, Phase.PROMOTING)
    assert found == (None if is_held else (Phase.PAUSED, Reason.STABLE_DOWN))


def test_rule_6_a_failure_keeps_a_pause_from_being_resumed_but_not_from_being_promoted() -> None:
    assert due(Phase.PAUSED, look=FAILED, stable_alive=False, wish=wish(WishKind.RESUME)) is None
    move = due(Phase.PAUSED, look=FAILED, stable_alive=False, wish=wish(WishKind.PROMOTE))
    assert outcome(move) == (Phase.PROMOTING, Reason.PROMOTED_BY_HAND)
    assert move is not None
    promoting = apply(make_rollout(Phase.PAUSED), move, at(11))
    assert outcome(due(promoting, 12, look=FAILED)) == (Phase.PROMOTED, Reason.SERVES_ALL)


@pytest.mark.parametrize(
    ("weight", "offset_s", "expected"),
    [
        pytest.param(100.0, 1, (Phase.PROMOTED, Reason.SERVES_ALL), id="read back"),
        pytest.param(50.0, 120, None, id="not yet"),
        pytest.param(50.0, 121, (Phase.ROLLING_BACK, Reason.SHIFT_TIMEOUT), id="not in time"),
        pytest.param(None, 121, (Phase.ROLLING_BACK, Reason.SHIFT_TIMEOUT), id="never read"),
    ],
)
def test_rule_7_promoted_is_what_was_read_back(
    weight: float | None, offset_s: float, expected: tuple[Phase, Reason] | None
) -> None:
    assert outcome(due(Phase.PROMOTING, offset_s, weight_percent=weight)) == expected


@pytest.mark.parametrize("phase", [phase for phase in OPEN if phase is not Phase.PROMOTING])
def test_rule_8_a_person_promotes_once_the_canary_is_ready(phase: Phase) -> None:
    move = due(phase, wish=wish(WishKind.PROMOTE), weight_percent=None)
    assert outcome(move) == (Phase.PROMOTING, Reason.PROMOTED_BY_HAND)
    assert move is not None
    assert (move.step, move.obeys) == (2, at(1))
    held = due(phase, wish=wish(WishKind.PROMOTE), canary_ready=False)
    assert held is None or held.to is not Phase.PROMOTING


@pytest.mark.parametrize("phase", OPEN)
def test_rule_9_a_person_pauses(phase: Phase) -> None:
    found = outcome(due(phase, wish=wish(WishKind.PAUSE), weight_percent=None))
    assert found == (None if phase in (Phase.PAUSED, Phase.PROMOTING) else (Phase.PAUSED, Reason.PAUSED))


@pytest.mark.parametrize("kind", [kind for kind in WishKind if kind is not WishKind.RESUME])
def test_a_wish_is_obeyed_once(kind: WishKind) -> None:
    assert due(make_rollout(obeyed_at=at(1)), wish=wish(kind)) is None
    assert due(make_rollout(obeyed_at=at(0.9)), wish=wish(kind)) is not None


@pytest.mark.parametrize("phase", Phase)
def test_where_nothing_was_seen_nothing_is_begun_and_nothing_ends_well(phase: Phase) -> None:
    move = decide(make_rollout(phase), Seen(), at(10))
    assert move is None


# --- by phase ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset_s", "expected"),
    [
        pytest.param(1200, None, id="at the limit"),
        pytest.param(1201, (Phase.ABORTED, Reason.READY_TIMEOUT), id="over it"),
    ],
)
def test_rule_11_not_ready_in_time(offset_s: float, expected: tuple[Phase, Reason] | None) -> None:
    assert outcome(due(Phase.WAITING, offset_s, canary_ready=False)) == expected


def test_rule_10_the_first_step_when_ready_however_late() -> None:
    move = due(Phase.WAITING, 9999)
    assert outcome(move) == (Phase.SHIFTING, Reason.STEP_STARTED)
    assert move is not None
    assert move.step == 0
    everything = make_rollout(Phase.WAITING, plan=make_plan([100]))
    assert outcome(due(everything)) == (Phase.PROMOTING, Reason.PASSED)


@pytest.mark.parametrize(
    ("weight", "offset_s", "expected"),
    [
        pytest.param(10.0, 999, (Phase.WARMING, Reason.WEIGHT_APPLIED), id="read back, however late"),
        pytest.param(10.009, 1, (Phase.WARMING, Reason.WEIGHT_APPLIED), id="read back, rounded"),
        pytest.param(10.02, 1, None, id="another weight"),
        pytest.param(0.0, 120, None, id="not yet"),
        pytest.param(0.0, 121, (Phase.ROLLING_BACK, Reason.SHIFT_TIMEOUT), id="not in time"),
        pytest.param(None, 121, (Phase.ROLLING_BACK, Reason.SHIFT_TIMEOUT), id="never read"),
    ],
)
def test_rules_12_and_13_the_weight_is_read_back(
    weight: float | None, offset_s: float, expected: tuple[Phase, Reason] | None
) -> None:
    assert outcome(due(Phase.SHIFTING, offset_s, weight_percent=weight)) == expected


@pytest.mark.parametrize("phase", [Phase.WARMING, Phase.BAKING, Phase.AWAITING_APPROVAL])
@pytest.mark.parametrize(("weight", "lost"), [(0.0, True), (50.0, True), (10.0, False), (None, False)])
def test_rule_14_a_weight_that_was_lost_is_ordered_again(phase: Phase, weight: float | None, lost: bool) -> None:
    move = due(phase, weight_percent=weight)
    assert (outcome(move) == (Phase.SHIFTING, Reason.WEIGHT_LOST)) is lost
    if move is not None:
        assert move.step is None


@pytest.mark.parametrize(
    ("offset_s", "expected"), [(29.9, None), (30, (Phase.BAKING, Reason.WARMED_UP))], ids=["not yet", "warm"]
)
def test_rule_15_warm(offset_s: float, expected: tuple[Phase, Reason] | None) -> None:
    assert outcome(due(Phase.WARMING, offset_s)) == expected


NEXT = (Phase.SHIFTING, Reason.STEP_STARTED)


@pytest.mark.parametrize(
    ("look", "offset_s", "expected"),
    [
        pytest.param(passing(), 60, NEXT, id="passed, and bake_min is over"),
        pytest.param(passing(), 59.9, None, id="bake_min is not over"),
        pytest.param(None, 60, None, id="silence"),
        pytest.param(passing(), 120, NEXT, id="two intervals old"),
        pytest.param(passing(), 120.1, None, id="nobody looks any more"),
        pytest.param(passing(0), 60, None, id="a look that ended when the bake began"),
        pytest.param(passing(step=1), 60, None, id="a look of another step"),
        pytest.param(make_look(errors((0, 5), (0, 5)), ended_s=60), 60, None, id="too few samples"),
        pytest.param(make_look(GONE, previous=passing(30)), 60, None, id="an error in the last look"),
        pytest.param(
            make_look(previous=make_look(GONE, previous=passing(30)), ended_s=90), 90, NEXT, id="and after it"
        ),
    ],
)
def test_rule_16_a_step_is_passed_by_looks_and_never_by_silence(
    look: Look | None, offset_s: float, expected: tuple[Phase, Reason] | None
) -> None:
    move = due(Phase.BAKING, offset_s, look=look)
    assert outcome(move) == expected
    if move is not None:
        assert move.step == 1


def test_rule_16_a_pass_before_the_step_was_resumed_does_not_count() -> None:
    silent = make_look(errors((0, 0), (0, 0)), previous=passing(30), ended_s=60)
    rollout = make_rollout(plan=make_plan([make_step(10, bake_min=seconds(0)), 100]), changed_at=at(40))
    assert due(rollout, 60, look=silent) is None
    assert outcome(due(replace(rollout, changed_at=at(30)), 60, look=silent)) == (Phase.PROMOTING, Reason.PASSED)


def test_rule_16_the_last_step_is_the_promotion() -> None:
    rollout = make_rollout(step=1)
    move = due(rollout, 60, look=passing(step=1), weight_percent=50.0)
    assert outcome(move) == (Phase.PROMOTING, Reason.PASSED)
    assert move is not None
    assert move.step == 2


def test_rule_16_a_person_is_asked_where_the_step_says_so() -> None:
    rollout = make_rollout(plan=make_plan([make_step(10, approval=True), 100]))
    assert outcome(due(rollout, 60, look=passing())) == (Phase.AWAITING_APPROVAL, Reason.APPROVAL_NEEDED)


@pytest.mark.parametrize(
    ("on_undecided", "offset_s", "expected"),
    [
        pytest.param(OnUndecided.EXTEND, 599, None, id="extended once"),
        pytest.param(OnUndecided.EXTEND, 600, (Phase.PAUSED, Reason.UNDECIDED), id="not twice"),
        pytest.param(OnUndecided.PAUSE, 299, None, id="in its time"),
        pytest.param(OnUndecided.PAUSE, 300, (Phase.PAUSED, Reason.UNDECIDED), id="not extended"),
        pytest.param(OnUndecided.ROLL_BACK, 300, (Phase.ROLLING_BACK, Reason.UNDECIDED), id="back"),
    ],
)
def test_rule_17_undecided(on_undecided: OnUndecided, offset_s: float, expected: tuple[Phase, Reason] | None) -> None:
    rollout = make_rollout(plan=make_plan(on_undecided=on_undecided))
    assert outcome(due(rollout, offset_s, look=make_look(GONE, ended_s=offset_s))) == expected


def test_rule_17_says_what_was_missing() -> None:
    move = due(Phase.BAKING, 600, look=make_look(errors((0, 5), (0, 50)), ended_s=600))
    assert move is not None
    assert move.explanation.message == (
        "10 % was neither passed nor failed in 600 s. Missing: error_rate. Last look: error_rate has 5 samples from the"
        " canary and 50 from stable in 30 s; 20 of each are needed."
    )
    move = due(Phase.BAKING, 600)
    assert move is not None
    assert move.explanation.message.endswith("No look was made.")


def test_rule_16_wins_over_rule_17_at_the_same_time() -> None:
    assert outcome(due(Phase.BAKING, 600, look=passing(600))) == NEXT


@pytest.mark.parametrize(
    ("answer", "look", "expected"),
    [
        pytest.param(approval(), passing(), NEXT, id="approved"),
        pytest.param(approval(), None, NEXT, id="approved without a look since"),
        pytest.param(approval(False), passing(), (Phase.ROLLING_BACK, Reason.REJECTED), id="rejected"),
        pytest.param(approval(False), make_look(GONE), (Phase.ROLLING_BACK, Reason.REJECTED), id="rejected, blind"),
        pytest.param(approval(), make_look(GONE), None, id="approved, but the last look could not measure"),
        pytest.param(approval(step=1), passing(), None, id="an answer to another step"),
        pytest.param(approval(offset_s=-1), passing(), None, id="an answer from before it was asked"),
        pytest.param(None, passing(), None, id="no answer"),
    ],
)
def test_rules_18_and_19_a_person_answers(
    answer: Approval | None, look: Look | None, expected: tuple[Phase, Reason] | None
) -> None:
    assert outcome(due(Phase.AWAITING_APPROVAL, look=look, approval=answer)) == expected


@pytest.mark.parametrize(
    ("on_timeout", "offset_s", "expected"),
    [
        pytest.param(OnApprovalTimeout.PAUSE, 60, None, id="at the limit"),
        pytest.param(OnApprovalTimeout.PAUSE, 61, (Phase.PAUSED, Reason.APPROVAL_TIMEOUT), id="pause"),
        pytest.param(OnApprovalTimeout.ROLL_BACK, 61, (Phase.ROLLING_BACK, Reason.APPROVAL_TIMEOUT), id="back"),
    ],
)
def test_rule_20_nobody_answers(
    on_timeout: OnApprovalTimeout, offset_s: float, expected: tuple[Phase, Reason] | None
) -> None:
    plan = make_plan(approval_timeout=seconds(60), on_approval_timeout=on_timeout)
    assert outcome(due(make_rollout(Phase.AWAITING_APPROVAL, plan=plan), offset_s, look=passing())) == expected


@pytest.mark.parametrize(
    ("offset_s", "resumes"), [pytest.param(1, True, id="after the pause"), pytest.param(-1, False, id="before it")]
)
def test_rule_21_a_person_resumes(offset_s: float, resumes: bool) -> None:
    move = due(Phase.PAUSED, wish=wish(WishKind.RESUME, offset_s))
    assert outcome(move) == ((Phase.SHIFTING, Reason.RESUMED) if resumes else None)
    waiting = make_rollout(Phase.PAUSED, step_since=None, baking_since=None)
    move = due(waiting, wish=wish(WishKind.RESUME, offset_s))
    assert outcome(move) == ((Phase.WAITING, Reason.RESUMED) if resumes else None)


def test_a_pause_waits_for_its_person_however_long_and_whatever_passes() -> None:
    assert due(Phase.PAUSED, 10**6, look=passing(10**6), approval=approval()) is None


@pytest.mark.parametrize(("phase", "kind"), list(product(Phase, WishKind)), ids=str)
def test_what_is_not_refused_is_obeyed(phase: Phase, kind: WishKind) -> None:
    refused = refusal(make_rollout(phase), kind)
    move = due(phase, wish=wish(kind), weight_percent=None)
    assert (refused is None) == (move is not None and move.obeys == at(1))


@pytest.mark.parametrize(
    ("kind", "by", "step", "may"),
    [
        pytest.param(WishKind.PROMOTE, "ann", 0, True, id="an approver promotes"),
        pytest.param(WishKind.PROMOTE, "bob", 0, False, id="somebody else would pass a question"),
        pytest.param(WishKind.PROMOTE, "bob", 1, False, id="also the one that is open"),
        pytest.param(WishKind.PROMOTE, "bob", 2, True, id="nobody is asked any more"),
        *[pytest.param(kind, "bob", 0, True, id=str(kind)) for kind in WishKind if kind is not WishKind.PROMOTE],
    ],
)
def test_only_approvers_promote_past_a_question(kind: WishKind, by: str, step: int, may: bool) -> None:
    plan = make_plan([10, make_step(50, approval=True), 75, 100], approvers=("ann",))
    refused = unpermitted(make_rollout(Phase.BAKING, plan=plan, step=step), kind, by)
    assert (refused is None) is may
    assert may or "ann may" in str(refused)


# --- whole lives ------------------------------------------------------------------------------------------------------


class Life:
    """A rollout in simulated time: what is ordered is read back at the next tick, a look comes at every interval."""

    def __init__(self, plan: Plan, measure: Callable[[int], Reading]) -> None:
        self.rollout = make_rollout(Phase.WAITING, plan=plan)
        self.measure = measure
        self.look: Look | None = None
        self.now = NOW
        self.past: list[tuple[Phase, Reason]] = []
        self.world: dict[str, Any] = {}

    def run(self, ticks: int, *, tick_s: float = 10) -> Life:
        for _ in range(ticks):
            share = self.rollout.wanted_share
            self.now += seconds(tick_s)
            self._look()
            usual = {"canary_ready": True, "share": share, "canary_idle": share.is_nothing, "look": self.look}
            told = Seen(**{**usual, **self.world})
            move = decide(self.rollout, told, self.now)
            if move is not None:
                self.rollout = apply(self.rollout, move, self.now)
                self.past.append((move.to, move.explanation.reason))
        return self

    def _look(self) -> None:
        if not self.rollout.makes_looks:
            return
        last = self.rollout.changed_at if self.rollout.phase is Phase.BAKING else NOW
        begin = max(last, self.look.measured.ended_at) if self.look is not None else last
        if self.now - begin >= self.rollout.plan.interval:
            reading, offset = self.measure(self.rollout.step), (self.now - NOW).total_seconds()
            plan, step = self.rollout.plan, self.rollout.step
            self.look = make_look(reading, plan=plan, previous=self.look, step=step, ended_s=offset)


def test_a_good_canary_is_promoted_step_by_step() -> None:
    life = Life(make_plan([10, make_step(50, approval=True), 100]), lambda step: errors()).run(30)
    assert life.past == [
        (Phase.SHIFTING, Reason.STEP_STARTED),
        (Phase.WARMING, Reason.WEIGHT_APPLIED),
        (Phase.BAKING, Reason.WARMED_UP),
        (Phase.SHIFTING, Reason.STEP_STARTED),
        (Phase.WARMING, Reason.WEIGHT_APPLIED),
        (Phase.BAKING, Reason.WARMED_UP),
        (Phase.AWAITING_APPROVAL, Reason.APPROVAL_NEEDED),
    ]
    life.world["approval"] = Approval(step=1, approved=True, by="ann", at=life.now)
    life.run(5)
    assert life.past[-2:] == [(Phase.PROMOTING, Reason.PASSED), (Phase.PROMOTED, Reason.SERVES_ALL)]


def test_a_bad_canary_is_rolled_back_within_two_looks_of_its_bake() -> None:
    life = Life(make_plan(), lambda step: errors((30, 100), (9, 900))).run(30)
    assert life.past[-2:] == [(Phase.ROLLING_BACK, Reason.FAILED), (Phase.ROLLED_BACK, Reason.FAILED)]
    assert life.look is not None
    assert life.look.number <= 2


def test_a_canary_that_gets_bad_while_it_waits_for_approval_is_rolled_back() -> None:
    life = Life(make_plan([make_step(10, approval=True), 100]), lambda step: errors()).run(20)
    assert life.rollout.phase is Phase.AWAITING_APPROVAL
    life.measure = lambda step: errors((30, 100), (9, 900))
    life.run(10)
    assert life.rollout.phase is Phase.ROLLED_BACK


def test_a_canary_without_traffic_is_never_promoted() -> None:
    life = Life(make_plan(), lambda step: errors((0, 0), (0, 900))).run(1000)
    assert life.past[-1] == (Phase.PAUSED, Reason.UNDECIDED)
    assert life.rollout.wanted_weight_percent == 10


def test_a_metrics_source_that_is_gone_neither_promotes_nor_rolls_back() -> None:
    life = Life(make_plan(), lambda step: GONE).run(1000)
    assert life.past[-1] == (Phase.PAUSED, Reason.UNDECIDED)
    assert life.look is not None
    assert life.look.outcome is Outcome.ERROR


def test_an_undecided_step_that_is_resumed_bakes_anew() -> None:
    life = Life(make_plan(), lambda step: GONE).run(1000)
    life.measure = lambda step: errors()
    life.world["wish"] = Wish(kind=WishKind.RESUME, by="ann", at=life.now)
    life.run(60)
    assert life.rollout.phase is Phase.PROMOTED


READINGS = st.sampled_from(
    [errors(), errors((0, 0), (0, 0)), GONE, errors((30, 100), (9, 900)), errors((0, 9), (1, 90))]
)
WORLDS = st.fixed_dictionaries(
    {},
    optional={
        "share": st.sampled_from([None, *(Share(weight_percent=weight) for weight in (0.0, 10.0, 50.0, 100.0))]),
        "canary_ready": st.booleans(),
        "canary_dead": st.sampled_from([None, None, None, "crashed"]),
        "canary_idle": st.booleans(),
        "stable_alive": st.booleans(),
        "superseded_by": st.sampled_from([None, None, None, "digits-3"]),
        "wish": st.builds(wish, st.sampled_from(WishKind), st.integers(0, 900)),
        "approval": st.builds(approval, st.booleans(), step=st.integers(0, 1), offset_s=st.integers(0, 900)),
    },
)


@settings(max_examples=150)
@given(st.lists(st.tuples(READINGS, WORLDS, st.integers(1, 6)), max_size=25), st.booleans())
def test_whatever_happens_the_promises_hold(happens: list[tuple[Reading, dict[str, Any], int]], asks: bool) -> None:
    life = Life(make_plan([make_step(10, approval=asks), 50, 100]), lambda step: errors())
    for reading, world, ticks in happens:
        life.measure, life.world = lambda step, reading=reading: reading, world  # type: ignore[misc]
        for _ in range(ticks):
            before = life.rollout
            life.run(1)
            after = life.rollout
            if after is before:
                continue
            assert after.phase in TRANSITIONS[before.phase]
            assert after.explanation.message
            if after.explanation.reason is Reason.PASSED or after.step > before.step:
                by_hand = after.explanation.reason is Reason.PROMOTED_BY_HAND
                assert by_hand or before.phase is Phase.AWAITING_APPROVAL or _was_passed(before, life)
            if after.phase in (Phase.ROLLED_BACK, Phase.ABORTED):
                assert after.wanted_weight_percent == 0
            if before.phase in (Phase.BAKING, Phase.AWAITING_APPROVAL) and life.look and life.look.failed_look:
                assert after.phase in (Phase.ROLLING_BACK, Phase.PAUSED)


def _was_passed(before: Rollout, life: Life) -> bool:
    """Whether the step before was left by a look that passed in it."""
    look = life.look
    return look is not None and look.measured.step == before.step and look.outcome in (Outcome.PASS, Outcome.NODATA)


def test_six_hours_of_looks_cost_no_state_that_grows() -> None:
    plan = make_plan([make_step(10, bake_min=timedelta(hours=6), bake_max=timedelta(hours=7)), 100])
    life = Life(plan, lambda step: errors()).run(800, tick_s=30)
    assert life.rollout.phase is Phase.PROMOTED
    assert life.look is not None
    assert life.look.number > 700
    assert len(life.look.metrics[0].carried.evidence.log_stakes) == 6
