"""Making files and folders visible whole or not at all, durably and read-only."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

PLACED_AT = 1_000_000_000
"""The modification time of every placed file: the same everywhere, so that any other time shows a later write."""

_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> Path:
    """The folder, made durably with its parents if absent."""
    missing = []
    at = folder
    while not at.exists():
        missing.append(at)
        at = at.parent
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync_folder(made.parent)
    return folder


def write_durably(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace the file's content at once: a reader sees the old bytes or the new ones. ``mode`` holds whatever the umask."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def seal(tree: Path) -> None:
    """Make a tree read-only and durable before it is placed.

    Its top folder stays writable until ``place``: a folder that its owner may not write cannot be moved to another parent.
    """
    for folder, names in _bottom_up(tree):
        for name in names:
            seal_file(Path(folder, name))
        _close(folder, is_top=folder == str(tree))


def seal_file(path: Path) -> None:
    """Make one file read-only, with the time that says so; of a link, which has no mode, only the time."""
    if not path.is_symlink():
        os.chmod(path, 0o555 if path.stat().st_mode & stat.S_IXUSR else 0o444)
    os.utime(path, (PLACED_AT, PLACED_AT), follow_symlinks=False)


def _bottom_up(tree: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder with its files and links, those also that lead to folders; a folder comes after all that is in it."""
    for folder, folders, names in os.walk(tree, topdown=False):
        yield folder, names + [each for each in folders if os.path.islink(os.path.join(folder, each))]


def _close(folder: str, *, is_top: bool) -> None:
    os.utime(folder, (PLACED_AT, PLACED_AT))
    if not is_top:
        os.chmod(folder, 0o555)
    sync_folder(Path(folder))


def place(sealed: Path, target: Path) -> bool:
    """Move a sealed tree to its name with one rename; False when the name is taken (nothing is changed then)."""
    make_folder(target.parent)
    try:
        os.rename(sealed, target)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    os.chmod(target, 0o555)
    sync_folder(target.parent)
    return True


def open_folders(tree: Path) -> None:
    """Let the owner read and write in every folder of a tree again, whatever its mode; its files stay as they are."""
    waiting = [str(tree)]
    while waiting:
        folder = waiting.pop()
        os.chmod(folder, 0o755)
        with os.scandir(folder) as entries:
            waiting.extend(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))


def mend(
    placed: Path, good: Path, replaced: Iterable[str], *, resealed: Iterable[str] = (), extra: Iterable[str] = ()
) -> None:
    """Put a placed tree right for whoever reads it meanwhile: the folder itself and its other files stay where they are.

    ``replaced`` come from the tree ``good``, each with one rename; ``resealed`` have the right content and lost their time or
    mode; ``extra`` leave with one rename to a folder beside ``good``, which the caller deletes with it.
    """
    open_folders(placed)
    aside = good.with_name("extra")
    aside.mkdir(parents=True, exist_ok=True)
    for path in extra:
        with contextlib.suppress(FileNotFoundError):  # whoever left it there took it away again
            os.rename(placed / path, aside / secrets.token_hex(8))
    for path in replaced:
        (placed / path).parent.mkdir(parents=True, exist_ok=True)
        seal_file(good / path)
        (good / path).replace(placed / path)
    for path in resealed:
        seal_file(placed / path)
    for folder, _ in _bottom_up(placed):
        _close(folder, is_top=False)


def remove_tree(tree: Path) -> None:
    """Delete a tree, read-only folders included; absent is fine."""
    if tree.is_symlink() or not tree.is_dir():
        tree.unlink(missing_ok=True)
        return
    open_folders(tree)
    shutil.rmtree(tree, ignore_errors=False)


def size_of(tree: Path) -> int:
    """Bytes of all files of a tree; 0 where nothing is. What goes away meanwhile does not count."""
    total = 0
    for folder, _, names in os.walk(tree):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written where the folder is, or will be."""
    at = folder
    while not at.exists():
        at = at.parent
    return shutil.disk_usage(at).free


def is_full(error: OSError) -> bool:
    """Whether the error says that the disk or the quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
