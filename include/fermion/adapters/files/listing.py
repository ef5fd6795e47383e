"""What lies in a placed tree, compared with what was placed there: one walk, one look at each entry, no file is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where a placed tree is not what was placed, as relative paths. An extra folder stands for all that is in it."""

    extra: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.extra or self.changed or self.missing)

    def __str__(self) -> str:
        parts = (("not part of it", self.extra), ("changed", self.changed), ("missing", self.missing))
        return "; ".join(f"{len(paths)} {what} ({_some(paths)})" for what, paths in parts if paths)


def compare(
    placed: Path,
    paths: Collection[str],
    is_untouched: Callable[[str, os.stat_result], bool],
    *,
    folders: Collection[str] = (),
) -> Difference:
    """How the tree differs from files and links at exactly those paths, in the folders that they need and in ``folders``.

    ``is_untouched`` judges a path by a look at its inode, which follows no link. What is not there by its kind, a link where a
    folder was placed or a folder that cannot be listed, is extra, and all that was placed in it is missing.
    """
    allowed = {*folders, *_folders_of([*paths, *folders])}
    missing = set(paths)
    extra: list[str] = []
    changed: list[str] = []
    for path, entry in _walk(placed, allowed, extra):
        if path not in missing:
            extra.append(path)
            continue
        missing.discard(path)
        if not is_untouched(path, entry.stat(follow_symlinks=False)):
            changed.append(path)
    return Difference(extra=tuple(sorted(extra)), changed=tuple(sorted(changed)), missing=tuple(sorted(missing)))


def _walk(placed: Path, allowed: Collection[str], extra: list[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All that is no folder; a folder that has no business there joins ``extra`` and is not entered."""
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(placed / prefix) as found:
                entries = list(found)
        except OSError:
            if not prefix:
                raise
            extra.append(prefix)
            continue
        for entry in entries:
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            if not entry.is_dir(follow_symlinks=False):
                yield path, entry
            elif path in allowed:
                waiting.append(path)
            else:
                extra.append(path)


def _folders_of(paths: Collection[str]) -> set[str]:
    folders: set[str] = set()
    for path in paths:
        above = path.rpartition("/")[0]
        while above and above not in folders:
            folders.add(above)
            above = above.rpartition("/")[0]
    return folders


def _some(paths: Collection[str]) -> str:
    shown = ", ".join(repr(path) for path in list(paths)[:_SHOWN])
    return shown if len(paths) <= _SHOWN else f"{shown} and {len(paths) - _SHOWN} more"
