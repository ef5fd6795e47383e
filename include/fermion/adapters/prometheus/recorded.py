"""From what Prometheus recorded to windows of traffic. Pure.

All of one scrape has one time, so what was recorded is a row of whole readings of each router, as its admin interface would
have given them; counters that began anew are found by the router's uptime.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from fermion.adapters.envoy import counting
from fermion.adapters.envoy.admin import Sample
from fermion.adapters.prometheus.promql import MEMBERS, UPTIME
from fermion.domain.serving.traffic import Counters, Window, merged, window

Scrapes = Mapping[datetime, Sequence[Sample]]
"""What one router said, by time."""


def windows(
    result: Sequence[Mapping[str, Any]], backends: Collection[str], *, since: datetime, latencies: bool
) -> Mapping[str, Window]:
    """Of each backend the window from its first reading at or after ``since`` to its last; without two there is none.

    ``result`` is a matrix as Prometheus answers it. Several routers are added up.
    """
    found: dict[str, list[Window]] = defaultdict(list)
    for name, scrapes in _by_router(result, since).items():
        for backend, readings in _readings(scrapes, backends, router=name, since=since).items():
            if len(readings) > 1:
                exact = readings if latencies else [each.without_distribution() for each in readings]
                found[backend].append(window(exact))
    return {backend: merged(each) for backend, each in sorted(found.items())}


def _by_router(result: Sequence[Mapping[str, Any]], since: datetime) -> Mapping[str, Scrapes]:
    routers: dict[str, dict[datetime, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for series in result:
        labels = {str(name): str(value) for name, value in series["metric"].items()}
        name = labels.pop("__name__")
        scrapes = routers[f"{labels.pop('job', '')}/{labels.pop('instance', '')}"]
        for at, value in series["values"]:
            moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=round(1000 * float(at)))
            if moment >= since:
                scrapes[moment].append(Sample(name, labels, float(value)))
    return routers


def _readings(
    scrapes: Scrapes, backends: Collection[str], *, router: str, since: datetime
) -> Mapping[str, Sequence[Counters]]:
    """Of each backend that the router had at any time; what it had not yet counted is zero."""
    clusters = {
        sample.labels.get("envoy_cluster_name", "")
        for samples in scrapes.values()
        for sample in samples
        if sample.name == MEMBERS
    }
    known = {key for key in backends if counting.cluster_of(key) in clusters}
    had = [Sample(MEMBERS, {"envoy_cluster_name": counting.cluster_of(key)}, 0.0) for key in sorted(known)]
    times = sorted(scrapes)
    epochs = _epochs([_uptime(scrapes[at]) for at in times])
    found: dict[str, list[Counters]] = {name: [] for name in known}
    for at, epoch in zip(times, epochs, strict=True):
        told = counting.read([*scrapes[at], *had], known, epoch=f"{router}#{epoch}", observed_at=at)
        for name, counters in told.items():
            found[name].append(counters)
    for readings in found.values():
        began = _began(readings[0].observed_at, _uptime(scrapes[readings[0].observed_at]))
        if began is not None and since <= began < readings[0].observed_at:
            # The router is younger than the window: whatever it has counted belongs to it.
            nothing = Counters(backend=readings[0].backend, epoch=readings[0].epoch, observed_at=began)
            readings.insert(0, nothing)
    return found


def _uptime(samples: Sequence[Sample]) -> float | None:
    return next((sample.value for sample in samples if sample.name == UPTIME), None)


def _began(at: datetime, uptime: float | None) -> datetime | None:
    """When the router started, a second late: it tells whole seconds."""
    return None if uptime is None else at - timedelta(seconds=uptime)


def _epochs(uptimes: Sequence[float | None]) -> Sequence[int]:
    """A number for each scrape that grows whenever the router started anew since the one before."""
    numbers = [0] if uptimes else []
    for before, after in pairwise(uptimes):
        is_younger = before is not None and after is not None and after < before
        numbers.append(numbers[-1] + is_younger)
    return numbers
