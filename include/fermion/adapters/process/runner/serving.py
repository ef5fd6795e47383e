"""The runner of a replica: keeps one model server running until it is asked to stop, and asks its probes."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from .asking import Asked
from .cpu import Cpu
from .endpoints import Claims, filled, port_environment
from .executing import device_environment, execute, reason_of
from .files import PROBES, STARTED, USAGE, now_text, read_json, write_json
from .groups import remove_empty
from .keeper import BEAT_S, Keeper, Wake
from .memory import WATCH_S, Memory
from .output import LogFile, Output
from .probes import Probing
from .processes import end_descendants, identity, reap
from .sealed import check

RUNNER_DIED = "its runner was killed, and everything under it was ended"


@dataclass(slots=True)
class Past:
    """What is remembered of the processes before, also by a runner that follows a killed one.

    ``starts`` counts processes, those that could not be executed included. ``quick_ends`` counts in a row those that
    ended soon after they began.
    """

    exec_at: str | None = None
    starts: int = 0
    quick_ends: int = 0
    last_exit: dict[str, Any] | None = None

    @classmethod
    def of(cls, started: Mapping[str, Any]) -> Past:
        """As ``started.json`` tells it."""
        return cls(
            exec_at=started.get("exec_at"),
            starts=started.get("starts", 0),
            quick_ends=started.get("quick_ends", 0),
            last_exit=started.get("last_exit"),
        )

    def to_payload(self) -> dict[str, Any]:
        """For ``started.json``."""
        return {
            "exec_at": self.exec_at,
            "starts": self.starts,
            "quick_ends": self.quick_ends,
            "last_exit": self.last_exit,
        }


@dataclass(slots=True)
class Server:
    """One process of the replica, with what keeps its limits and asks its probes."""

    memory: Memory
    cpu: Cpu
    began: float
    started_at: str
    probing: Probing
    ready_at: str | None = None
    out_of_memory: str | None = None
    restart_why: str | None = None
    restart_deadline: float | None = None

    def close(self) -> None:
        """Nothing of it lives any more."""
        self.probing.close()
        self.memory.close()
        self.cpu.close()


class Serving(Keeper):
    """One replica from its go to its stop."""

    def __init__(self, folder: str, order: Mapping[str, Any]) -> None:
        super().__init__(folder, order)
        started = read_json(self.path(STARTED)) or {}
        self.past = Past.of(started)
        self._before = started  # what the runner before this one said last, if there was one
        self._grant: dict[str, Any] = {}
        self._ports: Mapping[str, int] = started.get("ports", {})
        self._unsaid: dict[str, Any] | None = None
        self._probes_said: dict[str, Any] = {}

    def take(self, grant: Mapping[str, Any]) -> None:
        """Keep what is remembered of the processes before."""
        self._grant = dict(grant)
        write_json(self.path(STARTED), {**self._before, **grant})

    def run(self, go: Mapping[str, Any]) -> None:
        """Execute the server again and again until a stop; then write the record."""
        self._wake = Wake(self)
        try:
            self._output = self._open_output()
            self._claims = Claims(self.order["claims"])
        except OSError as error:
            self.leave(self.record("never_started", f"could not open its log: {error}", exec_at=self.past.exec_at))
            return
        if self._before:
            self._follow()
        while self.stop_why is None and not self.is_forgotten():
            server = self._start()
            if server is not None:
                self._watch(server)
                self._end(server)
            if self.stop_why is None:
                self._rest()
        self._output.finish()
        detail = self.stop_why or "its folder is gone"
        if self.past.exec_at is None:
            detail = f"stopped before it was executed: {detail}"
        self.leave(self.record("stopped", detail, exec_at=self.past.exec_at))

    def _open_output(self) -> Output:
        os.makedirs(os.path.dirname(self.order["log"]), exist_ok=True)
        return Output(LogFile(self.order["log"], self.order["log_limit"], continued=self.past.starts > 0))

    def _follow(self) -> None:
        """Go on where a killed runner was. If its server lived, it was killed with it, which is an end like any other."""
        remove_empty(self.order["name"])
        began_at = self._before.get("started_at")
        if began_at is None:
            return
        self.status = signal.SIGKILL  # as a wait status says it
        lived = datetime.now(UTC) - datetime.fromisoformat(began_at)
        self._remember("signalled", RUNNER_DIED, exec_at=began_at, lived=lived)
        self._note(f"process {self.past.starts} ended: {RUNNER_DIED}")

    # -- from one start to the next

    def _start(self) -> Server | None:
        """Execute the server; None when that failed, which counts as an end."""
        self.status = None
        self.past.starts += 1
        name = f"{self.order['name']}-{self.past.starts}"
        memory = Memory(name, self.order["memory_mib"])
        cpu = Cpu(name, self.order["cpus"], memory.cgroup)
        self.meter.begin()
        began = time.monotonic()
        try:
            self._ports = self._claims.choose(self.order["ports"], self._ports)
            server = self._execute(memory, cpu, began)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            memory.close()
            cpu.close()
            self._output.close_pipes()
            words = f"could not execute {self.order['argv'][0]!r} in {self.order['cwd']}: {reason_of(error)}"
            self._note(words)
            self._remember("never_started", words, exec_at=None, lived=timedelta(0))
            return None
        memory.joined(self.pid)
        cpu.joined(self.pid)
        self._say_started(server)
        return server

    def _execute(self, memory: Memory, cpu: Cpu, began: float) -> Server:
        check(self.order.get("sealed"), self.beat)
        env = device_environment(self.order["env"], self._grant["devices"], declared=self._grant["declared"])
        env = {name: filled(value, self._ports) for name, value in env.items()}
        env.update(port_environment(self._ports))

        def join() -> None:
            if memory.cgroup:
                memory.cgroup.join()
            cpu.join()

        stdout, stderr = self._output.open_pipes()
        try:
            argv = [filled(word, self._ports) for word in self.order["argv"]]
            self.pid = execute(argv, cwd=self.order["cwd"], env=env, stdout=stdout, stderr=stderr, join=join)
        finally:
            os.close(stdout)
            os.close(stderr)
        started_at = now_text()
        self.past.exec_at = self.past.exec_at or started_at
        probes = {name: _filled_probe(probe, self._ports) for name, probe in self.order["probes"].items()}
        probing = Probing(probes, Asked(self._ports, self.order["cwd"], env, join), time.monotonic())
        return Server(memory, cpu, began, started_at, probing)

    def _say_started(self, server: Server) -> None:
        groups = [group.path for group in (server.memory.cgroup, server.cpu.cgroup) if group]
        self._unsaid = {
            **self._grant,
            **self.past.to_payload(),
            **identity(self.pid),
            "started_at": server.started_at,
            "ports": self._ports,
            "cgroups": groups,
            "cpu_kept_by": server.cpu.kept_by,
        }
        self._announce()
        self._say_probes(server)

    def _announce(self) -> None:
        """Write ``started.json``; a full disk delays that, the next second tries again."""
        if self._unsaid is not None:
            with contextlib.suppress(OSError):
                write_json(self.path(STARTED), self._unsaid)
                self._unsaid = None

    def _end(self, server: Server) -> None:
        """The main process has ended: end what it left, and remember how it ended."""
        server.probing.close()
        pid, self.pid = self.pid, 0
        end_descendants(self._between)
        self._output.close_pipes()
        memory_detail = server.out_of_memory or server.memory.crossed([])
        if server.probing.has_answered is False:
            self._ports = {}  # perhaps it could not listen there: it gets others
        server.close()
        cause, detail = self._cause(server, memory_detail)
        lived = timedelta(seconds=time.monotonic() - server.began)
        self._remember(cause, detail, exec_at=server.started_at, lived=lived)
        if self.stop_why is None:
            self._note(f"process {self.past.starts} (pid {pid}) ended after {lived.total_seconds():.1f} s: {detail}")

    def _cause(self, server: Server, memory_detail: str | None) -> tuple[str, str]:
        """Who or what ended it: the memory limit, a stop, a probe, a signal, else itself."""
        if memory_detail is not None:
            return "out_of_memory", memory_detail
        if self.stop_why is not None:
            return "stopped", self.stop_why
        if server.restart_why is not None:
            return "stopped", server.restart_why
        status = self.status or 0
        if os.WIFSIGNALED(status):
            return "signalled", self.signal_detail(os.WTERMSIG(status))
        return "exited", f"exited with code {os.WEXITSTATUS(status)}"

    def _remember(self, cause: str, detail: str, *, exec_at: str | None, lived: timedelta) -> None:
        if lived.total_seconds() >= self.order["settled_s"]:
            self.past.quick_ends = 0
        self.past.last_exit = self.record(cause, detail, exec_at=exec_at)
        self.past.quick_ends += 1

    def _note(self, text: str) -> None:
        """A line of the runner's own in the log, between two processes."""
        log = self._output.log
        log.write(f"{'' if log.is_at_line_start else chr(10)}[fermion: {text}]\n".encode(errors="replace"))

    def _rest(self) -> None:
        """Wait before the next start: not at all the first time, then twice as long each time it ended soon."""
        self.status = None
        pause_s = self._pause_s()
        again_at = datetime.now(UTC) + timedelta(seconds=pause_s)
        self._unsaid = {
            **self._grant,
            **self.past.to_payload(),
            "ports": self._ports,
            "again_at": again_at.isoformat(),
        }
        self._announce()
        next_beat = time.monotonic()
        until = next_beat + pause_s
        while True:
            reap()
            self.obey_stop()
            now = time.monotonic()
            if self.stop_why is not None or now >= until:
                return
            if now >= next_beat:
                self._look_after()
                next_beat = now + BEAT_S
                if self.is_forgotten():
                    return
            self._wake.wait([], [], min(until, next_beat) - now)

    def _pause_s(self) -> float:
        quick = self.past.quick_ends - 1
        if quick <= 0:
            return 0.0
        return float(min(self.order["backoff_limit_s"], self.order["backoff_s"] * 2.0 ** min(quick - 1, 30)))

    # -- while it runs

    def _watch(self, server: Server) -> None:
        """Carry output, ask the probes and look after the limits until the main process has ended."""
        next_watch = next_beat = time.monotonic()
        woken = True
        ready: list[int] = []
        while True:
            now = time.monotonic()
            ended: dict[int, int] = {}
            if woken or now >= next_beat:
                ended = reap()
                self.status = ended.get(self.pid)
                if self.status is not None:
                    return
                self._obey(server)
            self._probe(server, ready, ended)
            if server.memory.limit_mib and now >= next_watch:
                self._watch_memory(server)
                next_watch = now + WATCH_S
            if now >= next_beat:
                self._look_after()
                if self.is_forgotten():
                    self.kill_all()
                next_beat = now + BEAT_S
            until = min(next_beat, next_watch) if server.memory.limit_mib else next_beat
            woken, ready = self._wait(server, until)

    def _wait(self, server: Server, until: float) -> tuple[bool, list[int]]:
        """Take output as it comes; whether a signal came or a deadline has, and which descriptors of probes are ready."""
        probing = server.probing
        deadline = min((at for at in (self.stop_deadline, server.restart_deadline) if at is not None), default=math.inf)
        readers = [*self._output.readers, *probing.readers()]
        until = min(until, deadline, probing.until())
        woken, ready = self._wake.wait(readers, probing.writers(), until - time.monotonic())
        for descriptor in [each for each in ready if each in self._output.readers]:
            ready.remove(descriptor)
            self._output.read(descriptor)
        return woken or time.monotonic() >= deadline, ready

    def _obey(self, server: Server) -> None:
        """A stop goes before a restart; past its deadline everything is killed."""
        self.obey_stop()
        if self.stop_why is not None:
            server.probing.close()
            self._say_probes(server)
            return
        if server.restart_deadline is not None and time.monotonic() >= server.restart_deadline:
            self.kill_all()
            server.restart_deadline = time.monotonic() + BEAT_S

    def _probe(self, server: Server, ready: list[int], ended: Mapping[int, int]) -> None:
        if self.stop_why is not None or server.restart_why is not None:
            return
        server.probing.step(time.monotonic(), ready, ended)
        failure = server.probing.failure
        if failure is not None:
            server.restart_why = failure
            server.restart_deadline = time.monotonic() + float(self.order["stop_grace_s"])
            server.probing.close()
            self.terminate()
        self._say_probes(server)

    def _say_probes(self, server: Server) -> None:
        """Write ``probes.json`` when something in it has changed."""
        probing = server.probing
        is_ending = self.stop_why or server.restart_why
        is_ready = False if is_ending else probing.is_ready
        said = {
            "starts": self.past.starts,
            "started": probing.has_started,
            "ready": is_ready,
            "detail": is_ending or probing.words,
        }
        if all(self._probes_said.get(key) == value for key, value in said.items()):
            return
        if is_ready and server.ready_at is None:
            server.ready_at = now_text()
        same = self._probes_said.get("starts") == said["starts"] and self._probes_said.get("ready") == is_ready
        since = self._probes_said["since"] if same else now_text()
        whole = {**said, "since": since, "ready_at": server.ready_at}
        with contextlib.suppress(OSError):
            write_json(self.path(PROBES), whole)
            self._probes_said = whole

    def _watch_memory(self, server: Server) -> None:
        if server.out_of_memory is None:
            watched = server.memory.is_watched
            server.out_of_memory = server.memory.crossed(self.meter.processes(fresh=True) if watched else [])
        if server.out_of_memory is not None:
            self.kill_all()

    def _look_after(self) -> None:
        """Once a second: heartbeat, use, and what a full disk kept back."""
        self.beat()
        self._announce()
        with contextlib.suppress(OSError):
            write_json(self.path(USAGE), self.meter.usage(self.meter.processes(fresh=False)))

    def _between(self) -> None:
        self.beat()
        self._output.read_ready()


def _filled_probe(probe: Mapping[str, Any] | None, ports: Mapping[str, int]) -> dict[str, Any] | None:
    if probe is None:
        return None
    return {
        **probe,
        "command": [filled(word, ports) for word in probe["command"]],
        "path": filled(probe["path"], ports),
    }
