"""Training code: what a ref means, and read-only checkouts shared by all jobs of a commit.

<root>/git/<repository>.git/       the mirror (``<repository>`` is a hash of the URL)
<root>/code/<repository>/<commit>/ the checkout, without .git
"""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from fermion.adapters.files.listing import Difference, compare
from fermion.adapters.files.placing import PLACED_AT, is_full, mend, remove_tree, size_of
from fermion.adapters.files.shelf import Filling, Shelf
from fermion.adapters.git import refs
from fermion.adapters.git.mirror import (
    LINK,
    REGULAR,
    SUBMODULE,
    Limits,
    Mirror,
    Node,
    discard,
    has_fetched,
    last_used,
    mark_used,
)
from fermion.adapters.git.remotes import FIELD, Remote, Rules, parse, shown
from fermion.adapters.git.runner import Credentials, Runner, Ssh
from fermion.domain.jobs import Pins
from fermion.domain.problems import Problem
from fermion.domain.retention import Freed
from fermion.errors import OutsideUnavailable, RequestRefused

_log = logging.getLogger(__name__)

_FRESH = timedelta(hours=1)
"""What was used within this may be about to be used again: a check and a checkout take less."""

_LEFTOVERS = timedelta(days=1)

_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
_LFS_POINTER_MAX = 1024
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A checkout or a mirror, and how it is deleted (False: somebody uses it)."""

    size: int
    used_at: datetime
    is_needed: bool
    evict: Callable[[], bool]


class Repositories:
    """Keeps ``ports.Code`` below ``root`` (usually ``<location root>/cache``).

    ``credentials`` is asked for each host at each contact; nothing of it is kept. ``size_limit`` is what ``tidy`` leaves of
    mirrors and checkouts together, in bytes (None: no limit).
    """

    def __init__(
        self,
        root: Path,
        *,
        rules: Rules,
        credentials: Credentials = lambda host: None,
        ssh: Ssh | None = None,
        limits: Limits | None = None,
        size_limit: int | None = None,
    ) -> None:
        self._root = root.absolute()
        self._rules = rules
        self._credentials = credentials
        self._ssh = ssh or Ssh()
        self._limits = limits or Limits()
        self._size_limit = size_limit

    # --- ports.Code ---

    def resolve(self, repository: str, ref: str) -> str:
        """See ``ports.Code``. A branch or tag comes before a commit of the same spelling, as in git.

        Raises:
            RequestRefused: all problems of the URL and the ref; or no such ref, or one with several meanings.
        """
        remote = parse(repository, self._rules)
        problems = refs.problems_of(ref)
        if isinstance(remote, list):
            raise RequestRefused([*remote, *problems], what="code")
        if problems:
            raise RequestRefused(problems, what="code")
        mirror = self._mirror(remote)
        if refs.is_commit(ref):
            return self._whole_commit(mirror, remote, ref)
        meanings = mirror.advertised(ref, f"refs/heads/{ref}", f"refs/tags/{ref}", f"refs/tags/{ref}^{{}}").commits_of(
            ref
        )
        if not meanings and refs.is_short_commit(ref):
            meanings = {commit: commit for commit in mirror.find_short(ref)}
        commits = set(meanings.values())
        if len(commits) == 1:
            return commits.pop()
        if commits:
            raise RequestRefused([refs.ambiguous(ref, meanings)], what="code")
        raise RequestRefused([refs.missing(ref, mirror.advertised().names(), shown(repository))], what="code")

    def checkout(self, repository: str, commit: str) -> str:
        """See ``ports.Code``: the path of a read-only folder without ``.git``.

        Raises:
            RequestRefused: the URL is not allowed, no such commit, a submodule or LFS file is needed, or a link leads out.
        """
        remote = self._remote(repository)
        mirror = self._fetched(remote, repository, commit)
        shelf = self._shelf(remote)
        nodes = mirror.tree(commit)
        if (path := shelf.find(commit)) is not None and not _difference(path, nodes):
            return str(path)
        with shelf.filling(commit) as filling:
            path = shelf.find(commit)
            if path is not None and not _difference(path, nodes):
                return str(path)
            try:
                return str(
                    _fill(shelf, filling, mirror, nodes) if path is None else _repair(path, filling, mirror, nodes)
                )
            except OSError as error:
                reason = "the disk is full" if is_full(error) else error.strerror
                message = f"commit {commit} cannot be checked out below {self._root}: {reason}. Call again."
                raise OutsideUnavailable(message, what=commit) from error

    def has_file(self, repository: str, commit: str, path: str) -> bool:
        """See ``ports.Code``. Links are followed while they stay inside the repository."""
        remote = self._remote(repository)
        mirror = self._fetched(remote, repository, commit)
        node = _follow(mirror, mirror.tree(commit), path)
        return node is not None and node.mode in REGULAR

    # --- keeping house ---

    def tidy(self, needed: Collection[Pins]) -> Freed:
        """See ``ports.Code``. A mirror that holds a needed commit stays too, and what was used within the last hour."""
        commits = {pins.commit for pins in needed if pins.commit}
        freed = sum((shelf.clear_leftovers(older_than=_LEFTOVERS) for shelf in self._shelves(_FRESH)), Freed())
        if self._size_limit is None:
            return freed
        kept = sorted([*self._checkouts(commits), *self._mirrors(commits)], key=lambda each: each.used_at)
        excess = sum(each.size for each in kept) - self._size_limit
        for each in kept:
            if excess > 0 and not each.is_needed and each.evict():
                excess -= each.size
                freed += Freed(items=1, size_bytes=each.size)
        return freed

    def _checkouts(self, commits: Collection[str]) -> Iterator[_Kept]:
        for shelf in self._shelves(_FRESH):
            for entry in shelf.entries():
                evict = partial(shelf.evict, entry.name)
                yield _Kept(size=entry.size, used_at=entry.used_at, is_needed=entry.name in commits, evict=evict)

    def _mirrors(self, commits: Collection[str]) -> Iterator[_Kept]:
        for folder in sorted((self._root / "git").glob("*.git*")):
            if folder.is_dir() and folder.suffix != ".new":
                used_at = last_used(folder)
                is_fresh = datetime.now(UTC) - used_at < _FRESH
                is_needed = is_fresh or any(has_fetched(folder, commit) for commit in commits)
                evict = partial(discard, folder)
                yield _Kept(size=size_of(folder), used_at=used_at, is_needed=is_needed, evict=evict)

    def _shelves(self, grace: timedelta) -> Iterator[Shelf]:
        if (self._root / "code").is_dir():
            for folder in sorted((self._root / "code").iterdir()):
                yield Shelf(folder, grace=grace, lock_timeout=self._limits.transfer)

    # --- parts ---

    def _remote(self, repository: str) -> Remote:
        remote = parse(repository, self._rules)
        if isinstance(remote, list):
            raise RequestRefused(remote, what="code")
        return remote

    def _mirror(self, remote: Remote) -> Mirror:
        runner = Runner(
            remote=remote,
            folder=self._root / "git" / f"{_hash(remote)}.git",
            settings=self._root / "git" / ".settings",
            credentials=self._credentials,
            ssh=self._ssh,
        )
        mark_used(runner.folder)
        return Mirror(runner, limits=self._limits)

    def _shelf(self, remote: Remote) -> Shelf:
        return Shelf(self._root / "code" / _hash(remote), lock_timeout=self._limits.transfer)

    def _fetched(self, remote: Remote, repository: str, commit: str) -> Mirror:
        mirror = self._mirror(remote)
        if not refs.is_commit(commit):
            raise RequestRefused([refs.missing(commit, [], shown(repository))], what="code")
        self._whole_commit(mirror, remote, commit)
        return mirror

    def _whole_commit(self, mirror: Mirror, remote: Remote, commit: str) -> str:
        found = mirror.peeled(commit) if mirror.fetch(commit) else None
        if found is None:
            raise RequestRefused([refs.missing(commit, mirror.advertised().names(), shown(remote.url))], what="code")
        return found


def _hash(remote: Remote) -> str:
    return hashlib.sha256(remote.url.encode()).hexdigest()[:16]


def _fill(shelf: Shelf, filling: Filling, mirror: Mirror, nodes: Mapping[str, Node]) -> Path:
    remove_tree(filling.folder)
    problems = _of_submodules(mirror, nodes)
    mirror.export(filling.name, filling.tree)
    problems += _of_links(filling.tree, nodes) + _of_lfs(mirror, filling.tree, nodes)
    if problems:
        remove_tree(filling.folder)
        raise RequestRefused(problems, what="code")
    return shelf.place(filling)


def _repair(present: Path, filling: Filling, mirror: Mirror, nodes: Mapping[str, Node]) -> Path:
    """The checkout, put right entry by entry, because jobs may be reading it."""
    remove_tree(filling.folder)
    difference = _difference(present, nodes)
    _log.warning("code in %s is not as it was checked out: %s. It is put right.", present, difference)
    replaced = [*difference.changed, *difference.missing]
    if replaced:
        mirror.export(filling.name, filling.tree)
    mend(present, filling.tree, replaced, extra=difference.extra)
    remove_tree(filling.folder)
    return present


def _difference(folder: Path, nodes: Mapping[str, Node]) -> Difference:
    """How a checkout differs from the commit that was placed there; a look at each inode, no reading."""
    files = {path: node for path, node in nodes.items() if node.mode != SUBMODULE}
    return compare(
        folder,
        files.keys(),
        lambda path, seen: _is_untouched(seen, files[path]),
        folders=nodes.keys() - files.keys(),  # a submodule that is not fetched is an empty folder
    )


def _is_untouched(seen: os.stat_result, node: Node) -> bool:
    is_kind = stat.S_ISLNK if node.mode == LINK else stat.S_ISREG
    return is_kind(seen.st_mode) and int(seen.st_mtime) == PLACED_AT


def _follow(mirror: Mirror, nodes: Mapping[str, Node], path: str) -> Node | None:
    """The entry at a path after following links, None where there is none or it lies outside."""
    waiting = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or not waiting:
        return None
    at: list[str] = []
    links = 0
    while waiting:
        part = waiting.pop(0)
        if part == "..":
            above = "/".join(at)
            if not at or not any(each.startswith(f"{above}/") for each in nodes):
                return None
            at.pop()
            continue
        at.append(part)
        node = nodes.get("/".join(at))
        if node is None or node.mode != LINK:
            continue
        target = mirror.read(node)
        links += 1
        if links > _MAX_LINKS or target.startswith("/"):
            return None
        at.pop()
        waiting = [each for each in target.split("/") if each not in ("", ".")] + waiting
    return nodes.get("/".join(at))


def _of_submodules(mirror: Mirror, nodes: Mapping[str, Node]) -> list[Problem]:
    paths = [path for path, node in nodes.items() if node.mode == SUBMODULE]
    if not paths:
        return []
    unneeded = _not_updated(mirror, nodes)
    return [
        _problem(
            "submodule",
            f"{path} is a submodule, and submodules are not fetched.",
            "Copy its files into the repository, install it in the image, or set 'update = none' for it in .gitmodules.",
        )
        for path in paths
        if path not in unneeded
    ]


def _not_updated(mirror: Mirror, nodes: Mapping[str, Node]) -> set[str]:
    """Paths of submodules that the repository itself says are not to be checked out (``update = none``)."""
    if (node := nodes.get(".gitmodules")) is None or node.mode not in REGULAR:
        return set()
    values = dict(mirror.config(node))
    none = (key.removesuffix(".update") for key, value in values.items() if key.endswith(".update") and value == "none")
    return {posixpath.normpath(values[f"{name}.path"]) for name in none if f"{name}.path" in values}


def _of_lfs(mirror: Mirror, tree: Path, nodes: Mapping[str, Node]) -> list[Problem]:
    pointers = [path for path, node in nodes.items() if node.mode in REGULAR and _is_pointer(tree / path)]
    if not pointers:
        return []
    excluded = _fetch_excluded(mirror, nodes)
    return [
        _problem(
            "lfs",
            f"{path} is a Git LFS pointer; its content is not in the repository.",
            "Put the file into a dataset, commit it itself, or list it in lfs.fetchexclude of .lfsconfig if it is not needed.",
        )
        for path in pointers
        if not any(fnmatchcase(path, pattern) or path.startswith(f"{pattern}/") for pattern in excluded)
    ]


def _fetch_excluded(mirror: Mirror, nodes: Mapping[str, Node]) -> list[str]:
    if (node := nodes.get(".lfsconfig")) is None or node.mode not in REGULAR:
        return []
    listed = [value for key, value in mirror.config(node) if key == "lfs.fetchexclude"]
    patterns = (each.strip().strip("/") for value in listed for each in value.split(","))
    return [pattern for pattern in patterns if pattern]


def _is_pointer(path: Path) -> bool:
    if path.lstat().st_size > _LFS_POINTER_MAX:
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def _of_links(tree: Path, nodes: Mapping[str, Node]) -> list[Problem]:
    root = Path(os.path.realpath(tree))
    return [
        _problem(
            "link_leaves",
            f"{path} is a link to {os.readlink(tree / path)!r}, which is outside the repository.",
            "Replace the link by a copy of what it points to.",
        )
        for path, node in nodes.items()
        if node.mode == LINK and not Path(os.path.realpath(tree / path)).is_relative_to(root)
    ]


def _problem(code: str, message: str, fix: str) -> Problem:
    return Problem(field=FIELD, code=code, message=message, fix=fix)
