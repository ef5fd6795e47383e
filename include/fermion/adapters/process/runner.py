"""Runs one training away from whoever started it: ``python -I -S runner.py <workload folder>``.

Needs the standard library only, because it must go on while the platform is upgraded under it. It detaches (double fork,
own session), waits suspended for its go, executes the training in a process group of its own, keeps its log, progress
and use, enforces the memory limit, obeys a stop and leaves an exit record. Two processes do this: the runner, and a guard
above it that ends what a killed runner leaves behind. It decides nothing about leases: it obeys files in its folder.
docs/process-driver.md describes the files.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

# The files of a workload folder.
ORDER = "order.json"  # what to run; written by prepare, never changed
RUNNER = "runner.json"  # who waits or watches: identities of runner and guard
RUNNER_LOCK = "runner.lock"  # flock held while the runner or its guard lives
GO_LOCK = "go.lock"  # flock held while go, started or stop are compared and changed
GO = "go.json"  # the newest grant
STARTED = "started.json"  # the grant taken, and the process once it was executed
STOP = "stop.json"  # a request to end
HEARTBEAT = "heartbeat"  # touched each second while running
USAGE = "usage.json"  # measured use, each second
EXIT = "exit.json"  # how it ended; the last thing written
ERRORS = "runner.err"  # what the runner itself had to say

GO_SIGNAL = signal.SIGUSR1
STOP_SIGNAL = signal.SIGUSR2

RECHECK_S = 2.0  # a lost signal delays a go by this at most
BEAT_S = 1.0
WATCH_S = 0.25  # between looks at memory where no cgroup keeps the limit
SETTLED_S = 10.0  # after this, new descendants are looked for less often
DISCOVER_S = 5.0
FOLDER_GONE_S = 5.0  # the folder may be away this long (a remount) before the training is ended
RECORD_RETRY_S = 60.0  # how long a full disk may keep the exit record from being written
PIPE_BYTES = 1024 * 1024
MAX_PROGRESS_LINE = 16 * 1024

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_MIB = 1024 * 1024
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LIBC = ctypes.CDLL(None, use_errno=True)


# --- files and time ---------------------------------------------------------------------------------------------------


def now_text() -> str:
    """The present as ISO 8601 with offset."""
    return datetime.now(UTC).isoformat()


def read_json(path: str) -> dict[str, Any] | None:
    """The object in the file; None when it is absent, torn or no object."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: str, value: Mapping[str, Any], *, durable: bool = False) -> None:
    """Replace the file in one step; ``durable`` also survives a power cut."""
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(json.dumps(value).encode())
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)
    if durable:
        sync_folder(os.path.dirname(path))


def sync_folder(path: str) -> None:
    """Make names in the folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the file's lock; all holders do only a few small file operations, so waiting is short."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- processes --------------------------------------------------------------------------------------------------------


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


# --- what the training prints -----------------------------------------------------------------------------------------


def head_bytes(limit: int) -> int:
    """How much of a log's beginning is kept whatever follows."""
    return limit // 2


def dropped_line(count: int, limit: int) -> bytes:
    """The line that stands in a log where bytes were dropped."""
    return f"\n[fermion: {count} bytes dropped here; a log of this workload is kept to {limit} bytes]\n".encode()


