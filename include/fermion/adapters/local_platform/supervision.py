"""The supervisor process (the ``supervisor`` package), reached over its Unix socket."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from fermion.adapters.local_platform.layout import Layout
from fermion.errors import OutsideUnavailable

SOCKET_PATH_LIMIT = 100
"""Bytes; the kernel takes 107 and the supervisor adds a suffix while it makes the socket."""

ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class ProgramState:
    """One program as the supervisor sees it. ``state``: its words (RUNNING, STARTING, BACKOFF, STOPPED, EXITED, FATAL...)."""

    name: str
    state: str
    pid: int
    started_at: datetime | None
    """To the second; None when never started."""

    @property
    def lives(self) -> bool:
        """Whether it runs or is about to."""
        return self.state in {"RUNNING", "STARTING"}


class Supervisor:
    """One installation's supervisor. Every call is bounded; ``states`` is None when nothing answers."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.socket = socket_path(layout)
        self.configuration = layout.supervisor / "supervisord.conf"

    def start(self, configuration: str, environment: Mapping[str, str]) -> None:
        """Write the configuration and start it in the background.

        Raises:
            OutsideUnavailable: it did not come up within 15 s; the message ends with what it said.
        """
        self.forget()
        self.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.configuration.write_text(configuration)
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.configuration)]
        done = subprocess.run(
            command,
            env=dict(environment),
            cwd=self._layout.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=15,
            check=False,
        )
        deadline = time.monotonic() + 15
        while self.states() is None:
            if done.returncode or time.monotonic() > deadline:
                said = (done.stdout + done.stderr).strip() or "it said nothing"
                raise OutsideUnavailable(f"the supervisor did not start: {said}", what="supervisor")
            time.sleep(0.05)

    def states(self) -> Sequence[ProgramState] | None:
        """All programs; None when no supervisor answers."""
        try:
            infos = cast("list[dict[str, Any]]", self._call("getAllProcessInfo"))
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return None
        return [
            ProgramState(
                name=info["name"],
                state=info["statename"],
                pid=info["pid"],
                started_at=datetime.fromtimestamp(info["start"], UTC) if info["start"] else None,
            )
            for info in infos
        ]

    def start_program(self, name: str) -> None:
        """Start one program; fine when it runs already."""
        self._tolerant("startProcess", name, False)

    def stop_program(self, name: str) -> None:
        """Ask one program to stop; returns at once."""
        self._tolerant("stopProcess", name, False)

    def shutdown(self, timeout: timedelta) -> bool:
        """Stop everything and end; whether it was gone within ``timeout``."""
        with contextlib.suppress(OSError, http.client.HTTPException, xmlrpc.client.Error):
            self._call("shutdown")
        deadline = time.monotonic() + timeout.total_seconds()
        while self.states() is not None or self.socket.exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def forget(self) -> None:
        """Remove what a killed supervisor left."""
        self.socket.unlink(missing_ok=True)
        (self._layout.supervisor / "supervisord.pid").unlink(missing_ok=True)

    def _tolerant(self, method: str, name: str, wait: bool) -> None:
        try:
            self._call(method, name, wait)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in {_ALREADY_STARTED, _NOT_RUNNING}:
                raise OutsideUnavailable(f"the supervisor refused {method} {name}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException) as error:
            raise OutsideUnavailable(f"the supervisor does not answer: {error}", what="supervisor") from error

    def _call(self, method: str, *arguments: object) -> object:
        with xmlrpc.client.ServerProxy("http://supervisor", transport=_UnixTransport(self.socket)) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)


_ALREADY_STARTED = 60
_NOT_RUNNING = 70


def socket_path(layout: Layout) -> Path:
    """In the state folder, or in a private folder of the temporary one when that path is too long for a socket."""
    path = layout.supervisor / "supervisor.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"fermion-{os.geteuid()}" / f"{name}.sock"


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        return _UnixConnection(self._path)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("supervisor", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(str(self._path))
