"""Whether the files that a server is about to read are still those that were placed for it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any

_BLOCK = 1 << 20


def check(sealed: Mapping[str, Any] | None, between: Callable[[], None]) -> None:
    """A look at each inode; only a file that was written since it was placed is read. ``between`` is called while it is.

    Raises:
        ValueError: a file has other content than was published, or is gone; the message names the first.
    """
    if not sealed:
        return
    for path, size, sha256 in sealed["files"]:
        whole = os.path.join(sealed["folder"], path)
        if not _is_as_placed(whole, size, sealed["placed_at"]) and _sha256(whole, between) != sha256:
            raise ValueError(f"file {path!r} of its model is not what was published (another checksum, or gone)")


def _is_as_placed(path: str, size: int, placed_at: int) -> bool:
    try:
        seen = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(seen.st_mode) and seen.st_size == size and int(seen.st_mtime) == placed_at


def _sha256(path: str, between: Callable[[], None]) -> str | None:
    digest = hashlib.sha256()
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                between()
    except OSError:
        return None
    return digest.hexdigest()
