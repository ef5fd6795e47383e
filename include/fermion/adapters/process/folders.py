"""What the folder of a workload or a replica says, and how its grant and its stop are written into it.

The other side of these files is the runner's. Nothing here starts or ends a process.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fermion.adapters.process import runner
from fermion.adapters.process.nodes import DeviceUse
from fermion.domain.workloads import ExitCause, ExitRecord, Grant, Usage
from fermion.errors import Conflict, DriverCannot

_STALE_HEARTBEAT_S = 30.0
_USAGE_SOURCE = "runner (/proc)"


def read(folder: Path, name: str) -> dict[str, Any]:
    """The file's object; empty when it is absent or torn."""
    return runner.read_json(str(folder / name)) or {}


def locked(folder: Path) -> contextlib.AbstractContextManager[None]:
    """The lock under which grants and stops are compared and written.

    Raises:
        FileNotFoundError: no such folder.
    """
    return runner.locked(str(folder / runner.GO_LOCK))


# --- grants and stops -------------------------------------------------------------------------------------------------


def devices_of_one_node(grant: Grant) -> Sequence[str]:
    """The devices of the grant.

    Raises:
        DriverCannot: it spans several nodes.
    """
    nodes = {part.node for part in grant.slices}
    if len(nodes) > 1:
        raise DriverCannot(f"the grant spans {len(nodes)} nodes and the process driver has one", what="grant")
    return [device for part in grant.slices for device in part.devices]


def is_decided(what: str, folder: Path, grant: Grant) -> bool:
    """Whether nothing is left to do for this grant; a newer one replaces an older that was not taken yet.

    Raises:
        Conflict: a newer token was given, or an older one was taken.
    """
    name = folder.name
    given = read(folder, runner.GO).get("token")
    if given is None:
        return False
    if grant.token < given:
        raise Conflict(f"{what} {name!r} has token {given}; token {grant.token} is older and refused", what=name)
    if grant.token == given:
        return True
    if (folder / runner.STARTED).exists() or has_ended(folder):
        raise Conflict(f"{what} {name!r} was executed under token {given}; it cannot take {grant.token} now", what=name)
    return False


def request_stop(folder: Path, *, grace: timedelta, why: str) -> None:
    """Write the stop; a repeat may shorten the grace, never lengthen it, and the first ``why`` stays."""
    now = datetime.now(UTC)  # the machine's own clock, because the runner reads that one too
    old = read(folder, runner.STOP)
    if old:
        ends = datetime.fromisoformat(old["requested_at"]) + timedelta(seconds=old["grace_s"])
        if now + grace >= ends:
            return
        why = old["why"]
    request = {"why": why, "grace_s": grace.total_seconds(), "requested_at": now.isoformat()}
    runner.write_json(str(folder / runner.STOP), request)


# --- who looks after it -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks after a folder: the numbers of its live runner and guard, or somebody in another container."""

    pids: frozenset[int]
    is_elsewhere: bool


def is_startable(folder: Path) -> bool:
    """Whether it waits for a grant, or for one given and not taken, without a runner."""
    if (folder / runner.STARTED).exists() or has_ended(folder):
        return False
    return not who_is_there(folder)[1]  # a guard alone is about to end and lets go of the lock


def who_is_there(folder: Path) -> tuple[bool, bool]:
    """Whether the guard and the runner live."""
    who = read(folder, runner.RUNNER)
    if not who:
        return False, False
    if who["runner"]["pid_namespace"] != runner.pid_namespace():
        alive = _is_held(folder / runner.RUNNER_LOCK)  # another container's numbers mean nothing here
        return alive, alive
    return runner.is_alive(who["guard"]), runner.is_alive(who["runner"])


@dataclass(frozen=True, slots=True)
class Presence:
    """Who is there of one workload or replica, at one moment: whether guard and runner live, or how it ended for good."""

    ended: ExitRecord | None
    guarded: bool
    watched: bool
    started: Mapping[str, Any]


def presence(folder: Path) -> Presence:
    """What its folder and the process table say."""
    ended = exit_record(folder)
    guarded, watched = (False, False) if ended else who_is_there(folder)
    if not ended and not watched:
        ended = exit_record(folder)  # a runner that ended between the two looks has left its record by now
    return Presence(ended, guarded, watched, read(folder, runner.STARTED))


def watch_of(folder: Path) -> Watch:
    """Who looks after it."""
    who = read(folder, runner.RUNNER)
    if who and who["runner"]["pid_namespace"] != runner.pid_namespace():
        return Watch(frozenset(), is_elsewhere=_is_held(folder / runner.RUNNER_LOCK))
    return Watch(frozenset(int(part["pid"]) for part in who.values() if runner.is_alive(part)), is_elsewhere=False)


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


# --- how it goes ------------------------------------------------------------------------------------------------------


def has_ended(folder: Path) -> bool:
    """Whether there is an exit record."""
    return bool(read(folder, runner.EXIT))


def exit_record(folder: Path) -> ExitRecord | None:
    """How it ended for good; None while it did not."""
    return record_of(read(folder, runner.EXIT))


def record_of(record: dict[str, Any] | None) -> ExitRecord | None:
    """A runner's record as a value; None for none."""
    exit_at = time_of(record["exit_at"]) if record else None
    if not record or exit_at is None:
        return None
    return ExitRecord(
        cause=ExitCause(record["cause"]),
        code=record["code"],
        signal=record["signal"],
        exec_at=time_of(record["exec_at"]),
        exit_at=exit_at,
        detail=record["detail"],
        max_rss_mib=record["max_rss_mib"],
        cpu_seconds=record["cpu_seconds"],
    )


def usage(folder: Path, devices: DeviceUse) -> Usage | None:
    """What it used when its runner measured last; None before that."""
    measured = read(folder, runner.USAGE)
    observed_at = time_of(measured.get("observed_at"))
    if observed_at is None:
        return None
    return Usage(
        observed_at=observed_at,
        source=_USAGE_SOURCE,
        cpu_cores=measured["cpu_cores"],
        memory_mib=measured["memory_mib"],
        gpu_utilisation=devices.utilisation,
        gpu_memory_mib=devices.memory_mib,
        gpu_reason=devices.reason,
    )


def heartbeat_detail(folder: Path) -> str:
    """A sentence when its runner lives and has not shown it for long."""
    try:
        age = time.time() - (folder / runner.HEARTBEAT).stat().st_mtime
    except FileNotFoundError:
        return ""
    return f"its runner's last heartbeat is {age:.0f} s old" if age > _STALE_HEARTBEAT_S else ""


def time_of(text: str | None) -> datetime | None:
    """A time in a file, or None."""
    return datetime.fromisoformat(text) if text else None


def last_words(folder: Path) -> str:
    """The last line that its runner wrote about itself."""
    try:
        lines = (folder / runner.ERRORS).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
