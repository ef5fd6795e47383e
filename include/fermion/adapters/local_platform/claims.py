"""Which installation of this account has which port, also while its server is not listening yet, or not any more.

A port that is merely free may be somebody's who is just starting. So every start notes its ports in one folder of the
machine. A note holds while the installation's supervisor answers, and for the first minutes, when there is none yet.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from fermion.adapters.local_platform.locking import exclusive

FRESH_S = 180.0
"""A note this young holds without a supervisor: its start is under way."""

LOCK_WITHIN = timedelta(seconds=30)


class Claims:
    """The notes of one account. ``me`` is the state folder of the installation that asks."""

    def __init__(self, me: Path, *, folder: Path | None = None) -> None:
        self._me = str(me)
        self._folder = folder or Path(tempfile.gettempdir()) / f"fermion-{os.geteuid()}" / "ports"

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """While one installation chooses, the others wait."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with exclusive(self._folder / ".lock", timeout=LOCK_WITHIN):
            yield

    def holder(self, port: int) -> str | None:
        """The state folder of another installation that has this port, or None."""
        path = self._folder / str(port)
        try:
            note = json.loads(path.read_text())
            age_s = time.time() - path.stat().st_mtime
            state, supervisor = str(note["state"]), str(note["supervisor"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if state == self._me:
            return None
        return state if age_s < FRESH_S or _answers(supervisor) else None

    def claim(self, ports: Collection[int], *, supervisor: Path) -> None:
        """Note the ports, and withdraw the notes of earlier ones."""
        for path in self._folder.iterdir():
            if path.name.isdigit() and self._is_mine(path):
                path.unlink(missing_ok=True)
        for port in ports:
            new = self._folder / f".{port}.new"
            new.write_text(json.dumps({"state": self._me, "supervisor": str(supervisor)}))
            new.replace(self._folder / str(port))

    def withdraw(self) -> None:
        """Give all ports up. Fine when there were none."""
        if self._folder.exists():
            with self.choosing():
                self.claim((), supervisor=Path())

    def _is_mine(self, path: Path) -> bool:
        try:
            return bool(json.loads(path.read_text())["state"] == self._me)
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
