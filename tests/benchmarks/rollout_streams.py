"""Simulated traffic of a canary and of stable, look by look: counts of errors and of latencies. Fixed seeds, no numpy.

Requests arrive at random (Poisson) and the router draws the arm of each. A latency is log-normal; a mixture of baselines
may drift through the day or come in bursts, the same for both arms.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

MEDIAN_S = 0.05
SPREAD = 0.5
"""Of the log of a latency: p95 is 2.3 times the median."""

BOUNDS = tuple(round(0.02 * 1.2**number, 5) for number in range(20))
"""20 ms to 640 ms, each a fifth more than the one before."""

ENVOY_BOUNDS = (0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""What Envoy exports unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One kind of traffic. ``rate`` is requests per second of the service, ``weight`` the canary's share (0 to 1).

    ``errors`` and ``slower`` are stable's error rate, the canary's, and how many times slower the canary is.
    ``onset`` is the number of good looks before the fault. ``day`` lets error rate and latency swing to three times and
    twice; ``bursts`` makes one look in five bad (20 % errors, 3 times slower) in both arms. ``clump`` lets each bad client
    try so often at the same arm.
    """

    rate: float = 50.0
    weight: float = 0.1
    errors: tuple[float, float] = (0.01, 0.01)
    slower: float = 1.0
    interval_s: float = 30.0
    onset: int = 0
    day: bool = False
    bursts: bool = False
    clump: int = 1
    bounds: tuple[float, ...] = BOUNDS


@dataclass(frozen=True, slots=True)
class Counts:
    """One look: (errors, requests) and latency counts by bucket, of canary and stable."""

    canary: tuple[int, int]
    stable: tuple[int, int]
    canary_latency: tuple[int, ...]
    stable_latency: tuple[int, ...]


def stream(scenario: Scenario, seed: int, looks: int) -> Iterator[Counts]:
    """The looks of one rollout."""
    rng = random.Random(f"{seed}")
    for number in range(looks):
        level, slow = _weather(scenario, rng, number)
        faulty = number >= scenario.onset
        arms = []
        for share, rate, slower in (
            (scenario.weight, scenario.errors[1] if faulty else scenario.errors[0], scenario.slower if faulty else 1.0),
            (1 - scenario.weight, scenario.errors[0], 1.0),
        ):
            expected = scenario.rate * scenario.interval_s * share
            shares = bucket_shares(scenario.bounds, round(slow * slower, 6))
            latency = tuple(poisson(rng, expected * part) for part in shares)
            bad = min(sum(latency), scenario.clump * poisson(rng, expected * min(1.0, rate * level) / scenario.clump))
            arms.append(((bad, sum(latency)), latency))
        (canary, canary_latency), (stable, stable_latency) = arms
        yield Counts(canary, stable, canary_latency, stable_latency)


def _weather(scenario: Scenario, rng: random.Random, number: int) -> tuple[float, float]:
    """How many times the usual error rate and latency are in this look, for both arms."""
    if scenario.bursts and rng.random() < 0.2:
        return 0.2 / scenario.errors[0], 3.0
    if scenario.day:
        swing = (1 - math.cos(2 * math.pi * number / 20)) / 2
        return 1 + 2 * swing, 1 + swing
    return 1.0, 1.0


@cache
def bucket_shares(bounds: tuple[float, ...], slower: float) -> tuple[float, ...]:
    """The share of requests in each bucket."""
    below = [0.5 * (1 + math.erf(math.log(bound / (MEDIAN_S * slower)) / (SPREAD * math.sqrt(2)))) for bound in bounds]
    return tuple(high - low for low, high in zip([0.0, *below], [*below, 1.0], strict=True))


def poisson(rng: random.Random, mean: float) -> int:
    """An exact Poisson draw: by multiplication, or by Hörmann's transformed rejection (PTRS, 1993) for a large mean."""
    if mean < 10:
        limit, count, product = math.exp(-mean), 0, rng.random()
        while product > limit:
            count += 1
            product *= rng.random()
        return count
    log_mean, width = math.log(mean), 0.931 + 2.53 * math.sqrt(mean)
    shift = -0.059 + 0.02483 * width
    inverse, quick = 1.1239 + 1.1328 / (width - 3.4), 0.9277 - 3.6224 / (width - 2)
    while True:
        spot, height = rng.random() - 0.5, rng.random()
        edge = 0.5 - abs(spot)
        count = math.floor((2 * shift / edge + width) * spot + mean + 0.43) if edge > 0 else -1
        if edge >= 0.07 and height <= quick:
            return count
        if count < 0 or (edge < 0.013 and height > edge):
            continue
        accepted = math.log(height) + math.log(inverse) - math.log(shift / (edge * edge) + width)
        if accepted <= count * log_mean - mean - math.lgamma(count + 1):
            return count
