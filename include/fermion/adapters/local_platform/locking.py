"""A lock between processes that may also delete the folder it lies in."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from fermion.errors import OutsideUnavailable


@contextmanager
def exclusive(path: Path, *, timeout: timedelta) -> Iterator[None]:
    """Hold the lock at ``path``; it ends with the process, however that ends.

    Raises:
        OutsideUnavailable: somebody else held it for the whole ``timeout``.
    """
    descriptor = _acquire(path, deadline=time.monotonic() + timeout.total_seconds(), timeout=timeout)
    try:
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path, *, deadline: float, timeout: timedelta) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise OutsideUnavailable(
                    f"another `fermion up`, `down` or `clean` has been at work here for {timeout.total_seconds():.0f} s; "
                    "wait for it, or end it",
                    what="lock",
                ) from None
            time.sleep(0.05)
            continue
        if _is_current(path, descriptor):
            return descriptor
        os.close(descriptor)


def _is_current(path: Path, descriptor: int) -> bool:
    """False when the file was deleted while we waited: then we hold a lock that nobody else can see."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
