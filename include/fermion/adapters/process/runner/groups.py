"""Control groups of Linux, version 1 and 2: one for a process and its descendants that keeps its memory or its CPU limit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from .files import read_text, write_text

_MIB = 1024 * 1024
_PERIOD_US = 100_000


class Cgroup:
    """A control group of one workload."""

    def __init__(self, path: str, version: int) -> None:
        self.path = path
        self.version = version
        self._procs = os.open(os.path.join(path, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)

    @classmethod
    def create(cls, name: str, limit: int) -> Cgroup | None:
        """A new group under this process's own that keeps memory to ``limit`` bytes; None where that is not allowed."""
        required = {1: {"memory.limit_in_bytes": str(limit)}, 2: {"memory.max": str(limit)}}
        extras = {1: {"memory.memsw.limit_in_bytes": str(limit)}, 2: {"memory.swap.max": "0", "memory.oom.group": "1"}}
        group = cls._make(name, "memory", required)
        if group is not None:
            for file, value in extras[group.version].items():
                with contextlib.suppress(OSError):
                    write_text(os.path.join(group.path, file), value)
        return group

    @classmethod
    def create_for_cpu(cls, name: str, cpus: float) -> Cgroup | None:
        """A new group that gives ``cpus`` cores' worth of time in each tenth of a second; None where that is not allowed."""
        return cls._make(name, "cpu", _cpu_files(cpus))

    @classmethod
    def _make(cls, name: str, controller: str, required: Mapping[int, Mapping[str, str]]) -> Cgroup | None:
        for version, parent in _parents(controller):
            path = os.path.join(parent, f"fermion-{name}-{os.getpid()}")
            try:
                os.mkdir(path)
            except OSError:
                continue
            try:
                for file, value in required[version].items():
                    write_text(os.path.join(path, file), value)
                return cls(path, version)
            except OSError:
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        return None

    def limit_cpu(self, cpus: float) -> bool:
        """Keep the CPU limit too; False where this group cannot (one of version 1 keeps one kind of limit only)."""
        try:
            for file, value in _cpu_files(cpus)[self.version].items():
                write_text(os.path.join(self.path, file), value)
        except OSError:
            return False
        return True

    def join(self) -> None:
        """Move the calling process in; it stays outside where that fails, and the runner's own watch takes over."""
        with contextlib.suppress(OSError):
            os.write(self._procs, b"0")

    def holds(self, pid: int) -> bool:
        """Whether that process is in."""
        return str(pid) in read_text(os.path.join(self.path, "cgroup.procs")).split()

    def kills(self) -> int:
        """How many processes the kernel ended in it for memory."""
        file = {1: "memory.oom_control", 2: "memory.events"}[self.version]
        for line in read_text(os.path.join(self.path, file)).splitlines():
            word, _, value = line.partition(" ")
            if word == "oom_kill":
                return int(value)
        return 0

    def peak_mib(self) -> float | None:
        """The most memory it ever held, page cache included."""
        file = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}[self.version]
        text = read_text(os.path.join(self.path, file)).strip()
        return int(text) / _MIB if text.isdigit() else None

    def close(self) -> None:
        """Remove it; it must be empty."""
        os.close(self._procs)
        with contextlib.suppress(OSError):
            os.rmdir(self.path)


def remove_empty(name: str) -> None:
    """Remove the groups that a killed runner left of that workload; one that still holds a process stays."""
    for controller in ("memory", "cpu"):
        for _, parent in _parents(controller):
            for entry in os.listdir(parent):
                if entry.startswith(f"fermion-{name}-"):
                    with contextlib.suppress(OSError):
                        os.rmdir(os.path.join(parent, entry))


def _cpu_files(cpus: float) -> dict[int, dict[str, str]]:
    quota = str(max(1000, round(cpus * _PERIOD_US)))
    return {
        1: {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": quota},
        2: {"cpu.max": f"{quota} {_PERIOD_US}"},
    }


def _parents(controller: str) -> list[tuple[int, str]]:
    """Folders under which a group with such a limit may be made: (version, path)."""
    mounts: dict[int, str] = {}
    for line in read_text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2) if right.count(" ") >= 2 else ("", "", "")
        if kind == "cgroup2":
            mounts[2] = left.split()[4]
        elif kind == "cgroup" and controller in options.split(","):
            mounts[1] = left.split()[4]
    parents = []
    for line in read_text("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 2 if controllers == "" else 1 if controller in controllers.split(",") else 0
        if version in mounts:
            own = os.path.join(mounts[version], path.lstrip("/"))
            parents.append((version, own if os.path.isdir(own) else mounts[version]))
    return parents
