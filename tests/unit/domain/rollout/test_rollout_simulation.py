"""The engine on simulated traffic, fixed seeds: one cell without a difference, one with. The whole table is a benchmark."""

from __future__ import annotations

from statistics import median

from benchmarks.rollout_rules import PLAN, found_at, looks_of
from benchmarks.rollout_streams import Scenario, stream
from fermion.domain.rollout.replay import replay

LOOKS = 20
BOUNDS = (0.03, 0.06, 0.09, 0.12, 0.18)
"""Few buckets, so that the test is quick."""


def test_a_canary_that_is_stables_twin_is_rolled_back_no_more_often_than_alpha() -> None:
    scenario = Scenario(rate=50.0, bounds=BOUNDS)
    rollouts = 2000
    ends = (looks_of(PLAN, list(stream(scenario, seed, LOOKS)), BOUNDS)[-1] for seed in range(rollouts))
    false = sum(look.failed_look is not None for look in ends)
    assert 0 < false <= PLAN.alpha * rollouts


def test_three_percent_errors_instead_of_one_are_found_in_twenty_looks() -> None:
    scenario = Scenario(rate=50.0, errors=(0.01, 0.03), bounds=BOUNDS)
    rollouts = 100
    lives = [looks_of(PLAN, list(stream(scenario, seed, LOOKS)), BOUNDS) for seed in range(rollouts)]
    found = [found_at(looks) for looks in lives]
    assert sum(each is not None for each in found) >= 0.8 * rollouts
    assert median(each or LOOKS for each in found) <= 6
    assert replay(PLAN, lives[0]) == []
