"""Looks: the four outcomes in their order with their boundaries, what is carried from look to look, and when a step has passed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from rollout_builders import BOUNDS, ERRORS, INTERVAL, LATENCY, errors, latency, make_look, make_plan, make_step

from builders import NOW, at, seconds
from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.rollout.evidence import Evidence
from fermion.domain.rollout.judging import odds, shown
from fermion.domain.rollout.looks import Look, MetricLook, Outcome, Reading, has_passed, missing, proportion
from fermion.domain.rollout.plan import Kind, MetricRule, NoData, Plan

BOTH = make_plan(metrics=(ERRORS, LATENCY))
CHECK = MetricRule(name="output_check", guard=0.0, min_samples=5)


def plan_of(rule: MetricRule, **changes: Any) -> Plan:
    return make_plan(metrics=(rule,), **changes)


def only(look: Look) -> MetricLook:
    """The look's one metric."""
    (found,) = look.metrics
    return found


# --- ERROR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        pytest.param(Reading(metric="error_rate", error="prometheus timed out"), "prometheus timed out", id="failed"),
        pytest.param(Reading(metric="error_rate", error=" "), "the query failed", id="failed without a word"),
        pytest.param(Reading(metric="other"), "no answer came", id="not measured"),
        pytest.param(Reading(metric="error_rate"), "0 and 0 counts came for 2 buckets", id="an empty answer"),
        pytest.param(proportion("error_rate", canary=(7, 5), stable=(1, 9)), "negative", id="more bad than all"),
        pytest.param(proportion("error_rate", canary=(-1, 5), stable=(1, 9)), "negative", id="a negative count"),
    ],
)
def test_what_could_not_be_measured_is_neither_a_pass_nor_a_failure(reading: Reading, said: str) -> None:
    first = make_look(errors((9, 100), (9, 900)))
    look = make_look(reading, previous=first)
    assert (look.outcome, only(look).outcome) == (Outcome.ERROR, Outcome.ERROR)
    assert said in look.sentence
    assert only(look).carried == only(first).carried, "an error changes nothing that is known"
    assert only(look).statistic == only(first).statistic


@pytest.mark.parametrize(
    "reading",
    [
        pytest.param(Reading(metric="latency_p95", canary=(9,), stable=(9,)), id="one bucket"),
        pytest.param(
            Reading(metric="latency_p95", canary=(9, 9), stable=(9, 9), bounds=(0.1, 0.2)), id="too few counts"
        ),
        pytest.param(
            Reading(metric="latency_p95", canary=(9, 9, 9), stable=(9, 9, 9), bounds=(0.2, 0.2)), id="bounds repeat"
        ),
    ],
)
def test_a_histogram_that_is_none_is_an_error(reading: Reading) -> None:
    assert make_look(reading, plan=plan_of(LATENCY)).outcome is Outcome.ERROR


def test_a_guard_beyond_all_buckets_is_an_error_because_it_can_never_be_seen() -> None:
    plan = plan_of(replace(LATENCY, guard=0.5))
    look = make_look(latency((90, 5, 3, 2), (900, 50, 30, 20)), plan=plan)
    assert look.outcome is Outcome.ERROR
    assert "no bucket ends beyond the guard of 0.5" in look.sentence


def test_an_error_in_one_metric_does_not_hide_the_failure_of_another() -> None:
    look = make_look(errors((90, 100), (9, 900)), Reading(metric="latency_p95", error="gone"), plan=BOTH)
    assert look.outcome is Outcome.FAIL
    assert [each.outcome for each in look.metrics] == [Outcome.FAIL, Outcome.ERROR]


def test_an_error_in_one_metric_keeps_the_others_from_passing_in_all() -> None:
    look = make_look(errors(), Reading(metric="latency_p95", error="gone"), plan=BOTH)
    assert look.outcome is Outcome.ERROR
    assert [each.outcome for each in look.metrics] == [Outcome.PASS, Outcome.ERROR]


