"""What the counts of one metric say: values, how much worse one arm is, where bad begins, and whether a guard is crossed.

A metric of one arm is a tuple of counts, one for each bucket, in the order of what is measured. A proportion has two buckets:
requests without it, requests with it. A quantile's buckets end at ``bounds``; the last has no end.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from fermion.domain.rollout.evidence import Split
from fermion.domain.rollout.plan import Kind, MetricRule, Worse

GUARD_CHANCE: Final = 0.05
"""A guard is crossed only where a canary exactly at the guard would show as much in fewer looks than this share."""

WIDER_TAIL: Final = 4
"""A latency is compared at the quantile's tail and at one that holds that many times the requests."""


def value_of(rule: MetricRule, bounds: Sequence[float], counts: Sequence[float]) -> float | None:
    """The metric's value; None without requests; infinite where a quantile lies in the last bucket, which has no end.

    Between two bounds a quantile is interpolated evenly, as Prometheus does.
    """
    total = sum(counts)
    if total <= 0:
        return None
    if rule.kind is Kind.PROPORTION:
        return counts[1] / total
    wanted, below, low = (rule.quantile or 0.0) * total, 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count > 0 and below + count >= wanted:
            return low + (bound - low) * (wanted - below) / count
        below, low = below + count, bound
    return math.inf


def worsening(rule: MetricRule, canary: float | None, stable: float | None) -> float | None:
    """How much worse the canary is, relative to stable: 0.5 is worse by half, negative is better; None where unknown.

    Infinite where stable has none of it, or the canary's value is beyond all bounds.
    """
    if canary is None or stable is None:
        return None
    better, worse = (stable, canary) if rule.worse is Worse.HIGHER else (canary, stable)
    if math.isinf(worse) or (better <= 0 < worse):
        return math.inf
    if math.isinf(better):
        return -1.0
    return worse / better - 1 if better > 0 else 0.0


def tails(rule: MetricRule) -> tuple[float, ...]:
    """The shares of requests at which a quantile's arms are compared; for a proportion its counts need no cut (0)."""
    if rule.kind is Kind.PROPORTION:
        return (0.0,)
    return tuple(sorted({min(0.5, rule.tail), min(0.5, WIDER_TAIL * rule.tail)}))


def splits(rule: MetricRule, canary: Sequence[int], stable: Sequence[int]) -> tuple[Split, ...]:
    """How the bad requests of a look fell, at each of the rule's tails.

    Where a latency begins to be bad is taken from both arms together, as near to the tail as a bucket ends, so the draw of
    the router stays fair given that.
    """
    higher = rule.worse is Worse.HIGHER
    mine, both = _from_worst(canary, higher), _from_worst([a + b for a, b in zip(canary, stable, strict=True)], higher)
    total, own = both[-1], mine[-1]
    found = []
    for tail in tails(rule):
        at = 0 if rule.kind is Kind.PROPORTION else _nearest(both[:-1], tail * total)
        found.append(Split(bad_canary=mine[at], bad=both[at], canary=own, total=total))
    return tuple(found)


def _from_worst(counts: Sequence[int], higher: bool) -> list[int]:
    """How many requests are in the worst bucket, the two worst, and so on; the last number is all of them."""
    return list(accumulate(reversed(counts) if higher else counts))


def _nearest(cumulated: Sequence[int], wanted: float) -> int:
    """The cut that holds most nearly the wanted number by ratio, and at least one request where any does.

    By ratio, because where one arm lies in one bucket, a few beyond it must not hide that all of it is beyond the other arm.
    """
    at = min(bisect_left(cumulated, wanted), len(cumulated) - 1)
    is_nearer = at > 0 and cumulated[at - 1] > 0 and wanted * wanted <= cumulated[at - 1] * cumulated[at]
    return at - 1 if is_nearer else at


def beyond_guard(rule: MetricRule, bounds: Sequence[float], counts: Sequence[int]) -> tuple[int, float] | None:
    """How many of the requests are beyond the guard, and which share of them may be; None where no bucket ends in time.

    A guard between two bounds counts from the bound that is milder to the canary.
    """
    guard = rule.guard or 0.0
    if rule.kind is Kind.PROPORTION:
        return (counts[1], guard) if rule.worse is Worse.HIGHER else (counts[0], 1 - guard)
    if rule.worse is Worse.HIGHER:
        at = bisect_left(bounds, guard)
        return None if at == len(bounds) else (sum(counts[at + 1 :]), rule.tail)
    at = bisect_right(bounds, guard)
    return None if at == 0 else (sum(counts[:at]), rule.tail)


def is_crossed(bad: int, total: int, share: float) -> bool:
    """Whether more than ``share`` of all requests are bad, and by more than chance.

    The chance is bounded by the first term of the binomial tail over one minus the ratio to the next.
    """
    if total <= 0 or bad <= share * total:
        return False
    if share <= 0 or bad >= total:
        return share <= 0 or total * math.log(share) <= math.log(GUARD_CHANCE)
    ratio = (total - bad) * share / ((bad + 1) * (1 - share))
    return log_binomial(bad, total, share) - math.log1p(-ratio) <= math.log(GUARD_CHANCE)


def log_binomial(bad: int, total: int, share: float) -> float:
    """The log of the chance of exactly so many; ``share`` is strictly between 0 and 1."""
    ways = math.lgamma(total + 1) - math.lgamma(bad + 1) - math.lgamma(total - bad + 1)
    return ways + bad * math.log(share) + (total - bad) * math.log1p(-share)
