"""What a router counted, and differences between two readings. Counters only grow, until the router starts anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """One backend's counters since the router's start (``epoch``, the router's own word for it).

    ``requests`` are completed ones, by whatever answer. ``by_class`` maps ``2xx``, ``4xx``, ``5xx``; ``router_made`` counts
    those of them that the router answered itself because no replica did (refused, reset, timed out, none healthy).
    ``latency_ms`` maps an upper bound in milliseconds to how many requests took at most that long (cumulative, so
    non-decreasing); the last bound is infinite and stands as ``inf``. ``active`` are requests on their way now.
    """

    backend: str
    epoch: str
    observed_at: datetime
    requests: int = 0
    by_class: Mapping[str, int] = field(default_factory=dict)
    router_made: int = 0
    active: int = 0
    latency_ms: Mapping[str, int] = field(default_factory=dict)
    latency_sum_ms: float = 0.0

    def without_distribution(self) -> Counters:
        """The same with the latencies' number and sum only."""
        return replace(self, latency_ms={INFINITE: self.latency_ms.get(INFINITE, 0)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one backend did between two moments. ``failures`` are answers of class 5xx, those that the router made included.

    ``buckets`` counts requests by latency: the first up to ``bounds_ms[0]``, the last beyond all bounds.
    ``resets`` tells how often the counters began anew meanwhile; what was counted and lost then is not in it.
    """

    backend: str
    since: datetime
    until: datetime
    requests: int = 0
    failures: int = 0
    router_made: int = 0
    bounds_ms: tuple[float, ...] = ()
    buckets: tuple[int, ...] = ()
    latency_sum_ms: float = 0.0
    resets: int = 0

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.until - self.since).total_seconds()

    @property
    def mean_ms(self) -> float | None:
        """Mean latency; None without requests."""
        counted = sum(self.buckets)
        return self.latency_sum_ms / counted if counted else None


INFINITE = "inf"


def window(readings: Sequence[Counters]) -> Window:
    """The sum of what came between each reading and the next, in order of time; at least one reading.

    Where the epoch changed, or a counter went back, the later reading is all that is known since the router's new start.
    """
    first, last = readings[0], readings[-1]
    bounds = tuple(sorted(float(bound) for bound in last.latency_ms if bound != INFINITE))
    requests = failures = router_made = resets = 0
    latency_sum = 0.0
    buckets = [0] * (len(bounds) + 1)
    for before, after in pairwise(readings):
        is_reset = before.epoch != after.epoch or _went_back(before, after)
        base = None if is_reset else before
        resets += is_reset
        requests += after.requests - (base.requests if base else 0)
        failures += _failures(after) - (_failures(base) if base else 0)
        router_made += after.router_made - (base.router_made if base else 0)
        latency_sum += after.latency_sum_ms - (base.latency_sum_ms if base else 0.0)
        for place, count in enumerate(_buckets(after, bounds)):
            buckets[place] += count
        for place, count in enumerate(_buckets(base, bounds) if base else ()):
            buckets[place] -= count
    return Window(
        backend=last.backend,
        since=first.observed_at,
        until=last.observed_at,
        requests=requests,
        failures=failures,
        router_made=router_made,
        bounds_ms=bounds,
        buckets=tuple(max(0, count) for count in buckets),
        latency_sum_ms=max(0.0, latency_sum),
        resets=resets,
    )


def merged(found: Sequence[Window]) -> Window:
    """Several windows added up, those of one service's revisions for example; at least one.

    It lasts from the earliest beginning to the latest end. Latencies that were counted in different buckets are left out.
    """
    first = found[0]
    alike = all(each.bounds_ms == first.bounds_ms for each in found)
    return Window(
        backend=first.backend,
        since=min(each.since for each in found),
        until=max(each.until for each in found),
        requests=sum(each.requests for each in found),
        failures=sum(each.failures for each in found),
        router_made=sum(each.router_made for each in found),
        bounds_ms=first.bounds_ms if alike else (),
        buckets=tuple(map(sum, zip(*(each.buckets for each in found), strict=True))) if alike else (),
        latency_sum_ms=sum(each.latency_sum_ms for each in found) if alike else 0.0,
        resets=sum(each.resets for each in found),
    )


def quantile_ms(found: Window, quantile: float) -> float | None:
    """The latency that this share of the requests stayed below, evenly interpolated within its bucket; None without requests.

    Infinite where it lies beyond all bounds.
    """
    total = sum(found.buckets)
    if not total:
        return None
    wanted, below, low = quantile * total, 0, 0.0
    for bound, count in zip(found.bounds_ms, found.buckets, strict=False):
        if count and below + count >= wanted:
            return low + (bound - low) * (wanted - below) / count
        below, low = below + count, bound
    return math.inf


def _went_back(before: Counters, after: Counters) -> bool:
    return any(after.by_class.get(name, 0) < count for name, count in before.by_class.items())


def _failures(counters: Counters) -> int:
    return counters.by_class.get("5xx", 0)


def _buckets(counters: Counters, bounds: Sequence[float]) -> list[int]:
    """Requests in each bucket; a bound that a reading does not have holds what the one below it does."""
    cumulative = sorted((float(bound), count) for bound, count in counters.latency_ms.items() if bound != INFINITE)
    known = dict(cumulative)
    total = max([counters.latency_ms.get(INFINITE, 0), *(count for _, count in cumulative)], default=0)
    found, below = [], 0
    for bound in bounds:
        upto = known.get(bound, below)
        found.append(upto - below)
        below = upto
    return [*found, total - below]
