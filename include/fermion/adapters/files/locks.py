"""Locks between processes and threads of one machine. The kernel frees them when the holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from fermion.errors import OutsideUnavailable

_FIRST_WAIT_S = 0.005
_LONGEST_WAIT_S = 0.1


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock if nobody does; yields whether it is held."""
    descriptor = _open(path)
    try:
        yield _take(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path, *, timeout: timedelta, what: str) -> Iterator[int]:
    """Hold the lock; yields its descriptor, which a child process may be given to hold it as long as it lives.

    Raises:
        OutsideUnavailable: somebody else holds it longer than ``timeout``; ``what`` names their work.
    """
    descriptor = _open(path)
    try:
        _wait(descriptor, path, timeout=timeout, what=what)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _wait(descriptor: int, path: Path, *, timeout: timedelta, what: str) -> None:
    until = time.monotonic() + timeout.total_seconds()
    wait_s = _FIRST_WAIT_S
    while not _take(descriptor):
        if time.monotonic() >= until:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            message = f"{what} is being done by process {holder} and did not end within {timeout.total_seconds():g} s."
            raise OutsideUnavailable(f"{message} It goes on; call again.", what=str(path))
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
