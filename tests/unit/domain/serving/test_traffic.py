"""Differences between readings of a router that may start anew at any time."""

from __future__ import annotations

import math

import pytest

from builders import NOW, seconds
from fermion.domain.serving.traffic import Counters, merged, quantile_ms, window


def reading(
    at_s: float, requests: int, *, bad: int = 0, epoch: str = "a", latency: dict[str, int] | None = None
) -> Counters:
    return Counters(
        backend="r1",
        epoch=epoch,
        observed_at=NOW + seconds(at_s),
        requests=requests,
        by_class={"2xx": requests - bad, "5xx": bad},
        latency_ms=latency or {"10": requests // 2, "100": requests, "inf": requests},
        latency_sum_ms=20.0 * requests,
    )


def test_what_came_between_two_readings() -> None:
    found = window([reading(0, 100, bad=1), reading(10, 160, bad=4)])
    assert (found.requests, found.failures, found.seconds, found.resets) == (60, 3, 10.0, 0)
    assert found.buckets == (30, 30, 0)
    assert found.mean_ms == 20.0


def test_a_router_that_started_anew_counts_from_zero_and_nothing_is_negative() -> None:
    found = window([reading(0, 100), reading(10, 30, epoch="b"), reading(20, 50, epoch="b")])
    assert (found.requests, found.resets) == (50, 1)
    assert found.buckets == (25, 25, 0)


def test_a_counter_that_went_back_is_a_reset_whatever_the_epoch_says() -> None:
    assert window([reading(0, 100), reading(10, 40)]).requests == 40
    found = window([reading(0, 100, bad=5), reading(10, 130, bad=2)])
    assert (found.requests, found.failures, found.resets) == (130, 2, 1), "also where it is one of them"


def test_one_reading_is_an_empty_window() -> None:
    found = window([reading(0, 100)])
    assert (found.requests, found.seconds, found.mean_ms) == (0, 0.0, None)
    assert quantile_ms(found, 0.95) is None


def test_a_bound_that_the_first_reading_did_not_have_takes_nothing_from_anywhere() -> None:
    first = reading(0, 10, latency={"10": 10, "inf": 10})
    later = reading(5, 20, latency={"10": 15, "100": 20, "inf": 20})
    assert window([first, later]).buckets == (5, 5, 0)


@pytest.mark.parametrize(
    ("quantile", "expected"),
    [
        pytest.param(0.25, 5.0, id="the middle of the first bucket"),
        pytest.param(0.5, 10.0, id="its end"),
        pytest.param(0.75, 55.0, id="the middle of the second"),
        pytest.param(1.0, 100.0, id="the end of all"),
    ],
)
def test_a_quantile_is_interpolated_within_its_bucket(quantile: float, expected: float) -> None:
    found = window([reading(0, 0), reading(10, 100)])
    assert quantile_ms(found, quantile) == pytest.approx(expected)


def test_windows_of_several_revisions_are_added_up() -> None:
    late = window([reading(10, 0), reading(20, 50)])
    found = merged([window([reading(0, 0), reading(10, 100)]), late])
    assert (found.requests, found.since, found.until) == (150, NOW, late.until)
    assert sum(found.buckets) == 150


def test_latencies_of_different_buckets_are_not_added_up() -> None:
    other = window([reading(0, 0, latency={"7": 0, "inf": 0}), reading(1, 10, latency={"7": 5, "inf": 10})])
    found = merged([window([reading(0, 0), reading(10, 100)]), other])
    assert (found.requests, found.buckets, found.mean_ms) == (110, (), None)


def test_a_quantile_beyond_all_bounds_is_infinite() -> None:
    found = window([reading(0, 0), reading(1, 10, latency={"10": 0, "100": 0, "inf": 10})])
    assert quantile_ms(found, 0.5) == math.inf
