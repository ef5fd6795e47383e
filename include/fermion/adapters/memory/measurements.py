"""A metrics system that scrapes a router when it is told to. Keeps ``ports.Measurements``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from fermion.adapters.memory.outages import Line
from fermion.domain.serving.traffic import Counters, Window, window


class MemoryMeasurements:
    """``counters`` is whom it asks at each ``scrape``; ``line`` whether it answers itself."""

    def __init__(self, counters: Callable[[Collection[str]], Mapping[str, Counters]], line: Line | None = None) -> None:
        self._counters = counters
        self._line = line or Line("the metrics system")
        self._scraped: list[Mapping[str, Counters]] = []

    def scrape(self, backends: Collection[str]) -> None:
        """Record what the router says now."""
        self._scraped.append(self._counters(backends))

    @property
    def source(self) -> str:
        """Its name."""
        return "a metrics system in memory"

    def windows(
        self, backends: Collection[str], since: datetime, until: datetime, *, latencies: bool = True
    ) -> Mapping[str, Window]:
        """From what was scraped in that time."""
        self._line.answer()
        found = {}
        for backend in sorted(backends):
            readings = [scraped[backend] for scraped in self._scraped if backend in scraped]
            within = [each for each in readings if since <= each.observed_at <= until]
            if len(within) > 1:
                found[backend] = window(within if latencies else [each.without_distribution() for each in within])
        return found
