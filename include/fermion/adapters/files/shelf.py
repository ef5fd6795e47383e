"""A shelf: a folder of read-only entries, each named by its content and shared by whoever needs it.

An entry is filled in a staging folder under its own lock and then appears with one rename, so nobody ever sees half of
one; a filler that died leaves its staging folder, which the next one continues. Entries that nobody uses leave
least-recently-used first when a size limit needs room. What is in an entry, and whether it is intact, is the caller's
business.

    <root>/<name>/              the entry, read-only
    <root>/.staging/<name>/     what is being filled; ``tree/`` inside becomes the entry
    <root>/.locks/<name>        whoever fills or evicts the entry holds this
    <root>/.records/<name>      its size; the modification time is when it was last used
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fermion.adapters.files.locks import lock, try_lock
from fermion.adapters.files.placing import free_bytes, place, remove_tree, seal, size_of, write_durably
from fermion.domain.retention import Freed
from fermion.errors import DriverCannot, OutsideUnavailable

_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry as it stands: its bytes, and when it was last asked for."""

    name: str
    size: int
    used_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """An entry being filled under its lock. ``folder`` is free for the filler; ``tree`` in it becomes the entry."""

    name: str
    folder: Path
    tree: Path
    lock: int


class Shelf:
    """The entries below one root folder.

    ``size_limit`` is in bytes (None: no limit). ``grace`` is how long an entry that was asked for is safe from eviction:
    enough for the caller to show that it is in use. ``lock_timeout`` bounds the wait for another filler. ``in_use`` answers
    paths of entries that somebody reads (see ``linked_below``); they are not evicted.
    """

    def __init__(
        self,
        root: Path,
        *,
        size_limit: int | None = None,
        grace: timedelta = timedelta(minutes=10),
        lock_timeout: timedelta = timedelta(hours=1),
        in_use: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.root = root
        self.size_limit = size_limit
        self.grace = grace
        self.lock_timeout = lock_timeout
        self._in_use = in_use

    # --- finding and filling ---

    def find(self, name: str) -> Path | None:
        """The entry, marked as used now, or None."""
        path = self.root / name
        if path.is_symlink() or not path.is_dir():
            return None
        if not os.access(path, os.R_OK | os.X_OK):
            path.chmod(0o555)  # a job of the same user closed it
        try:
            os.utime(self._record(name))
        except FileNotFoundError:
            self._write_record(name, size_of(path))
        return path

    @contextmanager
    def filling(self, name: str) -> Iterator[Filling]:
        """Fill the entry, alone: others that want it wait for the end of this block.

        What an earlier filler left in the folder is still there. Look again with ``find`` first: it may be filled by now.
        """
        with lock(self._lock(name), timeout=self.lock_timeout, what=f"staging {name}") as descriptor:
            folder = self.root / ".staging" / name
            if (self.root / name).is_symlink():
                (self.root / name).unlink()  # nobody places links: somebody put it there
            yield Filling(name=name, folder=folder, tree=folder / "tree", lock=descriptor)

    def place(self, filling: Filling) -> Path:
        """Make the filled tree the entry, read-only and durable, and forget the staging folder."""
        size = size_of(filling.tree)
        seal(filling.tree)
        self._write_record(filling.name, size)
        place(filling.tree, self.root / filling.name)
        remove_tree(filling.folder)
        return self.root / filling.name

    # --- room ---

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, the least recently used first."""
        found = []
        for path in self._below("."):
            if path.name.startswith("."):
                continue
            size, used_at = self._read_record(path.name)
            found.append(Entry(name=path.name, size=size, used_at=used_at))
        return tuple(sorted(found, key=lambda entry: (entry.used_at, entry.name)))

    def never_fits(self, needed: int, *, what: str) -> str | None:
        """Why that many bytes could never be here, as a sentence; None when they could."""
        if self.size_limit is None or needed <= self.size_limit:
            return None
        return f"{what} needs {_gib(needed)} and the cache's limit is {_gib(self.size_limit)}."

    def make_room(self, needed: int, *, what: str) -> None:
        """Evict until ``needed`` bytes more keep the size limit and fit on the disk.

        Raises:
            DriverCannot: it could never fit under the limit.
            OutsideUnavailable: too much is in use, or the disk is full; later it may fit.
        """
        if self.size_limit is not None:
            if (never := self.never_fits(needed, what=what)) is not None:
                raise DriverCannot(f"{never} Raise the limit. ({self.root})", what=what)
            self._evict_down_to(self.size_limit - needed)
            used = sum(entry.size for entry in self.entries())
            if used + needed > self.size_limit:
                raise OutsideUnavailable(
                    f"{what} needs {_gib(needed)}; {_gib(used)} of the cache's {_gib(self.size_limit)} are in use by running jobs,"
                    " or were asked for just now. It fits when they end; or raise the limit.",
                    what=what,
                )
        free = free_bytes(self.root)
        if free < needed:
            message = f"{what} needs {_gib(needed)} and {self.root} has {_gib(free)} free; free or add disk space."
            raise OutsideUnavailable(message, what=what)

    def tidy(
        self, *, keep: Collection[str], leftovers_after: timedelta, limit: int | None = None, dry_run: bool = False
    ) -> Freed:
        """Evict down to ``limit`` (else the size limit), none of the names in ``keep``; and clear leftovers of that age.

        With ``dry_run`` nothing is deleted, and the answer is what would be.
        """
        freed = self.clear_leftovers(older_than=leftovers_after, dry_run=dry_run)
        limit = self.size_limit if limit is None else limit
        return freed if limit is None else freed + self._evict_down_to(limit, keep=keep, dry_run=dry_run)

    def _evict_down_to(self, limit: int, *, keep: Collection[str] = (), dry_run: bool = False) -> Freed:
        entries, freed = self.entries(), Freed()
        used = sum(entry.size for entry in entries)
        for entry in entries:
            if used - freed.size_bytes <= limit:
                break
            leaves = self._would_leave if dry_run else self.evict
            if entry.name not in keep and leaves(entry.name):
                freed += Freed(items=1, size_bytes=entry.size)
        return freed

    def evict(self, name: str) -> bool:
        """Delete one entry unless it is held or in use, was asked for within the grace time, or is being filled."""
        with self._leaving(name) as may_leave:
            if not may_leave:
                return False
            leaving = self.root / ".staging" / f"evicted-{secrets.token_hex(6)}"
            leaving.parent.mkdir(parents=True, exist_ok=True)
            path = self.root / name
            path.chmod(0o755)
            path.rename(leaving)
            self._record(name).unlink(missing_ok=True)
        remove_tree(leaving)
        return True

    def _would_leave(self, name: str) -> bool:
        with self._leaving(name) as may_leave:
            return may_leave

    @contextmanager
    def _leaving(self, name: str) -> Iterator[bool]:
        """Whether the entry may be deleted now; until then nobody else holds or fills it."""
        with try_lock(self._lock(name)) as is_locked:
            yield is_locked and (self.root / name).is_dir() and not self._is_needed(name)

    def _is_needed(self, name: str) -> bool:
        _, used_at = self._read_record(name)
        is_fresh = datetime.now(UTC) - used_at < self.grace
        return is_fresh or str(self.root / name) in self._in_use()

    def clear_leftovers(self, *, older_than: timedelta, dry_run: bool = False) -> Freed:
        """Delete staging folders that nobody has touched for that long; with ``dry_run`` only count them."""
        freed = Freed()
        for folder in self._below(".staging"):
            with try_lock(self._lock(folder.name)) as is_locked:
                age = datetime.now(UTC) - datetime.fromtimestamp(_last_write(folder), UTC)
                if is_locked and age >= older_than:
                    freed += Freed(items=1, size_bytes=size_of(folder))
                    if not dry_run:
                        remove_tree(folder)
        return freed

    # --- files ---

    def _lock(self, name: str) -> Path:
        return self.root / ".locks" / name

    def _record(self, name: str) -> Path:
        return self.root / ".records" / name

    def _write_record(self, name: str, size: int) -> None:
        path = self._record(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, json.dumps({"size": size}).encode())

    def _read_record(self, name: str) -> tuple[int, datetime]:
        path = self._record(name)
        try:
            size = int(json.loads(path.read_bytes())["size"])
            return size, datetime.fromtimestamp(path.stat().st_mtime, UTC)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            # Lost or torn: the entry itself is whole. It counts as never used, so that it leaves first.
            return size_of(self.root / name), datetime.fromtimestamp(0, UTC)

    def _below(self, folder: str) -> list[Path]:
        try:
            return [Path(each.path) for each in os.scandir(self.root / folder) if each.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []


def linked_below(folder: Path, pattern: str) -> frozenset[str]:
    """Where the links lead that match the pattern below a folder: what has a link to an entry, uses it."""
    found = set()
    for link in folder.glob(pattern):
        with contextlib.suppress(OSError):  # it went away, or is no link
            found.add(os.readlink(link))
    return frozenset(found)


def _last_write(tree: Path) -> float:
    times = [os.lstat(folder).st_ctime for folder, _, _ in os.walk(tree)]
    times += [os.lstat(os.path.join(folder, name)).st_ctime for folder, _, names in os.walk(tree) for name in names]
    return max(times, default=0.0)


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB // 100 else f"{size} bytes"