# --- NODATA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("canary", "stable", "outcome"),
    [
        pytest.param(19, 200, Outcome.NODATA, id="one too few from the canary"),
        pytest.param(20, 200, Outcome.PASS, id="just enough from the canary"),
        pytest.param(200, 19, Outcome.NODATA, id="one too few from stable"),
        pytest.param(0, 0, Outcome.NODATA, id="no traffic at all"),
    ],
)
def test_too_few_samples_in_either_arm_are_no_verdict(canary: int, stable: int, outcome: Outcome) -> None:
    assert make_look(errors((0, canary), (0, stable)), plan=make_plan(min_requests=20)).outcome is outcome


def test_samples_add_up_until_they_are_enough_and_then_begin_anew() -> None:
    outcomes, look = [], None
    for _ in range(5):
        look = make_look(errors((0, 15), (0, 135)), previous=look, plan=make_plan(min_requests=30))
        outcomes.append(look.outcome)
    assert outcomes == [Outcome.NODATA, Outcome.PASS, Outcome.NODATA, Outcome.PASS, Outcome.NODATA]
    assert look is not None
    assert only(look).canary_samples == 15
    assert "has 15 samples from the canary and 135 from stable in 30 s; 30 of each are needed" in look.sentence


def test_few_samples_are_evidence_too() -> None:
    look = make_look(errors((5, 10), (1, 100)))
    assert look.outcome is Outcome.NODATA
    assert only(look).statistic > 2


@pytest.mark.parametrize(
    ("looks", "outcome"),
    [
        pytest.param(1, Outcome.NODATA, id="at first it may still come"),
        pytest.param(2, Outcome.FAIL, id="for as long as bake_min"),
    ],
)
def test_silence_fails_where_the_plan_says_so_after_bake_min(looks: int, outcome: Outcome) -> None:
    plan = plan_of(replace(ERRORS, no_data=NoData.FAIL))
    look = None
    for _ in range(looks):
        look = make_look(errors((0, 0), (0, 900)), previous=look, plan=plan)
    assert look is not None
    assert look.outcome is outcome


def test_a_neutral_metric_without_samples_does_not_keep_the_others_from_passing() -> None:
    plan = make_plan(metrics=(ERRORS, replace(LATENCY, no_data=NoData.NEUTRAL)))
    look = make_look(errors(), latency((0, 0, 0, 0), (0, 0, 0, 0)), plan=plan)
    assert look.outcome is Outcome.PASS
    assert has_passed(plan, look, since=NOW)


def test_where_every_metric_is_neutral_and_silent_nothing_passes() -> None:
    plan = plan_of(replace(ERRORS, no_data=NoData.NEUTRAL))
    look = make_look(errors((0, 0), (0, 0)), plan=plan)
    assert look.outcome is Outcome.NODATA
    assert not has_passed(plan, look, since=NOW)


def test_a_neutral_metric_that_can_be_measured_can_fail() -> None:
    plan = plan_of(replace(ERRORS, no_data=NoData.NEUTRAL))
    assert make_look(errors((90, 100), (9, 900)), plan=plan).outcome is Outcome.FAIL


def test_a_metric_may_need_other_samples_than_the_plan() -> None:
    look = make_look(errors(), errors((0, 4), (0, 4), metric="output_check"), plan=make_plan(metrics=(ERRORS, CHECK)))
    assert [each.outcome for each in look.metrics] == [Outcome.PASS, Outcome.NODATA]


# --- FAIL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "outcome"),
    [(0, Outcome.PASS), (1, Outcome.FAIL)],
)
def test_a_guard_of_none_at_all_fails_at_the_first_with_few_samples(bad: int, outcome: Outcome) -> None:
    look = make_look(errors((bad, 5), (0, 5), metric="output_check"), plan=plan_of(CHECK))
    assert look.outcome is outcome
    if bad:
        assert (
            "output_check crosses its guard of 0 %: 1 of 5 requests to the canary are beyond it, 0 % may be"
            in look.sentence
        )


