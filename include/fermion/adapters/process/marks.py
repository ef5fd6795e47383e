"""Processes that carry a location root's mark in their environment: what a runner started, and the runners themselves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fermion.adapters.process import runner
from fermion.adapters.process.folders import Watch

LOCATION_MARK = "FERMION_LOCATION_ID"
WORKLOAD_MARK = "FERMION_WORKLOAD"

_YOUNG_S = 10.0  # a runner this young may not have said yet who it is


@dataclass(frozen=True, slots=True)
class Marked:
    """A live process that carries this location root's mark. ``workload`` may be a replica's name too."""

    pid: int
    workload: str
    start_ticks: int
    is_runner: bool
    age_s: float
    command: str

    @property
    def identity(self) -> dict[str, Any]:
        """What names it beyond doubt, so that a number given out again is never hit."""
        return {"pid": self.pid, "start_ticks": self.start_ticks, "boot_id": runner.boot_id()}

    def describe(self, what: str) -> str:
        """One line for people."""
        return f"pid {self.pid} of {what} {self.workload}, {self.age_s:.0f} s old: {self.command}"

    def is_orphan(self, watch: Watch) -> bool:
        """Whether nobody looks after it; runners and guards do so themselves, and a young one may still be starting."""
        if watch.is_elsewhere:
            return False
        if self.is_runner:
            return self.pid not in watch.pids and self.age_s > _YOUNG_S
        return not watch.pids


def marked(mark: str) -> list[Marked]:
    """Every live process with that mark."""
    found = (_marked_process(int(entry), mark) for entry in os.listdir("/proc") if entry.isdigit())
    return [process for process in found if process is not None]


def _marked_process(pid: int, mark: str) -> Marked | None:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return None
    process = runner.read_process(pid)
    if f"{LOCATION_MARK}={mark}".encode() not in environment or process is None or process.state in "ZX":
        return None
    prefix = f"{WORKLOAD_MARK}=".encode()
    name = next((part[len(prefix) :].decode(errors="replace") for part in environment if part.startswith(prefix)), "")
    started_s = process.start_ticks / os.sysconf("SC_CLK_TCK")
    return Marked(
        pid=pid,
        workload=name,
        start_ticks=process.start_ticks,
        is_runner=is_runner(words),
        age_s=max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s),
        command=" ".join(words).strip()[:200],
    )


def is_runner(words: Sequence[str]) -> bool:
    """Whether that command line is a runner's, also of an earlier version of the platform or of another checkout."""
    return list(words[1:3]) == ["-I", "-S"] and len(words) == 5 and Path(words[3]).name == "runner.py"


def send(who: Mapping[str, Any] | None, number: int) -> bool:
    """Signal exactly that process; False when it is gone or lives where it cannot be reached."""
    if not who or who.get("pid_namespace", runner.pid_namespace()) != runner.pid_namespace():
        return False
    pid = int(who["pid"])
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # an old kernel or Python: a number could be given out again in between
        if runner.is_alive(who):
            runner.kill(pid, number)
            return True
        return False
    try:
        # Checked after the descriptor was opened: from then on it can mean no other process.
        if not runner.is_alive(who):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_until_gone(processes: Sequence[Mapping[str, Any]], limit_s: float) -> None:
    """Return when none of them lives any more, or after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while any(runner.is_alive(who) for who in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
