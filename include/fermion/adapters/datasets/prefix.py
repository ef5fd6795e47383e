"""Datasets below ``s3://bucket/prefix``."""

from __future__ import annotations

import urllib.parse
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from fermion.adapters.datasets.index import ScanIndex, Signature
from fermion.adapters.datasets.origin import difference, field_of, refused
from fermion.adapters.files.trees import in_parallel
from fermion.adapters.s3.client import S3Store, Stored
from fermion.adapters.s3.download import Download, Wanted, hash_object
from fermion.domain.artifacts import DatasetVersion, FileEntry, tree_checksum
from fermion.domain.problems import Problem
from fermion.errors import NotFound, OutsideBroken, RequestRefused


class Prefixes:
    """An ``Origin`` for ``s3://bucket/prefix`` URIs of one store.

    ``allowed`` are the buckets, or ``bucket/prefix``, that datasets may lie in; None allows all that the store's
    credentials can read.
    """

    def __init__(self, store: S3Store, *, allowed: Collection[str] | None = None, index: Path | None = None) -> None:
        self._store = store
        self._allowed = None if allowed is None else tuple(sorted(f"{each.strip('/')}/" for each in allowed))
        self._index = ScanIndex(index)

    def scan(self, dataset: str, uri: str, *, now: datetime) -> DatasetVersion:
        """See ``ports.DatasetSource``. Objects whose ETag and size are as they were are not read again.

        Raises:
            RequestRefused: the bucket is not allowed or does not exist, nothing is there, or keys that can be no files.
            OutsideUnavailable: the store does not answer.
        """
        bucket, listed = self._listed(dataset, uri)
        known = self._index.recall(uri)

        def entry(path: str) -> FileEntry:
            stored = listed[path]
            signature, sha256 = known.get(path, ((), ""))
            if signature != _signature(stored):
                sha256 = hash_object(self._store, bucket, stored) or ""
            return FileEntry(path=path, size=stored.size, sha256=sha256)

        entries = in_parallel(entry, sorted(listed), workers=self._store.workers)
        if moving := [entry.path for entry in entries if not entry.sha256]:
            message = (
                f"dataset '{dataset}' at {uri} was changed while it was read ({', '.join(moving[:10])}). Call again."
            )
            raise OutsideBroken(message, what=dataset)
        self._index.remember(uri, {each.path: (_signature(listed[each.path]), each.sha256) for each in entries})
        return DatasetVersion(dataset=dataset, uri=uri, checksum=tree_checksum(entries), files=entries, created_at=now)

    def fetch(self, version: DatasetVersion, wanted: Sequence[FileEntry], *, tree: Path, parts: Path) -> Sequence[str]:
        """See ``Origin.fetch``. Ranges that an earlier call wrote are not fetched again."""
        bucket, listed = self._listed(version.dataset, version.uri)
        there = [(entry, listed[entry.path]) for entry in wanted if entry.path in listed]
        sentences = [f"{entry.path} is gone" for entry in wanted if entry.path not in listed]
        fitting = [(entry, stored) for entry, stored in there if stored.size == entry.size]
        sized = (difference(entry, size=stored.size, sha256=entry.sha256) for entry, stored in there)
        sentences += [sentence for sentence in sized if sentence]
        files = [Wanted(stored=stored, sha256=entry.sha256, target=tree / entry.path) for entry, stored in fitting]
        others = Download(self._store, bucket=bucket, parts=parts).run(files)
        sentences += [f"{each.target.relative_to(tree)} has other content than the version" for each in others]
        return tuple(sentences)

    def _listed(self, dataset: str, uri: str) -> tuple[str, dict[str, Stored]]:
        """The bucket, and the objects by their paths below the prefix."""
        bucket, prefix = self._place(dataset, uri)
        try:
            objects = list(self._store.objects(bucket, prefix))
        except NotFound as error:
            raise refused(dataset, "not_found", error.message, "Correct the bucket's name.") from error
        # Consoles make an empty object for each folder they show.
        paths = {each.key[len(prefix) :]: each for each in objects if not (each.key.endswith("/") and each.size == 0)}
        if problems := _problems_of(dataset, uri, paths):
            raise RequestRefused(problems, what=f"dataset '{dataset}'")
        return bucket, paths

    def _place(self, dataset: str, uri: str) -> tuple[str, str]:
        parts = urllib.parse.urlsplit(uri)
        if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or ":" in parts.netloc or parts.query:
            raise refused(dataset, "bad_uri", f"{uri!r} is not the URI of a prefix.", "Write s3://bucket/prefix.")
        path = parts.path.strip("/")
        place = f"{parts.netloc}/{path}/" if path else f"{parts.netloc}/"
        if self._allowed is not None and not place.startswith(self._allowed):
            allowed = ", ".join(f"s3://{each}" for each in self._allowed) or "none"
            fix = f"Add its bucket or prefix to data.roots in config/fermion.yaml (s3:// now: {allowed})."
            raise refused(dataset, "outside_roots", f"{uri} is outside the allowed buckets.", fix)
        return parts.netloc, f"{path}/" if path else ""


def _signature(stored: Stored) -> Signature:
    return (stored.size, stored.etag)


def _problems_of(dataset: str, uri: str, paths: Collection[str]) -> list[Problem]:
    make = partial(Problem, field=field_of(dataset))
    if not paths:
        return [make(code="empty", message=f"{uri} holds no object.", fix="Put the files there, or correct the URI.")]
    fix = "Rename the object: every key becomes a file."
    found = [
        make(code="bad_name", message=f"the key {path!r} below {uri} cannot be a file's path.", fix=fix)
        for path in paths
        if not path.isprintable() or {"", ".", ".."} & set(path.split("/"))
    ]
    folders = Counter("/".join(path.split("/")[:depth]) for path in paths for depth in range(1, path.count("/") + 1))
    found += [
        make(code="file_and_folder", message=f"the key {path!r} below {uri} is also the prefix of others.", fix=fix)
        for path in paths
        if path in folders
    ]
    return found
