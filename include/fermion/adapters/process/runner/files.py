"""The files of a folder that a runner looks after, and how they are read and replaced."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

ORDER = "order.json"  # what to run; written by prepare, never changed
RUNNER = "runner.json"  # who waits or watches: identities of runner and guard
RUNNER_LOCK = "runner.lock"  # flock held while the runner or its guard lives
GO_LOCK = "go.lock"  # flock held while go, started or stop are compared and changed
GO = "go.json"  # the newest grant
STARTED = "started.json"  # the grant taken, and the process once it was executed
STOP = "stop.json"  # a request to end
HEARTBEAT = "heartbeat"  # touched each second while running
USAGE = "usage.json"  # measured use, each second
PROBES = "probes.json"  # what a replica's probes found, at each change
EXIT = "exit.json"  # how it ended; the last thing written
ERRORS = "runner.err"  # what the runner itself had to say


def now_text() -> str:
    """The present as ISO 8601 with offset."""
    return datetime.now(UTC).isoformat()


def read_json(path: str) -> dict[str, Any] | None:
    """The object in the file; None when it is absent, torn or no object."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: str, value: Mapping[str, Any], *, durable: bool = False) -> None:
    """Replace the file in one step; ``durable`` also survives a power cut."""
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(json.dumps(value).encode())
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)
    if durable:
        sync_folder(os.path.dirname(path))


def sync_folder(path: str) -> None:
    """Make names in the folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the file's lock; all holders do only a few small file operations, so waiting is short."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_text(path: str) -> str:
    """All of a small file; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def write_text(path: str, text: str) -> None:
    """Write into a file of the kernel's, in one call."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
