"""The ``Replicas`` port over detached runners: model servers, created, woken, stopped and looked at through files.

It has a location root of its own, so that what is marked as a replica's is never taken for a training's. Holds no state:
any process of the platform on this machine sees the same replicas. It isolates nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fermion.adapters.files.placing import PLACED_AT
from fermion.adapters.process import folders, runner
from fermion.adapters.process.layout import Layout, checked_name, visible
from fermion.adapters.process.marks import LOCATION_MARK, WORKLOAD_MARK, Marked
from fermion.adapters.process.nodes import DeviceUse
from fermion.adapters.process.runner.endpoints import HOST
from fermion.adapters.process.runners import Runners, command_of, image_environment
from fermion.domain.retention import Freed
from fermion.domain.serving.replicas import Probe, ProbeKind, ReplicaSeen, ReplicaSpec, ReplicaState
from fermion.domain.serving.routing import Endpoint
from fermion.domain.workloads import Chunk, Grant
from fermion.errors import DriverCannot
from fermion.ports import Clock

_KEPT = ("log", "log_limit")
_PORT_NAME = re.compile(r"[a-z]([-a-z0-9]{0,13}[a-z0-9])?")
_SECOND = timedelta(seconds=1)
_PLACE = re.compile(r"\{port:([^{}]*)\}")


class ProcessReplicas:
    """Replicas as processes of this machine, under a location root that nothing else uses.

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
        self._runners = Runners("replica", self._layout, self._layout.replicas, start_timeout=start_timeout)

    # -- life

    def prepare(self, spec: ReplicaSpec) -> None:
        """Create it suspended: its folder is there and its runner waits. Found by name if it exists.

        Raises:
            DriverCannot: its name, ports or probes do not go together; all problems at once.
            OutsideUnavailable: the runner did not come up in time.
        """
        problems = list(_problems(spec))
        if problems:
            raise DriverCannot(f"replica {spec.name!r} cannot be prepared: {'; '.join(problems)}", what="replica")
        self._runners.prepare(spec.name, lambda draft: self._order(spec))

    def resume(self, name: str, grant: Grant) -> None:
        """Give the grant: its server is executed, again and again until a stop. Repeats and tokens as for workloads.

        Raises:
            NotFound: nothing prepared by that name.
            Conflict: it runs under a newer token, or runs or ended already under an older one.
            DriverCannot: the grant spans several nodes.
        """
        self._runners.resume(name, grant)

    def stop(self, name: str, *, grace: timedelta, why: str) -> None:
        """Ask it to end for good: TERM to its process group, KILL to all of it after ``grace``. Returns at once.

        A suspended one is removed, one between two starts ends at once. A repeat may shorten the grace, never lengthen it.
        """
        self._runners.stop(name, grace=grace, why=why)

    def remove(self, name: str) -> None:
        """Forget an ended, lost or suspended replica; its log stays. Absent is fine.

        Raises:
            Conflict: it is still running.
        """
        self._runners.remove(name, kept=_KEPT)

    def names(self) -> Sequence[str]:
        """Every replica under this location root, whatever its state."""
        return self._runners.names()

    # -- looking

    def look(self, name: str) -> ReplicaSeen:
        """What is true of it now; ABSENT when nothing is there. Costs a few small files and lines of the process table."""
        # The time is taken last: nothing that is seen is later than when it was seen.
        return replace(self._look(name), observed_at=self._clock.now())

    def _look(self, name: str) -> ReplicaSeen:
        folder = self._runners.folder(name)
        seen = ReplicaSeen(name=name, state=ReplicaState.ABSENT, observed_at=self._clock.now())
        if not folder.exists():
            return seen
        here = folders.presence(folder)
        seen = _with_past(seen, here.started)
        if here.ended:
            usage = folders.usage(folder, DeviceUse(None, None, "it has ended"))
            return replace(seen, state=ReplicaState.EXITED, exit=here.ended, usage=usage)
        if not here.watched and not here.guarded:
            left = self._runners.left_of(folder)
            detail = self._runners.lost_detail(folder, left, has_started=seen.starts > 0)
            return replace(seen, state=ReplicaState.LOST, detail=detail, orphans=len(left))
        if not seen.starts:
            return replace(seen, state=ReplicaState.SUSPENDED, token=None)
        usage = folders.usage(folder, self._device_use(here.started["devices"]))
        return _living(replace(seen, usage=usage), folder, here.started, is_watched=here.watched)

    # -- what it printed

    def log(self, name: str, *, offset: int = 0, limit: int = 65536) -> Chunk:
        """A piece of what all its processes printed; offsets are bytes of the stream. Readable after its removal."""
        return self._runners.log(name, offset=offset, limit=limit)

    def log_location(self, name: str) -> str:
        """Where a replica of that name keeps its log; its folder is made if absent."""
        path = self._layout.root / "logs" / f"{checked_name(name)}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    def forget(self, before: datetime) -> Freed:
        """Delete the logs of replicas that were removed before then, and where they lay. Killed in between, it goes on."""
        freed = Freed()
        for name in visible(self._layout.removed):
            pointer = self._layout.removed / name
            try:
                removed_at = datetime.fromtimestamp(pointer.stat().st_mtime, UTC)
            except FileNotFoundError:
                continue  # it has just been prepared again, or somebody else forgot it
            if removed_at >= before or self._runners.folder(name).exists():
                continue
            log = Path(self.log_location(name))
            files = [each for each in (log, *log.parent.glob(f"{log.name}.{'[0-9]' * 18}")) if each.exists()]
            freed += Freed(items=1, size_bytes=sum(each.stat().st_size for each in files))
            for file in files:
                file.unlink(missing_ok=True)
            pointer.unlink(missing_ok=True)
        return freed

    # -- orphans

    def orphans(self) -> Sequence[str]:
        """Live processes marked as ours whose replica has neither runner nor guard, one description each."""
        return self._runners.orphans()

    def end_orphans(self) -> int:
        """Kill them; how many there were. Folders that killed callers left half made or half deleted go too."""
        return self._runners.end_orphans()

    def _marked(self) -> list[Marked]:
        return self._runners.marked()

    def _order(self, spec: ReplicaSpec) -> dict[str, Any]:
        folder = self._runners.folder(spec.name)
        return order_of(spec, folder, self._runners.mark(), claims=self._layout.root / "ports")


