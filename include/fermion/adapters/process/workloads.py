"""The ``Workloads`` port over detached runners: trainings, created, woken, stopped and looked at through files.

Holds no state of its own: any process of the platform on this machine sees the same workloads. It isolates nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from fermion.adapters.process import folders, logs
from fermion.adapters.process.layout import Layout, progress_path
from fermion.adapters.process.marks import LOCATION_MARK, WORKLOAD_MARK, Marked
from fermion.adapters.process.nodes import DeviceUse
from fermion.adapters.process.runners import Runners, command_of, image_environment
from fermion.domain.workloads import Chunk, Grant, Seen, WorkloadSpec, WorkloadState
from fermion.errors import DriverCannot
from fermion.ports import Clock

_KEPT = ("log", "progress", "log_limit")


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
        layout = Layout(root.absolute())
        self._clock = clock
        self._device_use = device_use
        self._runners = Runners("workload", layout, layout.workloads, start_timeout=start_timeout)

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
        self._runners.prepare(spec.name, lambda draft: self._fill(draft, spec))

    def resume(self, name: str, grant: Grant) -> None:
        """Give the grant. Repeated with the same token it does nothing; an older token than the one given is refused.

        Raises:
            NotFound: nothing prepared by that name.
            Conflict: it runs under a newer token, or runs or ended already under an older one.
            DriverCannot: the grant spans several nodes.
        """
        self._runners.resume(name, grant)

    def stop(self, name: str, *, grace: timedelta, why: str) -> None:
        """Ask it to end: TERM to its process group, KILL to all of it after ``grace``. Returns at once.

        A suspended one is removed. A repeat may shorten the grace, never lengthen it; the first ``why`` is recorded.
        """
        self._runners.stop(name, grace=grace, why=why)

    def remove(self, name: str) -> None:
        """Forget an ended or suspended workload; its log, output and checkpoints stay. Absent is fine.

        Raises:
            Conflict: it is still running.
        """
        self._runners.remove(name, kept=_KEPT)

    def names(self) -> Sequence[str]:
        """Every workload under this location root, whatever its state."""
        return self._runners.names()

    # -- looking

    def look(self, name: str) -> Seen:
        """What is true of it now; ABSENT when nothing is there. Costs a few small files and one process-table line."""
        # The time is taken last: nothing that is seen is later than when it was seen.
        return replace(self._look(name), observed_at=self._clock.now())

    def _look(self, name: str) -> Seen:
        folder = self._runners.folder(name)
        seen = Seen(name=name, state=WorkloadState.ABSENT, observed_at=self._clock.now())
        if not folder.exists():
            return seen
        here = folders.presence(folder)
        seen = replace(seen, token=here.started.get("token"), exec_at=folders.time_of(here.started.get("exec_at")))
        if here.ended:
            usage = folders.usage(folder, DeviceUse(None, None, "it has ended"))
            return replace(seen, state=WorkloadState.EXITED, exit=here.ended, usage=usage)
        if here.watched and seen.exec_at is None:
            return replace(seen, state=WorkloadState.SUSPENDED, token=None)
        if (here.watched or here.guarded) and seen.exec_at is not None:
            usage = folders.usage(folder, self._device_use(here.started["devices"]))
            detail = (
                folders.heartbeat_detail(folder)
                if here.watched
                else "its runner is gone; its guard is ending what it left"
            )
            return replace(seen, state=WorkloadState.RUNNING, usage=usage, detail=detail)
        left = self._runners.left_of(folder)
        detail = self._runners.lost_detail(folder, left, has_started=seen.exec_at is not None)
        return replace(seen, state=WorkloadState.LOST, detail=detail, orphans=len(left))

    # -- what it printed

    def log(self, name: str, *, offset: int = 0, limit: int = 65536) -> Chunk:
        """A piece of the combined output; offsets are bytes of the stream. Readable after the workload is removed."""
        return self._runners.log(name, offset=offset, limit=limit)

    def progress(self, name: str, *, offset: int = 0, limit: int = 262144) -> Chunk:
        """A piece of the raw progress lines, whole lines only. Readable after the workload is removed."""
        places = self._runners.places(name)
        if places is None:
            return Chunk("", offset, True)
        return logs.read_progress(Path(places["progress"]), offset=offset, limit=limit)

    # -- orphans

    def orphans(self) -> Sequence[str]:
        """Live processes marked as ours whose workload has no live runner, one description each."""
        return self._runners.orphans()

    def end_orphans(self) -> int:
        """Kill them; how many there were. Folders that killed callers left half made or half deleted go too."""
        return self._runners.end_orphans()

    def _marked(self) -> list[Marked]:
        return self._runners.marked()

    # -- inside

    def _fill(self, draft: Path, spec: WorkloadSpec) -> dict[str, Any]:
        (draft / "data").mkdir(mode=0o700)
        for dataset, location in spec.datasets.items():
            if dataset in ("", ".", "..") or "/" in dataset or "\0" in dataset:
                raise DriverCannot(f"dataset name {dataset[:80]!r} cannot name a folder", what="datasets")
            (draft / "data" / dataset).symlink_to(location)
        (draft / "parameters.json").write_text(json.dumps(dict(spec.parameters)), encoding="utf-8")
        return order_of(spec, self._runners.folder(spec.name), self._runners.mark())


# --- orders -----------------------------------------------------------------------------------------------------------


def order_of(spec: WorkloadSpec, folder: Path, location_id: str) -> dict[str, Any]:
    """What the runner needs to know, as JSON-ready values."""
    return {
        "name": spec.name,
        "image": spec.image,
        "argv": [*command_of(spec.entrypoint, spec.image), *spec.arguments],
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
    return {**image_environment(spec.image, folder), **spec.environment, **own}
