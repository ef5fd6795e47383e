"""The memory limit: kept by a control group where one may be made, else watched by the runner."""

from __future__ import annotations

from .files import read_text
from .groups import Cgroup
from .processes import Process

WATCH_S = 0.25  # between looks at memory where no control group keeps the limit

_MIB = 1024 * 1024
_MORE_MEMORY = "Ask for more memory or use less (a smaller batch, fewer loader processes)."


def shared_out_bytes(processes: list[Process]) -> int:
    """Memory of the processes with each shared page counted once (PSS); falls back on RSS where the kernel hides it."""
    total = 0
    for process in processes:
        lines = read_text(f"/proc/{process.pid}/smaps_rollup").splitlines()
        pss = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), process.rss_bytes)
        total += pss
    return total


class Memory:
    """The memory limit: kept by a control group where one may be made, else watched here."""

    def __init__(self, name: str, limit_mib: int | None) -> None:
        self.limit_mib = limit_mib
        self.cgroup = Cgroup.create(name, limit_mib * _MIB) if limit_mib else None
        self.is_watched = limit_mib is not None

    def joined(self, pid: int) -> None:
        """The process has started; where it did not get into the group, watch it here."""
        self.is_watched = self.limit_mib is not None and not (self.cgroup and self.cgroup.holds(pid))

    def crossed(self, processes: list[Process]) -> str | None:
        """One sentence with the numbers once the limit was crossed."""
        if self.cgroup and self.cgroup.kills():
            peak = self.cgroup.peak_mib()
            used = f"{peak:.0f}" if peak is not None else "all"
            return f"used {used} MiB of the {self.limit_mib} MiB it may use; the kernel ended it. {_MORE_MEMORY}"
        if not self.is_watched or self.limit_mib is None:
            return None
        limit = self.limit_mib * _MIB
        if (
            sum(process.rss_bytes for process in processes) <= limit
            or (used_bytes := shared_out_bytes(processes)) <= limit
        ):
            return None
        return f"used {used_bytes / _MIB:.0f} MiB of the {self.limit_mib} MiB it may use; the runner ended it. {_MORE_MEMORY}"

    def close(self) -> None:
        """Remove the group."""
        if self.cgroup:
            self.cgroup.close()
