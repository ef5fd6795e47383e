"""Measures what a process and all its descendants use."""

from __future__ import annotations

import os
import resource
import time
from typing import Any

from .files import now_text
from .processes import Process, descendants, read_process

SETTLED_S = 10.0  # after this, new descendants are looked for less often
DISCOVER_S = 5.0
LEAST_SPAN_S = 0.5  # the kernel counts CPU time in hundredths: over less, and right at the start, a mean says nothing

_MIB = 1024 * 1024


class Meter:
    """Measures all descendants of the runner; ``begin`` is called when the next process is executed."""

    def __init__(self) -> None:
        self._known: list[int] = []
        self._last: tuple[float, float] | None = None
        self._single_before = 0
        self.begin()

    def begin(self) -> None:
        """Count from here what belongs to the present process."""
        self._began = time.monotonic()
        self._discovered = -1.0
        self._cpu_before = reaped_cpu_s()
        self._single_before = _largest_reaped_bytes()
        self.peak_bytes = 0

    def processes(self, *, fresh: bool) -> list[Process]:
        """The live descendants; new ones are looked for each time while young or ``fresh``, later every few seconds."""
        now = time.monotonic()
        young = now - self._began < SETTLED_S
        if fresh or young or now - self._discovered >= DISCOVER_S:
            found = descendants(os.getpid())
            self._known, self._discovered = [process.pid for process in found], now
        else:
            found = [process for pid in self._known if (process := read_process(pid)) and process.state not in "ZX"]
        self.peak_bytes = max(self.peak_bytes, sum(process.rss_bytes for process in found))
        return found

    def usage(self, processes: list[Process]) -> dict[str, Any]:
        """What usage.json holds; ``cpu_cores`` is the mean since it was told last, None after too short a time for one."""
        now = time.monotonic()
        cpu_s = sum(process.cpu_s for process in processes) + reaped_cpu_s()
        then, before = self._last or (self._began, 0.0)
        cores = None
        if now - then >= LEAST_SPAN_S:
            cores = round(max(0.0, cpu_s - before) / (now - then), 3)
            self._last = (now, max(cpu_s, before))
        return {
            "observed_at": now_text(),
            "cpu_cores": cores,
            "memory_mib": round(sum(process.rss_bytes for process in processes) / _MIB, 1),
            "processes": len(processes),
        }

    def cpu_seconds(self) -> float:
        """CPU seconds of everything that has ended since the present process began."""
        return round(reaped_cpu_s() - self._cpu_before, 3)

    def max_rss_mib(self) -> float:
        """The most memory seen: of all processes together at a look, or of one that has ended."""
        single = _largest_reaped_bytes()
        # The kernel tells the largest ever; only one larger than all before can be of the present process.
        return round(max(self.peak_bytes, single if single > self._single_before else 0) / _MIB, 1)


def reaped_cpu_s() -> float:
    """CPU seconds of every descendant that has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _largest_reaped_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
