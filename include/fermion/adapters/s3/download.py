"""Downloading objects: ranges by several threads, continued where an earlier try ended, each file verified whole.

A file that is under way is two files in a folder for parts: its bytes so far, at their places, and a journal with one
line for each range that is written. Only the objects that the caller listed are read: every request names their ETag.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fermion.adapters.files.trees import BUFFER, hash_file
from fermion.adapters.s3.client import S3Store, Stored, status_of, translated
from fermion.errors import NotFound, OutsideUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One object and where it goes. ``sha256`` is what its content has to have."""

    stored: Stored
    sha256: str
    target: Path


class _Changed(Exception):
    """The object is not the listed one any more."""


class _Progress:
    """One file under way: which ranges are written, and when the last one was."""

    def __init__(self, wanted: Wanted, parts: Path, part_size: int) -> None:
        self.wanted = wanted
        self.part = _part(parts, wanted)
        self.journal = self.part.with_suffix(".done")
        self.part_size = part_size
        self._lock = threading.Lock()
        self._header = f"{wanted.stored.etag} {wanted.stored.size} {part_size}"
        self.missing = self._begin()

    def _begin(self) -> set[int]:
        """The offsets of the ranges that are still to fetch."""
        size = self.wanted.stored.size
        offsets = set(range(0, size, self.part_size))
        with contextlib.suppress(OSError, ValueError):
            header, *done = self.journal.read_text().splitlines()
            if header == self._header and self.part.stat().st_size == size:
                return offsets - {int(line) for line in done}
        with self.part.open("wb") as file:
            file.truncate(size)
        self.journal.write_text(f"{self._header}\n")
        return offsets

    def note(self, offset: int) -> bool:
        """Remember that the range at ``offset`` is written; whether it was the last one."""
        with self._lock, self.journal.open("a") as file:
            file.write(f"{offset}\n")
            self.missing.discard(offset)
            return not self.missing


class Download:
    """Objects of one bucket on their way to a local folder; ``parts`` keeps what a later try goes on from."""

    def __init__(self, store: S3Store, *, bucket: str, parts: Path) -> None:
        self._store = store
        self._bucket = bucket
        self._parts = parts
        self._stopped = threading.Event()

    def run(self, files: Sequence[Wanted]) -> list[Wanted]:
        """Fetch, verify and place each file durably; those that are not what was listed, or have other content.

        Raises:
            OutsideUnavailable: the store does not answer; call again to go on.
        """
        self._parts.mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(max_workers=self._store.workers, thread_name_prefix="download")
        under_way: dict[Future[bool], Wanted] = {}
        try:
            for wanted in files:
                for work in self._works(wanted):
                    under_way[pool.submit(work)] = wanted
            done, _ = wait(under_way, return_when=FIRST_EXCEPTION)
            others = {under_way[each].target: under_way[each] for each in done if not each.result()}
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
        for wanted in others.values():
            _part(self._parts, wanted).unlink(missing_ok=True)
        return list(others.values())

    def _works(self, wanted: Wanted) -> list[Callable[[], bool]]:
        """What is to do for one file; each answers False when the object turns out to be another."""
        part_size = self._store.part_size_for(wanted.stored.size)
        if wanted.stored.size <= part_size:
            return [partial(self._fetch_whole, wanted)]
        progress = _Progress(wanted, self._parts, part_size)
        if not progress.missing:
            return [partial(self._finish, progress)]
        return [partial(self._fetch_range, progress, offset) for offset in sorted(progress.missing)]

    def _fetch_whole(self, wanted: Wanted) -> bool:
        part = _part(self._parts, wanted)
        part.touch()
        fetch = partial(self._fetch, wanted.stored, part, 0, wanted.stored.size)
        return self._persist(fetch) and _place(wanted, part)

    def _fetch_range(self, progress: _Progress, offset: int) -> bool:
        stored = progress.wanted.stored
        end = min(offset + progress.part_size, stored.size)
        if not self._persist(partial(self._fetch, stored, progress.part, offset, end)):
            return False
        return self._finish(progress) if progress.note(offset) else True

    def _finish(self, progress: _Progress) -> bool:
        progress.journal.unlink(missing_ok=True)
        return _place(progress.wanted, progress.part)

    def _persist(self, fetch: Callable[[], None]) -> bool:
        try:
            self._store.persist(fetch, until=self._stopped)
        except _Changed:
            return False
        return True

    def _fetch(self, stored: Stored, part: Path, offset: int, end: int) -> None:
        if offset == end:
            return  # an empty object has no range
        client = self._store.client()
        with translated(f"s3://{self._bucket}/{stored.key}"):
            try:
                answer = client.get_object(
                    Bucket=self._bucket, Key=stored.key, IfMatch=stored.etag, Range=f"bytes={offset}-{end - 1}"
                )
            except client.exceptions.ClientError as error:
                if status_of(error) in (404, 412, 416):
                    raise _Changed from error
                raise
            descriptor = os.open(part, os.O_WRONLY | os.O_CLOEXEC)
            try:
                for chunk in answer["Body"].iter_chunks(BUFFER):
                    os.pwrite(descriptor, chunk, offset)
                    offset += len(chunk)
            finally:
                os.close(descriptor)
        if offset != end:
            message = f"s3://{self._bucket}/{stored.key} ended early; call again to go on."
            raise OutsideUnavailable(message, what=stored.key)


def _part(parts: Path, wanted: Wanted) -> Path:
    return parts / f"{hashlib.sha256(str(wanted.target).encode()).hexdigest()[:32]}.part"


def _place(wanted: Wanted, part: Path) -> bool:
    """Verify the whole file and move it to its place, durably; False when it has other content."""
    if hash_file(part) != wanted.sha256:
        return False
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(wanted.target)
    return True


def hash_object(store: S3Store, bucket: str, stored: Stored) -> str | None:
    """SHA-256 of an object's content, streamed; None when it is gone or is not the listed one any more.

    Raises:
        OutsideUnavailable: the store does not answer.
    """
    try:
        return store.persist(partial(_hash_once, store, bucket, stored))
    except (_Changed, NotFound):
        return None


def _hash_once(store: S3Store, bucket: str, stored: Stored) -> str:
    digester = hashlib.sha256()
    read = 0
    client = store.client()
    with translated(f"s3://{bucket}/{stored.key}"):
        try:
            answer = client.get_object(Bucket=bucket, Key=stored.key, IfMatch=stored.etag)
        except client.exceptions.ClientError as error:
            if status_of(error) == 412:
                raise _Changed from error
            raise
        for chunk in answer["Body"].iter_chunks(BUFFER):
            digester.update(chunk)
            read += len(chunk)
    if read != stored.size:
        raise OutsideUnavailable(f"s3://{bucket}/{stored.key} ended early; call again.", what=stored.key)
    return digester.hexdigest()
