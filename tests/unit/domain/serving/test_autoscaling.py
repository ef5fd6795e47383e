"""The autoscaler's formula against Kubernetes' own examples, its windows and its bounds."""

from __future__ import annotations

import pytest

from builders import NOW, seconds
from fermion.domain.serving.autoscaling import Advice, Autoscaling, TargetMetric, decide


def wish(**changes: object) -> Autoscaling:
    values = {
        "metric": TargetMetric.CPU,
        "target": 50.0,
        "min_replicas": 1,
        "max_replicas": 10,
        "down_window": seconds(300),
    }
    return Autoscaling(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "current", "expected"),
    [
        pytest.param(100.0, 2, 4, id="twice the target, twice the replicas"),
        pytest.param(55.0, 2, 2, id="ten per cent above is within the tolerance"),
        pytest.param(55.1, 2, 3, id="a little more is not"),
        pytest.param(45.0, 2, 2, id="ten per cent below is within it too"),
        pytest.param(1000.0, 4, 10, id="never above the most"),
        pytest.param(None, 3, 3, id="nothing measured changes nothing"),
        pytest.param(float("nan"), 3, 3, id="neither does what is no number"),
    ],
)
def test_the_number_follows_the_ratio_to_the_target(value: float | None, current: int, expected: int) -> None:
    made = decide(wish(), current=current, ready=current, value=value, recent=(), now=NOW)
    assert made.replicas == expected


def test_a_dip_takes_nothing_away_until_its_window_is_over() -> None:
    recent: tuple[Advice, ...] = ()
    current = 4
    for second in range(0, 330, 30):
        made = decide(wish(), current=current, ready=current, value=10.0, recent=recent, now=NOW + seconds(second))
        recent = made.recent
        assert made.replicas == (4 if second <= 300 else 1), second


def test_a_peak_must_last_when_an_up_window_is_asked_for() -> None:
    asked = wish(up_window=seconds(60))
    calm = (Advice(at=NOW, replicas=2),)
    made = decide(asked, current=2, ready=2, value=200.0, recent=calm, now=NOW + seconds(30))
    assert (made.advised, made.replicas) == (8, 2)
    later = decide(asked, current=2, ready=2, value=200.0, recent=made.recent, now=NOW + seconds(61))
    assert later.replicas == 8


def test_bounds_hold_also_where_nothing_is_measured() -> None:
    made = decide(wish(min_replicas=3), current=1, ready=0, value=None, recent=(), now=NOW)
    assert made.replicas == 3
    assert "not measured" in made.message


def test_the_message_has_the_numbers() -> None:
    made = decide(wish(), current=2, ready=2, value=100.0, recent=(), now=NOW)
    assert made.message == "cpu is 100 a replica, its target 50: 4 of 2 replicas."
