"""Output checks of a plan: how they are read, what each of the four outcomes is, that they replay, and what waits for them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from rollout_builders import errors, make_plan, make_rollout

from builders import NOW, at, seconds
from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.rollout.check_reading import MAX_CHECKS, MAX_SAMPLE_VALUES
from fermion.domain.rollout.judging import judge
from fermion.domain.rollout.looks import CheckReading, Look, Measured, Outcome, Reading, has_passed
from fermion.domain.rollout.plan import OutputCheck, Plan, Share
from fermion.domain.rollout.plan_reading import parse_plan, read_plan
from fermion.domain.rollout.reasons import Reason
from fermion.domain.rollout.replay import replay
from fermion.domain.rollout.rollouts import Phase
from fermion.domain.rollout.steering import Seen, decide
from fermion.domain.serving.output_check import OutputSeen, seen_of
from fermion.domain.serving.tensors import Tensor, TensorSpec

PIXELS = Tensor(name="pixels", datatype="FP64", shape=(1, 64), data=(0.5,) * 64)
DIGIT = TensorSpec(name="digit", datatype="INT64", shape=(-1,), low=0, high=9)
SURE = TensorSpec(name="confidence", datatype="FP64", shape=(-1,), low=0, high=1)
GREY = OutputCheck(name="grey", inputs=(PIXELS,), outputs=(DIGIT, SURE))
RAW: dict[str, Any] = {
    "name": "grey",
    "inputs": [{"name": "pixels", "datatype": "FP64", "shape": [1, 64], "data": 0.5}],
    "outputs": [
        {"name": "digit", "dtype": "int64", "shape": [-1], "classes": list(range(10))},
        {"name": "confidence", "datatype": "FP64", "shape": [-1], "range": [0, 1]},
    ],
}
PLAN = make_plan(output_checks=(GREY,))


def answer(digit: float = 3, confidence: float = 0.9, *, shape: tuple[int, ...] = (1,)) -> tuple[OutputSeen, ...]:
    """What a replica gives."""
    return (
        seen_of(Tensor(name="digit", datatype="INT64", shape=shape, data=(digit,))),
        seen_of(Tensor(name="confidence", datatype="FP64", shape=(1,), data=(confidence,))),
    )


def came(**changes: Any) -> CheckReading:
    """The reading of a good answer."""
    return CheckReading(**{"check": "grey", "replica": "r2-1", "outputs": answer(), **changes})


def look(
    *checks: CheckReading,
    plan: Plan = PLAN,
    weight: float = 10,
    readings: tuple[Reading, ...] = (errors(),),
    previous: Look | None = None,
    ended_s: float = 60,
) -> Look:
    measured = Measured(
        step=0,
        weight_percent=weight,
        started_at=at(ended_s - 30),
        ended_at=at(ended_s),
        readings=readings,
        checks=checks,
    )
    return judge(plan, measured, previous)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_check_is_read_as_it_is_written_and_one_value_fills_the_sample() -> None:
    plan = parse_plan({"steps": [10, 100], "outputChecks": [RAW]})
    assert plan.output_checks == (GREY,)
    assert from_payload(Plan, json.loads(json.dumps(to_payload(plan)))) == plan


def test_a_check_without_a_name_and_without_outputs_asks_for_finite_numbers_only() -> None:
    plan = parse_plan({"steps": [10, 100], "output_checks": [{"inputs": RAW["inputs"]}]})
    assert plan.output_checks == (OutputCheck(name="sample-1", inputs=(PIXELS,)),)


def test_everything_wrong_with_all_checks_is_told_at_once() -> None:
    reading = read_plan(
        {
            "steps": [10, 90],
            "output_checks": [
                {"name": "a", "inputs": [{"name": "x", "shape": [2], "data": [1]}], "outputs": [{"name": "y"}, 7]},
                {"name": "a", "output": [], "outputs": [{"shape": [-2], "datatype": "FP8", "range": ["a"]}]},
                "all",
            ],
        }
    )
    assert {(each.field, each.code) for each in reading.problems} == {
        ("steps", "not_ending_at_100"),
        ("output_checks", "duplicate"),
        ("output_checks.0.inputs.0.datatype", "unknown_datatype"),
        ("output_checks.0.inputs.0.data", "wrong_count"),
        ("output_checks.0.outputs.0.datatype", "unknown_datatype"),
        ("output_checks.0.outputs.0.shape", "bad_shape"),
        ("output_checks.0.outputs.1", "not_an_object"),
        ("output_checks.1.output", "unknown_field"),
        ("output_checks.1.inputs", "missing"),
        ("output_checks.1.outputs.0.name", "missing"),
        ("output_checks.1.outputs.0.datatype", "unknown_datatype"),
        ("output_checks.1.outputs.0.shape", "bad_shape"),
        ("output_checks.1.outputs.0.range", "bad_range"),
        ("output_checks.2", "not_an_object"),
    }


@pytest.mark.parametrize(
    ("sample", "is_fine"),
    [
        pytest.param({"shape": [MAX_SAMPLE_VALUES], "data": 1}, True, id="as many as may be"),
        pytest.param({"shape": [MAX_SAMPLE_VALUES + 1], "data": 1}, False, id="one more, by its shape"),
        pytest.param({"shape": [10**9, 10**9], "data": 1}, False, id="more than fit into memory"),
        pytest.param({"data": [[1] * 100] * (MAX_SAMPLE_VALUES // 100 + 1)}, False, id="nested"),
    ],
)
def test_a_sample_is_no_larger_than_may_be_stored(sample: dict[str, object], is_fine: bool) -> None:
    raw = {"inputs": [{"name": "x", "datatype": "INT64", **sample}]}
    reading = read_plan({"steps": [10, 100], "output_checks": [raw]})
    codes = [(each.field, each.code) for each in reading.problems]
    assert codes == ([] if is_fine else [("output_checks.0.inputs", "too_many")])


def test_there_are_only_so_many_checks() -> None:
    many = [{**RAW, "name": f"check {number}"} for number in range(MAX_CHECKS + 1)]
    reading = read_plan({"steps": [10, 100], "output_checks": many})
    assert [(each.field, each.code) for each in reading.problems] == [("output_checks", "too_many")]


# --- the four outcomes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "outcome", "words"),
    [
        pytest.param(came(), Outcome.PASS, "passes: r2-1 gives 2 outputs as expected", id="as expected"),
        pytest.param(
            came(error="r2-1 did not answer within 10 s."),
            Outcome.ERROR,
            "could not be asked: r2-1 did not answer within 10 s.",
            id="too late",
        ),
        pytest.param(
            CheckReading(check="grey"), Outcome.NODATA, "no replica of the canary is ready", id="nobody to ask"
        ),
        pytest.param(
            came(outputs=(), refused="the server of model 'digits' failed (500): boom"),
            Outcome.FAIL,
            "is violated by r2-1, which gives no outputs: the server of model 'digits' failed (500): boom.",
            id="no outputs",
        ),
        pytest.param(
            came(outputs=answer(confidence=math.nan)),
            Outcome.FAIL,
            "is violated by r2-1: output 'confidence' holds 1 of 1 values that are not finite (nan).",
            id="no number",
        ),
        pytest.param(
            came(outputs=answer(shape=(1, 1))),
            Outcome.FAIL,
            "output 'digit' has the shape [1, 1], not [1].",
            id="another shape",
        ),
        pytest.param(
            came(outputs=answer(digit=10)), Outcome.FAIL, "holds 10, which is not within 0 to 9.", id="out of range"
        ),
        pytest.param(
            came(outputs=answer()[:1]), Outcome.FAIL, "'confidence' is missing; there is digit.", id="missing"
        ),
    ],
)
def test_the_outcome_of_a_check_is_that_of_the_look(reading: CheckReading, outcome: Outcome, words: str) -> None:
    for weight, readings in ((10, (errors(),)), (0, ())):
        found = look(reading, weight=weight, readings=readings)
        assert found.outcome is outcome
        assert [each.outcome for each in found.checks] == [outcome]
        assert words in found.sentence
        assert (found.failed_look, found.failure) == ((1, found.sentence) if outcome is Outcome.FAIL else (None, ""))


def test_a_check_that_nobody_asked_is_an_error_and_no_pass() -> None:
    found = look()
    assert (found.outcome, found.sentence) == (Outcome.ERROR, "Output check grey could not be asked: nobody asked it.")


def test_a_check_that_fails_outweighs_a_metric_that_cannot_be_measured() -> None:
    gone = Reading(metric="error_rate", error="the router is gone")
    assert look(came(outputs=answer(digit=-1)), readings=(gone,)).outcome is Outcome.FAIL
    assert look(came(), readings=(gone,)).outcome is Outcome.ERROR


def test_many_problems_of_one_answer_are_told_shortly() -> None:
    specs = tuple(TensorSpec(name=f"out{number}", datatype="FP32", shape=(1,)) for number in range(9))
    plan = make_plan(output_checks=(replace(GREY, outputs=specs),))
    assert "; and 4 more." in look(came(), plan=plan).sentence


def test_before_the_first_weight_only_the_checks_are_judged_and_the_evidence_begins_later() -> None:
    first = look(came(), weight=0, readings=())
    assert (first.outcome, first.metrics) == (Outcome.PASS, ())
    second = look(came(), previous=first, ended_s=90)
    assert second.number == 2
    assert [each.metric for each in second.metrics] == ["error_rate"]
    assert second.sentence.startswith("1 of 1 metrics pass. Output check grey passes")


def test_no_step_is_passed_while_a_check_has_nobody_to_ask() -> None:
    passed = look(came())
    assert has_passed(PLAN, passed, since=NOW)
    silent = look(CheckReading(check="grey"), previous=passed, ended_s=90)
    assert silent.metrics[0].outcome is Outcome.PASS
    assert not has_passed(PLAN, silent, since=NOW)


# --- replay -----------------------------------------------------------------------------------------------------------


def test_stored_checks_are_judged_again_from_what_came() -> None:
    looks = [look(came(), weight=0, readings=(), ended_s=0)]
    for reading in (came(), came(error="late"), CheckReading(check="grey"), came(outputs=answer(confidence=math.nan))):
        looks.append(look(reading, previous=looks[-1], ended_s=looks[-1].number * 30))
    stored = [from_payload(Look, json.loads(json.dumps(to_payload(each), allow_nan=False))) for each in looks]
    assert stored == looks
    assert replay(PLAN, stored) == []
    changed = replace(stored[1], checks=(replace(stored[1].checks[0], outcome=Outcome.FAIL),))
    assert [(each.look, each.field) for each in replay(PLAN, [stored[0], changed, *stored[2:]])] == [
        (2, "checks.grey.outcome")
    ]
    came_otherwise = replace(stored[4].measured, checks=(came(),))
    fields = {each.field for each in replay(PLAN, [*stored[:4], replace(stored[4], measured=came_otherwise)])}
    assert {"outcome", "checks.grey.outcome", "failed_look"} <= fields


# --- steering ---------------------------------------------------------------------------------------------------------


WAITS = make_rollout(Phase.WAITING, plan=PLAN)


@pytest.mark.parametrize(
    ("found", "offset_s", "expected"),
    [
        pytest.param(None, 10, None, id="not asked yet"),
        pytest.param(look(came(), weight=0, readings=()), 70, (Phase.SHIFTING, Reason.STEP_STARTED), id="passed"),
        pytest.param(look(came(), weight=0, readings=(), ended_s=-1), 10, None, id="passed before it waited again"),
        pytest.param(look(came(error="late"), weight=0, readings=()), 70, None, id="could not be asked"),
        pytest.param(
            look(came(error="late"), weight=0, readings=()),
            1201,
            (Phase.ABORTED, Reason.READY_TIMEOUT),
            id="could not be asked in time",
        ),
        pytest.param(
            look(came(outputs=answer(digit=11)), weight=0, readings=()),
            70,
            (Phase.ABORTED, Reason.FAILED),
            id="violated",
        ),
    ],
)
def test_no_weight_is_given_before_the_outputs_are_checked(
    found: Look | None, offset_s: float, expected: tuple[Phase, Reason] | None
) -> None:
    move = decide(WAITS, Seen(canary_ready=True, share=Share(weight_percent=0.0), look=found), at(offset_s))
    assert (None if move is None else (move.to, move.explanation.reason)) == expected


def test_who_waits_for_a_check_in_vain_is_told_which_and_why() -> None:
    found = look(came(error="r2-1 did not answer within 10 s"), weight=0, readings=())
    move = decide(WAITS, Seen(canary_ready=True, share=Share(weight_percent=0.0), look=found), at(1201))
    assert move is not None
    assert move.explanation.message == (
        "The canary's outputs could not be checked within 1200 s."
        " Output check grey could not be asked: r2-1 did not answer within 10 s."
    )


def test_a_check_that_fails_under_traffic_goes_back_to_stable() -> None:
    found = look(came(outputs=answer(digit=11)))
    move = decide(
        make_rollout(plan=PLAN), Seen(canary_ready=True, share=Share(weight_percent=10.0), look=found), at(61)
    )
    assert move is not None
    assert (move.to, move.explanation.reason) == (Phase.ROLLING_BACK, Reason.FAILED)
    assert "output 'digit' holds 11, which is not within 0 to 9" in move.explanation.message


def test_a_step_in_which_no_look_was_made_says_so_although_the_outputs_were_checked() -> None:
    baking = make_rollout(plan=PLAN, changed_at=at(0), baking_since=at(0))
    before = look(came(), weight=0, readings=(), ended_s=-10)
    move = decide(baking, Seen(canary_ready=True, share=Share(weight_percent=10.0), look=before), at(0) + seconds(601))
    assert move is not None
    assert "No look was made." in move.explanation.message