class LogFile:
    """Keeps the head of a stream and a rolling tail, at most ``limit`` bytes while it grows.

    The head lies in the file itself, the tail in two segments ``<file>.<offset in the stream>`` that take turns.
    ``finish`` joins them into one readable file. A disk that is full costs the bytes that did not fit, nothing else.
    """

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.total = 0
        self._head = head_bytes(limit)
        self._segment = max(1, limit // 4)
        self._segments: list[tuple[int, int]] = []  # (offset in the stream, descriptor), oldest first
        for name in _segment_names(path):
            os.unlink(name)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def write(self, data: bytes) -> None:
        """Append."""
        view = memoryview(data)
        while view:
            target, at, room = self._place()
            part = view[:room]
            with contextlib.suppress(OSError):
                os.pwrite(target, part, at)
            self.total += len(part)
            view = view[len(part) :]

    def _place(self) -> tuple[int, int, int]:
        """Where the next bytes go: descriptor, offset in it, room there."""
        if self.total < self._head:
            return self._file, self.total, self._head - self.total
        if not self._segments or self.total - self._segments[-1][0] >= self._segment:
            self._rotate()
        start, descriptor = self._segments[-1]
        return descriptor, self.total - start, self._segment - (self.total - start)

    def _rotate(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._segments.append((self.total, os.open(f"{self.path}.{self.total:018d}", flags, 0o644)))
        if len(self._segments) > 2:
            start, descriptor = self._segments.pop(0)
            os.close(descriptor)
            os.unlink(f"{self.path}.{start:018d}")

    def finish(self) -> None:
        """Join head, a line about what was dropped, and tail into one file."""
        if self._segments:
            with contextlib.suppress(OSError):
                self._join()
        os.close(self._file)

    def _join(self) -> None:
        at = self._head
        dropped = self._segments[0][0] - self._head
        if dropped:
            at += os.pwrite(self._file, dropped_line(dropped, self.limit), at)
        for _, descriptor in self._segments:
            position = 0
            while piece := os.pread(descriptor, _MIB, position):
                position += len(piece)
                at += os.pwrite(self._file, piece, at)
        # Only now: until the joined file is whole, readers go by the segments and clip the file at its head.
        for start, descriptor in self._segments:
            os.close(descriptor)
            os.unlink(f"{self.path}.{start:018d}")


def _segment_names(path: str) -> list[str]:
    folder, base = os.path.split(path)
    names = os.listdir(folder)
    return sorted(os.path.join(folder, n) for n in names if n.startswith(base + ".") and n[len(base) + 1 :].isdigit())


class ProgressFile:
    """Keeps the lines of standard output that begin with ``{``, at most ``limit`` bytes and never a flood.

    Each tier of fill has a rate (lines a second) and a burst; a line that comes too fast is held back and replaced by
    the next one, so the newest always arrives. The file slows down as it fills, so it lasts as long as the training.
    """

    TIERS = ((0.5, 50.0, 500.0), (0.9, 1.0, 1.0), (1.0, 1 / 60, 1.0))

    def __init__(self, path: str, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._open: bytearray | None = None  # a line whose end has not come yet; None: not a progress line
        self._at_start = True
        self._held: bytes | None = None
        self._allowance = self.TIERS[0][2]
        self._checked = clock()
        self.written = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def feed(self, data: bytes) -> None:
        """Take what was printed; whole progress lines in it are kept."""
        for line in self._lines(data):
            if self._may_write(len(line)):
                self._held = None
                self._append(line)
            else:
                self._held = line

    def flush(self) -> None:
        """Write the line held back, if its time has come."""
        if self._held is not None and self._may_write(len(self._held)):
            line, self._held = self._held, None
            self._append(line)

    def finish(self) -> None:
        """Write the newest line whatever the rate, and close; a last line without its newline counts as whole."""
        last = bytes(self._open) if self._open else self._held
        if last and self.written + len(last) < self._limit:
            self._append(last)
        os.close(self._file)

    def _lines(self, data: bytes) -> Iterator[bytes]:
        start = 0
        if not self._at_start:
            end = data.find(b"\n")
            self._grow(data if end < 0 else data[:end])
            if end < 0:
                return
            if self._open:
                yield bytes(self._open)
            self._open, self._at_start, start = None, True, end + 1
        while start < len(data):
            if data[start] == 0x7B:
                end = data.find(b"\n", start)
                if end < 0:
                    self._open = bytearray()
                    self._grow(data[start:])
                    break
                if end - start <= MAX_PROGRESS_LINE:
                    yield data[start:end]
                start = end + 1
            else:
                found = data.find(b"\n{", start)
                if found < 0:
                    break
                start = found + 1
        self._at_start = data.endswith(b"\n") if data else self._at_start

    def _grow(self, piece: bytes) -> None:
        if self._open is not None:
            fits = len(self._open) + len(piece) <= MAX_PROGRESS_LINE
            self._open = self._open + piece if fits else None

    def _may_write(self, size: int) -> bool:
        if self.written + size + 1 > self._limit - MAX_PROGRESS_LINE:
            return False  # what is left is for the last line
        rate, burst = next((r, b) for share, r, b in self.TIERS if self.written <= share * self._limit)
        now = self._clock()
        self._allowance = min(burst, self._allowance + (now - self._checked) * rate)
        self._checked = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    def _append(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            self.written += os.write(self._file, line + b"\n")


class Output:
    """Both pipes of the training: all into the log, progress from standard output only."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        os.makedirs(os.path.dirname(order["log"]), exist_ok=True)
        self.log = LogFile(order["log"], order["log_limit"])
        self.progress = ProgressFile(order["progress"], order["progress_limit"])
        self._read_out, self.write_out = self._pipe()
        self._read_err, self.write_err = self._pipe()
        self.readers = [self._read_out, self._read_err]

    @staticmethod
    def _pipe() -> tuple[int, int]:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(writer, 1031, PIPE_BYTES)  # F_SETPIPE_SZ
        return reader, writer

    def close_writers(self) -> None:
        """The training has them now."""
        os.close(self.write_out)
        os.close(self.write_err)

    def read(self, descriptor: int) -> bool:
        """Take what is there; False at the end of that pipe."""
        try:
            data = os.read(descriptor, PIPE_BYTES)
        except BlockingIOError:
            return True
        if not data:
            self.readers.remove(descriptor)
            os.close(descriptor)
            return False
        self.log.write(data)
        if descriptor == self._read_out:
            self.progress.feed(data)
        return True

    def drain(self, limit_s: float) -> None:
        """Take what is left in the pipes after everybody has gone."""
        deadline = time.monotonic() + limit_s
        while self.readers and time.monotonic() < deadline:
            ready, _, _ = select.select(self.readers, [], [], 0.1)
            if not ready:
                return  # somebody outside holds a pipe open and says nothing
            for descriptor in ready:
                self.read(descriptor)

    def finish(self) -> None:
        """Close log and progress."""
        self.drain(5.0)
        self.log.finish()
        self.progress.finish()


# --- memory -----------------------------------------------------------------------------------------------------------


class Cgroup:
    """A control group of one workload that keeps its memory limit, version 1 or 2."""

    def __init__(self, path: str, version: int) -> None:
        self.path = path
        self.version = version
        self._procs = os.open(os.path.join(path, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)

    @classmethod
    def create(cls, name: str, limit: int) -> Cgroup | None:
        """A new group under this process's own; None where that is not allowed."""
        for version, parent in _memory_parents():
            path = os.path.join(parent, f"fermion-{name}-{os.getpid()}")
            try:
                os.mkdir(path)
                cls._limit(path, version, limit)
                return cls(path, version)
            except OSError:
                with contextlib.suppress(OSError):
                    os.rmdir(path)
        return None

    @staticmethod
    def _limit(path: str, version: int, limit: int) -> None:
        required = {1: "memory.limit_in_bytes", 2: "memory.max"}[version]
        _write_text(os.path.join(path, required), str(limit))
        extras = {1: {"memory.memsw.limit_in_bytes": str(limit)}, 2: {"memory.swap.max": "0", "memory.oom.group": "1"}}
        for file, value in extras[version].items():
            with contextlib.suppress(OSError):
                _write_text(os.path.join(path, file), value)

    def join(self) -> None:
        """Move the calling process in; it stays outside where that fails, and the runner's own watch takes over."""
        with contextlib.suppress(OSError):
            os.write(self._procs, b"0")

    def holds(self, pid: int) -> bool:
        """Whether that process is in."""
        return str(pid) in _read_text(os.path.join(self.path, "cgroup.procs")).split()

    def kills(self) -> int:
        """How many processes the kernel ended in it for memory."""
        file = {1: "memory.oom_control", 2: "memory.events"}[self.version]
        for line in _read_text(os.path.join(self.path, file)).splitlines():
            word, _, value = line.partition(" ")
            if word == "oom_kill":
                return int(value)
        return 0

    def peak_mib(self) -> float | None:
        """The most memory it ever held, page cache included."""
        file = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}[self.version]
        text = _read_text(os.path.join(self.path, file)).strip()
        return int(text) / _MIB if text.isdigit() else None

    def close(self) -> None:
        """Remove it; it must be empty."""
        os.close(self._procs)
        with contextlib.suppress(OSError):
            os.rmdir(self.path)


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _write_text(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _memory_parents() -> list[tuple[int, str]]:
    """Folders under which a group with a memory limit may be made: (version, path)."""
    mounts: dict[int, str] = {}
    for line in _read_text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2) if right.count(" ") >= 2 else ("", "", "")
        if kind == "cgroup2":
            mounts[2] = left.split()[4]
        elif kind == "cgroup" and "memory" in options.split(","):
            mounts[1] = left.split()[4]
    parents = []
    for line in _read_text("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 2 if controllers == "" else 1 if "memory" in controllers.split(",") else 0
        if version in mounts:
            own = os.path.join(mounts[version], path.lstrip("/"))
            parents.append((version, own if os.path.isdir(own) else mounts[version]))
    return parents


def shared_out_bytes(processes: list[Process]) -> int:
    """Memory of the processes with each shared page counted once (PSS); falls back on RSS where the kernel hides it."""
    total = 0
    for process in processes:
        lines = _read_text(f"/proc/{process.pid}/smaps_rollup").splitlines()
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
        """The training has started; where it did not get into the group, watch it here."""
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


_MORE_MEMORY = "Ask for more memory or use less (a smaller batch, fewer loader processes)."


# --- the runner -------------------------------------------------------------------------------------------------------


class Meter:
    """Measures the use of the training and all its descendants."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._discovered = -1.0
        self._known: list[int] = []
        self._last: tuple[float, float] | None = None
        self.peak_bytes = 0

    def processes(self, *, fresh: bool) -> list[Process]:
        """The live descendants; new ones are looked for each time while young or ``fresh``, later every few seconds."""
        now = time.monotonic()
        young = now - self._started < SETTLED_S
        if fresh or young or now - self._discovered >= DISCOVER_S:
            found = descendants(os.getpid())
            self._known, self._discovered = [process.pid for process in found], now
        else:
            found = [process for pid in self._known if (process := read_process(pid)) and process.state not in "ZX"]
        self.peak_bytes = max(self.peak_bytes, sum(process.rss_bytes for process in found))
        return found

    def usage(self, processes: list[Process]) -> dict[str, Any]:
        """What usage.json holds; ``cpu_cores`` is the mean since the last call."""
        now = time.monotonic()
        cpu_s = sum(process.cpu_s for process in processes) + self.reaped_cpu_s()
        then, before = self._last or (self._started, 0.0)
        self._last = (now, max(cpu_s, before))
        return {
            "observed_at": now_text(),
            "cpu_cores": round(max(0.0, cpu_s - before) / max(now - then, 1e-3), 3),
            "memory_mib": round(sum(process.rss_bytes for process in processes) / _MIB, 1),
            "processes": len(processes),
        }

    @staticmethod
    def reaped_cpu_s() -> float:
        """CPU seconds of every descendant that has ended."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def max_rss_mib(self) -> float:
        """The most memory seen: of all processes together at a look, or of one process ever."""
        single = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        return round(max(self.peak_bytes, single) / _MIB, 1)


class Runner:
    """One workload from its go to its exit record."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        order = read_json(self.path(ORDER))
        if order is None:
            raise SystemExit(f"{self.path(ORDER)} is missing or unreadable; prepare the workload again")
        self.order = order
        self.token: int | None = None
        self.exec_at: str | None = None
        self.pid = 0
        self.status: int | None = None
        self.meter = Meter()
        self.out_of_memory: str | None = None
        self.stop_deadline: float | None = None
        self.stop_why: str | None = None
        self._started: dict[str, Any] | None = None
        self._folder_seen = time.monotonic()
        self._oom_kills = _kernel_oom_kills()

    def path(self, name: str) -> str:
        """A file of the workload folder."""
        return os.path.join(self.folder, name)

    # -- suspended

    def wait_for_go(self) -> dict[str, Any] | None:
        """Block until the go comes; None when there is nothing to run any more."""
        signals = {GO_SIGNAL, STOP_SIGNAL, signal.SIGTERM}
        while True:
            if not os.path.exists(self.path(ORDER)):
                return None
            with locked(self.path(GO_LOCK)):
                go = self._take_go()
            if go is not None:
                return go
            self._beat()
            came = signal.sigtimedwait(signals, RECHECK_S)
            if came is not None and came.si_signo == signal.SIGTERM:
                return None

    def _take_go(self) -> dict[str, Any] | None:
        go = read_json(self.path(GO))
        if go is None:
            return None
        self.token = go["token"]
        stop = read_json(self.path(STOP))
        if stop is not None:
            self.stop_why = str(stop["why"])
        write_json(self.path(STARTED), {"token": self.token, "devices": go["devices"], "declared": go["declared"]})
        return go

    # -- running

    def run(self, go: Mapping[str, Any]) -> None:
        """Execute the training, watch it to its end, write the record."""
        if self.stop_why is not None:
            self._record("stopped", detail=f"stopped before it was executed: {self.stop_why}")
            return
        memory = Memory(self.order["name"], self.order["memory_mib"])
        output: Output | None = None
        try:
            output = Output(self.order)
            self._execute(go, memory, output)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            if output is not None:
                output.close_writers()
                output.finish()
            memory.close()
            self._record(
                "never_started", f"could not execute {self.order['argv'][0]!r} in {self.order['cwd']}: {error}"
            )
            return
        output.close_writers()
        memory.joined(self.pid)
        self._watch(memory, output)
        end_descendants(lambda: self._between(output))
        output.finish()
        memory_detail = self.out_of_memory or memory.crossed([])
        memory.close()
        self._record(*self._cause(memory_detail))

    def _execute(self, go: Mapping[str, Any], memory: Memory, output: Output) -> None:
        runner = os.getpid()

        def become_training() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != runner:
                os._exit(137)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
            with contextlib.suppress(OSError):
                _write_text("/proc/self/oom_score_adj", "500")  # the training goes before the platform
            if memory.cgroup:
                memory.cgroup.join()

        child = subprocess.Popen(
            self.order["argv"],
            cwd=self.order["cwd"],
            env=device_environment(self.order["env"], go["devices"], declared=go["declared"]),
            stdin=subprocess.DEVNULL,
            stdout=output.write_out,
            stderr=output.write_err,
            process_group=0,
            preexec_fn=become_training,
        )
        self.exec_at, self.pid = now_text(), child.pid
        child.returncode = 0  # reaped here, not by the Popen object
        grant = {"token": self.token, "devices": go["devices"], "declared": go["declared"], "exec_at": self.exec_at}
        group = memory.cgroup.path if memory.cgroup else None
        self._started = {**grant, **identity(self.pid), "cgroup": group}
        self._announce()

    def _announce(self) -> None:
        """Say that it was executed; a full disk delays that, the next second tries again."""
        if self._started is not None:
            with contextlib.suppress(OSError):
                write_json(self.path(STARTED), self._started)
                self._started = None

    def _watch(self, memory: Memory, output: Output) -> None:
        """Carry output and look after the limits until the main process has ended."""
        wake, wake_writer = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wake_writer, False)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, GO_SIGNAL, STOP_SIGNAL, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        next_watch = next_beat = time.monotonic()
        woken = True
        while True:
            now = time.monotonic()
            if woken or now >= next_beat:
                self.status = reap().get(self.pid)
                if self.status is not None:
                    return
                self._obey_stop()
            if memory.limit_mib and now >= next_watch:
                self._watch_memory(memory)
                next_watch = now + WATCH_S
            if now >= next_beat:
                self._look_after(output)
                next_beat = now + BEAT_S
            until = min(next_beat, next_watch) if memory.limit_mib else next_beat
            woken = self._wait([wake, *output.readers], until - time.monotonic(), wake, output)

    def _wait(self, readers: list[int], timeout: float, wake: int, output: Output) -> bool:
        """Take output as it comes; True when a signal came."""
        if self.stop_deadline is not None:
            timeout = min(timeout, self.stop_deadline - time.monotonic())
        ready, _, _ = select.select(readers, [], [], max(0.0, timeout))
        for descriptor in ready:
            if descriptor != wake:
                output.read(descriptor)
        if wake in ready:
            os.read(wake, 4096)
        overdue = self.stop_deadline is not None and time.monotonic() >= self.stop_deadline
        return wake in ready or overdue

    def _on_signal(self, number: int, frame: object) -> None:
        if number == signal.SIGTERM and self.stop_why is None:
            self._begin_stop("the runner itself was told to end", float(self.order["stop_grace_s"]))

    def _obey_stop(self) -> None:
        """A stop file begins the stop or moves its deadline forward; past the deadline everything is killed."""
        stop = read_json(self.path(STOP))
        if stop is not None:
            since = datetime.now(UTC) - datetime.fromisoformat(stop["requested_at"])
            left = max(0.0, float(stop["grace_s"]) - max(0.0, since.total_seconds()))
            if self.stop_why is None:
                self._begin_stop(str(stop["why"]), left)
            elif self.stop_deadline is not None:
                self.stop_deadline = min(self.stop_deadline, time.monotonic() + left)
        if self.stop_deadline is not None and time.monotonic() >= self.stop_deadline:
            self._kill_all()
            self.stop_deadline = time.monotonic() + BEAT_S

    def _begin_stop(self, why: str, grace_s: float) -> None:
        self.stop_why = why
        self.stop_deadline = time.monotonic() + grace_s
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)

    def _kill_all(self) -> None:
        for process in descendants(os.getpid()):
            kill(process.pid, signal.SIGKILL)

    def _watch_memory(self, memory: Memory) -> None:
        if self.out_of_memory is None:
            self.out_of_memory = memory.crossed(self.meter.processes(fresh=True) if memory.is_watched else [])
        if self.out_of_memory is not None:
            self._kill_all()

    def _look_after(self, output: Output) -> None:
        """Once a second: heartbeat, use, progress held back, and whether anybody still knows this workload."""
        self._beat()
        self._announce()
        with contextlib.suppress(OSError):
            write_json(self.path(USAGE), self.meter.usage(self.meter.processes(fresh=False)))
        output.progress.flush()
        if os.path.exists(self.path(ORDER)):
            self._folder_seen = time.monotonic()
        elif time.monotonic() - self._folder_seen > FOLDER_GONE_S:
            self._kill_all()

    def _between(self, output: Output) -> None:
        self._beat()
        for descriptor in select.select(output.readers, [], [], 0)[0] if output.readers else []:
            output.read(descriptor)

    def _beat(self) -> None:
        with contextlib.suppress(OSError):
            os.close(os.open(self.path(HEARTBEAT), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.utime(self.path(HEARTBEAT))

    # -- ended

    def _cause(self, memory_detail: str | None) -> tuple[str, str]:
        """Who or what ended it: the memory limit, then a stop, then a signal, else itself."""
        if memory_detail is not None:
            return "out_of_memory", memory_detail
        if self.stop_why is not None:
            return "stopped", self.stop_why
        if self.status is not None and os.WIFSIGNALED(self.status):
            return "signalled", self._signal_detail(os.WTERMSIG(self.status))
        return "exited", ""

    def _signal_detail(self, number: int) -> str:
        kills = _kernel_oom_kills() - self._oom_kills
        hint = f"; the kernel ended {kills} process(es) of this machine for memory meanwhile" if kills > 0 else ""
        return f"ended by signal {number} ({_signal_name(number)}) that the platform did not send{hint}"

    def _record(self, cause: str, detail: str) -> None:
        """Write how it ended, the last thing a runner does; a full disk is given a minute."""
        status = self.status
        ran = status is not None
        record = {
            "cause": cause,
            "code": os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None,
            "exec_at": self.exec_at,
            "exit_at": now_text(),
            "detail": detail,
            "max_rss_mib": self.meter.max_rss_mib() if ran else None,
            "cpu_seconds": round(self.meter.reaped_cpu_s(), 3) if ran else None,
            "token": self.token,
        }
        deadline = time.monotonic() + RECORD_RETRY_S
        while os.path.exists(self.path(ORDER)):
            try:
                write_json(self.path(EXIT), record, durable=True)
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise
                sys.stderr.write(f"{now_text()} cannot write the exit record, trying again: {error}\n")
                time.sleep(BEAT_S)


def device_environment(env: Mapping[str, str], devices: list[str], *, declared: bool) -> dict[str, str]:
    """The training's environment with its devices; declared slots come without any CUDA id."""
    result = dict(env)
    result["FERMION_DEVICES"] = ",".join(devices)
    if declared:
        result["FERMION_DEVICES_DECLARED"] = "1"
    else:
        result["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return result


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unnamed"


def _kernel_oom_kills() -> int:
    for line in _read_text("/proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


# --- detaching --------------------------------------------------------------------------------------------------------


def start(folder: str) -> int:
    """Detach a runner for the folder; returns 0 once it waits (or another one does), 1 with a reason on stderr."""
    reader, writer = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(reader)
        os.setsid()
        if os.fork():
            os._exit(0)
        _detached(folder, writer)
    os.close(writer)
    os.waitpid(first, 0)
    answer = b""
    while piece := os.read(reader, 4096):
        answer += piece
    if answer in (b"waiting", b"already"):
        return 0
    sys.stderr.write(answer.decode(errors="replace") or "the runner ended before it waited")
    return 1


def _detached(folder: str, ready: int) -> NoReturn:
    """Take the workload's lock, then split into guard and runner."""
    os.chdir("/")
    os.umask(0o022)
    lock = os.open(os.path.join(folder, RUNNER_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _take(lock):
        os.write(ready, b"already")
        os._exit(0)
    errors = os.open(os.path.join(folder, ERRORS), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, nothing), (1, nothing), (2, errors)):
        os.dup2(source, target)
    signals = {GO_SIGNAL, STOP_SIGNAL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    adopt_orphans()
    guard = os.getpid()
    runner = os.fork()
    if runner:
        os.close(ready)
        _guard(runner)
    _run(folder, guard, ready)


def _take(lock: int) -> bool:
    """Take the lock; whoever only tests it lets go at once, so a second of patience tells a holder from a tester."""
    deadline = time.monotonic() + 1.0
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def _guard(runner: int) -> NoReturn:
    """Wait for the runner's end, then end what it left."""
    set_name("fermion-guard")
    while os.waitpid(-1, 0)[0] != runner:
        pass
    end_descendants(lambda: None)
    os._exit(0)


def _run(folder: str, guard: int, ready: int) -> NoReturn:
    set_name("fermion-runner")
    adopt_orphans()
    code = 1
    try:
        runner = Runner(folder)
        write_json(os.path.join(folder, RUNNER), {"runner": identity(os.getpid()), "guard": identity(guard)})
        os.write(ready, b"waiting")
        os.close(ready)
        go = runner.wait_for_go()
        if go is not None:
            runner.run(go)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


if __name__ == "__main__":
    raise SystemExit(start(os.path.abspath(sys.argv[1])))
