"""The cache of staged datasets on one machine: read-only folders named by checksum, shared by all jobs."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

from fermion.adapters.datasets.origin import Origin, field_of
from fermion.adapters.files.listing import Difference, compare
from fermion.adapters.files.placing import PLACED_AT, is_full, mend, open_folders, remove_tree
from fermion.adapters.files.shelf import Filling, Shelf
from fermion.adapters.files.trees import hash_file, in_parallel
from fermion.domain.artifacts import DatasetVersion, FileEntry, tree_checksum
from fermion.domain.jobs import Pins
from fermion.domain.problems import Problem
from fermion.domain.retention import Freed
from fermion.errors import OutsideBroken, OutsideUnavailable

_log = logging.getLogger(__name__)

LEFTOVERS = timedelta(days=1)
"""Staging that nobody went on with for so long is given up; before that the next call continues it."""

_SHOWN = 10


class DatasetCache:
    """Keeps ``ports.Datasets`` on a ``Shelf`` (usually ``<location root>/cache/datasets``), reading from ``origin``.

    ``kind`` is what messages call what is staged, ``instead`` what they advise where its content is gone.
    """

    def __init__(
        self,
        shelf: Shelf,
        origin: Origin,
        *,
        kind: str = "dataset",
        instead: str = "submit again to train on what is there now",
    ) -> None:
        self._shelf = shelf
        self._origin = origin
        self._kind = kind
        self._instead = instead

    def stage(self, version: DatasetVersion) -> str:
        """See ``ports.Datasets``: the path of a read-only folder, put right when somebody changed it since.

        Raises:
            OutsideBroken: the source's content is not that version any more.
            OutsideUnavailable: the source does not answer, or there is no room now.
            DriverCannot: the dataset is bigger than the whole cache may be.
        """
        _check(version, self._kind)
        name = entry_name(version.checksum)
        if (path := self._intact(name, version)) is not None:
            return str(path)
        with self._shelf.filling(name) as filling:
            if (path := self._intact(name, version)) is not None:
                return str(path)
            try:
                return str(self._fill(filling, version))
            except OSError as error:
                reason = "the disk is full" if is_full(error) else error.strerror
                message = f"{self._kind} '{version.dataset}' cannot be staged below {self._shelf.root}: {reason}."
                raise OutsideUnavailable(f"{message} Nothing half is visible; call again.", what=name) from error

    def never_fits(self, version: DatasetVersion) -> Sequence[Problem]:
        """See ``ports.Datasets``."""
        never = self._shelf.never_fits(version.size_bytes, what=f"dataset '{version.dataset}'")
        fix = "Ask for less data, or have the limit raised (caches.datasets_gib)."
        return [Problem(field=field_of(version.dataset), code="over_cache", message=never, fix=fix)] if never else []

    def tidy(self, needed: Collection[Pins]) -> Freed:
        """See ``ports.Datasets``."""
        keep = {entry_name(checksum) for pins in needed for checksum in pins.datasets.values()}
        return self._shelf.tidy(keep=keep, leftovers_after=LEFTOVERS)

    def _intact(self, name: str, version: DatasetVersion) -> Path | None:
        path = self._shelf.find(name)
        return path if path is not None and not _difference(path, version.files) else None

    def _fill(self, filling: Filling, version: DatasetVersion) -> Path:
        present = self._shelf.find(filling.name)
        if present is not None:
            return self._repair(filling, present, version)
        _keep_only(filling, version)
        wanted = [entry for entry in version.files if not (filling.tree / entry.path).is_file()]
        self._shelf.make_room(sum(entry.size for entry in wanted), what=f"{self._kind} '{version.dataset}'")
        self._fetch(filling, version, wanted)
        return self._shelf.place(filling)

    def _repair(self, filling: Filling, present: Path, version: DatasetVersion) -> Path:
        # Jobs may be reading: each bad file is replaced by one rename, never the folder.
        difference = _difference(present, version.files)
        listed = {entry.path: entry for entry in version.files}
        whole = {path for path in difference.changed if _has_content(present, listed[path])}
        damaged = [listed[path] for path in (*difference.changed, *difference.missing) if path not in whole]
        _log.warning(
            "%s %r is not in %s as it was staged: %s. It is put right.",
            self._kind,
            version.dataset,
            present,
            difference,
        )
        if damaged:
            self._fetch(filling, version, damaged)
        mend(present, filling.tree, [entry.path for entry in damaged], resealed=whole, extra=difference.extra)
        remove_tree(filling.folder)
        return present

    def _fetch(self, filling: Filling, version: DatasetVersion, wanted: Sequence[FileEntry]) -> None:
        filling.tree.mkdir(parents=True, exist_ok=True)
        if not (differing := self._origin.fetch(version, wanted, tree=filling.tree, parts=filling.folder / "parts")):
            return
        remove_tree(filling.folder)
        shown = "; ".join(sorted(differing)[:_SHOWN])
        more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise OutsideBroken(
            f"{self._kind} '{version.dataset}' at {version.uri} is not version {version.checksum} any more: {shown}{more}. "
            f"Restore the files, or {self._instead}.",
            what=version.dataset,
        )


def entry_name(checksum: str) -> str:
    """The folder's name of a checksum; without a colon, which cannot stand in a container's volume."""
    return checksum.replace(":", "-")


def _check(version: DatasetVersion, kind: str) -> None:
    if tree_checksum(version.files) != version.checksum:
        message = f"{kind} '{version.dataset}' version {version.checksum} was given without its files, or with others"
        raise OutsideBroken(f"{message} ({len(version.files)}); scan it again.", what=version.dataset)
    for entry in version.files:
        parts = entry.path.split("/")
        if not parts[-1] or entry.path.startswith("/") or ".." in parts:
            message = f"{kind} '{version.dataset}' lists {entry.path!r}, which would leave the cache; scan it again."
            raise OutsideBroken(message, what=version.dataset)


def _difference(folder: Path, files: Sequence[FileEntry]) -> Difference:
    """How a staged folder differs from what was placed there; a look at each inode, no reading."""
    sizes = {entry.path: entry.size for entry in files}
    return compare(folder, sizes.keys(), lambda path, seen: _is_untouched(seen, sizes[path]))


def _is_untouched(seen: os.stat_result, size: int) -> bool:
    return stat.S_ISREG(seen.st_mode) and seen.st_size == size and int(seen.st_mtime) == PLACED_AT


def _has_content(folder: Path, entry: FileEntry) -> bool:
    path = folder / entry.path
    return path.is_file() and not path.is_symlink() and hash_file(path) == entry.sha256


def _keep_only(filling: Filling, version: DatasetVersion) -> None:
    """Of what an earlier filler left, keep only files that are the version's."""
    if not filling.tree.is_dir():
        return
    open_folders(filling.tree)
    listed = {entry.path: entry for entry in version.files}
    left = compare(filling.tree, listed.keys(), lambda path, seen: False)
    for path in left.extra:
        remove_tree(filling.tree / path)
    found = [listed[path] for path in left.changed]
    for entry, good in zip(found, in_parallel(partial(_has_content, filling.tree), found), strict=True):
        if not good:
            (filling.tree / entry.path).unlink()
