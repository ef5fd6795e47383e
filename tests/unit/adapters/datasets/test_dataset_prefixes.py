"""Datasets below an S3 prefix: versions, resumed and verified staging, errors. Against a moto server on loopback."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

from fermion.adapters.datasets.cache import DatasetCache, entry_name
from fermion.adapters.datasets.origin import Origins
from fermion.adapters.datasets.prefix import Prefixes
from fermion.adapters.files.shelf import Shelf
from fermion.adapters.s3.client import MIB, S3Options, S3Store
from fermion.domain.artifacts import FileEntry, tree_checksum
from fermion.errors import OutsideBroken, OutsideUnavailable, RequestRefused

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def make_store(endpoint: str, **changes: object) -> S3Store:
    options: dict[str, object] = {
        "region": "us-east-1",
        "access_key": "test",
        "secret_key": "test",
        "endpoint_url": endpoint,
    }
    options |= {"attempts": 1, "tries": 2, "first_wait_s": 0.0, **changes}
    return S3Store(S3Options(**options), part_size=5 * MIB, workers=4)  # type: ignore[arg-type]


class Bucket:
    """One bucket of its own, what was asked of it, and the dataset below ``data/digits``."""

    def __init__(self, endpoint: str) -> None:
        self.store = make_store(endpoint)
        self.name = f"data-{uuid4().hex[:12]}"
        self.uri = f"s3://{self.name}/data/digits"
        self.store.client().create_bucket(Bucket=self.name)
        self.gets: list[str] = []
        self.store.client().meta.events.register("before-call.s3.GetObject", self._note)

    def _note(self, params: dict[str, dict[str, str]], **_: object) -> None:
        self.gets.append(params["headers"].get("Range", "whole"))

    def put(self, path: str, content: bytes) -> None:
        self.store.client().put_object(Bucket=self.name, Key=f"data/digits/{path}", Body=content)


@pytest.fixture
def bucket(endpoint: str) -> Bucket:
    bucket = Bucket(endpoint)
    bucket.put("train/a.csv", b"1,2\n")
    bucket.put("labels.txt", b"one")
    bucket.put("empty", b"")
    return bucket


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "cache", grace=timedelta(0))


def entry(path: str, content: bytes) -> FileEntry:
    return FileEntry(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def codes(error: RequestRefused) -> list[str]:
    return [problem.code for problem in error.problems]


def test_a_version_lists_every_object_below_the_prefix(bucket: Bucket) -> None:
    bucket.put("train/", b"")
    bucket.store.client().put_object(Bucket=bucket.name, Key="data/digits-2/other", Body=b"other")

    version = Prefixes(bucket.store).scan("digits", bucket.uri, now=NOW)

    assert version.files == (entry("empty", b""), entry("labels.txt", b"one"), entry("train/a.csv", b"1,2\n"))
    assert version.checksum == tree_checksum(version.files)
    assert Prefixes(bucket.store).scan("digits", f"{bucket.uri}/", now=NOW).checksum == version.checksum


def test_a_version_equals_that_of_a_folder_with_the_same_files(bucket: Bucket, tmp_path: Path) -> None:
    from fermion.adapters.datasets.folder import Folders

    folder = tmp_path / "digits"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.csv").write_text("1,2\n")
    (folder / "labels.txt").write_text("one")
    (folder / "empty").touch()
    origins = Origins({"file": Folders([tmp_path]), "s3": Prefixes(bucket.store)})

    assert (
        origins.scan("digits", bucket.uri, now=NOW).checksum
        == origins.scan("digits", folder.as_uri(), now=NOW).checksum
    )


def test_a_second_scan_reads_only_objects_that_changed(bucket: Bucket, tmp_path: Path) -> None:
    prefixes = Prefixes(bucket.store, index=tmp_path / "index")
    first = prefixes.scan("digits", bucket.uri, now=NOW)
    assert len(bucket.gets) == 3

    assert prefixes.scan("digits", bucket.uri, now=NOW) == first
    assert len(bucket.gets) == 3

    bucket.put("labels.txt", b"two")
    assert prefixes.scan("digits", bucket.uri, now=NOW).checksum != first.checksum
    assert len(bucket.gets) == 4


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("s3://", "bad_uri"),
        ("s3:///data", "bad_uri"),
        ("s3://key:secret@bucket/data", "bad_uri"),
        ("s3://other-bucket/data", "outside_roots"),
        ("s3://{bucket}-2/data", "outside_roots"),
        ("s3://{bucket}/data-2/digits", "outside_roots"),
        ("s3://{bucket}/data/none", "empty"),
        ("s3://no-such-bucket/data", "not_found"),
    ],
)
def test_a_uri_that_is_no_allowed_prefix_is_refused(bucket: Bucket, uri: str, code: str) -> None:
    prefixes = Prefixes(bucket.store, allowed=[f"{bucket.name}/data", "no-such-bucket"])

    with pytest.raises(RequestRefused) as caught:
        prefixes.scan("digits", uri.format(bucket=bucket.name), now=NOW)

    assert codes(caught.value) == [code]
    assert ("data.roots in config/fermion.yaml" in str(caught.value)) is (code == "outside_roots")


def test_keys_that_cannot_be_files_are_all_named(bucket: Bucket) -> None:
    for path in ("a//b", "../up", "labels.txt/below", "a/./b"):
        bucket.put(path, b"x")

    with pytest.raises(RequestRefused) as caught:
        Prefixes(bucket.store).scan("digits", bucket.uri, now=NOW)

    assert sorted(codes(caught.value)) == ["bad_name", "bad_name", "bad_name", "file_and_folder"]


def test_staging_brings_every_byte_in_ranges(bucket: Bucket, shelf: Shelf) -> None:
    big = bytes(range(256)) * (12 * MIB // 256) + b"tail"
    bucket.put("big.bin", big)
    prefixes = Prefixes(bucket.store)
    version = prefixes.scan("digits", bucket.uri, now=NOW)
    bucket.gets.clear()

    folder = Path(DatasetCache(shelf, prefixes).stage(version))

    assert (folder / "big.bin").read_bytes() == big
    assert (folder / "train" / "a.csv").read_bytes() == b"1,2\n"
    assert (folder / "empty").read_bytes() == b""
    assert len([each for each in bucket.gets if each != "whole"]) == 3 + 2
    assert (folder / "big.bin").stat().st_mode & 0o777 == 0o444


def test_ranges_that_an_earlier_try_wrote_are_not_fetched_again(bucket: Bucket, shelf: Shelf, tmp_path: Path) -> None:
    big = bytes(range(256)) * (12 * MIB // 256)
    bucket.put("big.bin", big)
    prefixes = Prefixes(bucket.store)
    version = prefixes.scan("digits", bucket.uri, now=NOW)
    parts = shelf.root / ".staging" / entry_name(version.checksum) / "parts"
    _fail_after(bucket, ranges=2)
    with pytest.raises(OutsideUnavailable):
        DatasetCache(shelf, prefixes).stage(version)
    (journal,) = parts.glob("*.done")
    done = len(journal.read_text().splitlines()) - 1
    _mend(bucket)
    bucket.gets.clear()

    folder = Path(DatasetCache(shelf, prefixes).stage(version))

    assert (folder / "big.bin").read_bytes() == big
    assert 1 <= done <= 2
    assert len([each for each in bucket.gets if _is_big(each)]) == 3 - done


def test_a_part_that_was_damaged_on_disk_is_noticed_and_fetched_anew(bucket: Bucket, shelf: Shelf) -> None:
    bucket.put("big.bin", b"\x01" * (12 * MIB))
    prefixes = Prefixes(bucket.store)
    version = prefixes.scan("digits", bucket.uri, now=NOW)
    _fail_after(bucket, ranges=2)
    with pytest.raises(OutsideUnavailable):
        DatasetCache(shelf, prefixes).stage(version)
    _mend(bucket)
    (part,) = (shelf.root / ".staging" / entry_name(version.checksum) / "parts").glob("*.part")
    (journal,) = part.parent.glob("*.done")
    journal.write_text(journal.read_text().splitlines()[0] + "\n0\n")
    part.write_bytes(b"\x02" * (12 * MIB))

    with pytest.raises(OutsideBroken, match=r"big\.bin has other content"):
        DatasetCache(shelf, prefixes).stage(version)
    assert (Path(DatasetCache(shelf, prefixes).stage(version)) / "big.bin").stat().st_size == 12 * MIB


def test_an_object_that_was_replaced_is_named(bucket: Bucket, shelf: Shelf) -> None:
    prefixes = Prefixes(bucket.store)
    version = prefixes.scan("digits", bucket.uri, now=NOW)
    bucket.put("labels.txt", b"two")
    bucket.put("train/a.csv", b"1,2,3\n")
    bucket.store.client().delete_object(Bucket=bucket.name, Key="data/digits/empty")

    with pytest.raises(OutsideBroken) as caught:
        DatasetCache(shelf, prefixes).stage(version)

    for sentence in ("labels.txt has other content", "train/a.csv has 6 bytes, the version 4", "empty is gone"):
        assert sentence in caught.value.message
    assert [path.name for path in shelf.root.iterdir() if not path.name.startswith(".")] == []


def test_a_stager_killed_in_the_middle_leaves_nothing_visible(
    bucket: Bucket, endpoint: str, shelf: Shelf, tmp_path: Path
) -> None:
    bucket.put("big.bin", b"\x03" * (60 * MIB))
    program = (
        "import sys; from pathlib import Path; from datetime import datetime, UTC\n"
        "from fermion.adapters.datasets.cache import DatasetCache; from fermion.adapters.datasets.prefix import Prefixes\n"
        "from fermion.adapters.files.shelf import Shelf; from fermion.adapters.s3.client import *\n"
        "o = S3Options(endpoint_url=sys.argv[1], region='us-east-1', access_key='test', secret_key='test')\n"
        "origin = Prefixes(S3Store(o, part_size=5 << 20, workers=1))\n"
        "version = origin.scan('digits', sys.argv[2], now=datetime.now(UTC))\n"
        "DatasetCache(Shelf(Path(sys.argv[3])), origin).stage(version)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, endpoint, bucket.uri, str(shelf.root)])
    until = time.monotonic() + 60
    while not _written(shelf) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.kill()
    process.wait(timeout=10)

    assert [path.name for path in shelf.root.iterdir() if not path.name.startswith(".")] == []
    already = _written(shelf)
    assert already >= 1
    prefixes = Prefixes(bucket.store)
    version = prefixes.scan("digits", bucket.uri, now=NOW)
    bucket.gets.clear()
    folder = Path(DatasetCache(shelf, prefixes).stage(version))
    assert (folder / "big.bin").stat().st_size == 60 * MIB
    assert len([each for each in bucket.gets if _is_big(each)]) <= 12 - already


def test_a_store_that_does_not_answer_is_unavailable_and_says_where(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = make_store(f"http://127.0.0.1:{port}")

    with pytest.raises(OutsideUnavailable, match="s3://bucket/data") as caught:
        Prefixes(store).scan("digits", "s3://bucket/data", now=NOW)
    assert caught.value.retryable, "it may answer later"


def test_secrets_of_the_store_are_in_no_text_of_it() -> None:
    options = S3Options(access_key="AKIA", secret_key="very-secret", session_token="also-secret")

    assert "secret" not in repr(options).replace("secret_key", "").replace("session_token", "")


def _is_big(asked: str) -> bool:
    start, _, end = asked.removeprefix("bytes=").partition("-")
    return end != "" and int(end) - int(start) > 1000


def _written(shelf: Shelf) -> int:
    for journal in shelf.root.glob(".staging/*/parts/*.done"):
        lines = journal.read_text().splitlines()[1:] if journal.exists() else []
        if len(lines) >= 1 and any(part.stat().st_size > MIB for part in journal.parent.glob(f"{journal.stem}.part")):
            return len(lines)
    return 0


def _fail_after(bucket: Bucket, *, ranges: int) -> None:
    """From now on the store is busy after that many ranges of a big object."""
    left = [ranges]

    def busy(request: object, **_: object) -> object:
        from botocore.awsrequest import AWSResponse

        asked = str(getattr(request, "headers", {}).get("Range", b""), "ascii") if hasattr(request, "headers") else ""
        if not _is_big(asked):
            return None
        left[0] -= 1
        return AWSResponse("", 503, {}, _Empty()) if left[0] < 0 else None

    bucket.store.client().meta.events.register("before-send.s3.GetObject", busy, unique_id="busy")


class _Empty:
    """The body of an answer that has none."""

    def stream(self) -> Iterator[bytes]:
        yield from ()

    def read(self) -> bytes:
        return b""


def _mend(bucket: Bucket) -> None:
    bucket.store.client().meta.events.unregister("before-send.s3.GetObject", unique_id="busy")
