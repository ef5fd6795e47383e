"""The CPU limit: kept by a control group where one may be made, else by leaving the process only some of the cores."""

from __future__ import annotations

import contextlib
import math
import os
import zlib

from .groups import Cgroup


class Cpu:
    """``cpus`` cores' worth of time for one process and its descendants; None: as much as there is.

    ``beside`` is the group that keeps the memory limit: of version 2 a process can be in one group only.
    """

    def __init__(self, name: str, cpus: float | None, beside: Cgroup | None) -> None:
        self.kept_by: str | None = None
        self.cgroup: Cgroup | None = None
        self._cores: set[int] = set()
        if cpus is None:
            return
        self._cores = _cores(name, cpus)
        is_kept_beside = beside is not None and beside.limit_cpu(cpus)
        if not is_kept_beside and (beside is None or beside.version == 1):
            self.cgroup = Cgroup.create_for_cpu(name, cpus)
        self.kept_by = "control group" if is_kept_beside or self.cgroup else "affinity"

    def join(self) -> None:
        """Called in the process itself, before it is executed."""
        if self.cgroup:
            self.cgroup.join()
        elif self.kept_by == "affinity":
            self._pin(0)

    def joined(self, pid: int) -> None:
        """The process has started; where it did not get into the group, whole cores are what is left."""
        if self.cgroup and not self.cgroup.holds(pid):
            self.kept_by = "affinity"
            self._pin(pid)

    def _pin(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(pid, self._cores)

    def close(self) -> None:
        """Remove the group."""
        if self.cgroup:
            self.cgroup.close()


def _cores(name: str, cpus: float) -> set[int]:
    """As many cores as that many cpus need, another part of the machine for each name."""
    usable = sorted(os.sched_getaffinity(0))
    first = zlib.crc32(name.encode()) % len(usable)
    return {usable[(first + step) % len(usable)] for step in range(min(len(usable), max(1, math.ceil(cpus))))}
