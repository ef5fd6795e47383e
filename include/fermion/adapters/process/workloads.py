"""The ``Workloads`` port over detached runners (``runner.py``): creates, wakes, stops and looks at them through files.

Holds no state of its own: any process of the platform on this machine sees the same workloads. It isolates nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fermion.adapters.process import logs, runner
from fermion.adapters.process.layout import Layout, discard, progress_path, sweep, visible
from fermion.adapters.process.nodes import DeviceUse
from fermion.domain.workloads import Chunk, ExitCause, ExitRecord, Grant, Seen, Usage, WorkloadSpec, WorkloadState
from fermion.errors import Conflict, DriverCannot, NotFound, OutsideUnavailable
from fermion.ports import Clock

LOCATION_MARK = "FERMION_LOCATION_ID"
WORKLOAD_MARK = "FERMION_WORKLOAD"

_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_STALE_HEARTBEAT_S = 30.0
_YOUNG_S = 10.0  # a runner this young may not have said yet who it is
_END_WAIT_S = 5.0
_USAGE_SOURCE = "runner (/proc)"


class ProcessWorkloads:
    """Workloads as processes of this machine.

    ``device_use`` measures granted devices. ``start_timeout`` bounds how long a runner may take until it waits.
    """

    def __init__(
        self,
        root: Path,
        clock: Clock,
        *,
        device_use: Callable[[Sequence[str]], DeviceUse],
        start_timeout: timedelta = timedelta(seconds=20),
    ) -> None:
        self._layout = Layout(root.absolute())
        self._clock = clock
        self._device_use = device_use
        self._start_timeout_s = start_timeout.total_seconds()

    # -- life

    def prepare(self, spec: WorkloadSpec) -> None:
        """Create it suspended: its folder is there and its runner waits. Found by name if it exists.

        Raises:
            DriverCannot: it asks for several nodes, or a name cannot be a file's.
            OutsideUnavailable: the runner did not come up in time.
        """
        if spec.nodes != 1:
            raise DriverCannot(
                f"the process driver has one node and workload {spec.name!r} asks for {spec.nodes}; ask for 1 node, or use "
                "a cluster of another kind",
                what="nodes",
            )
        folder = self._layout.workload(spec.name)
        if not folder.exists():
            self._create(spec, folder)
        if _is_startable(folder):
            self._start_runner(folder)

    def resume(self, name: str, grant: Grant) -> None:
        """Give the grant. Repeated with the same token it does nothing; an older token than the one given is refused.

        Raises:
            NotFound: nothing prepared by that name.
            Conflict: it runs under a newer token, or runs or ended already under an older one.
            DriverCannot: the grant spans several nodes.
        """
        folder = self._layout.workload(name)
        go = {"token": grant.token, "devices": _devices_of_one_node(grant), "declared": grant.devices_are_declared}
        try:
            with _locked(folder):
                if not _is_decided(name, folder, grant):
                    runner.write_json(str(folder / runner.GO), go)
        except FileNotFoundError as error:
            raise NotFound(f"no workload {name!r} is prepared; prepare it before resuming it", what=name) from error
        if _is_startable(folder):
            self._start_runner(folder)  # its runner died while it waited (a reboot); nothing had run yet
        _signal(_read(folder, runner.RUNNER).get("runner"), runner.GO_SIGNAL)

    def stop(self, name: str, *, grace: timedelta, why: str) -> None:
        """Ask it to end: TERM to its process group, KILL to all of it after ``grace``. Returns at once.

        A suspended one is removed. A repeat may shorten the grace, never lengthen it; the first ``why`` is recorded.
        """
        folder = self._layout.workload(name)
        try:
            with _locked(folder):
                if not (folder / runner.GO).exists():
                    self._discard_suspended(folder)
                    return
                if not _has_ended(folder):
                    # The machine's own clock, because the runner reads that one too.
                    _request_stop(folder, grace=grace, why=why, now=datetime.now(UTC))
        except FileNotFoundError:
            return
        _signal(_read(folder, runner.RUNNER).get("runner"), runner.STOP_SIGNAL)

    def remove(self, name: str) -> None:
        """Forget an ended or suspended workload; its log, output and checkpoints stay. Absent is fine.

        Raises:
            Conflict: it is still running.
        """
        folder = self._layout.workload(name)
        try:
            with _locked(folder):
                if not (folder / runner.GO).exists():
                    self._discard_suspended(folder)
                    return
        except FileNotFoundError:
            return
        if not _has_ended(folder) and _is_anybody_there(folder):
            raise Conflict(
                f"workload {name!r} is still running; stop it and wait for its end before removing it", what=name
            )
        self._keep_pointer(name, folder)
        group = _read(folder, runner.STARTED).get("cgroup")
        if group:
            with contextlib.suppress(OSError):
                os.rmdir(group)
        discard(folder)

    def names(self) -> Sequence[str]:
        """Every workload under this location root, whatever its state."""
        return visible(self._layout.workloads)

    # -- looking

    def look(self, name: str) -> Seen:
        """What is true of it now; ABSENT when nothing is there. Costs a few small files and one process-table line."""
        folder = self._layout.workload(name)
        seen = Seen(name=name, state=WorkloadState.ABSENT, observed_at=self._clock.now())
        if not folder.exists():
            return seen
        ended = _exit_record(folder)
        guarded, watched = (False, False) if ended else _who_is_there(folder)
        if not ended and not watched:
            ended = _exit_record(folder)  # a runner that ended between the two looks has left its record by now
        started = _read(folder, runner.STARTED)
        seen = replace(seen, token=started.get("token"), exec_at=_time(started.get("exec_at")))
        if ended:
            usage = _usage(folder, DeviceUse(None, None, "it has ended"))
            return replace(seen, state=WorkloadState.EXITED, exit=ended, usage=usage)
        if watched and seen.exec_at is None:
            return replace(seen, state=WorkloadState.SUSPENDED, token=None)
        if (watched or guarded) and seen.exec_at is not None:
            usage = _usage(folder, self._device_use(started["devices"]))
            detail = _heartbeat_detail(folder) if watched else "its runner is gone; its guard is ending what it left"
            return replace(seen, state=WorkloadState.RUNNING, usage=usage, detail=detail)
        detail = self._lost_detail(name, folder, has_started=seen.exec_at is not None)
        return replace(seen, state=WorkloadState.LOST, detail=detail)

    def _lost_detail(self, name: str, folder: Path, *, has_started: bool) -> str:
        """Why nothing is there: what the runner said last, and which of its processes still live."""
        parts = [
            "its runner is gone and left no exit record" if has_started else "its runner is gone and nothing ran yet"
        ]
        last = _last_line(folder / runner.ERRORS)
        if last:
            parts.append(f"its last words: {last}")
        left = [process.pid for process in self._marked() if process.workload == name]
        if left:
            parts.append(f"processes still alive: {', '.join(map(str, left))}")
        return "; ".join(parts)

    # -- what it printed

    def log(self, name: str, *, offset: int = 0, limit: int = 65536) -> Chunk:
        """A piece of the combined output; offsets are bytes of the stream. Readable after the workload is removed."""
        places = self._places(name)
        if places is None:
            return Chunk("", offset, True)
        return logs.read_log(Path(places["log"]), kept=places["log_limit"], offset=offset, limit=limit)

    def progress(self, name: str, *, offset: int = 0, limit: int = 262144) -> Chunk:
        """A piece of the raw progress lines, whole lines only. Readable after the workload is removed."""
        places = self._places(name)
        if places is None:
            return Chunk("", offset, True)
        return logs.read_progress(Path(places["progress"]), offset=offset, limit=limit)

    # -- orphans

    def orphans(self) -> Sequence[str]:
        """Live processes marked as ours whose workload has no live runner, one description each."""
        return [process.describe() for process in self._orphans()]

    def end_orphans(self) -> int:
        """Kill them; how many there were. Folders that killed callers left half made or half deleted go too."""
        sweep(self._layout.workloads)
        ended = 0
        for _ in range(10):  # an orphan may have started another one meanwhile
            found = self._orphans()
            if not found:
                break
            ended += sum(_signal(process.identity, signal.SIGKILL) for process in found)
            _wait_until_gone([process.identity for process in found], _END_WAIT_S)
        return ended

    def _orphans(self) -> list[Marked]:
        # The process table first, then who is watched: a workload that starts meanwhile is never taken for an orphan.
        marked = self._marked()
        names = {process.workload for process in marked}
        watches = {name: _watch_of(self._layout.workloads / name) for name in names}
        found = [process for process in marked if process.is_orphan(watches[process.workload])]
        return [process for process in found if runner.is_alive(process.identity)]  # not those that ended meanwhile

    def _marked(self) -> list[Marked]:
        mark = self._layout.identity()
        found = (_marked_process(int(entry), mark) for entry in os.listdir("/proc") if entry.isdigit())
        return [process for process in found if process is not None]

    # -- inside

    def _create(self, spec: WorkloadSpec, folder: Path) -> None:
        """Make the folder whole in one step; when another caller was first, theirs counts."""
        draft = self._layout.workloads / f".new-{uuid.uuid4().hex}"
        for part in ("data", "home", "tmp"):
            (draft / part).mkdir(parents=True, mode=0o700)
        try:
            for dataset, location in spec.datasets.items():
                if dataset in ("", ".", "..") or "/" in dataset or "\0" in dataset:
                    raise DriverCannot(f"dataset name {dataset[:80]!r} cannot name a folder", what="datasets")
                (draft / "data" / dataset).symlink_to(location)
            (draft / "parameters.json").write_text(json.dumps(dict(spec.parameters)), encoding="utf-8")
            order = order_of(spec, folder, self._layout.identity())
            runner.write_json(str(draft / runner.ORDER), order, durable=True)
            (self._layout.removed / spec.name).unlink(missing_ok=True)
            os.rename(draft, folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _start_runner(self, folder: Path) -> None:
        """Detach a runner and return once it waits. Several callers at once end up with one runner."""
        order = _read(folder, runner.ORDER)
        marks = {key: str(order["env"][key]) for key in (LOCATION_MARK, WORKLOAD_MARK)} if order else {}
        deadline = time.monotonic() + self._start_timeout_s
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", runner.__file__, str(folder)],
                env={"PATH": _SYSTEM_PATH, "LANG": "C.UTF-8", **marks},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=self._start_timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OutsideUnavailable(
                f"the runner of {folder.name!r} did not start: {error}", what=folder.name
            ) from error
        said = done.stderr.decode(errors="replace").strip() or _last_line(folder / runner.ERRORS)
        while done.returncode == 0 and time.monotonic() < deadline:
            if _has_ended(folder) or _who_is_there(folder)[1]:
                return
            time.sleep(0.01)  # somebody else's runner holds the lock and is about to say who it is
        raise OutsideUnavailable(
            f"the runner of {folder.name!r} does not wait: {said or 'no reason given'}", what=folder.name
        )

    def _discard_suspended(self, folder: Path) -> None:
        """Under its lock nothing can start, so its runner has no child and may simply be killed."""
        who = _read(folder, runner.RUNNER)
        discard(folder)
        for part in ("runner", "guard"):
            _signal(who.get(part), signal.SIGKILL)

    def _keep_pointer(self, name: str, folder: Path) -> None:
        order = _read(folder, runner.ORDER)
        self._layout.removed.mkdir(parents=True, exist_ok=True)
        places: dict[str, Any] = {key: order[key] for key in ("log", "progress", "log_limit") if key in order}
        runner.write_json(str(self._layout.removed / name), places)

    def _places(self, name: str) -> dict[str, Any] | None:
        for path in (self._layout.workload(name) / runner.ORDER, self._layout.removed / name):
            places = runner.read_json(str(path))
            if places and "log" in places:
                return places
        return None


# --- orders and grants ------------------------------------------------------------------------------------------------


def order_of(spec: WorkloadSpec, folder: Path, location_id: str) -> dict[str, Any]:
    """What the runner needs to know, as JSON-ready values."""
    entry, *rest = spec.entrypoint
    command = [str(Path(spec.image) / "bin" / "python"), entry] if entry.endswith(".py") else [entry]
    return {
        "name": spec.name,
        "image": spec.image,
        "argv": [*command, *rest, *spec.arguments],
        "cwd": spec.code,
        "env": environment_of(spec, folder, location_id),
        "log": spec.log,
        "progress": progress_path(spec.log),
        "log_limit": spec.log_limit,
        "progress_limit": spec.progress_limit,
        "memory_mib": spec.memory_mib,
        "stop_grace_s": spec.stop_grace.total_seconds(),
    }


def environment_of(spec: WorkloadSpec, folder: Path, location_id: str) -> dict[str, str]:
    """The training's environment but for its devices: nothing of the platform's own, so none of its secrets."""
    own = {
        LOCATION_MARK: location_id,
        WORKLOAD_MARK: spec.name,
        "FERMION_JOB_ID": spec.job_id,
        "FERMION_ATTEMPT": str(spec.attempt),
        "FERMION_DATA_DIR": str(folder / "data"),
        "FERMION_OUTPUT_DIR": spec.output,
        "FERMION_CHECKPOINT_DIR": spec.checkpoints,
        "FERMION_PARAMETERS": str(folder / "parameters.json"),
    }
    if spec.resume_from is not None:
        own["FERMION_RESUME_FROM"] = spec.resume_from
    defaults = {
        "PATH": f"{Path(spec.image) / 'bin'}:{_SYSTEM_PATH}",
        "VIRTUAL_ENV": spec.image,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {**defaults, **spec.environment, **own}


def _devices_of_one_node(grant: Grant) -> list[str]:
    nodes = {part.node for part in grant.slices}
    if len(nodes) > 1:
        raise DriverCannot(f"the grant spans {len(nodes)} nodes and the process driver has one", what="grant")
    return [device for part in grant.slices for device in part.devices]


def _is_decided(name: str, folder: Path, grant: Grant) -> bool:
    """Whether nothing is left to do for this grant; a newer one replaces an older that was not taken yet.

    Raises:
        Conflict: a newer token was given, or an older one was taken.
    """
    given = _read(folder, runner.GO).get("token")
    if given is None:
        return False
    if grant.token < given:
        raise Conflict(f"workload {name!r} has token {given}; token {grant.token} is older and refused", what=name)
    if grant.token == given:
        return True
    if (folder / runner.STARTED).exists() or _has_ended(folder):
        raise Conflict(
            f"workload {name!r} was executed under token {given}; it cannot take {grant.token} now", what=name
        )
    return False


def _request_stop(folder: Path, *, grace: timedelta, why: str, now: datetime) -> None:
    old = _read(folder, runner.STOP)
    if old:
        ends = datetime.fromisoformat(old["requested_at"]) + timedelta(seconds=old["grace_s"])
        if now + grace >= ends:
            return
        why = old["why"]
    request = {"why": why, "grace_s": grace.total_seconds(), "requested_at": now.isoformat()}
    runner.write_json(str(folder / runner.STOP), request)


# --- what a folder says -----------------------------------------------------------------------------------------------


def _read(folder: Path, name: str) -> dict[str, Any]:
    """The file's object; empty when it is absent or torn."""
    return runner.read_json(str(folder / name)) or {}