# --- what a folder says -----------------------------------------------------------------------------------------------


def _with_past(seen: ReplicaSeen, started: Mapping[str, Any]) -> ReplicaSeen:
    return replace(
        seen,
        token=started.get("token"),
        exec_at=folders.time_of(started.get("exec_at")),
        started_at=folders.time_of(started.get("started_at")),
        starts=started.get("starts", 0),
        last_exit=folders.record_of(started.get("last_exit")),
    )


def _living(seen: ReplicaSeen, folder: Path, started: Mapping[str, Any], *, is_watched: bool) -> ReplicaSeen:
    """One whose runner or guard lives: a stop first, then whether its process lives, then what its probes found."""
    lives = is_watched and "pid" in started and runner.is_alive(started)
    if lives:
        ports: Mapping[str, int] = started["ports"]
        endpoints = {name: Endpoint(host=HOST, port=port) for name, port in ports.items()}
        probes = folders.read(folder, runner.PROBES)
        probes = probes if probes.get("starts") == seen.starts else {}
        seen = replace(seen, endpoints=endpoints, ready_at=folders.time_of(probes.get("ready_at")))
    if (folder / runner.STOP).exists():
        return replace(seen, state=ReplicaState.STOPPING, detail=folders.heartbeat_detail(folder))
    if is_watched and "pid" in started and not lives:
        return replace(seen, state=ReplicaState.UNREADY, detail="its process has just ended; what it left is ended now")
    if not lives:
        return replace(seen, state=ReplicaState.BACKING_OFF, detail=_pause_detail(seen, started, is_watched=is_watched))
    detail = "; ".join(part for part in (probes.get("detail", ""), folders.heartbeat_detail(folder)) if part)
    return replace(seen, state=_state(probes), detail=detail)


def _state(probes: Mapping[str, Any]) -> ReplicaState:
    """Until its probes have been asked often enough to tell, it is starting."""
    ready = probes.get("ready")
    if ready is None:
        return ReplicaState.STARTING
    if not probes["started"]:
        return ReplicaState.STARTING
    return ReplicaState.READY if ready else ReplicaState.UNREADY


def _pause_detail(seen: ReplicaSeen, started: Mapping[str, Any], *, is_watched: bool) -> str:
    if not is_watched:
        return "its runner is gone; its guard ends what it left and starts another one"
    again_at = started.get("again_at")
    if seen.last_exit is None or again_at is None:
        return "its process has ended"
    return f"process {seen.starts} ended ({seen.last_exit.detail}); the next one starts at {again_at}"


# --- orders -----------------------------------------------------------------------------------------------------------


