"""Replicas that run nothing: they start, answer their probes, crash and end when a test says so. Keeps ``ports.Replicas``."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from fermion.adapters.memory.outages import Line
from fermion.adapters.memory.pieces import piece_of
from fermion.domain.retention import Freed
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaSpec, ReplicaState
from fermion.domain.serving.routing import Endpoint
from fermion.domain.workloads import Chunk, ExitCause, ExitRecord, Grant, Usage
from fermion.errors import Conflict, DriverCannot, NotFound
from fermion.ports import Clock

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_FIRST_PORT = 20_000


@dataclass(slots=True)
class _Replica:
    """``started_at`` is there while a process lives, ``again_at`` while the next one waits for its time."""

    spec: ReplicaSpec
    endpoints: dict[str, Endpoint]
    grant: Grant | None = None
    exec_at: datetime | None = None
    started_at: datetime | None = None
    again_at: datetime | None = None
    ready_at: datetime | None = None
    starts: int = 0
    quick_ends: int = 0
    start_takes: timedelta = timedelta(0)
    is_held: bool = False
    is_unready: bool = False
    crashes_always: bool = False
    obeys_term: bool = True
    is_lost: bool = False
    last_exit: ExitRecord | None = None
    exit: ExitRecord | None = None
    usage: Usage | None = None
    stop_why: str | None = None
    kill_at: datetime | None = None
    orphans: int = 0
    log: list[bytes] = field(default_factory=list)


class MemoryReplicas:
    """A granted replica is ready at once (``start_slowly`` and ``hold`` make it hesitate); one whose process ends starts
    again as its spec says, as the clock goes on; a stopped one ends at once, or at the end of its grace after
    ``ignore_term``. Nothing else happens by itself: ``crash``, ``crash_always`` and ``lose`` end its process, ``unready``
    and ``ready`` answer its probes, ``print`` lets it speak."""

    def __init__(self, clock: Clock, line: Line | None = None) -> None:
        self._clock = clock
        self._line = line or Line("the cluster")
        self._guard = threading.RLock()
        self._replicas: dict[str, _Replica] = {}
        self._logs: dict[str, list[bytes]] = {}
        self._removed: dict[str, datetime] = {}
        self._start_takes = timedelta(0)
        self._held: set[str] = set()
        self._ports_given = 0
        self._stray = 0

    # --- the port ---------------------------------------------------------------------------------------------------

    def prepare(self, spec: ReplicaSpec) -> None:
        """Found by name if it exists.

        Raises:
            DriverCannot: the name is no DNS label.
        """
        self._enter(spec.name)
        with self._guard:
            if spec.name not in self._replicas:
                replica = _Replica(spec, self._endpoints(spec), is_held=spec.name in self._held)
                self._replicas[spec.name] = replica
                self._logs[spec.name] = replica.log
                self._removed.pop(spec.name, None)

    def resume(self, name: str, grant: Grant) -> None:
        """Its first process is executed now.

        Raises:
            NotFound: nothing prepared by that name.
            Conflict: it has a newer token, or was executed under an older one.
        """
        self._enter(name)
        with self._guard:
            replica = self._replicas.get(name)
            if replica is None:
                raise NotFound(f"no replica {name!r} is prepared; prepare it before resuming it", what=name)
            if not _is_decided(replica, grant):
                replica.grant = grant
                replica.again_at = self._clock.now()
            self._settle(replica)

    def look(self, name: str) -> ReplicaSeen:
        """What is true of it now."""
        self._enter(name)
        now = self._clock.now()
        with self._guard:
            replica = self._replicas.get(name)
            if replica is None:
                return ReplicaSeen(name=name, state=ReplicaState.ABSENT, observed_at=now)
            self._settle(replica)
            seen = ReplicaSeen(
                name=name,
                state=_state(replica),
                observed_at=now,
                token=replica.grant.token if replica.grant else None,
                exec_at=replica.exec_at,
                started_at=replica.started_at,
                ready_at=replica.ready_at,
                starts=replica.starts,
                last_exit=replica.last_exit,
                exit=replica.exit,
                usage=replica.usage,
                detail=_detail(replica),
                orphans=replica.orphans,
            )
            return replace(seen, endpoints=replica.endpoints) if replica.started_at is not None else seen

    def stop(self, name: str, *, grace: timedelta, why: str) -> None:
        """A repeat may shorten the grace, never lengthen it; the first ``why`` is recorded."""
        self._enter(name)
        with self._guard:
            replica = self._replicas.get(name)
            if replica is None:
                return
            self._settle(replica)
            if replica.grant is None:
                del self._replicas[name]
                self._removed[name] = self._clock.now()
                return
            if replica.exit is not None or replica.is_lost:
                return
            kill_at = self._clock.now() + grace
            replica.kill_at = min(kill_at, replica.kill_at or kill_at)
            replica.stop_why = why if replica.stop_why is None else replica.stop_why
            if replica.started_at is None:
                self._end_for_good(replica, signal_number=None)
            elif replica.obeys_term:
                self._end_for_good(replica, signal_number=signal.SIGTERM)
            self._settle(replica)

    def remove(self, name: str) -> None:
        """What it printed stays readable.

        Raises:
            Conflict: it is still running.
        """
        self._enter(name)
        with self._guard:
            replica = self._replicas.get(name)
            if replica is None:
                return
            self._settle(replica)
            if replica.starts and replica.exit is None and not replica.is_lost:
                raise Conflict(
                    f"replica {name!r} is still running; stop it and wait for its end before removing it", what=name
                )
            self._stray += replica.orphans
            del self._replicas[name]
            self._removed[name] = self._clock.now()

    def names(self) -> Sequence[str]:
        """By name."""
        self._line.answer()
        with self._guard:
            return sorted(self._replicas)

    def orphans(self) -> Sequence[str]:
        """Those that ``lose`` left alive."""
        self._line.answer()
        with self._guard:
            count = self._stray + sum(replica.orphans for replica in self._replicas.values())
        return [f"process {number} of a replica that is gone" for number in range(1, count + 1)]

    def end_orphans(self) -> int:
        """All of them."""
        with self._guard:
            count = len(self.orphans())
            self._stray = 0
            for replica in self._replicas.values():
                replica.orphans = 0
        return count

    def log(self, name: str, *, offset: int = 0, limit: int = 65536) -> Chunk:
        """Offsets are bytes; a character is never cut."""
        self._enter(name)
        return piece_of(b"".join(self._logs.get(name, [])), offset, limit)

    def log_location(self, name: str) -> str:
        """A place that only this driver can read."""
        self._enter(name)
        return f"memory://replicas/{name}/log"

    def forget(self, before: datetime) -> Freed:
        """Of removed ones only."""
        self._line.answer()
        with self._guard:
            old = [name for name, at in self._removed.items() if at < before]
            size = sum(len(line) for name in old for line in self._logs.pop(name, []))
            for name in old:
                del self._removed[name]
        return Freed(items=len(old), size_bytes=size)

    # --- levers -----------------------------------------------------------------------------------------------------

    def start_slowly(self, takes: timedelta) -> None:
        """Processes executed from now on need that long until they answer their probes."""
        self._start_takes = takes

    def hold(self, name: str) -> None:
        """Its processes do not answer their probes until ``release``; it need not be prepared yet."""
        with self._guard:
            self._held.add(name)
            if name in self._replicas:
                self._replicas[name].is_held = True

    def release(self, name: str) -> None:
        """They do now."""
        with self._guard:
            self._held.discard(name)
            self._replicas[name].is_held = False

    def unready(self, name: str) -> None:
        """It fails its readiness probe."""
        self._replicas[name].is_unready = True

    def ready(self, name: str) -> None:
        """It succeeds again."""
        self._replicas[name].is_unready = False

    def crash(self, name: str, code: int = 1, *, cause: ExitCause = ExitCause.EXITED, detail: str = "") -> None:
        """Its process ends by itself with ``code``, or by another cause (then the code is kept only where the cause has one)."""
        with self._guard:
            replica = self._living(name)
            has_code = cause is ExitCause.EXITED
            self._end_process(
                replica,
                code=code if has_code else None,
                signal_number=None if has_code else signal.SIGKILL,
                cause=cause,
                detail=detail,
            )
            self._settle(replica)

    def crash_always(self, name: str) -> None:
        """From now on each of its processes ends at once with code 1, the present one too; ``heal`` ends that."""
        with self._guard:
            self._replicas[name].crashes_always = True
            self._settle(self._replicas[name])

    def heal(self, name: str) -> None:
        """Its next process lives."""
        self._replicas[name].crashes_always = False

    def ignore_term(self, name: str) -> None:
        """Its processes go on after a stop until its grace is over."""
        self._replicas[name].obeys_term = False

    def lose(self, name: str, *, orphans: int = 0) -> None:
        """Its runner vanishes without an exit record and leaves that many processes behind."""
        with self._guard:
            replica = self._living(name)
            replica.started_at, replica.is_lost, replica.orphans = None, True, orphans

    def print(self, name: str, text: str) -> None:
        """It writes to its output."""
        with self._guard:
            self._logs.setdefault(name, []).append(text.encode(errors="replace"))

    def use(self, name: str, usage: Usage) -> None:
        """It is measured to use that much."""
        self._replicas[name].usage = usage

    # --- inside -----------------------------------------------------------------------------------------------------

    def _enter(self, name: str) -> None:
        self._line.answer()
        if not _NAME.fullmatch(name):
            raise DriverCannot(f"{name[:80]!r} cannot name a replica; use a DNS label", what="name")

    def _endpoints(self, spec: ReplicaSpec) -> dict[str, Endpoint]:
        first = _FIRST_PORT + self._ports_given
        self._ports_given += len(spec.ports)
        return {name: Endpoint(host="127.0.0.1", port=first + place) for place, name in enumerate(spec.ports)}

    def _living(self, name: str) -> _Replica:
        replica = self._replicas[name]
        self._settle(replica)
        if replica.started_at is None:
            raise ValueError(f"replica {name} is {_state(replica)}; only a process that lives can end")
        return replica

    def _settle(self, replica: _Replica) -> None:
        """Let happen what is due by the clock: starts, ends of processes that always crash, the end of a grace."""
        now = self._clock.now()
        while replica.again_at is not None and replica.again_at <= now:
            self._start(replica, replica.again_at)
            if replica.crashes_always:
                self._end_process(replica, code=1, at=replica.started_at)
        if replica.crashes_always and replica.started_at is not None:
            self._end_process(replica, code=1)
            self._settle(replica)
        if replica.started_at is None:
            return
        if replica.kill_at is not None and replica.kill_at <= now:
            self._end_for_good(replica, signal_number=signal.SIGKILL)
            return
        answers_at = replica.started_at + replica.start_takes
        if replica.ready_at is None and not replica.is_held and not replica.is_unready and answers_at <= now:
            replica.ready_at = answers_at

    def _start(self, replica: _Replica, at: datetime) -> None:
        replica.again_at = None
        replica.starts += 1
        replica.started_at = at
        replica.exec_at = replica.exec_at or at
        replica.ready_at = None
        replica.start_takes = self._start_takes

    def _end_process(
        self,
        replica: _Replica,
        *,
        code: int | None,
        signal_number: int | None = None,
        cause: ExitCause = ExitCause.EXITED,
        detail: str = "",
        at: datetime | None = None,
    ) -> None:
        """It starts again at once the first time, then after a pause that doubles while it ends soon."""
        if replica.stop_why is not None:
            self._end_for_good(replica, code=code, signal_number=signal_number)
            return
        at = at or self._clock.now()
        began, replica.started_at, replica.ready_at = replica.started_at, None, None
        if began is not None and at - began >= replica.spec.settled:
            replica.quick_ends = 0
        replica.quick_ends += 1
        replica.last_exit = ExitRecord(
            cause=cause, code=code, signal=_number(signal_number), exec_at=began, exit_at=at, detail=detail
        )
        replica.again_at = at + _pause(replica)

    def _end_for_good(self, replica: _Replica, *, signal_number: int | None, code: int | None = None) -> None:
        replica.started_at = replica.again_at = None
        replica.exit = ExitRecord(
            cause=ExitCause.STOPPED,
            code=code,
            signal=_number(signal_number),
            exec_at=replica.exec_at,
            exit_at=self._clock.now(),
            detail=replica.stop_why or "",
        )


def _is_decided(replica: _Replica, grant: Grant) -> bool:
    if replica.grant is None:
        return False
    name, given = replica.spec.name, replica.grant.token
    if grant.token < given:
        raise Conflict(f"replica {name!r} has token {given}; token {grant.token} is older and refused", what=name)
    if grant.token > given:
        raise Conflict(
            f"replica {name!r} was executed under token {given}; it cannot take {grant.token} now", what=name
        )
    return True


def _state(replica: _Replica) -> ReplicaState:
    """Most final first."""
    if replica.exit is not None:
        return ReplicaState.EXITED
    if replica.is_lost:
        return ReplicaState.LOST
    if not replica.starts:
        return ReplicaState.SUSPENDED
    if replica.stop_why is not None:
        return ReplicaState.STOPPING
    if replica.started_at is None:
        return ReplicaState.BACKING_OFF
    if replica.is_unready and not replica.is_held:
        return ReplicaState.UNREADY
    return ReplicaState.STARTING if replica.ready_at is None else ReplicaState.READY


def _detail(replica: _Replica) -> str:
    if replica.is_lost:
        return "its runner is gone and left no exit record"
    if replica.again_at is not None and replica.last_exit is not None:
        return f"process {replica.starts} ended; the next one starts at {replica.again_at.isoformat()}"
    return ""


def _pause(replica: _Replica) -> timedelta:
    quick = replica.quick_ends - 1
    if quick <= 0:
        return timedelta(0)
    return min(replica.spec.backoff_limit, replica.spec.backoff * 2.0 ** min(quick - 1, 30))


def _number(signal_number: int | None) -> int | None:
    return None if signal_number is None else int(signal_number)
