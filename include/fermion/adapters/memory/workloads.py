"""Workloads that run nothing: they live, print and end when a test says so. Keeps ``ports.Workloads``."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fermion.adapters.memory.outages import Line
from fermion.adapters.memory.pieces import piece_of, piece_up_to
from fermion.domain.workloads import Chunk, ExitCause, ExitRecord, Grant, Seen, Usage, WorkloadSpec, WorkloadState
from fermion.errors import Conflict, DriverCannot, NotFound
from fermion.ports import Clock

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(slots=True)
class _Workload:
    spec: WorkloadSpec
    state: WorkloadState = WorkloadState.SUSPENDED
    grant: Grant | None = None
    exec_at: datetime | None = None
    exit: ExitRecord | None = None
    usage: Usage | None = None
    obeys_term: bool = True
    stop_why: str | None = None
    kill_at: datetime | None = None
    orphans: int = 0


class MemoryWorkloads:
    """A granted workload runs at once (``start_late`` makes it hesitate); a stopped one ends at once, or at the end of
    its grace after ``ignore_term``. Nothing else happens by itself: ``exit`` and ``lose`` end it, ``print`` and
    ``report`` let it speak."""

    def __init__(self, clock: Clock, line: Line | None = None) -> None:
        self._clock = clock
        self._line = line or Line("the cluster")
        self._guard = threading.RLock()
        self._workloads: dict[str, _Workload] = {}
        self._logs: dict[str, bytes] = {}
        self._deleted: set[str] = set()
        self._reports: dict[str, bytes] = {}
        self._lateness = timedelta(0)
        self._stray = 0

    # --- the port ---------------------------------------------------------------------------------------------------

    def prepare(self, spec: WorkloadSpec) -> None:
        """Found by name if it exists.

        Raises:
            DriverCannot: the name is no DNS label.
        """
        self._enter(spec.name)
        with self._guard:
            self._workloads.setdefault(spec.name, _Workload(spec))

    def resume(self, name: str, grant: Grant) -> None:
        """It runs from now on.

        Raises:
            NotFound: nothing prepared by that name.
            Conflict: it has a newer token, or was executed under an older one.
        """
        self._enter(name)
        with self._guard:
            workload = self._workloads.get(name)
            if workload is None:
                raise NotFound(f"no workload {name!r} is prepared; prepare it before resuming it", what=name)
            if not self._is_decided(workload, grant):
                workload.grant = grant
                workload.exec_at = self._clock.now() + self._lateness
            self._settle(workload)

    def look(self, name: str) -> Seen:
        """What is true of it now."""
        self._enter(name)
        now = self._clock.now()
        with self._guard:
            workload = self._workloads.get(name)
            if workload is None:
                return Seen(name=name, state=WorkloadState.ABSENT, observed_at=now)
            self._settle(workload)
            seen = Seen(name=name, state=workload.state, observed_at=now, exit=workload.exit, usage=workload.usage)
            if workload.state is WorkloadState.SUSPENDED or workload.grant is None:
                return seen
            detail = "its runner is gone and left no exit record" if workload.state is WorkloadState.LOST else ""
            return replace(
                seen,
                token=workload.grant.token,
                exec_at=workload.exec_at,
                detail=detail,
                orphans=workload.orphans if workload.state is WorkloadState.LOST else 0,
            )

    def stop(self, name: str, *, grace: timedelta, why: str) -> None:
        """A repeat may shorten the grace, never lengthen it; the first ``why`` is recorded."""
        self._enter(name)
        with self._guard:
            workload = self._workloads.get(name)
            if workload is None:
                return
            self._settle(workload)
            if workload.grant is None:
                del self._workloads[name]
                return
            if workload.state not in {WorkloadState.RUNNING, WorkloadState.SUSPENDED}:
                return
            kill_at = self._clock.now() + grace
            workload.kill_at = min(kill_at, workload.kill_at or kill_at)
            workload.stop_why = why if workload.stop_why is None else workload.stop_why
            if workload.obeys_term:
                self._end(workload, code=None, signal_number=signal.SIGTERM)
            self._settle(workload)

    def remove(self, name: str) -> None:
        """What it printed stays readable.

        Raises:
            Conflict: it is still running.
        """
        self._enter(name)
        with self._guard:
            workload = self._workloads.get(name)
            if workload is None:
                return
            self._settle(workload)
            if workload.state is WorkloadState.RUNNING:
                raise Conflict(
                    f"workload {name!r} is still running; stop it and wait for its end before removing it", what=name
                )
            self._stray += workload.orphans
            del self._workloads[name]

    def names(self) -> Sequence[str]:
        """By name."""
        self._line.answer()
        with self._guard:
            return sorted(self._workloads)

    def orphans(self) -> Sequence[str]:
        """Those that ``lose`` left alive."""
        self._line.answer()
        with self._guard:
            count = self._stray + sum(workload.orphans for workload in self._workloads.values())
        return [f"process {number} of a workload that is gone" for number in range(1, count + 1)]

    def end_orphans(self) -> int:
        """All of them."""
        with self._guard:
            count = len(self.orphans())
            self._stray = 0
            for workload in self._workloads.values():
                workload.orphans = 0
        return count

    def log(self, name: str, *, offset: int = 0, limit: int = 65536) -> Chunk:
        """Offsets are bytes; a character is never cut."""
        self._enter(name)
        if name in self._deleted:
            return Chunk("", offset, True, is_missing=True)
        return piece_of(self._logs.get(name, b""), offset, limit)

    def progress(self, name: str, *, offset: int = 0, limit: int = 262144) -> Chunk:
        """Whole lines only; a line longer than ``limit`` comes alone."""
        self._enter(name)
        everything = self._reports.get(name, b"")
        end = everything.rfind(b"\n", offset, offset + limit) + 1 or everything.find(b"\n", offset) + 1 or offset
        return piece_up_to(everything, offset, end)

    # --- levers -----------------------------------------------------------------------------------------------------

    def delete_log(self, name: str) -> None:
        """Its log is not there any more."""
        self._deleted.add(name)

    def start_late(self, by: timedelta) -> None:
        """Workloads granted from now on are executed only that long after their grant."""
        self._lateness = by

    def ignore_term(self, name: str) -> None:
        """It goes on after a stop until its grace is over."""
        self._workloads[name].obeys_term = False

    def print(self, name: str, text: str) -> None:
        """It writes to its output."""
        with self._guard:
            self._logs[name] = self._logs.get(name, b"") + text.encode(errors="replace")

    def report(self, name: str, **line: object) -> None:
        """It writes one line of progress, as ``report(name, progress=50, metrics={"loss": 0.1})``."""
        text = json.dumps(line) + "\n"
        with self._guard:
            self._reports[name] = self._reports.get(name, b"") + text.encode()
        self.print(name, text)

    def use(self, name: str, usage: Usage) -> None:
        """It is measured to use that much."""
        self._workloads[name].usage = usage

    def exit(self, name: str, code: int = 0, *, cause: ExitCause = ExitCause.EXITED, detail: str = "") -> None:
        """It ends by itself with ``code``, or by another cause (then the code is kept only where the cause has one)."""
        with self._guard:
            workload = self._running(name)
            has_code = cause is ExitCause.EXITED
            self._end(
                workload,
                code=code if has_code else None,
                signal_number=None if has_code else signal.SIGKILL,
                cause=cause,
                detail=detail,
            )

    def lose(self, name: str, *, orphans: int = 0) -> None:
        """Its runner vanishes without an exit record and leaves that many processes behind."""
        with self._guard:
            workload = self._running(name)
            workload.state = WorkloadState.LOST
            workload.orphans = orphans

    # --- inside -----------------------------------------------------------------------------------------------------

    def _enter(self, name: str) -> None:
        self._line.answer()
        if not _NAME.fullmatch(name):
            raise DriverCannot(f"{name[:80]!r} cannot name a workload; use a DNS label", what="name")

    def _running(self, name: str) -> _Workload:
        workload = self._workloads[name]
        self._settle(workload)
        if workload.state is not WorkloadState.RUNNING:
            raise ValueError(f"workload {name} is {workload.state}; only a running one can end")
        return workload

    def _is_decided(self, workload: _Workload, grant: Grant) -> bool:
        if workload.grant is None:
            return False
        name, given = workload.spec.name, workload.grant.token
        if grant.token < given:
            raise Conflict(f"workload {name!r} has token {given}; token {grant.token} is older and refused", what=name)
        self._settle(workload)
        if grant.token > given and workload.state is not WorkloadState.SUSPENDED:
            raise Conflict(
                f"workload {name!r} was executed under token {given}; it cannot take {grant.token} now", what=name
            )
        return grant.token == given

    def _settle(self, workload: _Workload) -> None:
        """Let happen what is due by the clock."""
        now = self._clock.now()
        is_due = workload.exec_at is not None and workload.exec_at <= now
        if workload.state is WorkloadState.SUSPENDED and is_due:
            workload.state = WorkloadState.RUNNING
        if workload.state is WorkloadState.RUNNING and workload.kill_at is not None and workload.kill_at <= now:
            self._end(workload, code=None, signal_number=signal.SIGKILL)

    def _end(
        self,
        workload: _Workload,
        *,
        code: int | None,
        signal_number: int | None,
        cause: ExitCause = ExitCause.EXITED,
        detail: str = "",
    ) -> None:
        if workload.stop_why is not None:
            cause, detail = ExitCause.STOPPED, workload.stop_why
        if workload.state is WorkloadState.SUSPENDED:
            workload.exec_at = None  # granted, and stopped before it was executed
        workload.state = WorkloadState.EXITED
        workload.exit = ExitRecord(
            cause=cause,
            code=code,
            signal=None if signal_number is None else int(signal_number),
            exec_at=workload.exec_at,
            exit_at=self._clock.now(),
            detail=detail,
        )
