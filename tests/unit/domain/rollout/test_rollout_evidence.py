"""Evidence: that no bet gains on average where both arms are alike, for every small count, and what moves it."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermion.domain.rollout.evidence import ODDS, PATIENCE, Evidence, Split, add, log_e


def chance(bad_canary: int, *, bad: int, canary: int, total: int) -> float:
    """Of so many bad requests in the canary when the router draws at random (hypergeometric)."""
    if bad_canary > bad or canary - bad_canary > total - bad or bad_canary > canary:
        return 0.0
    return math.comb(bad, bad_canary) * math.comb(total - bad, canary - bad_canary) / math.comb(total, canary)


def split(bad_canary: int, bad: int, canary: int, total: int) -> Split:
    return Split(bad_canary=bad_canary, bad=bad, canary=canary, total=total)


def mean_gain(bad: int, canary: int, total: int, odds: float) -> float:
    """What one bet pays on average under the claim."""
    return sum(
        chance(found, bad=bad, canary=canary, total=total) * math.exp(log_e(split(found, bad, canary, total), odds))
        for found in range(bad + 1)
    )


@pytest.mark.parametrize("odds", ODDS)
def test_no_bet_gains_on_average_for_any_small_count(odds: float) -> None:
    for total in range(1, 13):
        for canary, bad in product(range(total + 1), repeat=2):
            assert mean_gain(bad, canary, total, odds) <= 1 + 1e-12, (bad, canary, total)


@given(total=st.integers(50, 400), data=st.data(), odds=st.sampled_from(ODDS))
def test_no_bet_gains_on_average_for_larger_counts(total: int, data: st.DataObject, odds: float) -> None:
    canary, bad = data.draw(st.integers(1, total - 1)), data.draw(st.integers(1, total - 1))
    assert mean_gain(bad, canary, total, odds) <= 1 + 1e-9


def test_the_price_is_nearly_fair_where_the_bad_are_few() -> None:
    assert mean_gain(4, 30, 300, 3.0) > 0.98


def test_the_wealth_of_three_looks_gains_nothing_on_average() -> None:
    bad, canary, total = 3, 3, 9
    mean = 0.0
    for found in product(range(bad + 1), repeat=3):
        evidence = Evidence()
        for count in found:
            evidence = add(evidence, [split(count, bad, canary, total)])
        weight = math.prod(chance(count, bad=bad, canary=canary, total=total) for count in found)
        mean += weight * math.exp(evidence.log_wealth)
    assert 0.5 < mean <= 1 + 1e-12


def test_nothing_is_known_at_the_beginning() -> None:
    assert Evidence().log_wealth == 0


@pytest.mark.parametrize(
    "nothing",
    [
        pytest.param(split(0, 0, 10, 100), id="nothing bad"),
        pytest.param(split(10, 100, 10, 100), id="all bad"),
        pytest.param(split(0, 7, 0, 100), id="no request to the canary"),
        pytest.param(split(7, 7, 100, 100), id="no request to stable"),
        pytest.param(split(0, 0, 0, 0), id="no request at all"),
    ],
)
def test_a_look_that_tells_nothing_changes_nothing(nothing: Split) -> None:
    before = add(Evidence(), [split(2, 4, 10, 100)])
    assert add(before, [nothing]) == before
    assert add(Evidence(), [nothing]) == Evidence()


def test_of_two_cuts_the_one_that_tells_nothing_keeps_its_stakes() -> None:
    after = add(Evidence(), [split(0, 0, 10, 100), split(10, 12, 10, 100)])
    stakes = after.log_stakes
    assert stakes[1] == pytest.approx(stakes[0])
    assert stakes[-1] > stakes[0] + 5


def test_bad_requests_in_the_canary_are_evidence_and_in_stable_are_not() -> None:
    worse, better = (add(Evidence(), [split(found, 20, 100, 1000)]) for found in (12, 0))
    assert worse.log_wealth > math.log(1000)
    assert better.log_wealth < 0


def test_the_wealth_is_what_it_was_after_the_stakes_were_laid_anew() -> None:
    seen = split(5, 20, 100, 1000)
    count = 1 + len(ODDS)
    plain = math.log((1 + sum(math.exp(log_e(seen, odds)) for odds in ODDS)) / count)
    assert add(Evidence(), [seen]).log_wealth == pytest.approx(plain)


def test_a_long_time_without_a_difference_costs_little_of_what_a_late_one_earns() -> None:
    evidence = Evidence()
    for _ in range(1000):
        evidence = add(evidence, [split(10, 100, 1000, 10_000)])
    assert -8 < evidence.log_wealth < 0
    lowest = evidence.log_wealth
    for _ in range(3):
        evidence = add(evidence, [split(40, 130, 1000, 10_000)])
    assert evidence.log_wealth > lowest + 20


def test_a_share_of_the_stakes_is_laid_anew_after_each_look() -> None:
    after = add(Evidence(), [split(0, 100, 1000, 10_000)])
    least = 1 / (1 + PATIENCE) / (1 + len(ODDS))
    assert min(after.log_stakes) == pytest.approx(math.log(least) + after.log_wealth, abs=0.01)
    assert after.looks == 1


def test_huge_evidence_stays_a_number() -> None:
    evidence = Evidence()
    for _ in range(50):
        evidence = add(evidence, [split(9_000, 10_000, 10_000, 100_000)])
    assert 1e5 < evidence.log_wealth < math.inf


def _counts(size: int, chance_of_bad: float) -> dict[int, float]:
    """The chance of so many bad ones among ``size``."""
    return {
        bad: math.comb(size, bad) * chance_of_bad**bad * (1 - chance_of_bad) ** (size - bad) for bad in range(size + 1)
    }


def _pairs(copies: int, bad: float, alike: float) -> dict[tuple[int, int], float]:
    """Bad answers of canary and stable to ``copies`` requests that both were asked; ``alike`` is how often both answer alike
    because of the request, and not by chance."""
    both, neither = alike * bad + (1 - alike) * bad**2, alike * (1 - bad) + (1 - alike) * (1 - bad) ** 2
    one = (1 - both - neither) / 2
    found: dict[tuple[int, int], float] = {(0, 0): 1.0}
    for _ in range(copies):
        after: dict[tuple[int, int], float] = {}
        for (mine, other), weight in found.items():
            for more, part in (((1, 1), both), ((1, 0), one), ((0, 1), one), ((0, 0), neither)):
                key = (mine + more[0], other + more[1])
                after[key] = after.get(key, 0.0) + weight * part
        found = after
    return found


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("requests", "copies"), [(1, 1), (6, 6), (12, 12), (12, 3), (12, 9)])
def test_copies_of_the_same_requests_gain_nothing_either(requests: int, copies: int, alike: float) -> None:
    """Both arms answer the same requests, so their answers go together: that is less spread than a draw, never more."""
    for odds, bad in product(ODDS, (0.01, 0.1, 0.5, 0.9)):
        mean = 0.0
        for (mine, other), weight in _pairs(copies, bad, alike).items():
            for rest, chance_of_rest in _counts(requests - copies, bad).items():
                seen = split(mine, mine + other + rest, copies, copies + requests)
                mean += weight * chance_of_rest * math.exp(log_e(seen, odds))
        assert mean <= 1 + 1e-12, (odds, bad)
