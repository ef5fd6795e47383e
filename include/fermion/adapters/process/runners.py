"""The detached runners of one location root: created, woken, stopped and forgotten through the files in their folders.

What trainings and replicas have in common. Holds no state of its own: any process of the platform on this machine sees the
same folders.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from fermion.adapters.process import folders, logs, runner
from fermion.adapters.process.layout import Layout, checked_name, discard, sweep, visible
from fermion.adapters.process.marks import LOCATION_MARK, WORKLOAD_MARK, Marked, marked, send, wait_until_gone
from fermion.domain.workloads import Chunk, Grant
from fermion.errors import Conflict, NotFound, OutsideUnavailable

_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"

_ENTRY = str(Path(runner.__file__).with_name("runner.py"))
_END_WAIT_S = 5.0


class Runners:
    """``what`` is the word for one of them (workload, replica), ``folder`` where theirs lie.

    ``start_timeout`` bounds how long a runner may take until it waits.
    """

    def __init__(self, what: str, layout: Layout, folder: Path, *, start_timeout: timedelta) -> None:
        self._what = what
        self._layout = layout
        self._folder = folder
        self._start_timeout_s = start_timeout.total_seconds()

    def folder(self, name: str) -> Path:
        """The folder of that name.

        Raises:
            DriverCannot: the name cannot be a folder's.
        """
        return self._folder / checked_name(name)

    def names(self) -> Sequence[str]:
        """All of them, whatever their state."""
        return visible(self._folder)

    def mark(self) -> str:
        """What marks processes as belonging to this location root."""
        return self._layout.identity()

    # -- life

    def prepare(self, name: str, fill: Callable[[Path], Mapping[str, Any]]) -> None:
        """Its folder is there and its runner waits. ``fill`` puts into a new folder what belongs there; its order is answered."""
        folder = self.folder(name)
        if not folder.exists():
            self._create(folder, fill)
        if folders.is_startable(folder):
            self._start(folder)

    def resume(self, name: str, grant: Grant) -> None:
        """Give the grant.

        Raises:
            NotFound: nothing prepared by that name.
            Conflict: it runs under a newer token, or runs or ended already under an older one.
            DriverCannot: the grant spans several nodes.
        """
        folder = self.folder(name)
        devices = folders.devices_of_one_node(grant)
        go = {"token": grant.token, "devices": devices, "declared": grant.devices_are_declared}
        try:
            with folders.locked(folder):
                if not folders.is_decided(self._what, folder, grant):
                    runner.write_json(str(folder / runner.GO), go)
        except FileNotFoundError as error:
            raise NotFound(f"no {self._what} {name!r} is prepared; prepare it before resuming it", what=name) from error
        if folders.is_startable(folder):
            self._start(folder)  # its runner died while it waited (a reboot); nothing had run yet
        send(folders.read(folder, runner.RUNNER).get("runner"), runner.GO_SIGNAL)

    def stop(self, name: str, *, grace: timedelta, why: str) -> None:
        """Ask it to end; one that waits for its grant is removed. Absent is fine."""
        folder = self.folder(name)
        try:
            with folders.locked(folder):
                if not (folder / runner.GO).exists():
                    self._discard_suspended(folder)
                    return
                if not folders.has_ended(folder):
                    folders.request_stop(folder, grace=grace, why=why)
        except FileNotFoundError:
            return
        send(folders.read(folder, runner.RUNNER).get("runner"), runner.STOP_SIGNAL)

    def remove(self, name: str, *, kept: Sequence[str]) -> None:
        """Forget one that has ended or waits; the values of its order named in ``kept`` stay readable. Absent is fine.

        Raises:
            Conflict: it is still running.
        """
        folder = self.folder(name)
        try:
            with folders.locked(folder):
                if not (folder / runner.GO).exists():
                    self._discard_suspended(folder)
                    return
        except FileNotFoundError:
            return
        if not folders.has_ended(folder) and any(folders.who_is_there(folder)):
            raise Conflict(
                f"{self._what} {name!r} is still running; stop it and wait for its end before removing it", what=name
            )
        self._keep_pointer(name, folder, kept)
        started = folders.read(folder, runner.STARTED)
        for group in started.get("cgroups", [started.get("cgroup")]):
            with contextlib.suppress(OSError):
                os.rmdir(group or "")
        discard(folder)

    def places(self, name: str) -> dict[str, Any] | None:
        """The order, or what was kept of it; None when neither is there."""
        for path in (self.folder(name) / runner.ORDER, self._layout.removed / name):
            found = runner.read_json(str(path))
            if found and "log" in found:
                return found
        return None

    def log(self, name: str, *, offset: int, limit: int) -> Chunk:
        """A piece of what was printed; offsets are bytes of the stream. Readable after the removal."""
        places = self.places(name)
        if places is None:
            return Chunk("", offset, True, is_missing=True)
        return logs.read_log(Path(places["log"]), kept=places["log_limit"], offset=offset, limit=limit)

    def left_of(self, folder: Path) -> list[int]:
        """Numbers of the live processes of one whose runner and guard are gone."""
        return [process.pid for process in self._orphans() if process.workload == folder.name]

    def lost_detail(self, folder: Path, left: Sequence[int], *, has_started: bool) -> str:
        """Why nothing is there: what the runner said last, and which of its processes still live."""
        parts = [
            "its runner is gone and left no exit record" if has_started else "its runner is gone and nothing ran yet"
        ]
        last = folders.last_words(folder)
        if last:
            parts.append(f"its last words: {last}")
        if left:
            parts.append(f"processes still alive: {', '.join(map(str, left))}")
        return "; ".join(parts)

    # -- orphans

    def orphans(self) -> Sequence[str]:
        """Live processes marked as ours that nobody looks after, one description each."""
        return [process.describe(self._what) for process in self._orphans()]

    def end_orphans(self) -> int:
        """Kill them; how many there were. Folders that killed callers left half made or half deleted go too."""
        sweep(self._folder)
        ended = 0
        for _ in range(10):  # an orphan may have started another one meanwhile
            found = self._orphans()
            if not found:
                break
            ended += sum(send(process.identity, signal.SIGKILL) for process in found)
            wait_until_gone([process.identity for process in found], _END_WAIT_S)
        return ended

    def _orphans(self) -> list[Marked]:
        # The process table first, then who is watched: one that starts meanwhile is never taken for an orphan.
        present = self.marked()
        names = {process.workload for process in present}
        watches = {name: folders.watch_of(self._folder / name) for name in names}
        found = [process for process in present if process.is_orphan(watches[process.workload])]
        return [process for process in found if runner.is_alive(process.identity)]  # not those that ended meanwhile

    def marked(self) -> list[Marked]:
        """Every live process that carries this location root's mark."""
        return marked(self.mark())

    # -- inside

    def _create(self, folder: Path, fill: Callable[[Path], Mapping[str, Any]]) -> None:
        """Make the folder whole in one step; when another caller was first, theirs counts."""
        draft = self._folder / f".new-{uuid.uuid4().hex}"
        for part in ("home", "tmp"):
            (draft / part).mkdir(parents=True, mode=0o700)
        try:
            runner.write_json(str(draft / runner.ORDER), fill(draft), durable=True)
            (self._layout.removed / folder.name).unlink(missing_ok=True)
            os.rename(draft, folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _start(self, folder: Path) -> None:
        """Detach a runner and return once it waits. Several callers at once end up with one runner."""
        order = folders.read(folder, runner.ORDER)
        marks = {key: str(order["env"][key]) for key in (LOCATION_MARK, WORKLOAD_MARK)} if order else {}
        deadline = time.monotonic() + self._start_timeout_s
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", _ENTRY, str(folder)],
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
        said = done.stderr.decode(errors="replace").strip() or folders.last_words(folder)
        while done.returncode == 0 and time.monotonic() < deadline:
            if folders.has_ended(folder) or folders.who_is_there(folder)[1]:
                return
            time.sleep(0.01)  # somebody else's runner holds the lock and is about to say who it is
        raise OutsideUnavailable(
            f"the runner of {folder.name!r} does not wait: {said or 'no reason given'}", what=folder.name
        )

    def _discard_suspended(self, folder: Path) -> None:
        """Under its lock nothing can start, so its runner has no child and may simply be killed, after its guard."""
        who = folders.read(folder, runner.RUNNER)
        discard(folder)
        for part in ("guard", "runner"):
            send(who.get(part), signal.SIGKILL)

    def _keep_pointer(self, name: str, folder: Path, kept: Sequence[str]) -> None:
        order = folders.read(folder, runner.ORDER)
        self._layout.removed.mkdir(parents=True, exist_ok=True)
        places: dict[str, Any] = {key: order[key] for key in kept if key in order}
        runner.write_json(str(self._layout.removed / name), places)


# --- what is executed -------------------------------------------------------------------------------------------------


def command_of(entrypoint: Sequence[str], image: str) -> list[str]:
    """The command; one that begins with a ``.py`` file is run with the image's Python."""
    python = [str(Path(image) / "bin" / "python")] if entrypoint[0].endswith(".py") else []
    return [*python, *entrypoint]


def image_environment(image: str, folder: Path) -> dict[str, str]:
    """What is in the environment unless it is asked for otherwise: the image's programs, a home, a temporary folder."""
    return {
        "PATH": f"{Path(image) / 'bin'}:{_SYSTEM_PATH}",
        "VIRTUAL_ENV": image,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
