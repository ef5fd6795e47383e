"""What the router counted, in memory. Keeps ``ports.Traffic``."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from fermion.adapters.memory.jsonlike import as_stored
from fermion.adapters.memory.tables import Draft
from fermion.domain.serving.traffic import Counters


class MemoryTraffic:
    """Readings by backend and time."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def add(self, counters: Sequence[Counters]) -> int:
        """One after the other."""
        return sum(self._add(as_stored(reading)) for reading in counters)

    def _add(self, reading: Counters) -> bool:
        stored = self._draft.write("traffic")
        readings: tuple[Counters, ...] = stored.get(reading.backend, ())
        place = bisect_left(readings, reading.observed_at, key=_time)
        if place < len(readings) and readings[place].observed_at == reading.observed_at:
            return False
        stored[reading.backend] = (*readings[:place], reading, *readings[place:])
        return True

    def since(self, backends: Collection[str], at: datetime) -> Mapping[str, Sequence[Counters]]:
        """From the last one before."""
        return {backend: self._since(backend, at) for backend in sorted(backends)}

    def _since(self, backend: str, at: datetime) -> Sequence[Counters]:
        readings: Sequence[Counters] = self._draft.see("traffic").get(backend, ())
        return list(readings[max(0, bisect_left(readings, at, key=_time) - 1) :])

    def forget(self, before: datetime) -> int:
        """Cut off the beginning of each."""
        stored = self._draft.write("traffic")
        gone = {backend: bisect_left(readings, before, key=_time) for backend, readings in stored.items()}
        for backend, count in gone.items():
            stored[backend] = stored[backend][count:]
        return sum(gone.values())


def _time(reading: Counters) -> datetime:
    return reading.observed_at
