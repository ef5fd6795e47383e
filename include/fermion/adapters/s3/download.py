"""Downloading objects: ranges by several threads, continued where an earlier try ended, each file verified whole.

A file that is under way is two files in a folder for parts: its bytes so far, at their places, and a journal with one
line for each range that is written. Only the objects that the caller listed are read: every request names their ETag.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fermion.adapters.files.trees import BUFFER, hash_file
from fermion.adapters.s3.client import S3Store, Stored, status_of, translated
from fermion.errors import NotFound, OutsideUnavailable

_TRIES = 5
_FIRST_WAIT_S = 0.2


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
        name = hashlib.sha256(str(wanted.target).encode()).hexdigest()[:32]
        self.wanted = wanted
        self.part = parts / f"{name}.part"
        self.journal = parts / f"{name}.done"
        self.part_size = part_size
        self._lock = threading.Lock()
        self._header = f"{wanted.stored.etag} {wanted.stored.size} {part_size}"
        self.missing = self._begin()

    def _begin(self) -> set[int]:
        """The offsets of the ranges that are still to fetch."""
        size = self.wanted.stored.size
        offsets = set(range(0, size, self.part_size)) or {0}
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

    def forget(self) -> None:
        """Delete what was fetched."""
        self.part.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)


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
        files_under_way: dict[Future[bool], _Progress] = {}
        try:
            for wanted in files:
                progress = _Progress(wanted, self._parts, self._store.part_size_for(wanted.stored.size))
                for work in self._works(progress):
                    files_under_way[pool.submit(work)] = progress
            done, _ = wait(files_under_way, return_when=FIRST_EXCEPTION)
            others = {id(files_under_way[each]): files_under_way[each] for each in done if not each.result()}
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
        for progress in others.values():
            progress.forget()
        return [progress.wanted for progress in others.values()]

    def _works(self, progress: _Progress) -> list[Callable[[], bool]]:
        """What is to do for one file; each answers False when the object turns out to be another."""
        if not progress.missing:
            return [partial(self._finish, progress)]
        return [partial(self._fetch, progress, offset) for offset in sorted(progress.missing)]

    def _fetch(self, progress: _Progress, offset: int) -> bool:
        for left in reversed(range(_TRIES)):
            try:
                self._fetch_once(progress, offset)
                break
            except _Changed:
                return False
            except OutsideUnavailable:
                if left == 0 or self._stopped.is_set():
                    raise
                time.sleep(_FIRST_WAIT_S * 2 ** (_TRIES - 1 - left))
        return self._finish(progress) if progress.note(offset) else True

    def _fetch_once(self, progress: _Progress, offset: int) -> None:
        stored = progress.wanted.stored
        end = min(offset + progress.part_size, stored.size)
        if end == offset:
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
            descriptor = os.open(progress.part, os.O_WRONLY | os.O_CLOEXEC)
            try:
                for chunk in answer["Body"].iter_chunks(BUFFER):
                    os.pwrite(descriptor, chunk, offset)
                    offset += len(chunk)
            finally:
                os.close(descriptor)
        if offset != end:
            raise OutsideUnavailable(
                f"s3://{self._bucket}/{stored.key} ended early; call again to go on.", what=stored.key
            )

    def _finish(self, progress: _Progress) -> bool:
        if hash_file(progress.part) != progress.wanted.sha256:
            return False
        target = progress.wanted.target
        target.parent.mkdir(parents=True, exist_ok=True)
        with progress.part.open("rb") as file:
            os.fsync(file.fileno())
        progress.part.replace(target)
        progress.forget()
        return True


def hash_object(store: S3Store, bucket: str, stored: Stored) -> str | None:
    """SHA-256 of an object's content, streamed; None when it is gone or is not the listed one any more.

    Raises:
        OutsideUnavailable: the store does not answer.
    """
    for left in reversed(range(_TRIES)):
        try:
            return _hash_once(store, bucket, stored)
        except (_Changed, NotFound):
            return None
        except OutsideUnavailable as error:
            if left == 0 or not error.retryable:
                raise
            time.sleep(_FIRST_WAIT_S * 2 ** (_TRIES - 1 - left))
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
