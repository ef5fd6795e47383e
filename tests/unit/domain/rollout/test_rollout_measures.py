"""Measures: values from counts, how much worse, where bad begins, and guards with their boundaries."""

from __future__ import annotations

import math

import pytest
from rollout_builders import BOUNDS, ERRORS, LATENCY

from fermion.domain.rollout.evidence import Split
from fermion.domain.rollout.measures import beyond_guard, is_crossed, splits, tails, value_of, worsening
from fermion.domain.rollout.plan import Kind, MetricRule, Worse

SPEED = MetricRule(name="tokens_per_second_p10", kind=Kind.QUANTILE, quantile=0.1, worse=Worse.LOWER)
GOOD = MetricRule(name="good_answers", worse=Worse.LOWER)


def median_of(bounds: tuple[float, ...], counts: tuple[float, ...]) -> float | None:
    return value_of(MetricRule(name="m", kind=Kind.QUANTILE, quantile=0.5), bounds, counts)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param((99, 1), 0.01, id="one of a hundred"),
        pytest.param((0, 5), 1.0, id="all"),
        pytest.param((5, 0), 0.0, id="none"),
        pytest.param((0, 0), None, id="no request, no value"),
    ],
)
def test_a_proportion_is_the_share_of_requests_with_it(counts: tuple[int, int], expected: float | None) -> None:
    assert value_of(ERRORS, (), counts) == expected


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param((10, 0, 0, 0), 0.05, id="in the first bucket, from zero"),
        pytest.param((0, 10, 0, 0), 0.15, id="in the middle of a bucket"),
        pytest.param((5, 5, 0, 0), 0.1, id="at a bound"),
        pytest.param((4, 0, 6, 0), 0.2 + 0.2 / 6, id="an empty bucket between"),
        pytest.param((1, 1, 1, 7), math.inf, id="in the last bucket, which has no end"),
        pytest.param((0, 0, 0, 0), None, id="no request, no value"),
        pytest.param((0.5, 0.5, 0.0, 0.0), 0.1, id="counts that have faded"),
    ],
)
def test_a_quantile_is_interpolated_in_its_bucket(counts: tuple[float, ...], expected: float | None) -> None:
    assert median_of(BOUNDS, counts) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("rule", "canary", "stable", "expected"),
    [
        pytest.param(ERRORS, 0.03, 0.01, 2.0, id="three times the errors are two times worse"),
        pytest.param(ERRORS, 0.01, 0.02, -0.5, id="half of them are better"),
        pytest.param(ERRORS, 0.0, 0.0, 0.0, id="none in both is the same"),
        pytest.param(ERRORS, 0.1, 0.0, math.inf, id="some against none has no number"),
        pytest.param(LATENCY, math.inf, 0.2, math.inf, id="beyond all buckets"),
        pytest.param(LATENCY, math.inf, math.inf, math.inf, id="both beyond all buckets is not the same"),
        pytest.param(LATENCY, 0.2, math.inf, -1.0, id="only stable beyond all buckets"),
        pytest.param(SPEED, 50, 100, 1.0, id="half the speed is twice as bad"),
        pytest.param(GOOD, 0.9, 0.9, 0.0, id="lower is worse and it is the same"),
        pytest.param(ERRORS, None, 0.1, None, id="no value of the canary"),
        pytest.param(ERRORS, 0.1, None, None, id="no value of stable"),
    ],
)
def test_how_much_worse(rule: MetricRule, canary: float | None, stable: float | None, expected: float | None) -> None:
    assert worsening(rule, canary, stable) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("quantile", "worse", "expected"),
    [
        pytest.param(0.95, Worse.HIGHER, (0.05, 0.2), id="p95"),
        pytest.param(0.99, Worse.HIGHER, (0.01, 0.04), id="p99"),
        pytest.param(0.5, Worse.HIGHER, (0.5,), id="the median has one cut"),
        pytest.param(0.8, Worse.HIGHER, (0.2, 0.5), id="never more than half"),
        pytest.param(0.1, Worse.LOWER, (0.1, 0.4), id="low is worse"),
    ],
)
def test_a_quantile_is_compared_at_its_tail_and_a_wider_one(
    quantile: float, worse: Worse, expected: tuple[float, ...]
) -> None:
    rule = MetricRule(name="m", kind=Kind.QUANTILE, quantile=quantile, worse=worse)
    assert tails(rule) == pytest.approx(expected)


def test_a_proportion_is_split_by_what_is_bad() -> None:
    assert splits(ERRORS, (97, 3), (891, 9)) == (Split(bad_canary=3, bad=12, canary=100, total=1000),)
    assert splits(GOOD, (97, 3), (891, 9)) == (Split(bad_canary=97, bad=988, canary=100, total=1000),)


