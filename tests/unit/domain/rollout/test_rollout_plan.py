"""Plans: what a short one means, every problem of a wrong one, and that all are answered at once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_builders import ERRORS, LATENCY, make_plan, make_step

from builders import seconds
from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.rollout.plan import (
    SOURCES,
    Kind,
    MetricRule,
    NoData,
    OnApprovalTimeout,
    OnUndecided,
    Plan,
    Source,
    Step,
    Worse,
)
from fermion.domain.rollout.plan_problems import MAX_METRICS, problems_of
from fermion.domain.rollout.plan_reading import parse_plan, read_plan
from fermion.errors import RequestRefused

CHECKED = {
    **SOURCES,
    "output_check": Source(name="output_check"),
    "slow": Source(name="slow", min_interval=seconds(60)),
}
USUAL = {"steps": [10, 100]}


def codes(plan: Plan, sources: dict[str, Source] = CHECKED) -> set[tuple[str, str]]:
    """(field, code) of every problem; each has words."""
    found = problems_of(plan, sources)
    assert all(problem.message and problem.fix for problem in found)
    return {(problem.field, problem.code) for problem in found}


def refused(raw: object) -> set[tuple[str, str]]:
    """(field, code) of every problem of what was written."""
    reading = read_plan(raw, CHECKED)
    assert reading.plan is None
    assert all(problem.message and problem.fix and len(str(problem)) < 500 for problem in reading.problems)
    assert len(reading.problems) == len(set(map(str, reading.problems)))
    return {(problem.field, problem.code) for problem in reading.problems}


# --- what is read -----------------------------------------------------------------------------------------------------


def test_the_steps_alone_are_a_plan() -> None:
    plan = parse_plan({"steps": [10, 50, 100]})
    assert plan == Plan(
        steps=(Step(weight_percent=10), Step(weight_percent=50), Step(weight_percent=100)),
        metrics=(
            MetricRule(name="error_rate", tolerance=0.5),
            MetricRule(name="latency_p95", kind=Kind.QUANTILE, quantile=0.95, tolerance=0.1),
        ),
    )
    assert problems_of(plan) == ()


EVERYTHING = {
    "steps": [
        {"weight": "1%", "bake_min": "30s"},
        {"weightPercent": 20, "bakeMin": "1m", "bakeMax": "1h", "approval": True},
        100,
    ],
    "bakeMax": "10m",
    "metrics": [
        "latency_p99",
        {"name": "error_rate", "guard": "5%", "tolerance": 1, "weight": 2, "noData": "fail"},
        {"name": "latency_p50", "guard": "250ms", "minSamples": 100},
        {"name": "output_check", "guard": 0, "min_samples": 5, "no_data": "neutral", "worse": "higher"},
    ],
    "alpha": 0.05,
    "interval": "1m",
    "warmUp": 90,
    "minRequests": "50",
    "onUndecided": "roll-back",
    "approvalTimeout": "2h",
    "approvers": ["ann", " bob ", "ann"],
    "onApprovalTimeout": "roll_back",
    "readyTimeout": "30m",
    "unreadyLimit": "45s",
    "shiftTimeout": "20s",
}


def test_everything_can_be_said() -> None:
    plan = parse_plan(EVERYTHING, CHECKED)
    assert plan == Plan(
        steps=(
            Step(weight_percent=1, bake_min=seconds(30), bake_max=seconds(600)),
            Step(weight_percent=20, bake_min=seconds(60), bake_max=seconds(3600), approval=True),
            Step(weight_percent=100),
        ),
        metrics=(
            MetricRule(name="latency_p99", kind=Kind.QUANTILE, quantile=0.99, tolerance=0.1),
            MetricRule(name="error_rate", guard=0.05, tolerance=1.0, weight=2.0, no_data=NoData.FAIL),
            MetricRule(
                name="latency_p50", kind=Kind.QUANTILE, quantile=0.5, tolerance=0.1, guard=0.25, min_samples=100
            ),
            MetricRule(name="output_check", guard=0.0, min_samples=5, no_data=NoData.NEUTRAL),
        ),
        alpha=0.05,
        interval=seconds(60),
        warm_up=seconds(90),
        min_requests=50,
        on_undecided=OnUndecided.ROLL_BACK,
        approval_timeout=timedelta(hours=2),
        approvers=("ann", "bob"),
        on_approval_timeout=OnApprovalTimeout.ROLL_BACK,
        ready_timeout=timedelta(minutes=30),
        unready_limit=seconds(45),
        shift_timeout=seconds(20),
    )


@pytest.mark.parametrize(
    ("common", "step", "expected"),
    [
        pytest.param({}, {}, (120, 900), id="neither: the defaults"),
        pytest.param({"bake_min": "30m"}, {}, (1800, 1800), id="a longer least: the most gives way"),
        pytest.param({"bake_max": "1m"}, {}, (60, 60), id="a shorter most: the least gives way"),
        pytest.param({"bake_min": "1m", "bake_max": "2m"}, {"bake_min": "5m"}, (300, 300), id="the same within a step"),
        pytest.param({"bake_min": 60, "bake_max": 120}, {"bake_max": "5m"}, (60, 300), id="only one end in the step"),
    ],
)
def test_what_is_said_of_one_end_of_the_bake(
    common: dict[str, Any], step: dict[str, Any], expected: tuple[int, int]
) -> None:
    plan = parse_plan({"steps": [{"weight": 10, **step}, 100], **common})
    assert (plan.steps[0].bake_min, plan.steps[0].bake_max) == (seconds(expected[0]), seconds(expected[1]))


def test_an_approval_beside_the_steps_is_one_before_each_next_step() -> None:
    plan = parse_plan({"steps": [10, {"weight": 50, "approval": "false"}, 100], "approval": True})
    assert [step.approval for step in plan.steps] == [True, False, False]


def test_a_canary_that_gets_everything_at_once_is_a_plan() -> None:
    assert parse_plan({"steps": [100], "metrics": []}).metrics == ()


def test_a_metric_may_be_another_quantile_of_its_source() -> None:
    plan = parse_plan({**USUAL, "metrics": [{"name": "latency_p95", "quantile": 0.9, "worse": "lower"}]})
    assert (plan.metrics[0].quantile, plan.metrics[0].worse) == (0.9, Worse.LOWER)


def test_a_plan_can_be_stored() -> None:
    plan = make_plan([make_step(10, approval=True), 100], metrics=(ERRORS, LATENCY), alpha=0.05)
    assert from_payload(Plan, json.loads(json.dumps(to_payload(plan)))) == plan


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"weights": [10, 50]}, {("steps", "not_ending_at_100")}, id="does not end at 100"),
        pytest.param({"weights": [50, 10, 100]}, {("steps.1", "not_increasing")}, id="goes back"),
        pytest.param({"weights": [10, 10, 100]}, {("steps.1", "not_increasing")}, id="stays"),
        pytest.param({"weights": [0, 100]}, {("steps.0", "out_of_range")}, id="nothing"),
        pytest.param({"weights": [10, 101]}, {("steps.1", "out_of_range"), ("steps", "not_ending_at_100")}, id="more than all"),
        pytest.param({"weights": []}, {("steps", "missing")}, id="no steps"),
        pytest.param({"weights": [*range(1, 100), 99.5, 100]}, {("steps", "too_many")}, id="too many steps"),
        pytest.param({"weights": [100]}, set(), id="all at once"),
        pytest.param(
            {"weights": [make_step(10, bake_min=seconds(301)), 100]}, {("steps.0.bake_min", "over_maximum")}, id="bake"
        ),
        pytest.param({"weights": [make_step(10, bake_min=seconds(300)), 100]}, set(), id="both ends the same"),
        pytest.param(
            {"weights": [make_step(10, bake_min=seconds(-1)), 100]}, {("steps.0.bake_min", "out_of_range")}, id="before"
        ),
        pytest.param({"interval": seconds(301)}, {("steps.0.bake_max", "no_look_fits"), ("steps.1.bake_max", "no_look_fits")}, id="no look fits"),
        pytest.param({"interval": seconds(300)}, set(), id="one look fits"),
        pytest.param({"weights": [10, make_step(100, approval=True)]}, {("steps.1.approval", "misplaced")}, id="approval after"),
        pytest.param({"interval": seconds(0.5)}, {("interval", "out_of_range"), ("interval", "too_short")}, id="looks too often"),
        pytest.param({"interval": seconds(1)}, set(), id="as often as can be"),
        pytest.param({"warm_up": seconds(-1)}, {("warm_up", "out_of_range")}, id="a negative warm-up"),
        pytest.param({"warm_up": timedelta(days=31)}, {("warm_up", "out_of_range")}, id="a month of it"),
        pytest.param({"shift_timeout": seconds(0)}, {("shift_timeout", "out_of_range")}, id="no time to shift"),
        pytest.param({"alpha": 0.0}, {("alpha", "out_of_range")}, id="no error at all"),
        pytest.param({"alpha": 0.51}, {("alpha", "out_of_range")}, id="a coin would be better"),
        pytest.param({"alpha": 0.5}, set(), id="a coin"),
        pytest.param({"alpha": math.nan}, {("alpha", "out_of_range")}, id="no number"),
        pytest.param({"min_requests": 0}, {("min_requests", "out_of_range")}, id="a verdict without requests"),
        pytest.param({"metrics": ()}, {("metrics", "nothing_measured")}, id="promoted on silence"),
        pytest.param({"metrics": (replace(ERRORS, no_data=NoData.NEUTRAL),)}, {("metrics", "nothing_measured")}, id="all neutral"),
        pytest.param({"metrics": (ERRORS, ERRORS)}, {("metrics", "duplicate")}, id="twice"),
        pytest.param({"metrics": (MetricRule(name="eror_rate"),)}, {("metrics.0.name", "unknown_metric")}, id="misspelt"),
        pytest.param({"metrics": (replace(LATENCY, name="error_rate"),)}, {("metrics.0.kind", "other_kind")}, id="other kind"),
        pytest.param({"metrics": (replace(LATENCY, quantile=1.0),)}, {("metrics.0.quantile", "out_of_range")}, id="p100"),
        pytest.param({"metrics": (replace(LATENCY, quantile=None),)}, {("metrics.0.quantile", "out_of_range")}, id="none"),
        pytest.param({"metrics": (replace(ERRORS, quantile=0.5),)}, {("metrics.0.quantile", "misplaced")}, id="of a share"),
        pytest.param({"metrics": (replace(ERRORS, tolerance=-0.1),)}, {("metrics.0.tolerance", "out_of_range")}, id="below"),
        pytest.param({"metrics": (replace(ERRORS, tolerance=0.0),)}, set(), id="no worsening at all"),
        pytest.param({"metrics": (replace(ERRORS, weight=0.0),)}, {("metrics.0.weight", "out_of_range")}, id="no weight"),
        pytest.param({"metrics": (replace(ERRORS, min_samples=0),)}, {("metrics.0.min_samples", "out_of_range")}, id="no sample"),
        pytest.param({"metrics": (replace(ERRORS, guard=1.1),)}, {("metrics.0.guard", "out_of_range")}, id="110 %"),
        pytest.param({"metrics": (replace(ERRORS, guard=1.0),)}, set(), id="100 %"),
        pytest.param({"metrics": (replace(LATENCY, guard=1.1),)}, set(), id="1.1 s"),
        pytest.param({"metrics": (replace(LATENCY, guard=-1.0),)}, {("metrics.0.guard", "out_of_range")}, id="before it came"),
        pytest.param({"metrics": (MetricRule(name="slow"),)}, {("interval", "too_short")}, id="measured less often"),
        pytest.param({"metrics": (MetricRule(name="slow"),), "interval": seconds(60)}, set(), id="measured as often"),
    ],
)  # fmt: skip
def test_every_problem_of_a_plan_and_its_boundary(changes: dict[str, Any], expected: set[tuple[str, str]]) -> None:
    assert codes(make_plan(changes.pop("weights", (10, 50, 100)), **changes)) == expected


def test_too_many_metrics() -> None:
    rules = tuple(MetricRule(name=f"m{number}") for number in range(MAX_METRICS + 1))
    sources = {rule.name: Source(name=rule.name) for rule in rules}
    assert codes(make_plan(metrics=rules), sources) == {("metrics", "too_many")}
    assert codes(make_plan(metrics=rules[1:]), sources) == set()


def test_a_misspelt_metric_is_answered_with_the_one_that_was_meant() -> None:
    (problem,) = problems_of(make_plan(metrics=(MetricRule(name="errorRate"),)))
    assert problem.fix == "Did you mean error_rate?"
    (problem,) = problems_of(make_plan(metrics=(MetricRule(name="xyz"),)))
    assert "latency_p99" in problem.fix


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param([10, 100], {("plan", "not_an_object")}, id="a list"),
        pytest.param(None, {("plan", "not_an_object")}, id="nothing"),
        pytest.param({}, {("steps", "missing")}, id="empty"),
        pytest.param({"steps": 10}, {("steps", "not_a_list")}, id="steps is a number"),
        pytest.param({"steps": ["ten", 100]}, {("steps.0.weight_percent", "not_a_number")}, id="a word for a weight"),
        pytest.param({"steps": [10, "all"]}, {("steps.1.weight_percent", "not_a_number")}, id="a word at the end"),
        pytest.param({"steps": [{"bake_min": "1m"}, 100]}, {("steps.0.weight_percent", "missing")}, id="no weight"),
        pytest.param({"steps": [10, {"weight": 100, "bake_min": "1m"}]}, {("steps.1.bake_min", "misplaced")}, id="baked"),
        pytest.param({"steps": [{"weight": 10, "percent": 20}, 100]}, {("steps.0.weight_percent", "given_twice")}, id="2"),
        pytest.param({**USUAL, "interval": "soon"}, {("interval", "not_a_duration")}, id="a word for a time"),
        pytest.param({**USUAL, "interval": True}, {("interval", "not_a_duration")}, id="a bool for a time"),
        pytest.param({**USUAL, "interval": 1e300}, {("interval", "not_a_duration")}, id="longer than time"),
        pytest.param({**USUAL, "alpha": "1e-2x"}, {("alpha", "not_a_number")}, id="no number"),
        pytest.param({**USUAL, "alpha": math.inf}, {("alpha", "not_a_number")}, id="an infinite number"),
        pytest.param({**USUAL, "min_requests": 1.5}, {("min_requests", "fractional")}, id="half a request"),
        pytest.param({**USUAL, "approval": "maybe"}, {("approval", "not_a_bool")}, id="neither yes nor no"),
        pytest.param({**USUAL, "approval": True, "approvers": ["ann", 7, "b\n"]}, {("approvers", "not_a_name")}, id="no names"),
        pytest.param({**USUAL, "approvers": {"ann": 1}}, {("approvers", "not_a_list")}, id="no list of names"),
        pytest.param({**USUAL, "approvers": "ann"}, {("approvers", "nobody_asked")}, id="approvers, and no step asks"),
        pytest.param({**USUAL, "on_undecided": "promote"}, {("on_undecided", "unknown_word")}, id="promote on silence"),
        pytest.param({**USUAL, "on_approval_timeout": "approve"}, {("on_approval_timeout", "unknown_word")}, id="and here"),
        pytest.param({**USUAL, "metrics": "error_rate"}, {("metrics", "not_a_list")}, id="a word"),
        pytest.param({**USUAL, "metrics": [7]}, {("metrics.0.name", "not_text")}, id="a 7"),
        pytest.param({**USUAL, "metrics": [{"guard": 1}]}, {("metrics.0.name", "missing")}, id="no name"),
        pytest.param({**USUAL, "metrics": [{"name": "error_rate", "guard": "x"}]}, {("metrics.0.guard", "not_a_duration")}, id="g"),
        pytest.param({**USUAL, "stepz": 1}, {("stepz", "unknown_field")}, id="a misspelt field"),
        pytest.param({**USUAL, "metrics": ["error_rat"]}, {("metrics.0.name", "unknown_metric")}, id="a misspelt metric"),
        pytest.param({**USUAL, "metrics": [{"name": "error_rate", "kind": "quantile", "quantile": 0.5}]}, {("metrics.0.kind", "other_kind")}, id="k"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_blamed_once(raw: object, expected: set[tuple[str, str]]) -> None:
    assert refused(raw) == expected


def test_all_problems_are_answered_at_once() -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_plan(
            {
                "steps": [{"weight": 50, "bake_min": "soon"}, 20, "x", 60],
                "alpha": 2,
                "interval": "1s",
                "metrics": ["error_rate", {"name": "slow", "weight": "much"}, "nothing"],
                "onUndecided": "pauze",
            },
            CHECKED,
        )
    assert {(problem.field, problem.code) for problem in caught.value.problems} == {
        ("steps.0.bake_min", "not_a_duration"),
        ("steps.1", "not_increasing"),
        ("steps.2.weight_percent", "not_a_number"),
        ("steps", "not_ending_at_100"),
        ("alpha", "out_of_range"),
        ("interval", "too_short"),
        ("metrics.1.weight", "not_a_number"),
        ("metrics.2.name", "unknown_metric"),
        ("on_undecided", "unknown_word"),
    }
    assert "Did you mean pause?" in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["steps", "weight", "name", "metrics", "guard", "alpha", "x"]), inner, max_size=4),
        max_leaves=12,
    )
)  # fmt: skip
def test_whatever_is_written_is_read_or_refused(raw: object) -> None:
    reading = read_plan(raw)
    assert (reading.plan is None) == bool(reading.problems)


@pytest.mark.parametrize(
    ("approvers", "user", "may"),
    [((), "anybody", True), (("ann",), "ann", True), (("ann", "bob"), "bob", True), (("ann",), "Ann", False)],
)
def test_whose_approval_counts(approvers: tuple[str, ...], user: str, may: bool) -> None:
    raw = {"steps": [10, 100], "approval": True}
    assert parse_plan({**raw, "approvers": list(approvers)} if approvers else raw).may_approve(user) is may


def test_one_approver_needs_no_list() -> None:
    assert parse_plan({"steps": [10, 100], "approval": True, "approvers": "ann"}).approvers == ("ann",)