def _locked(folder: Path) -> contextlib.AbstractContextManager[None]:
    """The lock under which grants and stops are compared and written.

    Raises:
        FileNotFoundError: no such workload.
    """
    return runner.locked(str(folder / runner.GO_LOCK))


def _is_startable(folder: Path) -> bool:
    """Whether it waits for a grant, or for one given and not taken, without a runner."""
    if (folder / runner.STARTED).exists() or _has_ended(folder):
        return False
    return not _who_is_there(folder)[1]  # a guard alone is about to end and lets go of the lock


def _is_anybody_there(folder: Path) -> bool:
    return any(_who_is_there(folder))


def _who_is_there(folder: Path) -> tuple[bool, bool]:
    """Whether the guard and the runner live."""
    who = _read(folder, runner.RUNNER)
    if not who:
        return False, False
    if who["runner"]["pid_namespace"] != runner.pid_namespace():
        alive = _is_held(folder / runner.RUNNER_LOCK)  # another container's numbers mean nothing here
        return alive, alive
    return runner.is_alive(who["guard"]), runner.is_alive(who["runner"])


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _watch_of(folder: Path) -> Watch:
    who = _read(folder, runner.RUNNER)
    if who and who["runner"]["pid_namespace"] != runner.pid_namespace():
        return Watch(frozenset(), is_elsewhere=_is_held(folder / runner.RUNNER_LOCK))
    return Watch(frozenset(int(part["pid"]) for part in who.values() if runner.is_alive(part)), is_elsewhere=False)


