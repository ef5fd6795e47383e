"""Rollouts: which moves are legal, what a move sets, and which weight is wanted when."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from rollout_builders import make_plan, make_rollout

from builders import NOW, at
from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.rollout.plan import OnUndecided
from fermion.domain.rollout.reasons import Explanation, Reason
from fermion.domain.rollout.rollouts import FINAL, TRANSITIONS, Move, Phase, Rollout, apply
from fermion.errors import InvalidTransition

WHY = Explanation(Reason.STEP_STARTED, "because", {"weight_percent": 10})

LEGAL = {
    "waiting": {"shifting", "promoting", "paused", "aborted"},
    "shifting": {"warming", "promoting", "paused", "rolling_back"},
    "warming": {"baking", "shifting", "promoting", "paused", "rolling_back"},
    "baking": {"awaiting_approval", "shifting", "promoting", "paused", "rolling_back"},
    "awaiting_approval": {"shifting", "promoting", "paused", "rolling_back"},
    "paused": {"waiting", "shifting", "promoting", "rolling_back", "aborted"},
    "promoting": {"promoted", "rolling_back"},
    "rolling_back": {"rolled_back"},
}


def moved(rollout: Rollout, to: Phase, **changes: Any) -> Rollout:
    return apply(rollout, Move(to=to, explanation=WHY, **changes), at(5))


@pytest.mark.parametrize(("before", "to"), list(product(Phase, Phase)), ids=str)
def test_a_rollout_moves_only_where_the_table_lets_it(before: Phase, to: Phase) -> None:
    rollout = make_rollout(before)
    if str(to) in LEGAL.get(str(before), set()):
        after = moved(rollout, to)
        assert (after.phase, after.explanation, after.changed_at) == (to, WHY, at(5))
    else:
        with pytest.raises(InvalidTransition, match=f"cannot go from {before} to {to}"):
            moved(rollout, to)


def test_the_table_names_every_phase_and_final_ones_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert {phase for phase, after in TRANSITIONS.items() if not after} == FINAL


def test_nothing_that_had_traffic_ends_without_its_traffic_seen_to_move() -> None:
    """Promoted and rolled back are reached only from the phases that read the router back."""
    assert {phase for phase, after in TRANSITIONS.items() if Phase.PROMOTED in after} == {Phase.PROMOTING}
    assert {phase for phase, after in TRANSITIONS.items() if Phase.ROLLED_BACK in after} == {Phase.ROLLING_BACK}


def test_the_first_step_begins() -> None:
    after = moved(make_rollout(Phase.WAITING), Phase.SHIFTING, step=0)
    assert (after.step, after.step_since, after.baking_since) == (0, at(5), None)
    assert after.has_had_traffic


def test_the_next_step_begins() -> None:
    after = moved(make_rollout(Phase.BAKING), Phase.SHIFTING, step=1)
    assert (after.step, after.step_since, after.baking_since) == (1, at(5), None)


def test_a_weight_that_is_ordered_again_begins_no_step() -> None:
    after = moved(make_rollout(Phase.BAKING), Phase.SHIFTING)
    assert (after.step, after.step_since, after.baking_since) == (0, NOW, NOW)


def test_a_resumed_step_begins_anew() -> None:
    after = moved(make_rollout(Phase.PAUSED), Phase.SHIFTING)
    assert (after.step, after.step_since, after.baking_since) == (0, at(5), None)


def test_the_bake_counts_from_its_first_look_however_often_the_weight_is_lost() -> None:
    assert moved(make_rollout(Phase.WARMING), Phase.BAKING).baking_since == at(5)
    assert moved(make_rollout(Phase.WARMING, baking_since=NOW), Phase.BAKING).baking_since == NOW


@pytest.mark.parametrize("to", sorted(FINAL))
def test_an_end_has_a_time(to: Phase) -> None:
    before = {Phase.PROMOTED: Phase.PROMOTING, Phase.ROLLED_BACK: Phase.ROLLING_BACK, Phase.ABORTED: Phase.WAITING}
    after = moved(make_rollout(before[to]), to)
    assert (after.ended_at, after.is_final) == (at(5), True)


def test_a_wish_is_remembered_as_obeyed() -> None:
    assert moved(make_rollout(), Phase.PAUSED, obeys=at(3)).obeyed_at == at(3)
    assert moved(make_rollout(obeyed_at=at(2)), Phase.PAUSED).obeyed_at == at(2)


@pytest.mark.parametrize(
    ("phase", "weight", "looks"),
    [
        (Phase.WAITING, 0, False),
        (Phase.SHIFTING, 10, False),
        (Phase.WARMING, 10, False),
        (Phase.BAKING, 10, True),
        (Phase.AWAITING_APPROVAL, 10, True),
        (Phase.PAUSED, 10, True),
        (Phase.PROMOTING, 100, False),
        (Phase.PROMOTED, 100, False),
        (Phase.ROLLING_BACK, 0, False),
        (Phase.ROLLED_BACK, 0, False),
        (Phase.ABORTED, 0, False),
    ],
)
def test_the_wanted_weight_and_whether_looks_are_due(phase: Phase, weight: float, looks: bool) -> None:
    rollout = make_rollout(phase)
    assert (rollout.wanted_weight_percent, rollout.makes_looks) == (weight, looks)


def test_a_pause_before_any_traffic_gives_none() -> None:
    rollout = make_rollout(Phase.PAUSED, step_since=None, baking_since=None)
    assert (rollout.wanted_weight_percent, rollout.makes_looks) == (0, False)


@pytest.mark.parametrize(
    ("on_undecided", "expected"), [(OnUndecided.EXTEND, 600), (OnUndecided.PAUSE, 300), (OnUndecided.ROLL_BACK, 300)]
)
def test_a_step_is_extended_once_where_the_plan_says_so(on_undecided: OnUndecided, expected: float) -> None:
    rollout = make_rollout(plan=make_plan(on_undecided=on_undecided))
    assert rollout.undecided_at == at(expected)
    assert make_rollout(Phase.WARMING).undecided_at is None


def test_it_says_when_it_is_extended() -> None:
    rollout = make_rollout()
    assert [rollout.is_extended(at(offset)) for offset in (299, 300)] == [False, True]
    assert not make_rollout(Phase.AWAITING_APPROVAL).is_extended(at(400))


def test_a_rollout_can_be_stored() -> None:
    rollout = make_rollout(explanation=WHY)
    assert from_payload(Rollout, json.loads(json.dumps(to_payload(rollout)))) == rollout