def test_a_guard_needs_no_stable_that_is_better() -> None:
    plan = plan_of(replace(ERRORS, guard=0.05))
    assert make_look(errors((30, 100), (300, 900)), plan=plan).outcome is Outcome.FAIL
    assert make_look(errors((30, 100), (300, 900)), plan=plan_of(ERRORS)).outcome is Outcome.PASS


def test_a_guard_counts_the_samples_since_the_last_verdict() -> None:
    plan = plan_of(replace(ERRORS, guard=0.05), min_requests=30)
    first = make_look(errors((3, 15), (0, 135)), plan=plan)
    assert first.outcome is Outcome.NODATA
    assert make_look(errors((3, 15), (0, 135)), plan=plan, previous=first).outcome is Outcome.FAIL


def test_a_latency_guard_counts_what_is_slower() -> None:
    plan = plan_of(replace(LATENCY, guard=0.2))
    look = make_look(latency((80, 13, 4, 3), (10, 10, 5, 75)), plan=plan)
    assert look.outcome is Outcome.PASS, "7 of 100 where 5 may be can be chance"
    look = make_look(latency((50, 10, 20, 20), (10, 10, 5, 75)), plan=plan)
    assert look.outcome is Outcome.FAIL
    assert "crosses its guard of 200 ms: 40 of 100 requests to the canary are beyond it, 5 % may be" in look.sentence


def test_surely_and_clearly_worse_fails() -> None:
    look = make_look(errors((15, 150), (13, 1350)))
    assert look.outcome is Outcome.FAIL
    assert only(look).statistic > only(look).bound
    assert look.sentence.startswith("error_rate is surely worse: 10 % against 0.963 % (938 % worse, 50 % tolerated)")


def test_sure_but_small_passes() -> None:
    look = None
    for _ in range(6):
        look = make_look(errors((1300, 100_000), (9000, 900_000)), previous=look)
        assert look.outcome is Outcome.PASS
    assert look is not None
    assert only(look).statistic > only(look).bound
    assert only(look).worsening == pytest.approx(0.3)
    stricter = plan_of(replace(ERRORS, tolerance=0.29))
    assert make_look(errors((1300, 100_000), (9000, 900_000)), previous=look, plan=stricter).outcome is Outcome.FAIL


def test_at_the_tolerance_is_not_over_it() -> None:
    look = make_look(errors((15, 150), (13, 1350)))
    worse = only(look).worsening
    assert worse is not None
    exactly, less = (plan_of(replace(ERRORS, tolerance=limit)) for limit in (worse, worse * 0.999))
    assert make_look(errors((15, 150), (13, 1350)), plan=exactly).outcome is Outcome.PASS
    assert make_look(errors((15, 150), (13, 1350)), plan=less).outcome is Outcome.FAIL


def test_large_but_unsure_passes() -> None:
    look = make_look(errors((2, 50), (4, 450)))
    assert look.outcome is Outcome.PASS
    assert only(look).worsening == pytest.approx(3.5)


def test_a_better_canary_passes_however_sure_that_is() -> None:
    assert make_look(errors((0, 10_000), (9_000, 90_000))).outcome is Outcome.PASS


