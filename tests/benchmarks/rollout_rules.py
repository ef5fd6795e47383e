"""The three ways to judge a canary that the simulation compares, on the same looks.

Ours is the real code. The other two are written after their documentation: a threshold on the canary's own value with a
number of failed checks (Flagger), and Mann-Whitney U over the values of single intervals with an effect size as second gate
(Kayenta). Both are calibrated on streams without a difference, so that they roll back as often as ours may.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from fermion.domain.rollout.judging import judge
from fermion.domain.rollout.looks import Look, Measured, Outcome, Reading, proportion
from fermion.domain.rollout.measures import value_of
from fermion.domain.rollout.plan import Kind, MetricRule, Plan, Step

from .rollout_streams import BOUNDS, Counts

BEGIN = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
INTERVAL = timedelta(seconds=30)
ERRORS = MetricRule(name="error_rate", tolerance=0.5)
LATENCY = MetricRule(name="latency_p95", kind=Kind.QUANTILE, quantile=0.95, tolerance=0.1)
PLAN = Plan(steps=(Step(weight_percent=10), Step(weight_percent=100)), metrics=(ERRORS, LATENCY), alpha=0.01)
FAILED_CHECKS = (1, 2, 3, 5)
"""How many failed checks the threshold rule may wait for; in each cell it gets the one that is best there."""

FEWEST_POINTS = 3
"""The fewest intervals that the U test is asked about."""


def reading_of(counts: Counts, bounds: tuple[float, ...] = BOUNDS) -> tuple[Reading, Reading]:
    """Both metrics as the engine gets them."""
    errors = proportion("error_rate", canary=counts.canary, stable=counts.stable)
    latency = Reading(metric="latency_p95", canary=counts.canary_latency, stable=counts.stable_latency, bounds=bounds)
    return errors, latency


def looks_of(plan: Plan, stream: Sequence[Counts], bounds: tuple[float, ...] = BOUNDS) -> list[Look]:
    """The engine's looks, up to the first that fails."""
    looks: list[Look] = []
    for number, counts in enumerate(stream):
        measured = Measured(
            step=0,
            weight_percent=10,
            started_at=BEGIN + number * INTERVAL,
            ended_at=BEGIN + (number + 1) * INTERVAL,
            readings=reading_of(counts, bounds),
        )
        looks.append(judge(plan, measured, looks[-1] if looks else None))
        if looks[-1].outcome is Outcome.FAIL:
            break
    return looks


def found_at(looks: Sequence[Look]) -> int | None:
    """The number of the look that failed, or None."""
    return looks[-1].failed_look


def values(rule: MetricRule, stream: Sequence[Counts], bounds: tuple[float, ...] = BOUNDS) -> list[tuple[float, float]]:
    """What a metrics store would answer for each interval: the canary's value and stable's; intervals without any are left out."""
    found = []
    for counts in stream:
        errors, latency = reading_of(counts, bounds)
        reading = errors if rule.kind is Kind.PROPORTION else latency
        pair = value_of(rule, reading.bounds, reading.canary), value_of(rule, reading.bounds, reading.stable)
        if pair[0] is not None and pair[1] is not None:
            found.append((min(pair[0], 10.0), min(pair[1], 10.0)))
    return found


def threshold_hits(points: Sequence[tuple[float, float]], limit: float, checks: int) -> int | None:
    """The look at which the canary's value was above the limit for the ``checks``-th time, or None."""
    failed = 0
    for number, (canary, _) in enumerate(points, start=1):
        failed += canary > limit
        if failed >= checks:
            return number
    return None


def threshold_needed(points: Sequence[tuple[float, float]], checks: int) -> float:
    """The lowest limit at which these points are not rolled back."""
    ordered = sorted((canary for canary, _ in points), reverse=True)
    return ordered[checks - 1] if len(ordered) >= checks else 0.0


def u_scores(rule: MetricRule, points: Sequence[tuple[float, float]]) -> list[float]:
    """The z of Mann-Whitney U (one-sided, with ties) after each interval over all before it; 0 where the effect is small."""
    canaries: list[float] = []
    stables: list[float] = []
    ties: Counter[float] = Counter()
    wins, sums, scores = 0.0, [0.0, 0.0], []
    for canary, stable in points:
        wins += (bisect_left(stables, canary) + bisect_right(stables, canary)) / 2
        insort(canaries, canary)
        wins += len(canaries) - (bisect_left(canaries, stable) + bisect_right(canaries, stable)) / 2
        insort(stables, stable)
        ties.update((canary, stable))
        sums = [sums[0] + canary, sums[1] + stable]
        is_large = sums[0] > sums[1] * (1 + rule.tolerance)
        scores.append(_z(wins, len(canaries), ties) if is_large and len(canaries) >= FEWEST_POINTS else 0.0)
    return scores


def _z(wins: float, count: int, ties: Counter[float]) -> float:
    both = 2 * count
    tied = sum(number**3 - number for number in ties.values()) / (both * (both - 1))
    variance = count * count / 12 * (both + 1 - tied)
    return (wins - count * count / 2 - 0.5) / math.sqrt(variance) if variance > 0 else 0.0


def first_above(scores: Sequence[float], limit: float) -> int | None:
    """The number of the first score above the limit, or None."""
    return next((number for number, score in enumerate(scores, start=1) if score > limit), None)


def calibrated(needed: Sequence[float], alpha: float) -> float:
    """The lowest limit that at most the share ``alpha`` of the streams would have crossed."""
    ordered = sorted(needed, reverse=True)
    return ordered[math.floor(alpha * len(ordered))]
