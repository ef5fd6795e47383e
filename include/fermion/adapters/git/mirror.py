"""A bare local mirror of one repository, holding the commits that were asked for and, where the server can, no file
contents until they are checked out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fermion.adapters.files.locks import lock, try_lock
from fermion.adapters.files.placing import remove_tree
from fermion.adapters.git.refs import Advertised
from fermion.adapters.git.runner import GitFailed, Runner, quoted, translated

LINK, SUBMODULE = "120000", "160000"
REGULAR = frozenset({"100644", "100755", "100664"})

_REFS = "refs/fermion"
_ABSENT = (
    "not our ref",
    "unadvertised object",
    "find remote ref",
    "no such remote ref",
    "not a valid object",
    "bad object",
    "upload-pack: not",
)

# What `git init --bare` would write, and that objects left out by the filter may be fetched later.
_CONFIGURATION = """[core]
repositoryformatversion = 1
bare = true
[extensions]
partialClone = origin
[remote "origin"]
url = {url}
promisor = true
partialclonefilter = blob:none
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long git may take: ``answer`` for questions, ``transfer`` for fetches and checkouts."""

    answer: timedelta = timedelta(seconds=30)
    transfer: timedelta = timedelta(minutes=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One entry of a commit's tree: git's mode and object name."""

    mode: str
    name: str