def test_evidence_adds_up_over_looks_and_over_steps() -> None:
    look, outcomes = None, []
    for number in range(8):
        look = make_look(errors((4, 100), (9, 900)), previous=look, step=number // 2)
        outcomes.append(look.outcome)
        if look.outcome is Outcome.FAIL:
            break
    assert outcomes[-1] is Outcome.FAIL
    assert len(outcomes) > 2, "no single step was enough"


def test_where_the_values_lie_beyond_all_buckets_what_is_sure_is_large() -> None:
    look = make_look(latency((0, 0, 0, 150), (900, 300, 50, 100)), plan=plan_of(LATENCY))
    assert look.outcome is Outcome.FAIL
    assert only(look).canary_value is None
    assert "a value beyond all buckets against a value beyond all buckets (by how much is unknown" in look.sentence


def test_each_metric_has_its_share_of_alpha() -> None:
    plan = make_plan(metrics=(ERRORS, replace(LATENCY, weight=3.0)), alpha=0.04)
    assert [plan.alpha_of(rule) for rule in plan.metrics] == pytest.approx([0.01, 0.03])
    look = make_look(errors(), latency((90, 5, 3, 2), (900, 50, 30, 20)), plan=plan)
    assert [round(2.718281828459045**each.bound) for each in look.metrics] == [100, 33]


def test_a_failure_is_never_forgotten() -> None:
    failed = make_look(errors((90, 100), (9, 900)))
    assert only(failed).carried.passed_at is None
    later = make_look(Reading(metric="error_rate", error="gone"), previous=make_look(previous=failed))
    assert (later.number, later.outcome, later.failed_look) == (3, Outcome.ERROR, 1)
    assert later.failure == failed.sentence


# --- what is carried --------------------------------------------------------------------------------------------------


def test_the_values_are_of_the_step_and_older_looks_count_less() -> None:
    look = None
    for _ in range(5):
        look = make_look(errors((0, 100), (9, 900)), previous=look)
    look = make_look(errors((10, 100), (9, 900)), previous=look)
    faded = sum(0.5 ** (number / 5) for number in range(6))
    assert only(look).canary_value == pytest.approx(0.1 / faded)
    assert only(look).stable_value == pytest.approx(0.01)


def test_a_new_step_begins_with_the_evidence_and_nothing_else() -> None:
    first = make_look(errors((4, 100), (9, 900)))
    second = make_look(errors((0, 10), (0, 90)), previous=first, step=1)
    assert only(second).outcome is Outcome.NODATA
    assert (only(second).canary_value, only(second).canary_samples) == (0, 10)
    assert only(second).carried.passed_at is None
    assert only(second).carried.evidence == only(first).carried.evidence, "nothing bad came, so nothing was learnt"


def test_other_buckets_begin_the_values_anew_but_not_the_evidence() -> None:
    plan = plan_of(LATENCY)
    first = make_look(latency((50, 30, 10, 10), (900, 50, 30, 20)), plan=plan)
    reading = Reading(metric="latency_p95", canary=(90, 10), stable=(900, 100), bounds=(0.3,))
    second = make_look(reading, plan=plan, previous=first)
    carried = only(second).carried
    assert (carried.bounds, carried.lately_canary) == ((0.3,), (90, 10))
    assert carried.evidence.looks == 2
    assert only(second).statistic > 1


def test_a_look_can_be_stored_as_strict_json() -> None:
    first = make_look(errors(), latency((0, 0, 0, 150), (900, 300, 50, 100)), plan=BOTH)
    second = make_look(errors(), Reading(metric="latency_p95", error="gone"), plan=BOTH, previous=first)
    for look in (first, second):
        text = json.dumps(to_payload(look), allow_nan=False)
        assert from_payload(Look, json.loads(text)) == look


def test_a_metric_is_found_by_its_name() -> None:
    look = make_look(errors())
    assert look.of("error_rate") is look.metrics[0]
    assert look.of("other") is None


# --- when a step has passed -------------------------------------------------------------------------------------------


def test_a_pass_of_every_metric_lets_the_step_be_left_even_when_they_come_in_different_looks() -> None:
    plan = make_plan(metrics=(ERRORS, CHECK))
    first = make_look(errors(), errors((0, 3), (0, 9), metric="output_check"), plan=plan)
    assert not has_passed(plan, first, since=NOW)
    assert [rule.name for rule in missing(plan, first, since=NOW)] == ["output_check"]
    second = make_look(
        errors((0, 10), (0, 90)), errors((0, 3), (0, 9), metric="output_check"), plan=plan, previous=first
    )
    assert [each.outcome for each in second.metrics] == [Outcome.NODATA, Outcome.PASS]
    assert has_passed(plan, second, since=NOW)


@pytest.mark.parametrize(
    ("silent", "passed"),
    [
        pytest.param(2, True, id="as old as bake_min"),
        pytest.param(3, False, id="older than bake_min"),
    ],
)
def test_a_pass_grows_old_in_silence(silent: int, passed: bool) -> None:
    plan = make_plan()
    look = make_look()
    for _ in range(silent):
        look = make_look(errors((0, 0), (0, 0)), previous=look)
    assert has_passed(plan, look, since=NOW) is passed


def test_a_pass_of_this_look_counts_where_the_bake_is_shorter_than_an_interval() -> None:
    plan = make_plan([make_step(bake_min=seconds(0)), 100])
    look = make_look(plan=plan)
    assert has_passed(plan, look, since=NOW)
    silent = make_look(errors((0, 0), (0, 0)), plan=plan, previous=look)
    assert has_passed(plan, silent, since=NOW), "one interval old"
    assert not has_passed(plan, make_look(errors((0, 0), (0, 0)), plan=plan, previous=silent), since=NOW)


def test_a_pass_before_the_bake_began_does_not_count() -> None:
    look = make_look()
    assert has_passed(make_plan(), look, since=look.measured.ended_at)
    assert not has_passed(make_plan(), look, since=look.measured.ended_at + seconds(1))


@pytest.mark.parametrize(
    "reading",
    [
        pytest.param(Reading(metric="error_rate", error="gone"), id="an error"),
        pytest.param(errors((90, 100), (9, 900)), id="a failure"),
    ],
)
def test_a_look_that_did_not_measure_or_failed_lets_nothing_be_left(reading: Reading) -> None:
    look = make_look(reading, previous=make_look())
    assert not has_passed(make_plan(), look, since=NOW)


def test_after_a_failure_no_pass_counts() -> None:
    plan = plan_of(CHECK)
    failed = make_look(errors((1, 5), (0, 5), metric="output_check"), plan=plan)
    later = make_look(errors((0, 5), (0, 5), metric="output_check"), plan=plan, previous=failed)
    assert later.outcome is Outcome.PASS
    assert not has_passed(plan, later, since=NOW)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        (ERRORS, 0.0312, "3.12 %"),
        (LATENCY, 0.0312, "31.2 ms"),
        (LATENCY, 2.5, "2.5 s"),
        (MetricRule(name="tokens", kind=Kind.QUANTILE, quantile=0.1), 31.25, "31.2"),
        (ERRORS, None, "no value"),
        (LATENCY, None, "a value beyond all buckets"),
    ],
)
def test_values_are_shown_in_their_unit(rule: MetricRule, value: float | None, expected: str) -> None:
    assert shown(rule, value) == expected