def order_of(spec: ReplicaSpec, folder: Path, location_id: str, *, claims: Path) -> dict[str, Any]:
    """What the runner needs to know, as JSON-ready values. Ports are filled in by the runner."""
    told = {"model_dir": spec.model, "model_name": spec.model_name, "model_version": str(spec.model_version)}
    probes = {"startup": spec.probes.startup, "readiness": spec.probes.readiness, "liveness": spec.probes.liveness}
    environment = {name: _filled(value, told) for name, value in spec.environment.items()}
    return {
        "kind": "replica",
        "name": spec.name,
        "image": spec.image,
        "argv": [_filled(word, told) for word in command_of(spec.argv, spec.image)],
        "cwd": spec.code,
        "env": environment_of(replace(spec, environment=environment), folder, location_id),
        "ports": list(spec.ports),
        "claims": str(claims),
        "sealed": _sealed(spec),
        "probes": {name: probe and _probe_order(probe, told) for name, probe in probes.items()},
        "log": spec.log,
        "log_limit": spec.log_limit,
        "memory_mib": spec.memory_mib,
        "cpus": spec.cpus,
        "stop_grace_s": spec.drain.total_seconds(),
        "backoff_s": spec.backoff.total_seconds(),
        "backoff_limit_s": spec.backoff_limit.total_seconds(),
        "settled_s": spec.settled.total_seconds(),
    }


def environment_of(spec: ReplicaSpec, folder: Path, location_id: str) -> dict[str, str]:
    """The server's environment but for devices and ports: nothing of the platform's own, so none of its secrets."""
    own = {
        LOCATION_MARK: location_id,
        WORKLOAD_MARK: spec.name,
        "FERMION_SERVICE": spec.service,
        "FERMION_REVISION": spec.revision,
        "FERMION_REPLICA": spec.name,
        "FERMION_MODEL_DIR": spec.model,
        "FERMION_MODEL_NAME": spec.model_name,
        "FERMION_MODEL_VERSION": str(spec.model_version),
    }
    return {**image_environment(spec.image, folder), **spec.environment, **own}


def _sealed(spec: ReplicaSpec) -> dict[str, Any]:
    files = [[entry.path, entry.size, entry.sha256] for entry in spec.model_files]
    return {"folder": spec.model, "placed_at": PLACED_AT, "files": files}


def _probe_order(probe: Probe, told: Mapping[str, str]) -> dict[str, Any]:
    return {
        "kind": probe.kind.value,
        "path": _filled(probe.path, told),
        "port": probe.port,
        "command": [_filled(word, told) for word in probe.command],
        "period_s": probe.period.total_seconds(),
        "timeout_s": probe.timeout.total_seconds(),
        "success_threshold": probe.success_threshold,
        "failure_threshold": probe.failure_threshold,
    }


def _filled(text: str, told: Mapping[str, str]) -> str:
    """The text with each known place filled; everything else in braces (JSON, say) stays as it is."""
    for name, value in told.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _problems(spec: ReplicaSpec) -> Iterator[str]:
    probes = {"startup": spec.probes.startup, "readiness": spec.probes.readiness, "liveness": spec.probes.liveness}
    given = {which: probe for which, probe in probes.items() if probe is not None}
    if not spec.argv:
        yield "it has no command"
    for port in spec.ports:
        if not _PORT_NAME.fullmatch(port):
            yield f"port name {port[:40]!r} is not 1 to 15 of a-z, 0-9 and '-'"
    for name in dict.fromkeys(_ports_named(spec, given.values())):
        if name not in spec.ports:
            yield f"it names port {name!r} and has {', '.join(map(repr, spec.ports)) or 'none'}"
    for which, probe in given.items():
        yield from (f"its {which} probe {problem}" for problem in _problems_of_probe(probe))
    for what, value in (
        ("cpus", spec.cpus),
        ("MiB of memory", spec.memory_mib),
        ("s of backoff", spec.backoff / _SECOND),
    ):
        if value is not None and value <= 0:
            yield f"it asks for {value:g} {what}; ask for more than 0"


def _ports_named(spec: ReplicaSpec, probes: Iterable[Probe]) -> Iterator[str]:
    words = [*spec.argv, *spec.environment.values()]
    for probe in probes:
        words += probe.command
        if probe.kind is not ProbeKind.EXEC:
            yield probe.port
    for word in words:
        yield from _PLACE.findall(word)


def _problems_of_probe(probe: Probe) -> Iterator[str]:
    if probe.kind is ProbeKind.EXEC and not probe.command:
        yield "has no command"
    if probe.kind is ProbeKind.HTTP and not probe.path.startswith("/"):
        yield f"asks for path {probe.path[:80]!r}, which does not begin with '/'"
    if min(probe.period, probe.timeout) <= timedelta(0):
        yield "has a period or a timeout that is not more than 0"
    if min(probe.success_threshold, probe.failure_threshold) < 1:
        yield "has a threshold below 1"