def _has_ended(folder: Path) -> bool:
    return bool(_read(folder, runner.EXIT))


def _exit_record(folder: Path) -> ExitRecord | None:
    record = _read(folder, runner.EXIT)
    if not record:
        return None
    exit_at = _time(record["exit_at"])
    if exit_at is None:
        return None
    return ExitRecord(
        cause=ExitCause(record["cause"]),
        code=record["code"],
        signal=record["signal"],
        exec_at=_time(record["exec_at"]),
        exit_at=exit_at,
        detail=record["detail"],
        max_rss_mib=record["max_rss_mib"],
        cpu_seconds=record["cpu_seconds"],
    )


def _usage(folder: Path, devices: DeviceUse) -> Usage | None:
    measured = _read(folder, runner.USAGE)
    observed_at = _time(measured.get("observed_at"))
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


def _heartbeat_detail(folder: Path) -> str:
    try:
        age = time.time() - (folder / runner.HEARTBEAT).stat().st_mtime
    except FileNotFoundError:
        return ""
    return f"its runner's last heartbeat is {age:.0f} s old" if age > _STALE_HEARTBEAT_S else ""


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


# --- processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Marked:
    """A live process that carries this location root's mark."""

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

    def describe(self) -> str:
        """One line for people."""
        return f"pid {self.pid} of workload {self.workload}, {self.age_s:.0f} s old: {self.command}"

    def is_orphan(self, watch: Watch) -> bool:
        """Whether nobody looks after it; runners and guards do so themselves, and a young one may still be starting."""
        if watch.is_elsewhere:
            return False
        if self.is_runner:
            return self.pid not in watch.pids and self.age_s > _YOUNG_S
        return not watch.pids


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks after a workload: the numbers of its live runner and guard, or somebody in another container."""

    pids: frozenset[int]
    is_elsewhere: bool


def _marked_process(pid: int, mark: str) -> Marked | None:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
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
        is_runner=runner.__file__ in command,
        age_s=max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s),
        command=command[:200],
    )


def _signal(who: Mapping[str, Any] | None, number: int) -> bool:
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


def _wait_until_gone(processes: Sequence[Mapping[str, Any]], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while any(runner.is_alive(who) for who in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
