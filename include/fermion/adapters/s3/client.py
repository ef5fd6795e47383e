"""The S3 client, made lazily with bounded waits, and the few small operations that are used of it.

Vendor errors end here: everything that leaves is an error of the platform.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from fermion.errors import FermionError, NotFound, OutsideBroken, OutsideUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

_Result = TypeVar("_Result")

MIB = 1 << 20
MAX_PARTS = 9_000
"""S3 allows 10,000 parts of one upload; parts grow beyond ``part_size`` before that is reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Options:
    """Where the store is and who asks. None: what boto3 finds by itself (its own configuration files, roles).

    ``attempts`` is how often one request is tried in all when the store does not answer or is busy; an answer that
    breaks off is asked for again ``tries`` times, first after ``first_wait_s`` and then after twice that each time.
    """

    endpoint_url: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    ca_bundle: str | None = None
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    attempts: int = 6
    tries: int = 5
    first_wait_s: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One object as listed."""

    key: str
    size: int
    etag: str
    changed_at: datetime


class S3Store:
    """One store, and how transfers with it are cut: bytes a part (at least 5 MiB) and requests at a time."""

    def __init__(self, options: S3Options, *, part_size: int = 16 * MIB, workers: int = 8) -> None:
        self.options = options
        self.part_size = max(part_size, 5 * MIB)
        self.workers = workers
        self._lock = threading.Lock()
        self._client: tuple[int, S3Client] | None = None

    def client(self) -> S3Client:
        """The boto3 client, shared by this process's threads; a forked child makes its own."""
        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                self._client = (os.getpid(), self._make())
            return self._client[1]

    def _make(self) -> S3Client:
        import boto3
        from botocore.config import Config

        options = self.options
        config = Config(
            signature_version="s3v4",
            connect_timeout=options.connect_timeout_s,
            read_timeout=options.read_timeout_s,
            max_pool_connections=self.workers + 2,
            retries={"mode": "standard", "total_max_attempts": options.attempts},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # Bodies carry their SHA-256 in a signed header, so the signature need not hash them once more.
            s3={
                "payload_signing_enabled": False,
                "addressing_style": "path" if options.endpoint_url else "auto",
            },
        )
        session = boto3.session.Session(
            aws_access_key_id=options.access_key,
            aws_secret_access_key=options.secret_key,
            aws_session_token=options.session_token,
            region_name=options.region,
        )
        return session.client("s3", endpoint_url=options.endpoint_url, verify=options.ca_bundle, config=config)

    def part_size_for(self, size: int) -> int:
        """Bytes a part of an object of that size."""
        return max(self.part_size, -(-size // MAX_PARTS // MIB) * MIB)

    def persist(self, work: Callable[[], _Result], *, until: threading.Event | None = None) -> _Result:
        """What ``work`` answers, tried again while the store does not; not any more once ``until`` is set."""
        for done in range(self.options.tries - 1):
            try:
                return work()
            except OutsideUnavailable as error:
                if not error.retryable or (until is not None and until.is_set()):
                    raise
            time.sleep(self.options.first_wait_s * 2**done)
        return work()

    # --- small operations ---

    def get(self, bucket: str, key: str) -> bytes | None:
        """A small object's content, or None."""
        with translated(f"s3://{bucket}/{key}"):
            try:
                return self.client().get_object(Bucket=bucket, Key=key)["Body"].read()
            except self.client().exceptions.NoSuchKey:
                return None

    def create(self, bucket: str, key: str, content: bytes) -> bool:
        """Write a small object unless there is one; False when there is. Only one of many callers gets True."""
        while True:
            with translated(f"s3://{bucket}/{key}"):
                try:
                    self.client().put_object(
                        Bucket=bucket, Key=key, Body=content, IfNoneMatch="*", ChecksumSHA256=checksum_of(content)
                    )
                except self.client().exceptions.ClientError as error:
                    status = status_of(error)
                    if status == 412:
                        return False
                    if status == 409:  # another conditional write of this key is under way
                        continue
                    raise
                return True

    def objects(self, bucket: str, prefix: str) -> Iterator[Stored]:
        """Every object whose key begins so, in order."""
        with translated(f"s3://{bucket}/{prefix}"):
            for page in self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for each in page.get("Contents", ()):
                    yield Stored(key=each["Key"], size=each["Size"], etag=each["ETag"], changed_at=each["LastModified"])

    def folders(self, bucket: str, prefix: str) -> list[str]:
        """The names directly below ``prefix`` (which ends in a slash, or is empty) that have something below them."""
        found = []
        with translated(f"s3://{bucket}/{prefix}"):
            pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
            for page in pages:
                found += [each["Prefix"][len(prefix) :].rstrip("/") for each in page.get("CommonPrefixes", ())]
        return found

    def delete(self, bucket: str, keys: list[str]) -> None:
        """Delete objects; those that are gone are fine."""
        with translated(f"s3://{bucket}"):
            for start in range(0, len(keys), 1000):
                listed: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys[start : start + 1000]]
                self.client().delete_objects(Bucket=bucket, Delete={"Objects": listed, "Quiet": True})


def checksum_of(content: bytes) -> str:
    """The SHA-256 as S3 writes it."""
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def status_of(error: Any) -> int:
    """The HTTP status of a botocore ``ClientError``."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn botocore's errors into the platform's; ``what`` is the URI that was asked for."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from botocore.exceptions import ConnectionError as NoConnection

    try:
        yield
    except ClientError as error:
        raise _of_answer(error, what) from error
    except (NoConnection, HTTPClientError) as error:  # no connection, a time-out, a torn answer, a certificate
        raise OutsideUnavailable(
            f"{what} cannot be reached: {error}. Call again when the store answers.", what=what
        ) from error
    except BotoCoreError as error:  # no credentials, parameters that cannot be sent, a bad configuration
        raise OutsideBroken(f"{what} cannot be asked for: {error}. Correct the store's settings.", what=what) from error


def _of_answer(error: Any, what: str) -> FermionError:
    details = error.response.get("Error", {})
    code, status = str(details.get("Code", "")), status_of(error)
    said = f"{what}: the store answers {status} {code}"
    if status == 404 or code in ("NoSuchBucket", "NoSuchKey"):
        return NotFound(f"{said}; it does not exist. Correct the name, or create it.", what=what)
    if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout", "RequestTimeTooSkewed"):
        return OutsideUnavailable(f"{said}; it is busy or out of order. Call again later.", what=what)
    if status in (401, 403):
        return OutsideBroken(f"{said}; the credentials do not allow it. Correct them or their rights.", what=what)
    return OutsideBroken(f"{said} ({details.get('Message', 'no message')}).", what=what)
