"""The runner of a training: executes it once, watches it to its end and leaves an exit record."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from .executing import device_environment, execute, reason_of
from .files import STARTED, USAGE, now_text, write_json
from .keeper import BEAT_S, Keeper, Wake
from .memory import WATCH_S, Memory
from .output import LogFile, Output, ProgressFile
from .processes import end_descendants, identity, reap


class Training(Keeper):
    """One training. ``out_of_memory`` is the sentence that says so, once it crossed its limit."""

    def __init__(self, folder: str, order: Mapping[str, Any]) -> None:
        super().__init__(folder, order)
        self.exec_at: str | None = None
        self.out_of_memory: str | None = None
        self._started: dict[str, Any] | None = None

    def run(self, go: Mapping[str, Any]) -> None:
        """Execute the training, watch it to its end, write the record."""
        if self.stop_why is not None:
            self._leave("stopped", f"stopped before it was executed: {self.stop_why}")
            return
        memory = Memory(self.order["name"], self.order["memory_mib"])
        output: Output | None = None
        try:
            output = _output_of(self.order)
            self._execute(go, memory, output)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            if output is not None:
                output.finish()
            memory.close()
            self._leave(
                "never_started",
                f"could not execute {self.order['argv'][0]!r} in {self.order['cwd']}: {reason_of(error)}",
            )
            return
        memory.joined(self.pid)
        self._watch(memory, output)
        end_descendants(lambda: self._between(output))
        output.finish()
        memory_detail = self.out_of_memory or memory.crossed([])
        memory.close()
        self._leave(*self._cause(memory_detail))

    def _execute(self, go: Mapping[str, Any], memory: Memory, output: Output) -> None:
        stdout, stderr = output.open_pipes()
        try:
            self.pid = execute(
                self.order["argv"],
                cwd=self.order["cwd"],
                env=device_environment(self.order["env"], go["devices"], declared=go["declared"]),
                stdout=stdout,
                stderr=stderr,
                join=memory.cgroup.join if memory.cgroup else lambda: None,
            )
        finally:
            os.close(stdout)
            os.close(stderr)
        self.exec_at = now_text()
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
        wake = Wake(self)
        next_watch = next_beat = time.monotonic()
        woken = True
        while True:
            now = time.monotonic()
            if woken or now >= next_beat:
                self.status = reap().get(self.pid)
                if self.status is not None:
                    return
                self.obey_stop()
            if memory.limit_mib and now >= next_watch:
                self._watch_memory(memory)
                next_watch = now + WATCH_S
            if now >= next_beat:
                self._look_after(output)
                next_beat = now + BEAT_S
            until = min(next_beat, next_watch) if memory.limit_mib else next_beat
            woken = self._wait(wake, output, until)

    def _wait(self, wake: Wake, output: Output, until: float) -> bool:
        """Take output as it comes; True when a signal came or a stop is overdue."""
        if self.stop_deadline is not None:
            until = min(until, self.stop_deadline)
        woken, ready = wake.wait(output.readers, [], until - time.monotonic())
        for descriptor in ready:
            output.read(descriptor)
        return woken or (self.stop_deadline is not None and time.monotonic() >= self.stop_deadline)

    def _watch_memory(self, memory: Memory) -> None:
        if self.out_of_memory is None:
            self.out_of_memory = memory.crossed(self.meter.processes(fresh=True) if memory.is_watched else [])
        if self.out_of_memory is not None:
            self.kill_all()

    def _look_after(self, output: Output) -> None:
        """Once a second: heartbeat, use, progress held back, and whether anybody still knows this workload."""
        self.beat()
        self._announce()
        with contextlib.suppress(OSError):
            write_json(self.path(USAGE), self.meter.usage(self.meter.processes(fresh=False)))
        if output.progress is not None:
            output.progress.flush()
        if self.is_forgotten():
            self.kill_all()

    def _between(self, output: Output) -> None:
        self.beat()
        output.read_ready()

    def _cause(self, memory_detail: str | None) -> tuple[str, str]:
        """Who or what ended it: the memory limit, then a stop, then a signal, else itself."""
        if memory_detail is not None:
            return "out_of_memory", memory_detail
        if self.stop_why is not None:
            return "stopped", self.stop_why
        if self.status is not None and os.WIFSIGNALED(self.status):
            return "signalled", self.signal_detail(os.WTERMSIG(self.status))
        return "exited", ""

    def _leave(self, cause: str, detail: str) -> None:
        self.leave(self.record(cause, detail, exec_at=self.exec_at))


def _output_of(order: Mapping[str, Any]) -> Output:
    os.makedirs(os.path.dirname(order["log"]), exist_ok=True)
    log = LogFile(order["log"], order["log_limit"])
    return Output(log, ProgressFile(order["progress"], order["progress_limit"]))
