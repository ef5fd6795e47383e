"""Splits by header, cookie and copies: how they are written, what is refused, what a look may conclude, and which moves follow."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from rollout_builders import (
    BETA,
    ERRORS,
    GROUP,
    LATENCY,
    SHARES,
    STICKY,
    errors,
    latency,
    make_look,
    make_plan,
    make_rollout,
    make_step,
)

from builders import at, seconds
from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.rollout.looks import Look, Measured, MetricLook, Outcome
from fermion.domain.rollout.plan import FULL, MetricRule, NoData, Plan, Share, SplitRule, Step, Way
from fermion.domain.rollout.plan_problems import problems_of
from fermion.domain.rollout.plan_reading import parse_plan, read_plan
from fermion.domain.rollout.reasons import Reason
from fermion.domain.rollout.replay import replay
from fermion.domain.rollout.rollouts import Approval, Move, Phase, Rollout
from fermion.domain.rollout.steering import Seen, decide

GUARDED = replace(ERRORS, guard=0.5)
UNCOMPARED = [name for name, share in SHARES.items() if share.way in (Way.MATCHED, Way.STICKY)]


def step_of(share: Share, **changes: Any) -> Step:
    """A step that gives that, with the approval that it may need."""
    changes = {"approval": share.way in (Way.MATCHED, Way.STICKY), **changes}
    return make_step(share.weight_percent, split=share.split, mirror_percent=share.mirror_percent, **changes)


def plan_of(*shares: Share, **changes: Any) -> Plan:
    """A plan of these, with a guard on errors, that ends with the promotion."""
    return make_plan([*map(step_of, shares), 100], **{"metrics": (GUARDED,), **changes})


# --- what is written ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        pytest.param({"mirror": 20}, Share(mirror_percent=20), id="copies"),
        pytest.param({"mirror": "20%"}, Share(mirror_percent=20), id="copies in percent"),
        pytest.param({"mirrorPercent": 100}, Share(mirror_percent=100), id="copies of all"),
        pytest.param({"split": {"header": "X-Group", "value": "beta"}}, Share(split=GROUP), id="header"),
        pytest.param({"split": {"cookie": "beta", "value": 1}}, Share(split=BETA), id="cookie"),
        pytest.param({"weight": 10, "split": {"cookie": "variant"}}, SHARES["sticky"], id="sticky"),
        pytest.param({"split": {"fixed": "30%", "for": "1h"}}, Share(weight_percent=30), id="fixed"),
        pytest.param({"weight": 30, "mirror": 0}, Share(weight_percent=30), id="no copies"),
    ],
)
def test_each_way_can_be_written(written: dict[str, Any], meant: Share) -> None:
    plan = parse_plan(
        {"steps": [{"approval": True, **written}, 100], "metrics": [{"name": "error_rate", "guard": "5%"}]}
    )
    assert plan.steps[0].share == meant
    assert plan.steps[1].share == Share(weight_percent=FULL)


def test_a_fixed_split_is_kept_as_long_as_it_says() -> None:
    plan = parse_plan({"steps": [{"split": {"fixed": 30, "for": "1h"}}, 100]})
    assert plan.steps[0] == Step(weight_percent=30, bake_min=seconds(3600), bake_max=seconds(3600))


@pytest.mark.parametrize("name", SHARES)
def test_a_split_can_be_stored(name: str) -> None:
    plan = plan_of(SHARES[name])
    assert from_payload(Plan, json.loads(json.dumps(to_payload(plan)))) == plan


@pytest.mark.parametrize(
    ("name", "way", "said"),
    [
        ("drawn", Way.DRAWN, "10 %"),
        ("header", Way.MATCHED, "the group with header x-group: beta"),
        ("cookie", Way.MATCHED, "the group with cookie beta=1"),
        ("sticky", Way.STICKY, "10 %, kept by cookie variant"),
        ("copies", Way.MIRRORED, "a copy of 20 %"),
    ],
)
def test_a_share_is_named_by_what_it_is(name: str, way: Way, said: str) -> None:
    assert (SHARES[name].way, str(SHARES[name]), SHARES[name].is_nothing) == (way, said, False)
    assert Share().is_nothing


# --- what is refused ----------------------------------------------------------------------------------------------------


def refused(*steps: object, metrics: object = None) -> set[tuple[str, str]]:
    """(field, code) of every problem of a plan of these steps."""
    raw = {"steps": [*steps, 100], "metrics": metrics or [{"name": "error_rate", "guard": 0.05}]}
    reading = read_plan(raw)
    assert (reading.plan is None) == bool(reading.problems)
    assert all(problem.message and problem.fix for problem in reading.problems)
    return {(problem.field, problem.code) for problem in reading.problems}


HEADER = {"split": {"header": "x-group", "value": "beta"}, "approval": True}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        pytest.param({**HEADER}, set(), id="all is well"),
        pytest.param({"split": "header"}, {("steps.0.split", "not_an_object")}, id="a word"),
        pytest.param({"split": {}}, {("steps.0.split", "one_way")}, id="no way"),
        pytest.param({"split": {"header": "a", "cookie": "b"}}, {("steps.0.split", "one_way")}, id="two ways"),
        pytest.param({"split": {"headers": "a"}}, {("steps.0.split.headers", "unknown_field"), ("steps.0.split", "one_way")}, id="misspelt"),
        pytest.param({"split": {"header": "a"}, "approval": True}, {("steps.0.split.value", "missing")}, id="header without a value"),
        pytest.param({"split": {"header": ["a"], "value": " "}}, {("steps.0.split.header", "not_text"), ("steps.0.split.value", "not_text")}, id="no texts"),
        pytest.param({"split": {"header": "a", "value": "b", "for": "1h"}}, {("steps.0.split.for", "misplaced")}, id="for"),
        pytest.param({"split": {"fixed": 30}}, {("steps.0.split.for", "missing")}, id="fixed without an end"),
        pytest.param({"split": {"fixed": 30, "for": "1h", "value": "x"}}, {("steps.0.split.value", "misplaced")}, id="fixed with a value"),
        pytest.param({"weight": 20, "split": {"fixed": 30, "for": "1h"}}, {("steps.0.weight_percent", "given_twice")}, id="two weights"),
        pytest.param({"bake_min": "2h", "split": {"fixed": 30, "for": "1h"}}, {("steps.0.bake_min", "given_twice")}, id="two times"),
        pytest.param({"split": {"fixed": "x", "for": "soon"}}, {("steps.0.weight_percent", "not_a_number"), ("steps.0.bake_min", "not_a_duration")}, id="fixed at x"),
        pytest.param({"split": {"cookie": "variant"}, "approval": True}, {("steps.0.weight_percent", "missing")}, id="sticky without a weight"),
        pytest.param({"split": {"header": "x group", "value": "ä"}, "approval": True}, {("steps.0.split.header", "bad_name"), ("steps.0.split.value", "bad_value")}, id="no header"),
        pytest.param({"split": {"cookie": "a=b", "value": "a, b"}, "approval": True}, {("steps.0.split.cookie", "bad_name"), ("steps.0.split.value", "bad_value")}, id="no cookie"),
        pytest.param({"split": {"header": "x", "value": "a, b"}, "approval": True}, set(), id="a value with a blank"),
        pytest.param({**HEADER, "weight": 5}, {("steps.0.weight_percent", "misplaced")}, id="header with a weight"),
        pytest.param({**HEADER, "mirror": 5}, {("steps.0.mirror_percent", "one_way")}, id="header and copies"),
        pytest.param({**HEADER, "approval": False}, {("steps.0.approval", "approval_needed")}, id="header without a person"),
        pytest.param({"weight": 5, "split": {"cookie": "v"}}, {("steps.0.approval", "approval_needed")}, id="sticky without a person"),
        pytest.param({"mirror": 101}, {("steps.0.mirror_percent", "out_of_range")}, id="more than all"),
        pytest.param({"mirror": -1}, {("steps.0.mirror_percent", "out_of_range")}, id="less than none"),
        pytest.param({"mirror": 2.5}, {("steps.0.mirror_percent", "fractional")}, id="two and a half"),
        pytest.param({"mirror": "all"}, {("steps.0.mirror_percent", "not_a_number")}, id="a word for copies"),
        pytest.param({"mirror": 0}, {("steps.0.weight_percent", "missing")}, id="no copies and no weight"),
        pytest.param({"mirror": 20, "weight": 5}, {("steps.0.weight_percent", "misplaced")}, id="copies with a weight"),
    ],
)  # fmt: skip
def test_every_problem_of_a_split_is_blamed_once(step: object, expected: set[tuple[str, str]]) -> None:
    assert refused(step) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param([{"mirror": 20}, HEADER, {"mirror": 50}, 10], set(), id="copies and groups first, in any order"),
        pytest.param([10, {"mirror": 20}], {("steps.1", "not_increasing")}, id="copies after a weight"),
        pytest.param([10, HEADER, 20], {("steps.1", "not_increasing")}, id="a group after a weight"),
        pytest.param([{"mirror": 20}, 20, 10], {("steps.2", "not_increasing")}, id="weights still grow"),
        pytest.param([{"weight": 100, "mirror": 5}], {("steps.0.mirror_percent", "misplaced"), ("steps.1", "not_increasing")}, id="copies at the promotion"),
        pytest.param([{"weight": 100, "split": {"cookie": "v"}}], {("steps.0.split", "misplaced"), ("steps.1", "not_increasing")}, id="sticky at the promotion"),
    ],
)  # fmt: skip
def test_what_takes_requests_back_is_refused(steps: list[object], expected: set[tuple[str, str]]) -> None:
    assert refused(*steps) == expected


@pytest.mark.parametrize(
    ("rules", "is_refused"),
    [
        pytest.param((ERRORS,), True, id="no guard"),
        pytest.param((replace(ERRORS, guard=0.05, no_data=NoData.NEUTRAL), LATENCY), True, id="a guard that need not be measured"),
        pytest.param((ERRORS, replace(LATENCY, guard=0.5)), False, id="one guard"),
        pytest.param((replace(ERRORS, guard=0.0),), False, id="a guard of nothing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", SHARES)
def test_where_nothing_is_tested_a_guard_is_needed(name: str, rules: tuple[MetricRule, ...], is_refused: bool) -> None:
    found = {problem.code for problem in problems_of(plan_of(SHARES[name], metrics=rules))}
    assert ("guard_needed" in found) == (is_refused and name in UNCOMPARED)


# --- what a look may conclude ---------------------------------------------------------------------------------------------


def only(look: Look) -> MetricLook:
    (found,) = look.metrics
    return found


@pytest.mark.parametrize("name", SHARES)
def test_only_arms_that_chance_alone_tells_apart_are_compared(name: str) -> None:
    look = make_look(errors((40, 100), (9, 900)), plan=plan_of(SHARES[name]), share=SHARES[name])
    compared = name not in UNCOMPARED
    assert look.outcome is (Outcome.FAIL if compared else Outcome.PASS)
    assert (only(look).statistic != 0) == compared
    assert ("evidence" in look.sentence or "surely worse" in look.sentence) == compared
    assert (only(look).canary_value, only(look).stable_value) == (0.4, 0.01), "what was measured is told all the same"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("header", "not tested because clients choose their arm; its guard of 50 % holds"),
        ("sticky", "not tested because the same clients come again and again; its guard of 50 % holds"),
    ],
)
def test_what_was_not_tested_says_why(name: str, said: str) -> None:
    look = make_look(errors((2, 100), (9, 900)), plan=plan_of(SHARES[name]), share=SHARES[name])
    assert said in only(look).sentence
    unguarded = make_look(latency((100, 0, 0, 0), (900, 0, 0, 0)), plan=plan_of(SHARES[name], metrics=(LATENCY,)), share=SHARES[name])  # fmt: skip
    assert "it has no guard" in only(unguarded).sentence


@pytest.mark.parametrize("name", SHARES)
def test_a_guard_fails_in_every_way(name: str) -> None:
    look = make_look(errors((80, 100), (9, 900)), plan=plan_of(SHARES[name]), share=SHARES[name])
    assert look.outcome is Outcome.FAIL
    assert look.failed_look == 1


@pytest.mark.parametrize("name", SHARES)
def test_silence_passes_in_no_way(name: str) -> None:
    for counts in (((0, 19), (9, 900)), ((0, 100), (0, 19)), ((0, 0), (0, 0))):
        assert make_look(errors(*counts), plan=plan_of(SHARES[name]), share=SHARES[name]).outcome is Outcome.NODATA


def test_evidence_rests_while_nothing_is_compared_and_goes_on_after() -> None:
    plan = plan_of(SHARES["copies"], SHARES["header"], SHARES["drawn"])
    first = make_look(errors((3, 100), (9, 900)), plan=plan, share=SHARES["copies"])
    second = make_look(errors((40, 100), (9, 900)), plan=plan, previous=first, step=1, share=SHARES["header"])
    third = make_look(errors((3, 100), (9, 900)), plan=plan, previous=second, step=2)
    assert only(first).statistic != 0
    assert only(second).carried.evidence == only(first).carried.evidence
    assert only(third).carried.evidence.looks == 2
    assert replay(plan, [first, second, third]) == []


def test_evidence_of_an_earlier_step_fails_nothing_where_nothing_is_compared() -> None:
    plan = plan_of(SHARES["copies"], SHARES["header"])
    first = make_look(
        errors((1400, 100_000), (1000, 100_000)), plan=replace(plan, metrics=(ERRORS,)), share=SHARES["copies"]
    )
    assert first.outcome is Outcome.PASS, "surely worse, but by less than is tolerated"
    assert only(first).statistic > only(first).bound
    second = make_look(errors((40, 100), (9, 900)), plan=plan, previous=first, step=1, share=SHARES["header"])
    assert second.outcome is Outcome.PASS


def test_a_look_without_traffic_is_told_from_one_of_copies_or_of_a_group() -> None:
    looks = {name: make_look(share=share).measured for name, share in SHARES.items()}
    assert not any(each.is_before_traffic for each in looks.values())
    assert replace(looks["copies"], mirror_percent=0).is_before_traffic
    assert from_payload(Measured, json.loads(json.dumps(to_payload(looks["header"])))) == looks["header"]


def test_the_split_is_counted_but_copies_are_no_part_of_it() -> None:
    counted = {name: make_look(errors((1, 100), (9, 300)), share=share).measured for name, share in SHARES.items()}
    assert {name: each.counted_percent for name, each in counted.items()} == {
        **dict.fromkeys(SHARES, 25.0),
        "copies": None,
    }
    assert make_look(errors((0, 0), (0, 0))).measured.counted_percent is None


# --- which moves follow ---------------------------------------------------------------------------------------------------


def seen(share: Share | None, **changes: Any) -> Seen:
    """The replicas are ready, and the router says that the canary gets that."""
    return Seen(**{"canary_ready": True, "share": share, **changes})


def rollout_of(phase: Phase, name: str, **changes: Any) -> Rollout:
    return make_rollout(phase, plan=plan_of(SHARES[name], Share(weight_percent=50)), **changes)


def outcome(move: Move | None) -> tuple[Phase, Reason] | None:
    return None if move is None else (move.to, move.explanation.reason)


@pytest.mark.parametrize("name", SHARES)
def test_exactly_what_was_ordered_must_be_read_back(name: str) -> None:
    rollout = rollout_of(Phase.SHIFTING, name)
    assert rollout.wanted_share == SHARES[name]
    for other, share in {**SHARES, "nothing": Share()}.items():
        move = decide(rollout, seen(share), at(1))
        assert (outcome(move) == (Phase.WARMING, Reason.WEIGHT_APPLIED)) == (other == name), other
    assert decide(rollout, seen(None), at(1)) is None, "not known is not there"


@pytest.mark.parametrize("phase", [Phase.WARMING, Phase.BAKING, Phase.AWAITING_APPROVAL])
@pytest.mark.parametrize("name", SHARES)
def test_what_the_router_lost_is_ordered_again(name: str, phase: Phase) -> None:
    rollout = rollout_of(phase, name)
    move = decide(rollout, seen(Share()), at(1))
    assert outcome(move) == (Phase.SHIFTING, Reason.WEIGHT_LOST)
    assert move is not None
    assert str(SHARES[name]) in move.explanation.message
    assert decide(rollout, seen(SHARES[name]), at(1)) is None


@pytest.mark.parametrize(
    "left",
    [
        pytest.param(Share(split=GROUP), id="a group"),
        pytest.param(Share(mirror_percent=1), id="copies"),
        pytest.param(Share(weight_percent=1, split=STICKY), id="a weight"),
    ],
)
def test_it_is_not_rolled_back_while_anything_is_left(left: Share) -> None:
    rollout = rollout_of(Phase.ROLLING_BACK, "header")
    assert rollout.wanted_share == Share()
    assert decide(rollout, seen(left, canary_idle=True), at(1)) is None
    assert outcome(decide(rollout, seen(Share(), canary_idle=True), at(1))) == (Phase.ROLLED_BACK, Reason.CREATED)


def test_it_is_not_promoted_while_a_group_is_left() -> None:
    rollout = rollout_of(Phase.PROMOTING, "header", step=2)
    everything = Share(weight_percent=FULL)
    assert decide(rollout, seen(replace(everything, split=GROUP)), at(1)) is None
    assert outcome(decide(rollout, seen(everything), at(1))) == (Phase.PROMOTED, Reason.SERVES_ALL)


@pytest.mark.parametrize("name", UNCOMPARED)
def test_only_a_person_leads_on_from_a_step_that_is_not_tested(name: str) -> None:
    share = SHARES[name]
    rollout = rollout_of(Phase.BAKING, name)
    look = make_look(errors((2, 100), (9, 900)), plan=rollout.plan, share=share, ended_s=60)
    move = decide(rollout, seen(share, look=look), at(61))
    assert outcome(move) == (Phase.AWAITING_APPROVAL, Reason.APPROVAL_NEEDED)
    asked = rollout_of(Phase.AWAITING_APPROVAL, name)
    assert decide(asked, seen(share, look=look), at(61)) is None
    answer = Approval(step=0, approved=True, by="bob", at=at(62))
    onward = decide(asked, seen(share, look=look, approval=answer), at(63))
    assert outcome(onward) == (Phase.SHIFTING, Reason.STEP_STARTED)
    crossed = make_look(errors((80, 100), (9, 900)), plan=rollout.plan, share=share, ended_s=60)
    assert outcome(decide(asked, seen(share, look=crossed), at(61))) == (Phase.ROLLING_BACK, Reason.FAILED)


def test_copies_that_pass_lead_on_by_themselves() -> None:
    share = SHARES["copies"]
    rollout = rollout_of(Phase.BAKING, "copies")
    look = make_look(errors((1, 100), (9, 900)), plan=rollout.plan, share=share, ended_s=60)
    move = decide(rollout, seen(share, look=look), at(61))
    assert outcome(move) == (Phase.SHIFTING, Reason.STEP_STARTED)
    assert move is not None
    assert move.explanation.message == "A copy of 20 % has passed. 50 % were ordered to the canary."


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("drawn", "10 % were ordered to the canary."),
        ("header", "The group with header x-group: beta was ordered to the canary."),
        ("sticky", "10 %, kept by cookie variant were ordered to the canary."),
        ("copies", "A copy of 20 % was ordered to the canary."),
    ],
)
def test_a_move_says_what_was_ordered(name: str, said: str) -> None:
    move = decide(rollout_of(Phase.WAITING, name), seen(Share()), at(1))
    assert move is not None
    assert move.explanation.message.endswith(said)


def test_split_rules_are_the_same_by_what_they_say() -> None:
    assert SplitRule(header="x-group", value="beta") == GROUP
    assert (GROUP.is_sticky, BETA.is_sticky, STICKY.is_sticky) == (False, False, True)
