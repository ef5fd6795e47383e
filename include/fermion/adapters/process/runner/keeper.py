"""What every runner does for its folder, whatever it runs: waits for the go, beats, obeys a stop, leaves the record."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from .files import (
    EXIT,
    GO,
    GO_LOCK,
    HEARTBEAT,
    ORDER,
    STARTED,
    STOP,
    locked,
    now_text,
    read_json,
    read_text,
    write_json,
)
from .meter import Meter
from .processes import descendants, kill, signal_name

GO_SIGNAL = signal.SIGUSR1
STOP_SIGNAL = signal.SIGUSR2

RECHECK_S = 2.0  # a lost signal delays a go by this at most
BEAT_S = 1.0
FOLDER_GONE_S = 5.0  # the folder may be away this long (a remount) before everything is ended
RECORD_RETRY_S = 60.0  # how long a full disk may keep the exit record from being written


class Keeper:
    """One folder from its go to its exit record. ``pid`` is the process that runs now, 0 while there is none."""

    def __init__(self, folder: str, order: Mapping[str, Any]) -> None:
        self.folder = folder
        self.order = order
        self.token: int | None = None
        self.pid = 0
        self.status: int | None = None
        self.meter = Meter()
        self.stop_deadline: float | None = None
        self.stop_why: str | None = None
        self._folder_seen = time.monotonic()
        self._oom_kills = _kernel_oom_kills()

    def run(self, go: Mapping[str, Any]) -> None:
        """Execute what was ordered, watch it to its end, write the record."""
        raise NotImplementedError

    def path(self, name: str) -> str:
        """A file of the folder."""
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
            self.beat()
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
        self.take({"token": self.token, "devices": go["devices"], "declared": go["declared"]})
        return go

    def take(self, grant: Mapping[str, Any]) -> None:
        """Say that the grant is taken: from here on no other is."""
        write_json(self.path(STARTED), grant)

    # -- running

    def beat(self) -> None:
        """Show that this runner lives."""
        with contextlib.suppress(OSError):
            os.close(os.open(self.path(HEARTBEAT), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.utime(self.path(HEARTBEAT))

    def on_signal(self, number: int, frame: object) -> None:
        """Every signal wakes the runner; TERM also asks it to end."""
        if number == signal.SIGTERM and self.stop_why is None:
            self.begin_stop("its runner was told to end (SIGTERM)", float(self.order["stop_grace_s"]))

    def obey_stop(self) -> None:
        """A stop file begins the stop or moves its deadline forward; past the deadline everything is killed."""
        stop = read_json(self.path(STOP))
        if stop is not None:
            since = datetime.now(UTC) - datetime.fromisoformat(stop["requested_at"])
            left = max(0.0, float(stop["grace_s"]) - max(0.0, since.total_seconds()))
            if self.stop_why is None:
                self.begin_stop(str(stop["why"]), left)
            elif self.stop_deadline is not None:
                self.stop_deadline = min(self.stop_deadline, time.monotonic() + left)
        if self.stop_deadline is not None and time.monotonic() >= self.stop_deadline:
            self.kill_all()
            self.stop_deadline = time.monotonic() + BEAT_S

    def begin_stop(self, why: str, grace_s: float) -> None:
        """Ask the process to end, and remember until when it may take."""
        self.stop_why = why
        self.stop_deadline = time.monotonic() + grace_s
        self.terminate()

    def terminate(self) -> None:
        """TERM to the process group of what runs now."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM)

    def kill_all(self) -> None:
        """KILL to every descendant."""
        for process in descendants(os.getpid()):
            kill(process.pid, signal.SIGKILL)

    def is_forgotten(self) -> bool:
        """Whether the folder has been gone for longer than a remount takes: nobody knows this workload any more."""
        if os.path.exists(self.path(ORDER)):
            self._folder_seen = time.monotonic()
        return time.monotonic() - self._folder_seen > FOLDER_GONE_S

    # -- ended

    def signal_detail(self, number: int) -> str:
        """One sentence about a signal that nobody here sent."""
        kills = _kernel_oom_kills() - self._oom_kills
        hint = (
            f"; the kernel ended {kills} process{'es' if kills > 1 else ''} of this machine for memory meanwhile"
            if kills > 0
            else ""
        )
        return f"ended by signal {number} ({signal_name(number)}) that the platform did not send{hint}"

    def record(self, cause: str, detail: str, *, exec_at: str | None) -> dict[str, Any]:
        """How the process ended whose status is known, as an exit record."""
        status = self.status
        ran = status is not None
        return {
            "cause": cause,
            "code": os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None,
            "exec_at": exec_at,
            "exit_at": now_text(),
            "detail": detail,
            "max_rss_mib": self.meter.max_rss_mib() if ran else None,
            "cpu_seconds": self.meter.cpu_seconds() if ran else None,
            "token": self.token,
        }

    def leave(self, record: Mapping[str, Any]) -> None:
        """Write the exit record, the last thing a runner does; a full disk is given a minute."""
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


class Wake:
    """Lets signals end a wait. Made once a runner begins to watch."""

    def __init__(self, keeper: Keeper) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, GO_SIGNAL, STOP_SIGNAL, signal.SIGTERM):
            signal.signal(number, keeper.on_signal)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def wait(self, readers: Sequence[int], writers: Sequence[int], timeout_s: float) -> tuple[bool, list[int]]:
        """Wait until something is ready: whether a signal came, and what is ready."""
        can_read, can_write, _ = select.select([self._reader, *readers], writers, [], max(0.0, timeout_s))
        came = self._reader in can_read
        if came:
            can_read.remove(self._reader)
            os.read(self._reader, 4096)
        return came, [*can_read, *can_write]


def _kernel_oom_kills() -> int:
    for line in read_text("/proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0