@pytest.mark.parametrize(
    ("log_evidence", "expected"),
    [(0.0, "1 : 1"), (5.298317366548036, "200 : 1"), (-2.0, "0.14 : 1"), (100.0, "10^43 : 1")],
)
def test_evidence_is_shown_as_odds(log_evidence: float, expected: str) -> None:
    assert odds(log_evidence) == expected


def test_the_builders_look_is_one_interval_long() -> None:
    look = make_look()
    assert (look.measured.started_at, look.measured.ended_at) == (NOW, NOW + INTERVAL)
    assert make_look(ended_s=90).measured.ended_at == at(90)
    assert latency((0, 0, 0, 0), (0, 0, 0, 0)).bounds == BOUNDS
    assert only(look).carried.evidence != Evidence()


@pytest.mark.parametrize("beyond", [0, 1, 4])
def test_a_few_beyond_the_bucket_in_which_all_of_the_canary_lies_do_not_hide_it(beyond: int) -> None:
    """Both arms get as many, as with copies of all requests: the canary's are in one bucket, stable's in the one before."""
    counts = latency((0, 0, 96 - beyond, beyond), (96, 0, 0, 0))
    look = make_look(counts, plan=plan_of(LATENCY, alpha=0.001))
    assert look.outcome is Outcome.FAIL
