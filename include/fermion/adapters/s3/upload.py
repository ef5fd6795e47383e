"""Uploading a tree: every byte is read once, hashed for the manifest and for the store, and sent by several threads."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fermion.adapters.files.trees import Found, opened
from fermion.adapters.s3.client import S3Store, checksum_of, translated
from fermion.domain.artifacts import FileEntry
from fermion.errors import FermionError

if TYPE_CHECKING:
    from io import FileIO

    from mypy_boto3_s3.type_defs import CompletedPartTypeDef


_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Multipart:
    key: str
    upload_id: str
    parts: list[Future[CompletedPartTypeDef]]


class TreeUpload:
    """One tree on its way to ``s3://bucket/prefix``. At most ``store.workers + 2`` parts are in memory."""

    def __init__(self, store: S3Store, *, bucket: str, prefix: str) -> None:
        self._store = store
        self._bucket = bucket
        self._prefix = prefix
        self._room = threading.BoundedSemaphore(store.workers + 2)
        self._pool = ThreadPoolExecutor(max_workers=store.workers, thread_name_prefix="upload")
        self._singles: list[Future[None]] = []
        self._multiparts: list[_Multipart] = []
        self._error: BaseException | None = None

    def run(self, files: Sequence[Found]) -> tuple[FileEntry, ...]:
        """Upload; the entries with the SHA-256 of what was sent. After an error no upload is left open.

        Raises:
            OutsideBroken: a file was changed meanwhile, or the store refuses.
            OutsideUnavailable: the store does not answer.
        """
        try:
            entries = tuple(self._send(found) for found in files)
            for single in self._singles:
                single.result()
            for multipart in self._multiparts:
                self._complete(multipart)
        except BaseException:
            self._pool.shutdown(cancel_futures=True)
            self._abort()
            raise
        self._pool.shutdown()
        return entries

    def _send(self, found: Found) -> FileEntry:
        key = f"{self._prefix}{found.path}"
        part_size = self._store.part_size_for(found.size)
        with opened(found) as descriptor, open(descriptor, "rb", buffering=0, closefd=False) as file:
            if found.size <= part_size:
                content = _read(file, part_size)
                self._singles.append(self._submit(partial(self._put, key, content)))
                sha256 = hashlib.sha256(content).hexdigest()
            else:
                sha256 = self._send_parts(file, key, part_size)
        return FileEntry(path=found.path, size=found.size, sha256=sha256)

    def _send_parts(self, file: FileIO, key: str, part_size: int) -> str:
        client = self._store.client()
        with translated(self._uri(key)):
            answer = client.create_multipart_upload(Bucket=self._bucket, Key=key, ChecksumAlgorithm="SHA256")
        multipart = _Multipart(key=key, upload_id=answer["UploadId"], parts=[])
        self._multiparts.append(multipart)
        digester = hashlib.sha256()
        while content := _read(file, part_size):
            number = len(multipart.parts) + 1
            multipart.parts.append(self._submit(partial(self._put_part, multipart, number, content)))
            digester.update(content)
        return digester.hexdigest()

    def _submit(self, work: Callable[[], _Result]) -> Future[_Result]:
        self._room.acquire()
        if self._error is not None:
            self._room.release()
            raise self._error

        def run() -> _Result:
            try:
                return work()
            except BaseException as error:
                self._error = error
                raise
            finally:
                self._room.release()

        return self._pool.submit(run)

    def _put(self, key: str, content: bytes) -> None:
        with translated(self._uri(key)):
            self._store.client().put_object(
                Bucket=self._bucket, Key=key, Body=content, ChecksumSHA256=checksum_of(content)
            )

    def _put_part(self, multipart: _Multipart, number: int, content: bytes) -> CompletedPartTypeDef:
        checksum = checksum_of(content)
        with translated(self._uri(multipart.key)):
            answer = self._store.client().upload_part(
                Bucket=self._bucket,
                Key=multipart.key,
                UploadId=multipart.upload_id,
                PartNumber=number,
                Body=content,
                ChecksumSHA256=checksum,
            )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    def _complete(self, multipart: _Multipart) -> None:
        parts = [part.result() for part in multipart.parts]
        with translated(self._uri(multipart.key)):
            self._store.client().complete_multipart_upload(
                Bucket=self._bucket,
                Key=multipart.key,
                UploadId=multipart.upload_id,
                MultipartUpload={"Parts": parts},
            )

    def _abort(self) -> None:
        for multipart in self._multiparts:
            # Best effort: what cannot be aborted now is cleared later, and the first error is the one to tell.
            with contextlib.suppress(FermionError), translated(self._uri(multipart.key)):
                self._store.client().abort_multipart_upload(
                    Bucket=self._bucket, Key=multipart.key, UploadId=multipart.upload_id
                )

    def _uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"


def _read(file: FileIO, size: int) -> bytes:
    """Exactly ``size`` bytes unless the file ends: one raw read may give fewer."""
    content = file.read(size) or b""
    while 0 < len(content) < size and (more := file.read(size - len(content))):
        content += more
    return content
