"""Processes of this installation, recognised by the marks in their environment, never by a name or a stored number.

A program carries ``FERMION_PROGRAM`` and the state folder; everything of a training or a replica carries
``FERMION_WORKLOAD`` and the id of its location root: trainings have one, replicas another. So two installations never touch
each other, and neither is ever taken for a program.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from fermion.adapters.local_platform.layout import LOCATION_MARK, PROGRAM_MARK, STATE_MARK, WORKLOAD_MARK, Layout


@dataclass(frozen=True, slots=True)
class Found:
    """Live processes of one installation. ``workloads`` are trainings and replicas."""

    programs: Sequence[psutil.Process]
    workloads: Sequence[psutil.Process]
    workload_names: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Seen:
    process: psutil.Process
    parent: int
    environment: Mapping[str, str]


def find(layout: Layout) -> Found:
    """All live processes of the installation, without the caller and its ancestors."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    seen: dict[int, _Seen] = {}
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                seen[process.pid] = _Seen(process, process.ppid(), process.environ())
        except (psutil.Error, OSError):
            continue
    locations = _locations(layout)
    data = layout.postgres.resolve()
    programs: list[psutil.Process] = []
    workloads: list[psutil.Process] = []
    names: set[str] = set()
    for pid, one in seen.items():
        if pid in own:
            continue
        if name := _workload_of(pid, seen, locations):
            workloads.append(one.process)
            names.add(name)
        elif _is_program(one, layout.state) or is_postgres_of(one.process, data):
            programs.append(one.process)
    return Found(programs=programs, workloads=workloads, workload_names=frozenset(names))


def end(processes: Sequence[psutil.Process], *, grace_s: float) -> int:
    """TERM, then KILL after ``grace_s``; how many there were. Waits until they are gone, at most 5 s after the KILL."""
    for process in processes:
        _signal(process, "terminate")
    for process in still_alive(processes, grace_s):
        _signal(process, "kill")
    still_alive(processes, 5)
    return len(processes)


def still_alive(processes: Sequence[psutil.Process], timeout_s: float) -> Sequence[psutil.Process]:
    """Those still alive after ``timeout_s``. A zombie is not: whoever inherited it may never ask for it."""
    deadline = time.monotonic() + timeout_s
    while True:
        alive = [process for process in processes if _is_alive(process)]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.05)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_program(one: _Seen, state: Path) -> bool:
    return one.environment.get(STATE_MARK) == str(state) and bool(one.environment.get(PROGRAM_MARK))


def _locations(layout: Layout) -> frozenset[str]:
    """The ids that mark its trainings and its replicas; those that have begun."""
    try:
        serving = (layout.state / "work" / "serving" / "id").read_text().strip()
    except OSError:
        serving = ""
    return frozenset(each for each in (layout.location_id, serving) if each)


def _workload_of(pid: int, seen: Mapping[int, _Seen], locations: Collection[str]) -> str | None:
    """The training or replica a process belongs to: by its own mark, or by that of a process above it."""
    passed: set[int] = set()
    while pid in seen and pid not in passed:
        passed.add(pid)
        environment = seen[pid].environment
        if environment.get(LOCATION_MARK) in locations and (name := environment.get(WORKLOAD_MARK)):
            return name
        pid = seen[pid].parent
    return None


def is_postgres_of(process: psutil.Process, data: Path) -> bool:
    """Postgres writes its title over its environment, but always works in its data folder."""
    try:
        return process.name().startswith("postgres") and Path(process.cwd()) == data
    except (psutil.Error, OSError):
        return False


def _signal(process: psutil.Process, how: str) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        getattr(process, how)()