class Mirror:
    """The mirror in ``runner.folder``; every call that writes holds its lock, also while an orphaned git still runs."""

    def __init__(self, runner: Runner, *, limits: Limits) -> None:
        self._runner = runner
        self._limits = limits

    # --- asking the server ---

    def advertised(self, *patterns: str) -> Advertised:
        """The server's refs now, only those that match one of the patterns if any are given."""
        self._prepare()
        url = self._runner.remote.url
        output = self._ask("ls-remote", "--", url, *patterns, timeout=self._limits.answer)
        return Advertised.from_listing(output.decode(errors="replace"))

    def fetch(self, commit: str) -> bool:
        """Have the commit and its trees here; False when the server has no such commit."""
        if self.has(commit):
            return True
        with self._writing() as descriptor:
            if self.has(commit):
                return True
            if not self._fetch_exactly(commit, descriptor) and not self._fetch_around(commit, descriptor):
                return False
        return self.has(commit)

    def _fetch_exactly(self, commit: str, descriptor: int) -> bool:
        return self._fetch(f"+{commit}:{_REFS}/{commit}", descriptor, "--depth=1", "--filter=blob:none")

    def _fetch_around(self, commit: str, descriptor: int) -> bool:
        """For servers that give only what a ref points to: everything, then look."""
        if not self._fetch("+refs/*:refs/remotes/all/*", descriptor, "--filter=blob:none"):
            return False
        try:
            self._local("update-ref", f"{_REFS}/{commit}", commit)
        except GitFailed:
            return False
        return True

    def _fetch(self, refspec: str, descriptor: int, *options: str) -> bool:
        fixed = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-maintenance")
        try:
            self._runner.run(
                "fetch", *fixed, *options, "origin", refspec,
                timeout=self._limits.transfer, keep_open=(descriptor,), with_credentials=True,
            )  # fmt: skip
        except GitFailed as error:
            if any(words in error.said for words in _ABSENT):
                return False
            raise translated(error, self._runner.remote) from error
        return True

    def find_short(self, short: str) -> set[str]:
        """Commits of any branch or tag whose names begin so. Fetches the commits (no files) of the whole history."""
        folder = self._runner.folder
        history = Mirror(replace(self._runner, folder=folder.with_name(f"{folder.name}.history")), limits=self._limits)
        with history._writing() as descriptor:
            history._fetch("+refs/heads/*:refs/heads/*", descriptor, "--filter=tree:0", "--prune")
            history._fetch("+refs/tags/*:refs/tags/*", descriptor, "--filter=tree:0", "--prune")
        listed = history._local("rev-list", "--all").decode().split()
        return {commit for commit in listed if commit.startswith(short)}

    # --- reading what is here ---

    def has(self, commit: str) -> bool:
        """Whether the commit was fetched."""
        try:
            self._local("rev-parse", "--verify", "--quiet", f"{_REFS}/{commit}")
        except (GitFailed, FileNotFoundError):
            return False
        return True

    def peeled(self, commit: str) -> str | None:
        """The commit that a fetched object is or, as a tag, points to; None when it is neither."""
        try:
            return self._local("rev-parse", "--verify", "--quiet", f"{_REFS}/{commit}^{{commit}}").decode().strip()
        except GitFailed:
            return None

    def tree(self, commit: str) -> Mapping[str, Node]:
        """Every file, link and submodule of a fetched commit by its path."""
        listing = self._ask("ls-tree", "-r", "-z", "--full-tree", commit, timeout=self._limits.answer)
        nodes = {}
        for line in listing.decode(errors="surrogateescape").split("\0"):
            if line:
                kind, _, path = line.partition("\t")
                mode, _, name = kind.split(" ")
                nodes[path] = Node(mode=mode, name=name)
        return nodes

    def read(self, node: Node) -> str:
        """A small file's content as text; fetched if it is not here yet."""
        return self._ask("cat-file", "blob", node.name, timeout=self._limits.answer).decode(errors="surrogateescape")

    def config(self, node: Node) -> list[tuple[str, str]]:
        """The keys and values of a file in git's configuration format."""
        listed = self._ask("config", f"--blob={node.name}", "--list", "-z", timeout=self._limits.answer)
        pairs = (each.partition("\n") for each in listed.decode(errors="replace").split("\0") if each)
        return [(key, value) for key, _, value in pairs]

    def export(self, commit: str, into: Path) -> None:
        """Write the commit's files below ``into``, fetching contents that are not here in one go."""
        into.mkdir(parents=True, exist_ok=True)
        index = into.with_name(f"{into.name}.index")
        index.unlink(missing_ok=True)
        with self._writing() as descriptor:
            try:
                self._runner.run(
                    "read-tree", "--reset", "-u", commit,
                    timeout=self._limits.transfer, work_tree=into, index=index,
                    keep_open=(descriptor,), with_credentials=True,
                )  # fmt: skip
            except GitFailed as error:
                raise translated(error, self._runner.remote) from error
        index.unlink(missing_ok=True)

    # --- running git ---

    @contextmanager
    def _writing(self) -> Iterator[int]:
        self._prepare()
        path = _lock_of(self._runner.folder)
        what = f"fetching {self._runner.remote.host or 'a local repository'}"
        with lock(path, timeout=self._limits.transfer, what=what) as descriptor:
            # Nobody else writes here, so what a killed git left locked is free.
            for stale in self._runner.folder.glob("*.lock"):
                stale.unlink(missing_ok=True)
            for stale in (self._runner.folder / _REFS).glob("*.lock"):
                stale.unlink(missing_ok=True)
            yield descriptor

    def _prepare(self) -> None:
        self._runner.prepare()
        folder = self._runner.folder
        if (folder / "config").is_file():
            return
        with lock(_lock_of(folder), timeout=self._limits.transfer, what="making a mirror"):
            if not (folder / "config").is_file():
                self._make(folder)

    def _make(self, folder: Path) -> None:
        draft = _draft_of(folder)
        remove_tree(draft)
        for each in ("objects/info", "objects/pack", "refs/heads"):
            (draft / each).mkdir(parents=True)
        (draft / "HEAD").write_text("ref: refs/heads/main\n")
        (draft / "config").write_text(_CONFIGURATION.format(url=quoted(self._runner.remote.url)))
        draft.rename(folder)

    def _ask(self, *arguments: str, timeout: timedelta) -> bytes:
        try:
            return self._runner.run(*arguments, timeout=timeout, with_credentials=True)
        except GitFailed as error:
            raise translated(error, self._runner.remote) from error

    def _local(self, *arguments: str) -> bytes:
        return self._runner.run(*arguments, timeout=self._limits.answer)


# --- keeping house with mirrors ---


def mark_used(folder: Path) -> None:
    """The mirror is used now; the time is kept on its lock's file."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(_lock_of(folder))


def last_used(folder: Path) -> datetime:
    """When the mirror was last used; long ago where nobody knows."""
    try:
        return datetime.fromtimestamp(_lock_of(folder).stat().st_mtime, UTC)
    except FileNotFoundError:
        return datetime.fromtimestamp(0, UTC)


def has_fetched(folder: Path, commit: str) -> bool:
    """Whether the mirror holds that commit."""
    return (folder / _REFS / commit).is_file()


def discard(folder: Path) -> bool:
    """Delete the mirror; False while somebody writes in it."""
    with try_lock(_lock_of(folder)) as is_free:
        if is_free:
            gone = _draft_of(folder)
            remove_tree(gone)
            folder.rename(gone)
            remove_tree(gone)
        return is_free


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _draft_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.new")
