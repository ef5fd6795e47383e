"""Datasets in local folders, below allowed roots only."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from fermion.adapters.datasets.index import ScanIndex, Signature
from fermion.adapters.datasets.origin import difference, field_of, refused
from fermion.adapters.files.trees import Found, Tree, copy, digest, in_parallel, look
from fermion.domain.artifacts import DatasetVersion, FileEntry, tree_checksum
from fermion.domain.problems import Problem
from fermion.errors import RequestRefused

_SETTLED = timedelta(seconds=2)
"""A file changed later than this before the scan is read again next time: a second write may carry the same times."""


class Folders:
    """An ``Origin`` for ``file:///…`` URIs and absolute paths that lie below one of ``allowed_roots``."""

    def __init__(self, allowed_roots: Sequence[Path], *, index: Path | None = None) -> None:
        self._roots = tuple(root.absolute() for root in allowed_roots)
        self._index = ScanIndex(index)

    def scan(self, dataset: str, uri: str, *, now: datetime) -> DatasetVersion:
        """See ``ports.DatasetSource``.

        Raises:
            RequestRefused: outside the allowed roots, no folder, empty, or a file that cannot be part of a dataset.
        """
        tree = self._tree(dataset, uri)
        entries = self._digest(uri, tree)
        return DatasetVersion(dataset=dataset, uri=uri, checksum=tree_checksum(entries), files=entries, created_at=now)

    def fetch(self, version: DatasetVersion, wanted: Sequence[FileEntry], *, tree: Path, parts: Path) -> Sequence[str]:
        """See ``Origin.fetch``. Local copies are made anew, so ``parts`` is not used."""
        there = {found.path: found for found in self._tree(version.dataset, version.uri).files}
        sentences = in_parallel(partial(_fetch_one, there, tree), wanted)
        return tuple(sentence for sentence in sentences if sentence)

    def _tree(self, dataset: str, uri: str) -> Tree:
        folder = self._folder(dataset, uri)
        tree = look(folder, field=field_of(dataset))
        problems = list(tree.problems)
        if not tree.files and not problems:
            message = f"the dataset '{dataset}' has no file in {folder}."
            problems.append(_problem(dataset, "empty", message, "Put its files there, or correct the URI."))
        if problems:
            raise RequestRefused(problems, what=f"dataset '{dataset}'")
        return tree

    def _folder(self, dataset: str, uri: str) -> Path:
        path = _path_of(dataset, uri)
        if "\0" in str(path) or not path.is_absolute():
            fix = "Write an absolute path, or file:///absolute/path."
            raise refused(dataset, "not_absolute", f"{uri!r} is not an absolute path.", fix)
        real = path.resolve()
        # The roots come first: whether something outside them exists is nobody's business.
        if not any(real.is_relative_to(root.resolve()) for root in self._roots):
            roots = ", ".join(map(str, self._roots)) or "none"
            fix = f"Add a folder that holds it to data.roots in config/fermion.yaml (folders now: {roots})."
            raise refused(dataset, "outside_roots", f"{uri} is outside the allowed dataset folders.", fix)
        if not real.is_dir():
            raise refused(dataset, "not_found", f"{uri} is not a folder.", "Correct the URI, or make the folder.")
        return real

    def _digest(self, uri: str, tree: Tree) -> tuple[FileEntry, ...]:
        known = self._index.recall(uri)
        settled_ns = time.time_ns() - int(_SETTLED.total_seconds() * 1e9)

        def entry(found: Found) -> FileEntry:
            signature, sha256 = known.get(found.path, ((), ""))
            if signature == _signature(found):
                return FileEntry(path=found.path, size=found.size, sha256=sha256)
            return digest(found)

        entries = in_parallel(entry, tree.files)
        pairs = zip(tree.files, entries, strict=True)
        settled = ((f, e) for f, e in pairs if max(f.ctime_ns, f.mtime_ns) < settled_ns)
        self._index.remember(uri, {f.path: (_signature(f), e.sha256) for f, e in settled})
        return entries


def _path_of(dataset: str, uri: str) -> Path:
    if "://" not in uri:
        return Path(uri)
    parts = urllib.parse.urlsplit(uri)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        message = f"{uri!r} names another host or has a query."
        raise refused(dataset, "bad_uri", message, "Write file:///absolute/path.")
    return Path(urllib.parse.unquote(parts.path))


def _problem(dataset: str, code: str, message: str, fix: str) -> Problem:
    return Problem(field=field_of(dataset), code=code, message=message, fix=fix)


def _signature(found: Found) -> Signature:
    return (found.size, found.mtime_ns, found.ctime_ns, found.inode)


def _fetch_one(there: dict[str, Found], tree: Path, entry: FileEntry) -> str | None:
    found = there.get(entry.path)
    if found is None:
        return f"{entry.path} is gone"
    if found.size != entry.size:
        return difference(entry, size=found.size, sha256="")
    copied = copy(found, tree / entry.path)
    return difference(entry, size=copied.size, sha256=copied.sha256)