def test_a_latency_is_cut_where_both_arms_together_leave_the_tail() -> None:
    narrow, wide = splits(LATENCY, (50, 30, 15, 5), (800, 60, 30, 10))
    assert narrow == Split(
        bad_canary=20, bad=60, canary=100, total=1000
    )  # 6 % are slower than 200 ms, 1.5 % than 400 ms
    assert wide == Split(bad_canary=50, bad=150, canary=100, total=1000)  # 15 % are slower than 100 ms


@pytest.mark.parametrize("slower", [pytest.param(40, id="fewer than the tail"), pytest.param(200, id="many more")])
def test_a_latency_is_never_cut_where_nothing_is_slower(slower: int) -> None:
    narrow, _ = splits(LATENCY, (300 - slower, slower, 0, 0), (700, 0, 0, 0))
    assert narrow.bad == slower


def test_a_speed_is_cut_from_below() -> None:
    narrow, _ = splits(SPEED, (10, 90, 0, 0), (90, 810, 0, 0))
    assert narrow == Split(bad_canary=10, bad=100, canary=100, total=1000)


@pytest.mark.parametrize(
    ("rule", "counts", "expected"),
    [
        pytest.param(MetricRule(name="e", guard=0.05), (90, 10), (10, 0.05), id="errors"),
        pytest.param(MetricRule(name="g", guard=0.9, worse=Worse.LOWER), (30, 70), (30, 0.1), id="good answers"),
    ],
)
def test_what_is_beyond_the_guard_of_a_proportion(
    rule: MetricRule, counts: tuple[int, ...], expected: tuple[int, float]
) -> None:
    assert beyond_guard(rule, (), counts) == (expected[0], pytest.approx(expected[1]))


@pytest.mark.parametrize(
    ("worse", "guard", "expected"),
    [
        pytest.param(Worse.HIGHER, 0.2, 7, id="at a bound: what is above"),
        pytest.param(Worse.HIGHER, 0.15, 7, id="between two: from the next bound on"),
        pytest.param(Worse.HIGHER, 0.4, 4, id="at the last bound"),
        pytest.param(Worse.HIGHER, 0.41, None, id="no bucket ends there"),
        pytest.param(Worse.LOWER, 0.2, 3, id="low is worse, at a bound: what is below"),
        pytest.param(Worse.LOWER, 0.15, 1, id="low is worse, between two: up to the bound before"),
        pytest.param(Worse.LOWER, 0.05, None, id="low is worse, no bucket ends there"),
    ],
)
def test_what_is_beyond_the_guard_of_a_quantile(worse: Worse, guard: float, expected: int | None) -> None:
    rule = MetricRule(name="m", kind=Kind.QUANTILE, quantile=0.95, worse=worse, guard=guard)
    found = beyond_guard(rule, BOUNDS, (1, 2, 3, 4))
    assert (None if found is None else found[0]) == expected


@pytest.mark.parametrize(
    ("bad", "total", "share", "crossed"),
    [
        pytest.param(5, 100, 0.05, False, id="at the guard is not over it"),
        pytest.param(8, 100, 0.05, False, id="over it, but chance may do that"),
        pytest.param(10, 100, 0.05, True, id="twice the guard of a hundred"),
        pytest.param(1, 5, 0.05, False, id="one of five may be chance"),
        pytest.param(2, 5, 0.05, True, id="two of five are not"),
        pytest.param(1, 1, 0.05, True, id="all of one"),
        pytest.param(1, 1, 0.06, False, id="all of one, where six of a hundred may be"),
        pytest.param(1, 5, 0.0, True, id="one is too many where none may be"),
        pytest.param(0, 5, 0.0, False, id="none is not"),
        pytest.param(0, 0, 0.0, False, id="no request"),
        pytest.param(100, 100, 1.0, False, id="all may be"),
        pytest.param(530, 10_000, 0.05, False, id="a little over it"),
        pytest.param(560, 10_000, 0.05, True, id="surely over it"),
    ],
)
def test_a_guard_is_crossed_by_more_than_chance(bad: int, total: int, share: float, crossed: bool) -> None:
    assert is_crossed(bad, total, share) is crossed


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("total", [5, 20, 50, 150])
def test_a_canary_at_its_guard_is_rarely_said_to_cross_it(total: int, share: float) -> None:
    def exactly(bad: int) -> float:
        return math.comb(total, bad) * share**bad * (1 - share) ** (total - bad)

    assert sum(exactly(bad) for bad in range(total + 1) if is_crossed(bad, total, share)) <= 0.05
