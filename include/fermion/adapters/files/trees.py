"""Trees of files as somebody else made them: looked at without leaving the root, hashed, copied.

Links are followed only while they stay inside the root; what cannot be part of a tree comes back as problems, all at
once. A file is read only if it still is the very file (device, inode, size, times) that was looked at.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fermion.domain.artifacts import FileEntry
from fermion.domain.problems import Problem
from fermion.errors import OutsideBroken

MAX_FILES = 1_000_000
"""More files than this in one tree is taken for a mistake (a root directory, a loop of mounts)."""

WORKERS = min(8, (os.cpu_count() or 2) + 2)
BUFFER = 1 << 20

_FICLONE = 0x40049409  # ioctl of linux/fs.h: share the extents of another file, copy on write
_CANNOT_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBADF}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One regular file of a tree as it was looked at. ``path`` is relative with forward slashes, ``real`` has no links."""

    path: str
    real: Path
    size: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int

    def is_still(self, now: os.stat_result) -> bool:
        """Whether a later look shows the same, unchanged file."""
        # An inode's number is given again once it is free, but its change time cannot be set back.
        return (self.device, self.inode, self.size, self.mtime_ns, self.ctime_ns) == (
            now.st_dev,
            now.st_ino,
            now.st_size,
            now.st_mtime_ns,
            now.st_ctime_ns,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The files below one root, sorted by path, and what is wrong with the tree."""

    root: Path
    files: tuple[Found, ...]
    problems: tuple[Problem, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(found.size for found in self.files)


def look(root: Path, *, field: str, max_files: int = MAX_FILES) -> Tree:
    """The files below ``root`` now, hidden ones included; empty folders do not count.

    ``field`` is the request's field that the problems are put to.
    """
    walk = _Walk(Path(os.path.realpath(root)), field=field, max_files=max_files)
    walk.run()
    files = tuple(sorted(walk.files, key=lambda found: found.path))
    return Tree(root=walk.root, files=files, problems=tuple(walk.problems))


class _Walk:
    def __init__(self, root: Path, *, field: str, max_files: int) -> None:
        self.root = root
        self.field = field
        self.max_files = max_files
        self.files: list[Found] = []
        self.problems: list[Problem] = []
        self._waiting: list[tuple[Path, str, frozenset[Path]]] = [(root, "", frozenset({root}))]

    def run(self) -> None:
        while self._waiting:
            folder, prefix, above = self._waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    names = sorted(entry.name for entry in entries)
            except OSError as error:
                self._add(prefix or ".", "unreadable", f"cannot be read: {error.strerror}.", "Give read permission.")
                continue
            for name in names:
                self._entry(folder / name, f"{prefix}{name}", above)
            if len(self.files) > self.max_files:
                message = f"has more than {self.max_files} files."
                self._add(prefix or ".", "too_many_files", message, "Pack them into archives.")
                return

    def _entry(self, at: Path, path: str, above: frozenset[Path]) -> None:
        if not _is_plain(path):
            fix = "Rename it: only printable UTF-8 names can be listed in a manifest."
            self._add(repr(path), "bad_name", "has a name with control or undecodable characters.", fix)
            return
        try:
            real = at.resolve(strict=True) if at.is_symlink() else at
            seen = real.stat()
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            self._add(path, "unreadable", f"cannot be read ({_why(error)}).", "Remove it or repair the link.")
            return
        if not real.is_relative_to(self.root):
            message = f"is a link to {os.readlink(at)!r}, which is outside."
            self._add(path, "link_leaves", message, "Replace the link by a copy of what it points to.")
        elif stat.S_ISDIR(seen.st_mode):
            self._folder(real, path, above)
        elif stat.S_ISREG(seen.st_mode):
            self.files.append(_found(path, real, seen))
        else:
            self._add(
                path, "special_file", "is a pipe, socket or device.", "Only regular files can be stored; remove it."
            )

    def _folder(self, real: Path, path: str, above: frozenset[Path]) -> None:
        if real in above:
            self._add(path, "link_loops", "is a link to a folder that contains it.", "Remove the link.")
        else:
            self._waiting.append((real, f"{path}/", above | {real}))

    def _add(self, path: str, code: str, message: str, fix: str) -> None:
        self.problems.append(Problem(field=self.field, code=code, message=f"{path} {message}", fix=fix))


def _is_plain(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return path.isprintable()


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or "a loop of links"


def _found(path: str, real: Path, seen: os.stat_result) -> Found:
    return Found(
        path=path,
        real=real,
        size=seen.st_size,
        mtime_ns=seen.st_mtime_ns,
        ctime_ns=seen.st_ctime_ns,
        device=seen.st_dev,
        inode=seen.st_ino,
    )


@contextmanager
def opened(found: Found) -> Iterator[int]:
    """A read-only descriptor of exactly the file that was looked at, checked again when it is left.

    Raises:
        OutsideBroken: it was changed or replaced meanwhile.
    """
    try:
        descriptor = os.open(found.real, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise OutsideBroken(f"{found.path} cannot be read any more: {error.strerror}", what=found.path) from error
    try:
        _check_still(found, descriptor)
        yield descriptor
        _check_still(found, descriptor)
    finally:
        os.close(descriptor)


def _check_still(found: Found, descriptor: int) -> None:
    if not found.is_still(os.fstat(descriptor)):
        message = f"{found.path} was changed while it was read; nothing was stored. Call again once it is written."
        raise OutsideBroken(message, what=found.path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file of our own, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(found: Found) -> FileEntry:
    """The file with its SHA-256.

    Raises:
        OutsideBroken: it was changed meanwhile.
    """
    with opened(found) as descriptor, open(descriptor, "rb", buffering=0, closefd=False) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(path=found.path, size=found.size, sha256=sha256)


def copy(found: Found, target: Path) -> FileEntry:
    """Copy to ``target`` (made anew, its parents too), durably; the SHA-256 is of the bytes that were written.

    Extents are shared where the file system can do that copy on write; a hard link is never made, because whoever still
    writes to the source would write to the copy as well.

    Raises:
        OutsideBroken: the file was changed meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened(found) as source, target.open("wb") as file:
        sha256 = hash_file(target) if _clone(source, file.fileno()) else _pour(source, file.fileno())
        os.fsync(file.fileno())
    return FileEntry(path=found.path, size=found.size, sha256=sha256)


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


def _pour(source: int, target: int) -> str:
    digester = hashlib.sha256()
    buffer = bytearray(BUFFER)
    view = memoryview(buffer)
    while count := os.readv(source, [buffer]):
        digester.update(view[:count])
        written = 0
        while written < count:
            written += os.write(target, view[written:count])
    return digester.hexdigest()


def in_parallel(
    work: Callable[[_Item], _Result], items: Sequence[_Item], *, workers: int = WORKERS
) -> tuple[_Result, ...]:
    """``work`` of each item by several threads, in the items' order. The first error ends the rest and is raised."""
    if len(items) < 2 or workers < 2:
        return tuple(work(item) for item in items)
    with ThreadPoolExecutor(max_workers=min(workers, len(items))) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return tuple(future.result() for future in futures)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def digest_all(files: Sequence[Found]) -> tuple[FileEntry, ...]:
    """Every file with its SHA-256, by several threads."""
    return in_parallel(digest, files)
