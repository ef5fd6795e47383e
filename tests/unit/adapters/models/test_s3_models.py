"""What only the model repository on S3 has to keep: uploads of any size, leftovers, a store that cannot be trusted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.awsrequest import AWSResponse
from moto.server import ThreadedMotoServer

from fermion.adapters.models.s3 import S3Models
from fermion.adapters.s3.client import MAX_PARTS, MIB, S3Options, S3Store
from fermion.domain.artifacts import ModelDraft
from fermion.domain.retention import Freed
from fermion.errors import NotFound, OutsideBroken, OutsideUnavailable

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(endpoint: str) -> S3Store:
    options = S3Options(
        endpoint_url=endpoint, region="us-east-1", access_key="test", secret_key="test", attempts=1, tries=1
    )
    return S3Store(options, part_size=5 * MIB, workers=3)


@pytest.fixture
def bucket(store: S3Store) -> str:
    name = f"models-{uuid4().hex[:12]}"
    store.client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def models(store: S3Store, bucket: str) -> S3Models:
    return S3Models(store, bucket=bucket, prefix="/team/models/")


def make_output(tmp_path: Path, **files: int) -> Path:
    folder = tmp_path / "output"
    folder.mkdir(exist_ok=True)
    for name, size in files.items():
        (folder / name).write_bytes(os.urandom(size))
    return folder


def draft(model: str = "digits") -> ModelDraft:
    return ModelDraft(model=model, metrics={"accuracy": 0.97}, lineage={"commit": "c" * 40}, created_at=NOW)


def keys(store: S3Store, bucket: str) -> list[str]:
    return [each.key for each in store.objects(bucket, "")]


def later(hours: float) -> datetime:
    return datetime.now(UTC) + timedelta(hours=hours)


def test_a_version_is_a_manifest_that_names_where_the_files_lie_under_their_own_names(
    models: S3Models, store: S3Store, bucket: str, tmp_path: Path
) -> None:
    version = models.publish(draft("vision/digits"), make_output(tmp_path, weights=10), key="job-1-a1")

    assert version.uri.startswith(f"s3://{bucket}/team/models/vision/digits/.files/")
    assert store.get(bucket, f"{version.uri.removeprefix(f's3://{bucket}/')}/weights") is not None
    assert "team/models/vision/digits/1/manifest.json" in keys(store, bucket)


@pytest.mark.parametrize("size", [0, 1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 17 * MIB])
def test_files_of_every_size_arrive_byte_by_byte(
    models: S3Models, store: S3Store, bucket: str, tmp_path: Path, size: int
) -> None:
    output = make_output(tmp_path, weights=size)
    version = models.publish(draft(), output, key="k")

    content = store.get(bucket, f"{version.uri.removeprefix(f's3://{bucket}/')}/weights")
    assert content == (output / "weights").read_bytes()
    assert version.files[0].sha256 == hashlib.sha256(content).hexdigest()
    assert list(models.verify(version)) == []


def test_many_files_arrive_together(models: S3Models, tmp_path: Path) -> None:
    version = models.publish(draft(), make_output(tmp_path, **{f"f{n}": n for n in range(40)}), key="k")

    assert len(version.files) == 40
    assert list(models.verify(version)) == []


def test_every_part_and_every_object_carries_its_sha256(models: S3Models, store: S3Store, tmp_path: Path) -> None:
    sent: list[str] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        sent.append(params["headers"]["x-amz-checksum-sha256"])

    for operation in ("PutObject", "UploadPart"):
        store.client().meta.events.register(f"before-call.s3.{operation}", note)
    models.publish(draft(), make_output(tmp_path, small=10, big=12 * MIB), key="k")

    assert len(sent) >= 1 + 3
    assert all(len(each) == 44 for each in sent)


def test_parts_grow_before_there_are_too_many(store: S3Store) -> None:
    assert store.part_size_for(1) == 5 * MIB
    huge = 5 << 40
    assert huge / store.part_size_for(huge) <= MAX_PARTS
    assert store.part_size_for(huge) <= 5 << 30


@pytest.mark.parametrize("damage", ["changed", "longer", "gone", "extra"])
def test_every_kind_of_damage_is_found(
    models: S3Models, store: S3Store, bucket: str, tmp_path: Path, damage: str
) -> None:
    version = models.publish(draft(), make_output(tmp_path, weights=10), key="k")
    place = version.uri.removeprefix(f"s3://{bucket}/")
    if damage == "gone":
        store.delete(bucket, [f"{place}/weights"])
    else:
        name = "extra" if damage == "extra" else "weights"
        store.client().put_object(Bucket=bucket, Key=f"{place}/{name}", Body=b"0" * (11 if damage == "longer" else 10))

    (sentence,) = models.verify(version)
    expected = {
        "changed": "weights has sha256",
        "longer": "weights has 11 bytes, the manifest says 10.",
        "gone": "weights is missing.",
        "extra": "extra is not in the manifest.",
    }
    assert sentence.startswith(expected[damage])


def test_a_store_that_ignores_conditional_writes_is_refused(models: S3Models, store: S3Store, tmp_path: Path) -> None:
    def forget_the_condition(params: dict[str, Any], **_: Any) -> None:
        params["headers"].pop("If-None-Match", None)

    store.client().meta.events.register("before-call.s3.PutObject", forget_the_condition)

    with pytest.raises(OutsideBroken, match="ignores If-None-Match"):
        models.publish(draft(), make_output(tmp_path, weights=10), key="k")
    assert list(models.models()) == []


@pytest.mark.parametrize(("operation", "after"), [("UploadPart", 1), ("PutObject", 2), ("CompleteMultipartUpload", 0)])
def test_a_store_that_fails_in_the_middle_gets_no_version_and_no_open_upload(
    models: S3Models, store: S3Store, bucket: str, tmp_path: Path, operation: str, after: int
) -> None:
    left = [after]

    def busy(**_: Any) -> AWSResponse | None:
        left[0] -= 1
        return AWSResponse("", 503, {}, _Empty()) if left[0] < 0 else None

    events = store.client().meta.events
    events.register(f"before-send.s3.{operation}", busy, unique_id="busy")
    output = make_output(tmp_path, big=12 * MIB, small=10)
    with pytest.raises(OutsideUnavailable, match="503"):
        models.publish(draft(), output, key="k")
    events.unregister(f"before-send.s3.{operation}", unique_id="busy")

    assert list(models.models()) == []
    assert store.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []
    assert models.publish(draft(), output, key="k").number == 1


def test_clearing_takes_only_old_things_that_belong_to_no_version(
    models: S3Models, store: S3Store, bucket: str, tmp_path: Path
) -> None:
    version = models.publish(draft(), make_output(tmp_path, weights=10), key="k")
    client = store.client()
    client.put_object(Bucket=bucket, Key="team/models/digits/.files/dead/weights", Body=b"1")
    client.put_object(Bucket=bucket, Key="team/other/.files-of-somebody", Body=b"1")
    day = timedelta(days=1)

    assert models.clear_leftovers(older_than=day, now=later(1)) == Freed()
    # This server says of every upload that it began in 2010, so their age is tried on a real store only.
    client.create_multipart_upload(Bucket=bucket, Key="team/models/digits/.files/dead/big")
    client.create_multipart_upload(Bucket=bucket, Key="team/models/a-backup-of-somebody")
    assert models.clear_leftovers(older_than=day, now=later(25)) == Freed(items=2, size_bytes=1)
    assert list(models.verify(version)) == []
    assert [each["Key"] for each in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [
        "team/models/a-backup-of-somebody"
    ]


def test_a_bucket_that_is_not_there_is_told(store: S3Store, tmp_path: Path) -> None:
    missing = S3Models(store, bucket="no-such-bucket")

    with pytest.raises(NotFound, match="s3://no-such-bucket"):
        missing.models()
    with pytest.raises(NotFound):
        missing.publish(draft(), make_output(tmp_path, weights=1), key="k")


class _Empty:
    """The body of an answer that has none."""

    def stream(self) -> Iterator[bytes]:
        yield from ()
