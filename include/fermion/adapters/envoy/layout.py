"""Where the router's files lie, and which port it has: the one thing that its users and its supervisor must agree on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fermion.adapters.envoy.resources import LOOPBACK
from fermion.errors import OutsideUnavailable

SOCKET_PATH_LIMIT = 107
"""Bytes that the kernel takes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one router. ``folder`` is absolute; nothing else lies in it."""

    folder: Path

    @property
    def bootstrap(self) -> Path:
        """What Envoy is started with."""
        return self.folder / "bootstrap.json"

    @property
    def place(self) -> Path:
        """The router's port, the address that it listens on, and where its log is."""
        return self.folder / "place.json"

    @property
    def watched(self) -> Path:
        """Envoy reads the three files in it again whenever one of them is moved into place."""
        return self.folder / "watched"

    @property
    def clusters(self) -> Path:
        """Backends and their endpoints."""
        return self.watched / "clusters.json"

    @property
    def listeners(self) -> Path:
        """Ports that services have of their own."""
        return self.watched / "listeners.json"

    @property
    def routes(self) -> Path:
        """How requests are recognised and spread."""
        return self.watched / "routes.json"

    @property
    def lock(self) -> Path:
        """Held by whoever changes them."""
        return self.folder / ".lock"

    @property
    def socket(self) -> Path:
        """Envoy's admin interface: in the folder, or in a private one of the temporary folder when that path is too long."""
        path = self.folder / "admin.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
            return path
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"fermion-{os.geteuid()}" / f"{name}.router.sock"

    def port(self) -> int:
        """The shared listener's port.

        Raises:
            OutsideUnavailable: the router was never set up here.
        """
        try:
            return int(self._place()["port"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutsideUnavailable(
                f"there is no router in {self.folder} ({error}); `fermion up` makes one", what="router"
            ) from error

    def host(self) -> str:
        """The address that its listeners have; loopback where nobody said another one."""
        try:
            return str(self._place()["host"])
        except (OSError, ValueError, KeyError, TypeError):
            return LOOPBACK

    def log(self) -> Path | None:
        """Where what Envoy prints is kept, if that is known."""
        try:
            log = self._place()["log"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return Path(log) if log else None

    def _place(self) -> Any:
        return json.loads(self.place.read_text())
