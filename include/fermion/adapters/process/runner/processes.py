"""The process table, and what may be done with processes: name one beyond doubt, find descendants, end them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LIBC = ctypes.CDLL(None, use_errno=True)


class Process:
    """One line of the process table. ``cpu_s`` includes children it has waited for."""

    __slots__ = ("cpu_s", "parent", "pid", "rss_bytes", "start_ticks", "state")

    def __init__(self, pid: int, fields: list[bytes]) -> None:
        self.pid = pid
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.cpu_s = sum(int(part) for part in fields[11:15]) / _TICKS
        self.start_ticks = int(fields[19])
        self.rss_bytes = int(fields[21]) * _PAGE


def read_process(pid: int) -> Process | None:
    """The process, or None when there is none by that number."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return None
    return Process(pid, stat[stat.rfind(b")") + 2 :].split())


def boot_id() -> str:
    """What tells this boot of the machine from every other."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def pid_namespace() -> str:
    """Which numbering of processes this process lives in; containers have their own."""
    return os.readlink("/proc/self/ns/pid")


def identity(pid: int) -> dict[str, Any]:
    """What names one process beyond doubt: its number, when it started, and in which boot and namespace."""
    process = read_process(pid)
    ticks = process.start_ticks if process else 0
    return {"pid": pid, "start_ticks": ticks, "boot_id": boot_id(), "pid_namespace": pid_namespace()}


def is_alive(who: Mapping[str, Any]) -> bool:
    """Whether that very process lives; numbers given out again, other boots and zombies do not count."""
    process = read_process(int(who["pid"]))
    if process is None or process.state in "ZX":
        return False
    return bool(process.start_ticks == who["start_ticks"] and boot_id() == who["boot_id"])


def descendants(root: int) -> list[Process]:
    """Every live process under ``root``, itself excluded; zombies are left out."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        process = read_process(int(entry)) if entry.isdigit() else None
        if process is not None:
            children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += [process.pid for process in below]
    return [process for process in found if process.state not in "ZX"]


def set_name(name: str) -> None:
    """The name that ``ps`` and ``top`` show."""
    _LIBC.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none can slip away."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with(parent: int) -> None:
    """Called in a child just forked: be killed when that parent ends, at once if it has ended already."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(137)


def kill(pid: int, number: int) -> None:
    """Send a signal; a process that is gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def reap() -> dict[int, int]:
    """Collect every ended child: number to wait status."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unnamed"


def end_descendants(while_waiting: Callable[[], None]) -> int:
    """Kill every descendant and wait until all are gone; how many there were.

    Waits as long as one does not die (a driver call that never returns): until then its GPU is not free.
    """
    seen: set[int] = set()
    while True:
        reap()
        living = descendants(os.getpid())
        if not living:
            return len(seen)
        for process in living:
            seen.add(process.pid)
            kill(process.pid, signal.SIGKILL)
        while_waiting()
        time.sleep(0.005 if len(seen) < 64 else 0.05)
