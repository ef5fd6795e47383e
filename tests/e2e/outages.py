"""What a row takes away from a live platform: room on a disk, the server of the training code, the router's counters."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from components.git_http_backend import GitServer
from e2e.live import Live
from fermion.adapters.envoy.layout import Layout

MOUNT_WITHIN_S = 10


class NotAllowed(Exception):
    """This machine does not let a test do what the row needs; the message says what, and why not."""


@contextmanager
def small_disk(folder: Path, *, mib: int = 8) -> Iterator[None]:
    """The folder is a disk of a few MiB.

    Raises:
        NotAllowed: nothing may be mounted here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=MOUNT_WITHIN_S, check=False)
    except FileNotFoundError as error:
        raise NotAllowed("a small disk cannot be mounted: there is no `mount` here") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NotAllowed(f"a small disk cannot be mounted: {said[0]}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=MOUNT_WITHIN_S)


def router_socket(live: Live) -> Path:
    """The router's admin interface: its counters and all that is read back from it."""
    return Layout(live.settings.router_dir).socket


@contextmanager
def hidden(file: Path) -> Iterator[None]:
    """The file is not where it is looked for; whoever has it open goes on with it."""
    elsewhere = file.with_name(f"{file.name}.hidden")
    file.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(file)


class CodeServer:
    """Serves the examples' repositories, except while ``is_away`` holds: then it answers 503, or with ``hangs`` nothing.

    ``refused`` counts what was asked of it meanwhile.
    """

    def __init__(self, server: GitServer) -> None:
        self._server = server
        self._ended = threading.Event()
        self.is_away: Callable[[], bool] = lambda: False
        self.hangs = False
        self.refused = 0
        server.behave = self._refuse

    @property
    def repository(self) -> str:
        """The sleeper's URL there."""
        return f"{self._server.url}/sleeper.git"

    def end(self) -> None:
        """Nobody waits for an answer any more."""
        self._ended.set()

    def _refuse(self, request: BaseHTTPRequestHandler) -> bool:
        if not self.is_away():
            return False
        self.refused += 1
        if self.hangs:
            self._ended.wait()
            return True
        request.send_error(503)
        return True


@contextmanager
def code_server(live: Live) -> Iterator[CodeServer]:
    """A git server over HTTP that nothing was fetched from yet."""
    with GitServer(live.settings.examples_dir) as git:
        server = CodeServer(git)
        try:
            yield server
        finally:
            server.end()
